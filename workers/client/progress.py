"""Progress of a run on standard error: a bar on a terminal, a line every few seconds elsewhere.

RULES: making the text is pure; only `Progress` writes, and a failed write never fails the run. tqdm makes the bar: times,
sizes, and a cut to the width of the terminal by columns. It is imported when a bar is to be shown (38 ms), and only its
pure function is used, because a bar object of it starts a thread.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass, field

from balancer.config.streams import is_terminal
from workers.client.report import printable

BAR_EVERY = 0.1  # seconds
LINE_EVERY = 5.0
COLUMNS = 80  # of a terminal that does not tell


@dataclass(frozen=True, slots=True)
class ProgressState:
    """Where a run is. `done`, `total`: pictures; `bytes_done`: of their sources; `seconds` since the start."""

    done: int
    total: int
    failed: int
    bytes_done: int
    seconds: float
    servers: Counter[str] = field(default_factory=Counter)


def bar(state: ProgressState, width: int, is_ascii: bool = False) -> str:
    """One line of at most `width` columns. What matters most is on the left: a narrow line is cut on the right."""
    from tqdm.std import tqdm

    failed = f" {state.failed} failed" if state.failed else ""
    text = tqdm.format_meter(
        state.done,
        state.total,
        state.seconds,
        ncols=width,
        ascii=is_ascii,
        unit="",
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
        + failed
        + " {remaining} left {rate_noinv_fmt}{postfix}",
        postfix=" ".join([tqdm.format_sizeof(state.bytes_done, "B"), *_servers(state.servers, 4)]),
    )
    return str(text)


def line(state: ProgressState) -> str:
    """The same for a log: `done 120/300 failed 0 bytes 1200000 rate 24.1/s left 8 s`."""
    rate = state.done / state.seconds if state.seconds > 0 else 0.0
    left = f"{(state.total - state.done) / rate:.0f} s" if rate else "unknown"
    text = f"done {state.done}/{state.total} failed {state.failed} bytes {state.bytes_done} rate {rate:.1f}/s left {left}"
    return " ".join([text, *_servers(state.servers, 8)])


def _servers(servers: Counter[str], most: int) -> list[str]:
    return [f"{printable(name) or '(unnamed)'}:{count}" for name, count in servers.most_common(most)]


class Progress:
    """Writes the progress to standard error."""

    def __init__(self) -> None:
        self._is_terminal = is_terminal(sys.stderr)
        self._is_ascii = self._is_terminal and not _can_write(sys.stderr.encoding)
        self.every = BAR_EVERY if self._is_terminal else LINE_EVERY

    def show(self, state: ProgressState) -> None:
        """Write the current state."""
        if self._is_terminal:
            self._write("\r\x1b[K" + bar(state, _columns(), self._is_ascii))
        else:
            self._write(line(state) + "\n")

    def finish(self) -> None:
        """Clear the bar of a terminal."""
        if self._is_terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            if sys.stderr is not None:
                os.write(sys.stderr.fileno(), text.encode(sys.stderr.encoding, "backslashreplace"))
        except (OSError, ValueError):
            pass


def _columns() -> int:
    """Columns of the terminal that the bar is written to, which standard output need not be; the last one stays free,
    because some terminals wrap there."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max((columns or COLUMNS) - 1, 1)


def _can_write(encoding: str) -> bool:
    try:
        "\u258f\u2588".encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True
