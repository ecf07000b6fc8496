"""Progress of a run on standard error: a bar on a terminal, a line every few seconds elsewhere.

RULES: making the text is pure; only `Progress` writes, and a failed write never fails the run.
"""

import os
import shutil
import sys
from collections import Counter

from balancer.config.streams import is_terminal
from workers.client.report import printable

BAR_EVERY = 0.1  # seconds
LINE_EVERY = 5.0


def bar(done: int, total: int, failed: int, seconds: float, servers: Counter[str], width: int) -> str:
    """One line of at most `width` columns: bar, count, rate, time left, pictures per server."""
    share = done / total if total else 1.0
    rate = done / seconds if seconds > 0 else 0.0
    left = f"{(total - done) / rate:.0f} s left" if rate else "waiting"
    text = f" {done}/{total} {rate:.1f}/s {left}"
    if failed:
        text += f" {failed} failed"
    for name, count in servers.most_common(4):
        text += f" {printable(name) or '(unnamed)'}:{count}"
    room = max(10, min(40, width - len(text) - 3))
    full = int(share * room)
    return ("[" + "#" * full + "-" * (room - full) + "]" + text)[: max(width - 1, 1)]


def line(done: int, total: int, failed: int, seconds: float, servers: Counter[str]) -> str:
    """The same for a log: `done 120/300 failed 0 rate 24.1/s left 8 s`."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f"{(total - done) / rate:.0f} s" if rate else "unknown"
    names = " ".join(f"{printable(name) or '(unnamed)'}:{count}" for name, count in servers.most_common(8))
    return f"done {done}/{total} failed {failed} rate {rate:.1f}/s left {left} {names}".rstrip()


class Progress:
    """Writes the progress to standard error."""

    def __init__(self, total: int, now: float) -> None:
        self._total = total
        self._started_at = now
        self._is_terminal = is_terminal(sys.stderr)
        self.every = BAR_EVERY if self._is_terminal else LINE_EVERY

    def show(self, done: int, failed: int, servers: Counter[str], now: float) -> None:
        """Write the current state."""
        seconds = now - self._started_at
        if self._is_terminal:
            width = shutil.get_terminal_size().columns
            self._write("\r\x1b[K" + bar(done, self._total, failed, seconds, servers, width))
        else:
            self._write(line(done, self._total, failed, seconds, servers) + "\n")

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
