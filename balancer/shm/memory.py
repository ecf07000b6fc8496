"""Shared memory that costs nothing until it is used.

RULES
- Anonymous and shared: it has no name, so a kill -9 leaves nothing behind, and it is inherited over fork. The kernel
  keeps it on a mount of its own, so a full /dev/shm (64 MB in a container) cannot end it in SIGBUS, as it would end
  `multiprocessing.RawArray`, which is an unlinked file there.
- A page exists from its first use on. READING an untouched page of a shared mapping allocates it as well.
"""

import contextlib
import ctypes
import mmap
import os

# The constant is missing from `mmap` up to Python 3.12. Without it the heuristic of the kernel refuses a large sparse
# mapping on a machine with little memory.
_MAP_NORESERVE = 0x4000
_MAP_FIXED = 0x10

PAGE_BYTES = mmap.PAGESIZE


def shared_memory(size: int) -> mmap.mmap:
    """`size` bytes of zeros, shared with every process forked from now on."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page (2 MB) would be allocated for one cell of it
    return memory


def zero(memory: mmap.mmap, start: int, size: int) -> None:
    """Zero `size` bytes. Whole pages go back to the kernel where it takes them; else pages of zeros are not written."""
    if start % PAGE_BYTES == 0 and size % PAGE_BYTES == 0 and discard(memory, start, size):
        return
    for at in range(start, start + size, PAGE_BYTES):
        end = min(at + PAGE_BYTES, start + size)
        if memory[at:end].strip(b"\0"):
            memory[at:end] = bytes(end - at)


def discard(memory: mmap.mmap, start: int, size: int) -> bool:
    """Give whole pages back to the kernel: every process reads zeros there. False when the kernel refuses."""
    try:
        memory.madvise(mmap.MADV_REMOVE, start, size)
    except OSError:  # not supported here, or locked into memory
        return False
    return True


def disown(view: memoryview, start: int = 0, stop: int = 0) -> None:
    """Replace a whole shared mapping in this process by private zeros, the pages of bytes [start, stop) excepted.

    What is replaced cannot be had again: it has no name. `view` and its slices stay valid. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    base = ctypes.addressof(ctypes.c_char.from_buffer(view))
    kept = start // PAGE_BYTES * PAGE_BYTES, -(-stop // PAGE_BYTES) * PAGE_BYTES
    whole = -(-view.nbytes // PAGE_BYTES) * PAGE_BYTES
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    for first, last in ((0, kept[0]), (kept[1], whole)) if stop else ((0, whole),):
        if last > first:
            found = libc.mmap(base + first, last - first, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
            if found != base + first:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
