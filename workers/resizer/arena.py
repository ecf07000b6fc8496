"""The arena: a front's slots of memory for payloads and answers.

RULES: a front maps its own arena, and no other process has it: a CPU process gets a copy of the pictures of its own
orders (transfer.py). The SlotAllocator knows which slots are free. Nothing here knows pictures or sockets.

    | slot 0                      | slot 1                      | ...
    | frame payload . . . . . . . |
    | answer (over the payload)

A slot costs address space, not memory (MAP_NORESERVE): a page exists once it is touched, and goes back to the kernel when
the slot has been free for a while.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterable

PAGE = mmap.PAGESIZE
_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on
IDLE_SECONDS = (
    5.0  # a slot free for that long gives its pages back, so that memory follows a burst down again
)
KEEP_BYTES = 16 * PAGE  # below this, giving pages back costs more (a system call, new faults) than it frees


class Arena:
    """`slots` slots of at least `slot_bytes` each. Raises OSError when there is no address space."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.slot_bytes = -(-slot_bytes // PAGE) * PAGE
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._memory = mmap.mmap(-1, slots * self.slot_bytes, flags=flags)
        self._view = memoryview(self._memory)
        self._base = _address(self._view)

    def slot(self, slot: int) -> memoryview:
        """The whole slot, writable."""
        start = slot * self.slot_bytes
        return self._view[start : start + self.slot_bytes]

    def start(self, slot: int) -> int:
        """The offset of the slot in the arena."""
        return slot * self.slot_bytes

    def piece(self, offset: int, length: int) -> memoryview:
        """The `length` bytes at `offset` of the arena."""
        return self._view[offset : offset + length]

    def offset_of(self, piece: memoryview) -> int:
        """The offset in the arena of `piece`, a non-empty slice of a slot.

        A memoryview does not tell its address, and a decoder that returns slices does not know the arena.
        """
        return _address(piece) - self._base

    def give_back(self, slot: int, touched: int) -> None:
        """Return the pages of the first `touched` bytes to the kernel; they read as zeros afterwards."""
        length = -(-touched // PAGE) * PAGE
        self._memory.madvise(mmap.MADV_REMOVE, slot * self.slot_bytes, min(length, self.slot_bytes))


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class SlotAllocator:
    """The free slots of one front, last in first out: a slot just used has warm pages and cache lines.

    A free slot is in `free` exactly once, a slot in use not at all. `_touched`: bytes that may have pages.
    """

    __slots__ = ("_give_back", "_released_at", "_touched", "free")

    def __init__(self, slots: Iterable[int], give_back: Callable[[int, int], object]) -> None:
        self.free = list(slots)
        self.free.reverse()
        self._give_back = give_back
        self._touched: dict[int, int] = {}
        self._released_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self.free)

    def allocate(self) -> int | None:
        """A free slot, now in use; None when there is none."""
        return self.free.pop() if self.free else None

    def touch(self, slot: int, length: int) -> None:
        """Up to the first `length` bytes of a slot in use have been or will be written."""
        if length > self._touched.get(slot, 0):
            self._touched[slot] = length

    def release(self, slot: int, now: float) -> None:
        """The slot is free. No process may still write to it."""
        self.free.append(slot)
        self._released_at[slot] = now

    def sweep(self, now: float) -> int:
        """Give back the pages of slots free for IDLE_SECONDS; returns how many bytes."""
        total = 0
        for slot in self.free:
            touched = self._touched.get(slot, 0)
            if touched > KEEP_BYTES and now - self._released_at.get(slot, now) >= IDLE_SECONDS:
                self._give_back(slot, touched)
                self._touched[slot] = 0
                total += touched
        return total
