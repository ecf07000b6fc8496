"""The memory that a front shares with one CPU process."""

import os

import pytest

from workers.resizer.arena import IDLE_SECONDS, KEEP_BYTES
from workers.resizer.transfer import PLACES, TransferMemory, make_transfer

SIZE = KEEP_BYTES * 4


def test_both_sides_see_the_same_places_which_do_not_overlap() -> None:
    front, fd = make_transfer(SIZE - 1)
    process = TransferMemory(fd, SIZE - 1)
    os.close(fd)
    for place in range(PLACES):
        front.put(place, memoryview(bytes([place + 1]) * SIZE), 0.0)
    for place in range(PLACES):
        assert set(process.view(place, SIZE)) == {place + 1}
    process.view(1, 3)[:] = b"abc"
    assert bytes(front.view(1, 3)) == b"abc"


def test_a_view_is_no_longer_than_its_place() -> None:
    front, fd = make_transfer(SIZE)
    os.close(fd)
    assert len(front.view(0, 1 << 60)) == SIZE == front.place_bytes


def test_no_process_can_change_its_size() -> None:
    front, fd = make_transfer(SIZE)
    for size in (0, SIZE, 4 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    os.close(fd)
    front.put(0, memoryview(b"still there"), 0.0)


def test_pages_go_back_when_it_has_not_been_used_for_a_while() -> None:
    front, fd = make_transfer(SIZE)
    before = os.fstat(fd).st_blocks
    front.put(0, memoryview(b"x" * SIZE), 100.0)
    front.put(1, memoryview(b"y" * KEEP_BYTES), 100.0)
    front.touch(0, 1 << 60, 100.0)  # a process may say anything of its answer
    used = os.fstat(fd).st_blocks
    front.sweep(100.0 + IDLE_SECONDS - 0.1)
    assert os.fstat(fd).st_blocks == used > before
    front.sweep(100.0 + IDLE_SECONDS)
    assert os.fstat(fd).st_blocks * 512 == KEEP_BYTES
    assert set(front.view(0, SIZE)) == {0} and set(front.view(1, KEEP_BYTES)) == {ord("y")}
    os.close(fd)


def test_it_is_unmapped() -> None:
    front, fd = make_transfer(SIZE)
    os.close(fd)
    front.close()
    with pytest.raises(ValueError):
        front.view(0, 1)
