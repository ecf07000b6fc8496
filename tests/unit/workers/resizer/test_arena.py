"""Slots: warm ones first, each with one holder, pages given back when idle."""

from hypothesis import given
from hypothesis import strategies as st

from workers.resizer.arena import IDLE_SECONDS, KEEP_BYTES, PAGE, Arena, SlotAllocator


def allocator_of(count: int) -> tuple[SlotAllocator, list[tuple[int, int]]]:
    given_back: list[tuple[int, int]] = []
    return SlotAllocator(range(count), lambda slot, touched: given_back.append((slot, touched))), given_back


def test_the_slot_used_last_is_used_next() -> None:
    slots, _ = allocator_of(3)
    first, second = slots.allocate(), slots.allocate()
    assert (first, second) == (0, 1)
    slots.release(0, 1.0)
    assert [slots.allocate(), slots.allocate(), slots.allocate()] == [0, 2, None]


@given(st.lists(st.booleans(), max_size=60))
def test_a_slot_has_at_most_one_holder(takes: list[bool]) -> None:
    slots, _ = allocator_of(4)
    held: list[int] = []
    for take in takes:
        if take:
            slot = slots.allocate()
            assert (slot is None) == (len(held) == 4)
            if slot is not None:
                assert slot not in held
                held.append(slot)
        elif held:
            slots.release(held.pop(0), 0.0)
        assert len(slots) + len(held) == 4


def test_pages_go_back_when_idle_and_only_once() -> None:
    slots, given_back = allocator_of(2)
    slot = slots.allocate()
    assert slot is not None
    slots.touch(slot, KEEP_BYTES * 10)
    slots.touch(slot, 5)
    assert slots.sweep(100.0) == 0, "it is in use"
    slots.release(slot, 100.0)
    assert slots.sweep(100.0 + IDLE_SECONDS - 0.1) == 0
    assert slots.sweep(100.0 + IDLE_SECONDS) == KEEP_BYTES * 10
    assert slots.sweep(200.0) == 0
    assert given_back == [(slot, KEEP_BYTES * 10)]


def test_few_pages_are_not_given_back() -> None:
    slots, given_back = allocator_of(1)
    slot = slots.allocate()
    assert slot is not None
    slots.touch(slot, KEEP_BYTES)
    slots.release(slot, 0.0)
    assert slots.sweep(1000.0) == 0 and not given_back


def test_the_offset_of_a_piece_is_known_and_slots_do_not_overlap() -> None:
    arena = Arena(3, 10_000)
    assert arena.slot_bytes == 3 * PAGE
    for slot in range(3):
        arena.slot(slot)[:] = bytes([slot]) * arena.slot_bytes
    assert all(set(arena.slot(slot)) == {slot} for slot in range(3))
    piece = arena.slot(1)[100:200]
    assert arena.offset_of(piece) == arena.slot_bytes + 100
    assert arena.piece(arena.offset_of(piece), 100) == piece


def test_pages_given_back_read_as_zeros_and_the_next_slots_keep_theirs() -> None:
    arena = Arena(3, 10_000)
    for slot in range(3):
        arena.slot(slot)[:] = b"x" * arena.slot_bytes
    arena.give_back(1, 9_999)
    assert set(arena.slot(1)) == {0}
    assert set(arena.slot(0)) == set(arena.slot(2)) == {ord("x")}
