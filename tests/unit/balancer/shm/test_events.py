"""The event rings: 500 events over all writers, in order, whole, and as the log has them."""

import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.eventloop.log import Log
from balancer.shm.events import HEAD_COUNT, KEPT, TEXT_BYTES, Event, EventRing, EventWriter, tell
from balancer.shm.layout import MASTER_ROW, make_shared
from tests.unit.balancer.shm.test_table import resident


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events]


@pytest.fixture
def ring() -> EventRing:
    return EventRing(8)


def test_a_fresh_ring_has_no_events(ring: EventRing) -> None:
    assert ring.read() == []


def test_events_of_several_writers_come_in_the_order_they_were_appended(ring: EventRing) -> None:
    ring.append(3, "down", "backend=a", 1_700_000_000_000_000_000, 5000)
    ring.append(0, "reload", "result=unchanged", 1_700_000_000_000_000_001, 5001)
    ring.append(3, "up", "backend=a", 1_700_000_000_000_000_002, 5002)
    assert ring.read() == [
        Event(1, 1_700_000_000_000_000_000, 5000, "down", "backend=a"),
        Event(2, 1_700_000_000_000_000_001, 5001, "reload", "result=unchanged"),
        Event(3, 1_700_000_000_000_000_002, 5002, "up", "backend=a"),
    ]


@given(st.lists(st.integers(0, 5), max_size=1600), st.integers(0, 1700))
def test_what_is_read_is_the_end_of_what_was_appended(rows: list[int], since: int) -> None:
    ring = EventRing(6)
    for number, row in enumerate(rows, 1):
        ring.append(row, "limit", f"n={number}", number, number)
    found = ring.read(since)
    expected = range(max(since, len(rows) - KEPT) + 1, len(rows) + 1)
    assert [event.serial for event in found] == list(expected)
    assert texts(found) == [f"n={number}" for number in expected]


def test_there_are_500_however_many_writers(ring: EventRing) -> None:
    for number in range(1, 901):
        ring.append(number % 3, "up", f"n={number}", number, number)
    assert [event.serial for event in ring.read()] == list(range(401, 901))


@pytest.mark.parametrize("text", ["x" * 240, "x" * 241, "ä" * 300, "\U0001f600" * 100, "\ud800" * 3, ""])
def test_a_long_text_is_cut_between_characters_and_says_so(ring: EventRing, text: str) -> None:
    ring.append(1, "operator", text, 1, 1)
    (event,) = ring.read()
    raw = event.text.encode()
    assert len(raw) <= TEXT_BYTES
    whole = text.encode("utf-8", "backslashreplace")
    assert raw == whole if len(whole) <= TEXT_BYTES else raw.endswith(b"...") and whole.startswith(raw[:-3])


def test_a_row_leased_again_continues_its_ring(ring: EventRing) -> None:
    ring.append(4, "down", "backend=a", 1, 1)
    EventWriter(ring, 4).ring.append(4, "up", "backend=a", 2, 2)
    assert texts(ring.read()) == ["backend=a", "backend=a"]


def test_a_follower_gets_nothing_while_an_event_may_come_before_those_that_are_visible(
    ring: EventRing,
) -> None:
    """A writer has chosen its serial, and another one has appended since."""
    ring.append(2, "up", "first", 1, 1)
    ring.heads[2 + HEAD_COUNT] |= 1
    ring.append(2, "up", "quick", 2, 2)
    assert ring.read(1) == []
    assert texts(ring.read()) == ["first", "quick"]  # a reader that does not follow misses nothing for good
    ring.append(1, "down", "slow", 3, 3)
    assert texts(ring.read(1)) == ["quick", "slow"]


def test_a_writer_killed_while_it_appends_costs_that_event_only() -> None:
    now = 50.0
    ring = EventRing(8, lambda: now)
    ring.append(2, "down", "first", 1, 1)
    ring.heads[2 * 2 + HEAD_COUNT] |= 1
    ring.append(5, "up", "second", 2, 2)
    assert texts(ring.read()) == ["first", "second"]
    assert ring.read(1) == []
    now += 1.1
    assert texts(ring.read(1)) == ["second"]  # no follower waits for the dead
    ring.append(2, "up", "third", 3, 3)
    assert texts(ring.read(1)) == ["second", "third"]
    ring.heads[2 * 2 + HEAD_COUNT] |= 1  # killed at the same place, another time
    assert ring.read(1) == []


def test_a_follower_gets_nothing_when_an_event_is_appended_while_it_looks() -> None:
    """It may come before one that the follower would have been given."""
    now, late = 50.0, [2]

    def clock() -> float:
        if now > 51 and late:
            ring.append(late.pop(), "down", "late", 3, 3)
        return now

    ring = EventRing(8, clock)
    ring.append(1, "up", "first", 1, 1)
    ring.append(1, "up", "second", 2, 2)
    ring.heads[5 * 2 + HEAD_COUNT] |= 1  # a writer that is stopped: the clock decides whether it counts
    assert ring.read(1) == []
    now += 1.1
    assert ring.read(1) == []
    assert texts(ring.read(1)) == ["second", "late"]


def test_a_torn_record_is_left_out(ring: EventRing) -> None:
    for number in range(3):
        ring.append(1, "up", f"n={number}", 1, 1)
    at = bytes(ring.records[: 1 << 18]).index(b"n=1")
    ring.records[at] = ord("N")
    assert texts(ring.read()) == ["n=0", "n=2"]


def test_a_record_overwritten_while_it_is_read_is_left_out(ring: EventRing) -> None:
    """Its place holds a later one: the order would be wrong, and a follower would see it twice."""
    for number in range(1, 600):
        ring.append(1, "up", f"n={number}", 1, 1)
    ring.heads[2 + HEAD_COUNT] = 2 * 520  # what the reader saw before the last 79 came
    assert [int(text[2:]) for text in texts(ring.read())] == list(range(88, 521))


def test_rings_without_events_cost_nothing() -> None:
    before = resident()
    ring = EventRing(512)
    for row in (0, 7):
        ring.append(row, "up", "x", 1, 1)
    assert len(ring.read()) == 2
    assert resident() - before < 8 * 4096


def test_every_process_of_a_master_shares_the_rings() -> None:
    shared = make_shared(64, rows=9)
    shared.events.append(MASTER_ROW, "reload", "a", 1, 1)
    shared.events.append(8, "up", "b", 1, 1)
    assert texts(shared.events.read()) == ["a", "b"]


def test_a_line_and_its_event_are_one_call(tmp_path: Path, ring: EventRing) -> None:
    log = Log("prober", str(tmp_path / "log"), clock=lambda: 12.345)
    tell(log, EventWriter(ring, 3), "warning", "down", backend="web 1", up="1/2", then="next try in 2s")
    line = (tmp_path / "log").read_text()
    (event,) = ring.read()
    assert line.split(" ", 4)[4] == f"{event.verb} {event.text}\n"
    assert event.text == 'backend="web 1" up=1/2 then=next try in 2s'
    assert event.at_ms == 12345
    assert line[:23] == iso(event.wall_ns)


def iso(wall_ns: int) -> str:
    seconds = time.gmtime(wall_ns // 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S.", seconds) + f"{wall_ns // 1_000_000 % 1000:03d}"


def test_a_ring_is_read_back_from_its_bytes_alone() -> None:
    """Nothing of it lives in the object: a forked process has only the memory."""
    ring = EventRing(2)
    ring.append(1, "hang", "child=7", 3, 4)
    assert struct.unpack_from("=qq", ring.heads.cast("B"), 16) == (2, 1)
