"""Slots: warm ones first, each with one holder, pages given back when idle."""

from hypothesis import given
from hypothesis import strategies as st

from workers.resizer.arena import IDLE_SECONDS, KEEP_BYTES, PAGE, Arena, Shelf


def shelf_of(count: int) -> tuple[Shelf, list[tuple[int, int]]]:
    given_back: list[tuple[int, int]] = []
    return Shelf(range(count), lambda slot, touched: given_back.append((slot, touched))), given_back


def test_the_slot_used_last_is_used_next() -> None:
    shelf, _ = shelf_of(3)
    first, second = shelf.take(), shelf.take()
    assert (first, second) == (0, 1)
    shelf.release(0, 1.0)
    assert [shelf.take(), shelf.take(), shelf.take()] == [0, 2, None]


@given(st.lists(st.booleans(), max_size=60))
def test_a_slot_has_at_most_one_holder(takes: list[bool]) -> None:
    shelf, _ = shelf_of(4)
    held: list[int] = []
    for take in takes:
        if take:
            slot = shelf.take()
            assert (slot is None) == (len(held) == 4)
            if slot is not None:
                assert slot not in held
                held.append(slot)
        elif held:
            shelf.release(held.pop(0), 0.0)
        assert len(shelf) + len(held) == 4


def test_pages_go_back_when_idle_and_only_once() -> None:
    shelf, given_back = shelf_of(2)
    slot = shelf.take()
    assert slot is not None
    shelf.touch(slot, KEEP_BYTES * 10)
    shelf.touch(slot, 5)
    assert shelf.sweep(100.0) == 0, "it is in use"
    shelf.release(slot, 100.0)
    assert shelf.sweep(100.0 + IDLE_SECONDS - 0.1) == 0
    assert shelf.sweep(100.0 + IDLE_SECONDS) == KEEP_BYTES * 10
    assert shelf.sweep(200.0) == 0
    assert given_back == [(slot, KEEP_BYTES * 10)]


def test_little_is_not_worth_a_system_call() -> None:
    shelf, given_back = shelf_of(1)
    slot = shelf.take()
    assert slot is not None
    shelf.touch(slot, KEEP_BYTES)
    shelf.release(slot, 0.0)
    assert shelf.sweep(1000.0) == 0 and not given_back


def test_the_place_of_a_piece_is_known_and_slots_do_not_overlap() -> None:
    arena = Arena(3, 10_000)
    assert arena.slot_bytes == 3 * PAGE
    for slot in range(3):
        arena.slot(slot)[:] = bytes([slot]) * arena.slot_bytes
    assert all(set(arena.slot(slot)) == {slot} for slot in range(3))
    piece = arena.slot(1)[100:200]
    assert arena.offset_of(piece) == arena.slot_bytes + 100
    assert arena.piece(arena.offset_of(piece), 100) == piece


def test_given_back_pages_read_as_zeros_and_the_neighbours_keep_theirs() -> None:
    arena = Arena(3, 10_000)
    for slot in range(3):
        arena.slot(slot)[:] = b"x" * arena.slot_bytes
    arena.give_back(1, 9_999)
    assert set(arena.slot(1)) == {0}
    assert set(arena.slot(0)) == set(arena.slot(2)) == {ord("x")}
