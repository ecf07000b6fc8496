"""The memory in which one front and one CPU process hand pictures and answers over.

RULES: a CPU process has the pictures of its own orders in reach and no other one. The front makes the memory for one
process and sends it with SCM_RIGHTS once the process has said Hello; a successor, and a later front, get another one.
The slots of the arena stay in the front. The size is sealed: a process that shrank it would end the front in SIGBUS.

    front: slot --copy--> place 0 | place 1 --copy--> cpu     the picture of an order; the answer is written over it
                          current | prefetched

Rejected: one memfd per slot, sent with each order. To be out of the reach of those that had it before, a slot needs a new
memfd for each picture, and new pages are dear: 55 to 105 us for a picture of 100 KB, 1.1 to 1.8 ms for one of 2 MB, where
the copy into memory that is there takes 8 and 100 us. What a process could keep of the memory here are pictures that it
was given anyway.
"""

import fcntl
import mmap
import os

from workers.resizer.arena import IDLE_SECONDS, KEEP_BYTES, PAGE

PLACES = 2
_MFD_NOEXEC_SEAL = 0x8  # Linux 6.3; the os module does not name it. Some hosts refuse a memfd without it.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class TransferMemory:
    """PLACES places of at least `place_bytes` each in the file `fd`, which the caller may close."""

    def __init__(self, fd: int, place_bytes: int) -> None:
        self.place_bytes = _rounded(place_bytes)
        self._memory = mmap.mmap(fd, PLACES * self.place_bytes)
        self._view = memoryview(self._memory)
        self._touched = [0] * PLACES  # bytes that may have pages
        self._used_at = 0.0

    def view(self, place: int, length: int) -> memoryview:
        """The first `length` bytes of a place, writable; fewer when it has fewer."""
        start = place * self.place_bytes
        return self._view[start : start + min(length, self.place_bytes)]

    def put(self, place: int, data: memoryview, now: float) -> None:
        """Copy `data` to the beginning of a place."""
        self.view(place, len(data))[:] = data
        self.touch(place, len(data), now)

    def touch(self, place: int, length: int, now: float) -> None:
        """The first `length` bytes of a place have been written."""
        self._touched[place] = max(self._touched[place], min(length, self.place_bytes))
        self._used_at = now

    def sweep(self, now: float) -> None:
        """Give back the pages of places that have not been used for IDLE_SECONDS. Nothing may be in them."""
        if now - self._used_at < IDLE_SECONDS:
            return
        for place, touched in enumerate(self._touched):
            if touched > KEEP_BYTES:
                self._memory.madvise(mmap.MADV_REMOVE, place * self.place_bytes, _rounded(touched))
                self._touched[place] = 0

    def close(self) -> None:
        """Unmap it. No view may be in use."""
        self._view.release()
        self._memory.close()


def make_transfer(place_bytes: int) -> tuple[TransferMemory, int]:
    """A new memory, and its descriptor, which the caller closes. Raises OSError."""
    fd = _memfd()
    try:
        os.ftruncate(fd, PLACES * _rounded(place_bytes))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return TransferMemory(fd, place_bytes), fd
    except BaseException:
        os.close(fd)
        raise


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("pictures", flags | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create("pictures", flags)


def _rounded(size: int) -> int:
    """`size` in whole pages."""
    return -(-size // PAGE) * PAGE
