"""The output queue: every byte once and in order, every parcel released once."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.eventloop.output import PARTS_PER_CALL, OutputQueue


class Fixture:
    """A queue whose parcels are named; `released` tells how often each was."""

    def __init__(self) -> None:
        self.queue = OutputQueue()
        self.released: Counter[str] = Counter()

    def put(self, name: str, *parts: bytes | memoryview) -> None:
        self.queue.put(parts, lambda: self.released.update([name]))

    def offered(self) -> bytes:
        return b"".join(self.queue.gather())


def test_a_parcel_is_released_when_its_last_byte_was_sent() -> None:
    fixture = Fixture()
    fixture.put("a", b"12", memoryview(b"345"))
    fixture.put("b", b"6")
    assert (fixture.queue.pending, fixture.offered()) == (6, b"123456")
    fixture.queue.sent(4)
    assert (fixture.queue.pending, fixture.offered(), fixture.released) == (2, b"56", {})
    fixture.queue.sent(1)
    assert (fixture.offered(), fixture.released) == (b"6", {"a": 1})
    fixture.queue.sent(1)
    assert (fixture.queue.pending, list(fixture.queue.gather()), fixture.released) == (
        0,
        [],
        {"a": 1, "b": 1},
    )


def test_an_empty_parcel_is_over_at_once() -> None:
    fixture = Fixture()
    fixture.put("a")
    fixture.put("b", b"")
    assert (fixture.queue.pending, fixture.released) == (0, {"a": 1, "b": 1})


def test_what_is_dropped_is_released() -> None:
    fixture = Fixture()
    fixture.put("a", b"12")
    fixture.put("b", b"34")
    fixture.queue.sent(3)
    fixture.queue.clear()
    fixture.queue.clear()
    assert (fixture.queue.pending, fixture.released) == (0, {"a": 1, "b": 1})


@pytest.mark.parametrize(("limit", "copied"), [(3, True), (2, False)])
def test_little_is_copied_out_for_a_slow_peer(limit: int, copied: bool) -> None:
    fixture, slot = Fixture(), bytearray(b"1234")
    fixture.put("a", memoryview(slot))
    fixture.queue.sent(1)
    fixture.queue.copy_out(limit)
    slot[:] = b"xxxx"
    assert (fixture.offered(), fixture.released) == ((b"234", {"a": 1}) if copied else (b"xxx", {}))
    fixture.queue.copy_out(limit)
    fixture.queue.sent(3)
    assert (fixture.queue.pending, fixture.released) == (0, {"a": 1})


def test_one_call_has_a_bounded_number_of_parts() -> None:
    fixture = Fixture()
    for _ in range(3 * PARTS_PER_CALL):
        fixture.put("a", b"1")
    assert len(fixture.queue.gather()) == PARTS_PER_CALL


@given(st.lists(st.lists(st.binary(max_size=9), max_size=5), max_size=9), st.data())
def test_any_parcels_in_any_pieces(parcels: list[list[bytes]], data: st.DataObject) -> None:
    fixture = Fixture()
    for number, parts in enumerate(parcels):
        fixture.put(str(number), *parts)
    whole, sent = b"".join(part for parts in parcels for part in parts), b""
    while fixture.queue.pending:
        offered = fixture.offered()
        count = data.draw(st.integers(1, len(offered)))
        sent += offered[:count]
        fixture.queue.sent(count)
        assert fixture.queue.pending == len(whole) - len(sent)
    assert sent == whole
    assert fixture.released == {str(number): 1 for number in range(len(parcels))}
