"""The balancer with loops that note their longest turns, and what they have noted. Run as the balancer:

    TURNS=DIRECTORY python -m tests.system.turns OPTIONS...

RULES: each process maps a file of its own in the directory, named after its pid. The loop of the balancer itself
measures nothing: two readings of clocks a turn would be a cost for every message.
"""

import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from balancer import __main__ as program
from balancer.eventloop.loop import LONGEST_WAIT, Loop
from balancer.prefork import child

FIGURES = struct.Struct("=qddd")
WORDS = 500  # bytes for what the longest turn has called
MODULE = "tests.system.turns"


class Turns(NamedTuple):
    """Seconds. `cpu` and `wall`: the longest turn by either clock, the wait for events left out. `late`: the most that
    the loop was late for a timer, and so for a heartbeat. `called`: what the turn of `cpu` did, its timers excepted."""

    count: int
    cpu: float
    wall: float
    late: float
    called: str


class TimedLoop(Loop):
    """Notes each turn that is longer than those before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._poll_kernel, self._poll = self._poll, self._wait
        self._figures = map_figures(Path(os.environ["TURNS"], str(os.getpid())))
        self._began = self._began_cpu = self._late = 0.0
        self._called: list[object] = []

    def _wait(self, timeout: float, most: int) -> list[tuple[int, int]]:
        due = self._timers.due_at
        events = self._poll_kernel(timeout, most)
        self._called = [self._handlers.get(fd) for fd, _ in events]
        self._began, self._began_cpu = time.monotonic(), time.thread_time()
        self._late = max(0.0, self._began - due)
        return events

    def run_once(self, timeout: float = LONGEST_WAIT) -> None:
        acts = [act for act, _ in self._next_turn]
        super().run_once(timeout)
        cpu, wall = time.thread_time() - self._began_cpu, time.monotonic() - self._began
        count, most_cpu, most_wall, most_late = FIGURES.unpack_from(self._figures)
        if cpu > most_cpu:
            words = " ".join(names_of([*self._called, *acts])).encode()[:WORDS]
            self._figures[FIGURES.size :] = words.ljust(WORDS, b"\0")
        figures = max(cpu, most_cpu), max(wall, most_wall), max(self._late, most_late)
        FIGURES.pack_into(self._figures, 0, count + 1, *figures)


def names_of(called: Iterable[object]) -> list[str]:
    """What was called, each name once with the number of its calls."""
    names = [getattr(one, "__qualname__", type(one).__name__) for one in called]
    return [f"{names.count(name)}x{name}" for name in dict.fromkeys(names)]


def map_figures(path: Path) -> mmap.mmap:
    """The file of one process, made where there is none."""
    with path.open("ab") as file:
        file.truncate(FIGURES.size + WORDS)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def take_turns(directory: Path, pid: int) -> Turns:
    """What a process has noted, which is forgotten with it."""
    with map_figures(directory / str(pid)) as noted:
        figures, words = FIGURES.unpack_from(noted), noted[FIGURES.size :].rstrip(b"\0")
        FIGURES.pack_into(noted, 0, 0, 0.0, 0.0, 0.0)
    return Turns(*figures, words.decode(errors="replace"))


if __name__ == "__main__":
    vars(child)["Loop"] = TimedLoop  # what each process makes after its fork
    sys.exit(program.main())
