"""How much memory a CPU process has, and when it gives it back: free pages are kept for the next picture, since it costs
6 of 33 ms to get them again, but not those of a big one for ever (a WebP of 48 MP left 778 MB).

RULES: `statm` stays open, because the sandbox lets no file be opened. Time comes as an argument.
"""

import mmap
import os
from collections.abc import Callable

KEPT_BYTES = 80 << 20  # of anonymous memory: a process has 20 MB before its first picture, 8 MP take 40 MB
KEPT_SECONDS = 2.0  # while big pictures follow one another they get the pages of the ones before


class Footprint:
    """The memory of this process. `trim` returns what is free to the kernel."""

    def __init__(self, trim: Callable[[], object], statm: str = "/proc/self/statm") -> None:
        self._statm = os.open(statm, os.O_RDONLY | os.O_CLOEXEC)
        self._trim = trim
        self._above_since = 0.0  # 0: not above KEPT_BYTES

    def close(self) -> None:
        os.close(self._statm)

    def pages(self) -> list[int]:
        """Of the address space, resident, of files and shared memory; and more, see proc(5)."""
        os.lseek(self._statm, 0, os.SEEK_SET)
        return [*map(int, os.read(self._statm, 200).split())]

    def address_space(self) -> int:
        """Bytes of address space, what RLIMIT_AS counts."""
        return self.pages()[0] * mmap.PAGESIZE

    def anonymous(self) -> int:
        """Bytes resident that are neither a file's nor shared."""
        _, resident, shared, *_ = self.pages()
        return (resident - shared) * mmap.PAGESIZE

    def look(self, now: float, has_worked: bool) -> bool:
        """Trim when there has been too much for KEPT_SECONDS; True when that was done. `has_worked`: since the last
        look; without a picture there is nothing new to give back."""
        if has_worked and not self._above_since and self.anonymous() > KEPT_BYTES:
            self._above_since = now
        if not self._above_since or now - self._above_since < KEPT_SECONDS:
            return False
        self._above_since = 0.0
        self._trim()
        return True
