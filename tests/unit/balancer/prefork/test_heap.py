"""The heap of a process that is to be forked."""

import ctypes
import gc
from pathlib import Path

import pytest

from balancer.prefork.heap import settle_heap


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="a C library without malloc_trim")
def test_what_was_freed_below_something_that_stays_is_given_back() -> None:
    blocks = [bytearray(8000) for _ in range(5000)]
    last = blocks.pop()
    blocks.clear()
    before = resident_bytes()
    try:
        settle_heap()
        frozen = gc.get_freeze_count()
    finally:
        gc.unfreeze()
    assert before - resident_bytes() > 20_000_000
    assert frozen > 1000 and len(last) == 8000


def test_settling_again_and_again_freezes_nothing_of_its_own() -> None:
    """A master settles before each fork: what it froze each time would stay for ever."""
    try:
        settle_heap()
        before = gc.get_freeze_count()
        for _ in range(20):
            settle_heap()
        assert gc.get_freeze_count() - before < 20
    finally:
        gc.unfreeze()
