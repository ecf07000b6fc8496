"""Unsent answers: every byte leaves once, in order, every slot is free once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.resizer.outbox import PARTS_PER_CALL, Outbox


@given(st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=3), max_size=12), st.data())
def test_every_byte_once_and_every_slot_once(messages: list[list[bytes]], data: st.DataObject) -> None:
    outbox, freed = Outbox(), []
    real = [parts for parts in messages if any(parts)]
    for slot, parts in enumerate(real):
        outbox.put(parts, slot if slot % 2 else -1)
    sent = b""
    while outbox.pending:
        offered = b"".join(outbox.gather())
        assert offered, "something pends, so something is offered"
        count = data.draw(st.integers(1, len(offered)))
        sent += offered[:count]
        freed += outbox.sent(count)
    assert sent == b"".join(b"".join(parts) for parts in real)
    assert freed == [slot for slot in range(len(real)) if slot % 2]
    assert outbox.gather() == []


def test_a_slot_is_free_with_its_last_byte_and_not_before() -> None:
    outbox = Outbox()
    outbox.put([b"head", b"picture", b"tail"], 7)
    assert outbox.sent(4 + 7 + 3) == []
    assert outbox.sent(1) == [7]


def test_a_slow_client_keeps_a_copy_and_frees_the_slot() -> None:
    outbox = Outbox()
    place = bytearray(b"picture")
    outbox.put([b"head", memoryview(place)], 7)
    outbox.sent(2)
    assert outbox.keep_copies(8) == [] and outbox.pending == 9, "too much to keep"
    assert outbox.keep_copies(9) == [7]
    place[:] = b"foreign"
    assert b"".join(outbox.gather()) == b"adpicture"
    assert outbox.sent(9) == [] == outbox.clear()


def test_clear_returns_the_slots_that_are_left() -> None:
    outbox = Outbox()
    outbox.put([b"a"], 1)
    outbox.put([b"b"])
    outbox.put([b"c"], 3)
    assert outbox.sent(1) == [1]
    assert outbox.clear() == [3]
    assert outbox.pending == 0 and outbox.clear() == []


def test_a_call_takes_a_bounded_number_of_parts() -> None:
    outbox = Outbox()
    for _ in range(100):
        outbox.put([b"x"])
    assert len(outbox.gather()) == PARTS_PER_CALL


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Outbox().put([b"", b""], 4)
