"""The pipes that splice(2) moves bytes through: few, large, reused, and never lent with bytes in them.

RULES: owns the descriptors of every pipe it made. A pipe is lent to one half at a time. A byte left in it would reach the
connection of another session, so `give_back` is told what the pipe holds and closes one that is not empty.

Bounds: at most `most` pipes exist; a half that gets none copies. A pipe of 1 MiB that is full for a slow reader is
memory, so the bytes in pipes whose sink is slow are counted (`held`). Above ALLOWANCE every half fills no more than
SMALL at a time.
"""

import fcntl
import os

BIG = 1 << 20  # F_SETPIPE_SZ up to this needs no privilege (fs.pipe-max-size)
SMALL = 1 << 16
ALLOWANCE = 4 << 20  # bytes in pipes of slow sinks before filling is held back

Pipe = tuple[int, int]  # (read end, write end)


class Pipes:
    """One worker's pool of pipes."""

    __slots__ = ("_free", "_keep", "held", "made", "most")

    def __init__(self, most: int, keep: int = 32) -> None:
        self.most = most
        self.made = 0  # pipes that exist
        self.held = 0  # bytes in pipes whose sink is slow
        self._keep = keep  # idle pipes to keep
        self._free: list[Pipe] = []

    def take(self) -> Pipe | None:
        """Return an empty pipe, or None when no more may be made: copy then."""
        if self._free:
            return self._free.pop()
        if self.made >= self.most:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None  # out of descriptors: they are for sessions first
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, BIG)
        except OSError:
            pass  # above the user's pipe-user-pages-soft, where a pipe has 8 KiB: works, with more system calls
        self.made += 1
        return pipe

    def give_back(self, pipe: Pipe, standing: int) -> None:
        """Take a pipe back; `standing` bytes are still in it."""
        if standing or len(self._free) >= self._keep:
            self.made -= 1
            os.close(pipe[0])
            os.close(pipe[1])
        else:
            self._free.append(pipe)

    def fill(self) -> int:
        """Return how many bytes a half may put into its empty pipe now."""
        return BIG if self.held < ALLOWANCE else SMALL

    def close(self) -> None:
        """Close the idle pipes."""
        while self._free:
            pipe = self._free.pop()
            os.close(pipe[0])
            os.close(pipe[1])
            self.made -= 1
