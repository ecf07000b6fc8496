"""CPU, memory and open files of our processes. The only importer of psutil.

RULES: one `psutil.Process` per pid is kept, since its CPU figure is the difference to the call before; sampled once a
second by the console's loop, never by a request, so a hundred status calls a second cost a hundred dictionary look-ups.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one process; None where the kernel does not give them."""

    cpu_percent: float | None  # of one core, over the last second
    rss_bytes: int | None
    fds: int | None
    parent: int | None = None


UNKNOWN = Figures(None, None, None)


class Processes:
    """Samples of the given pids; a pid that is gone is forgotten."""

    def __init__(self) -> None:
        self.known: dict[int, psutil.Process] = {}
        self.figures: dict[int, Figures] = {}

    def sample(self, pids: Iterable[int]) -> None:
        alive = set(pids)
        for pid in [pid for pid in self.known if pid not in alive]:
            del self.known[pid]
            self.figures.pop(pid, None)
        for pid in alive:
            try:
                process = self.known.get(pid)
                if process is None:
                    process = self.known[pid] = psutil.Process(pid)
                with process.oneshot():
                    cpu, rss, parent = process.cpu_percent(), process.memory_info().rss, process.ppid()
                self.figures[pid] = Figures(cpu, rss, self.count_fds(process), parent)
            except psutil.Error:
                self.known.pop(pid, None)
                self.figures.pop(pid, None)

    @staticmethod
    def count_fds(process: psutil.Process) -> int | None:
        """After a change of user the kernel hides the list even from our own uid."""
        try:
            return int(process.num_fds())
        except psutil.AccessDenied:
            return None

    def of(self, pid: int) -> Figures:
        return self.figures.get(pid, UNKNOWN)
