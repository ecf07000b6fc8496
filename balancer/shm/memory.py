"""Shared memory that costs nothing until it is used.

RULES
- Anonymous and shared: it has no name, so a kill -9 leaves nothing behind, and it is inherited over fork. The kernel
  keeps it on a mount of its own, so a full /dev/shm (64 MB in a container) cannot end it in SIGBUS, as it would end
  `multiprocessing.RawArray`, which is an unlinked file there.
- A page exists from its first use on. READING an untouched page of a shared mapping allocates it as well.
"""

import contextlib
import mmap

# The constant is missing from `mmap` up to Python 3.12. Without it the heuristic of the kernel refuses a large sparse
# mapping on a machine with little memory.
_MAP_NORESERVE = 0x4000

PAGE_BYTES = mmap.PAGESIZE


def shared_memory(size: int) -> mmap.mmap:
    """`size` bytes of zeros, shared with every process forked from now on."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page (2 MB) would be allocated for one cell of it
    return memory


def discard(memory: mmap.mmap, start: int, size: int) -> bool:
    """Give whole pages back to the kernel: every process reads zeros there. False when the kernel refuses."""
    try:
        memory.madvise(mmap.MADV_REMOVE, start, size)
    except OSError:  # not supported here, or locked into memory
        return False
    return True
