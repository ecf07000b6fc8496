"""What a process does with its heap before it lives long, or is forked."""

import ctypes
import gc

# Not in every C library. Looked up once: a handle's types are cycles that the next freeze would keep for ever.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def settle_heap() -> None:
    """Collect garbage, give free pages of the heap back to the kernel, and have the collector leave alone what exists.

    Garbage would be frozen, and stay in every process that is forked for ever. glibc keeps free pages, which are copied
    with the rest: what compiling the modules at the first start had left was 0.9 MB in each process. The collector would
    write to every page of what is not frozen, and so copy it.
    """
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
    gc.freeze()
