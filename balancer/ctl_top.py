"""`balancerctl top` in a terminal: keys in, screens out. What is shown is console/top.py's.

RULES: the terminal is put back as it was, however this ends. Without `rich` (ctl_rich.py) the same screen is plain text,
and its foot says how to get the other.
"""

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from balancer.config.streams import is_terminal
from balancer.console.table import columns_text
from balancer.console.top import Quit, Screen, Top, visible
from balancer.eventloop.log_format import printable

EVERY = 1.0  # seconds between two statuses
NO_SIZE = (80, 24)  # where a terminal does not know its own, as a serial line
ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # end like `q`, with the terminal as it was
INSTALL = "plain: pip install 'prefork-balancer[top]' draws it with colours"
SEQUENCES = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down"}
NAMES = {"\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace", "\x1b": "escape"}
CLEAR, ENTER, LEAVE = "\x1b[H\x1b[2J", "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
Ask = Callable[[Sequence[str]], dict[str, Any]]


class Terminal(Protocol):
    """Where screens are drawn."""

    def draw(self, top: Top) -> None: ...


def run(
    ask: Ask,
    problem: type[Exception],
    screen: AbstractContextManager[Terminal],
    hint: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Show what `ask(words)` answers until `q`; return the exit code. `problem` is what `ask` raises where nobody
    answers; the first time it is passed on. `hint` is said first."""
    status = ask(["status"])
    with ended_by_signals(), screen as terminal, keyboard() as fd:
        top = Top(hint)
        top.feed(status, clock())
        due = clock() + EVERY
        while True:
            terminal.draw(top)
            try:
                for key in keys(fd, max(0.0, due - clock())):
                    if (words := top.press(key)) is not None:
                        top.answered(ask(words))
                        due = 0.0
                if clock() >= due:
                    top.feed(ask(["status"]), clock())
                    due = clock() + EVERY
            except Quit:
                return 0
            except problem as error:  # a balancer that is being replaced comes back
                top.message = str(error)
                due = clock() + EVERY


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP raise SystemExit with the code that a shell reports for them."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def keyboard() -> Iterator[int]:
    """The descriptor of the keyboard, each key at once and not echoed; -1 without one. Ctrl-Z is off: a shell would get
    the terminal without echo and on the other screen."""
    if not is_terminal(sys.stdin):
        yield -1
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        modes = termios.tcgetattr(fd)
        modes[6][termios.VSUSP] = os.fpathconf(fd, "PC_VDISABLE").to_bytes(1, "little")
        termios.tcsetattr(fd, termios.TCSADRAIN, modes)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def keys(fd: int, seconds: float) -> list[str]:
    """The keys pressed within so many seconds, as soon as there are some. Raises Quit when the terminal is gone."""
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, select.POLLIN)
    if not poll.poll(seconds * 1000):
        return []
    text = os.read(fd, 1024).decode("utf-8", "ignore")
    if not text:
        raise Quit
    return names_of(text)


def names_of(text: str) -> list[str]:
    """Keys by name: what a terminal sends for an arrow is one key."""
    found = []
    while text:
        size = 3 if text[:3] in SEQUENCES else 1
        if (
            text[0] == "\x1b" and text[1:2] in ("[", "O") and size == 1
        ):  # another function key: no key of ours
            rest = text[2:].lstrip("0123456789;")
            text = rest[1:]
            continue
        found.append(SEQUENCES.get(text[:size]) or NAMES.get(text[0], text[0]))
        text = text[size:]
    return found


class PlainTerminal:
    """Text, the screen cleared before each."""

    def __enter__(self) -> "PlainTerminal":
        sys.stdout.write(ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()

    def draw(self, top: Top) -> None:
        columns, lines = size_of(sys.stdout.fileno())
        sys.stdout.write(CLEAR + "\r\n".join(plain_lines(top.screen(columns), columns, lines)))
        sys.stdout.flush()


def size_of(fd: int) -> tuple[int, int]:
    """Columns and lines of a terminal."""
    columns, lines = os.get_terminal_size(fd)
    return columns or NO_SIZE[0], lines or NO_SIZE[1]


def plain_lines(screen: Screen, columns: int, lines: int) -> list[str]:
    """A screen as text, within its size; the selected row begins with >."""
    rows = visible(screen, lines)
    table = columns_text(screen.head, [row.cells for _, row in rows], False)
    marks = [" ", *(">" if place == screen.selected else " " for place, _ in rows)]
    shown = [*screen.title, *(f"{mark}{line}" for mark, line in zip(marks, table, strict=True))]
    shown += [""] * (lines - 1 - len(shown))
    return [printable(line)[:columns] for line in (*shown[: lines - 1], screen.foot)]


def once(status: Mapping[str, Any], columns: int) -> str:
    """One screen as text, where there is no terminal: every view, the whole of it."""
    top = Top()
    top.feed(status, 0.0)
    found: list[str] = [*top.screen(columns).title[:3]]
    for view in ("listeners", "pools", "backends", "workers", "events"):
        top.view = view
        screen = top.screen(columns)
        found += ["", *columns_text(screen.head, [row.cells for row in screen.rows], False)]
    return "\n".join(printable(line) for line in found)
