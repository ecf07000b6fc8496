"""The pipes that splice(2) moves bytes through: few, big, reused, and never returned with bytes in them.

RULES: owns the descriptors of every pipe it made. A pipe is lent to one half at a time; a byte left in it would come
out on another session's connection, so `give_back` wants to know what is in it and destroys a pipe that is not empty.

Bounds: at most `most` pipes exist; without one a half copies. A pipe of 1 MiB full of bytes for a slow reader is
memory: so what STANDS in pipes is counted (`held`), and once it exceeds ALLOWANCE every half fills no more
than SMALL at a time.
"""

import fcntl
import os

BIG = 1 << 20  # fcntl(F_SETPIPE_SZ) up to this is open to everybody (fs.pipe-max-size)
SMALL = 1 << 16
ALLOWANCE = 4 << 20  # bytes that may stand in pipes before filling is held back

Pipe = tuple[int, int]  # (read end, write end)


class Pipes:
    """One worker's pool."""

    __slots__ = ("_free", "_keep", "held", "made", "most")

    def __init__(self, most: int, keep: int = 32) -> None:
        self.most = most
        self.made = 0  # pipes in existence
        self.held = 0  # bytes standing in pipes whose sink is slow
        self._keep = keep  # idle pipes worth keeping
        self._free: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe, or None when there is none to be had: copy then."""
        if self._free:
            return self._free.pop()
        if self.made >= self.most:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None  # out of descriptors: sessions come first
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, BIG)
        except OSError:
            pass  # over the user's pipe-user-pages-soft: 64 KiB serves as well, with more calls
        self.made += 1
        return pipe

    def give_back(self, pipe: Pipe, standing: int) -> None:
        """The half is done with it; `standing` bytes are still inside."""
        if standing or len(self._free) >= self._keep:
            self.made -= 1
            os.close(pipe[0])
            os.close(pipe[1])
        else:
            self._free.append(pipe)

    def fill(self) -> int:
        """How many bytes a half may put into its empty pipe now."""
        return BIG if self.held < ALLOWANCE else SMALL

    def close(self) -> None:
        while self._free:
            pipe = self._free.pop()
            os.close(pipe[0])
            os.close(pipe[1])
            self.made -= 1
