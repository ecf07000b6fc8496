"""The arena: slots of shared anonymous memory in which payloads arrive and answers leave.

RULES: the memory is made once, by the master, before the fork, and has no name that a kill -9 could leave
behind. Which slots are free is known to one front only (its Shelf); CPU processes write into the slot they
were ordered to and nowhere else. Nothing here knows pictures or sockets.

    | slot 0                      | slot 1                      | ...
    | frame payload . . . . . . . |
    | answer (over the payload: the CPU process has copied the picture out before it writes)

A slot costs address space, not memory: pages exist once touched (MAP_NORESERVE), and go back when the slot
has been idle.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterable

PAGE = mmap.PAGESIZE
_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on
IDLE_SECONDS = (
    5.0  # a slot unused that long gives its pages back: a burst of big pictures is not remembered for ever
)
KEEP_BYTES = 16 * PAGE  # below this giving back costs more (a system call, new faults) than it frees


class Arena:
    """`slots` pieces of at least `slot_bytes` each. Raises OSError when there is no address space."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.slot_bytes = -(-slot_bytes // PAGE) * PAGE
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._memory = mmap.mmap(-1, slots * self.slot_bytes, flags=flags)
        self._view = memoryview(self._memory)
        self._base = _address(self._view)

    @property
    def total_bytes(self) -> int:
        return self.slots * self.slot_bytes

    def slot(self, slot: int) -> memoryview:
        """The whole slot, writable."""
        start = slot * self.slot_bytes
        return self._view[start : start + self.slot_bytes]

    def start(self, slot: int) -> int:
        """Where in the arena the slot begins."""
        return slot * self.slot_bytes

    def piece(self, offset: int, length: int) -> memoryview:
        """`length` bytes at `offset` from the start of the arena."""
        return self._view[offset : offset + length]

    def offset_of(self, piece: memoryview) -> int:
        """Where in the arena `piece`, a non-empty slice of one of its slots, begins.

        A memoryview does not tell its place, and a decoder that hands out slices need not know the arena.
        """
        return _address(piece) - self._base

    def give_back(self, slot: int, touched: int) -> None:
        """Return the first `touched` bytes' pages to the kernel; they read as zeros afterwards."""
        length = -(-touched // PAGE) * PAGE
        self._memory.madvise(mmap.MADV_REMOVE, slot * self.slot_bytes, min(length, self.slot_bytes))


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class Shelf:
    """The free slots of one front, last in first out: a slot just used has warm pages and cache lines.

    `touched[slot] <= slot size`; a slot is in `_free` exactly once or not at all.
    """

    __slots__ = ("_free", "_give_back", "_released_at", "_touched")

    def __init__(self, slots: Iterable[int], give_back: Callable[[int, int], object]) -> None:
        self._free = list(slots)
        self._free.reverse()
        self._give_back = give_back
        self._touched: dict[int, int] = {}
        self._released_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> int | None:
        """A free slot, now the caller's; None when every one is in use."""
        return self._free.pop() if self._free else None

    def touch(self, slot: int, length: int) -> None:
        """The owner has written (or is about to write) the first `length` bytes."""
        if length > self._touched.get(slot, 0):
            self._touched[slot] = length

    def release(self, slot: int, now: float) -> None:
        """The caller is done with it: nobody else may still write there."""
        self._free.append(slot)
        self._released_at[slot] = now

    def sweep(self, now: float) -> int:
        """Give back the pages of slots idle for IDLE_SECONDS; how many bytes went."""
        total = 0
        for slot in self._free:
            touched = self._touched.get(slot, 0)
            if touched > KEEP_BYTES and now - self._released_at.get(slot, now) >= IDLE_SECONDS:
                self._give_back(slot, touched)
                self._touched[slot] = 0
                total += touched
        return total
