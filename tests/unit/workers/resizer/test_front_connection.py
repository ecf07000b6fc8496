"""The time limits of a client's connection: slow senders, slow readers, idle ones, and what does not count."""

from collections.abc import Iterator

import pytest

from balancer.eventloop.connection import CLOSED, OPEN
from tests.unit.workers.resizer.front_fixture import OPTIONS, FramePeer, FrontFixture, request_frame
from workers.resizer import counters
from workers.resizer.front_connection import LEAST_RATE

GRACE, IDLE = 10.0, 100.0
BIG = bytes(60_000)


@pytest.fixture
def front() -> Iterator[FrontFixture]:
    front = FrontFixture()
    yield front
    front.close()


def wait(front: FrontFixture, peer: FramePeer, seconds: float) -> bool:
    """Whether the connection is open after so much time, checked every second as a front does."""
    end = front.now + seconds
    while front.now < end:
        front.now = min(end, front.now + 1)
        peer.connection.check_timeouts(front.now, GRACE, IDLE)
        front.settle()
    return peer.connection.state is OPEN


def test_a_client_that_has_sent_nothing_is_idle_and_not_slow(front: FrontFixture) -> None:
    peer = front.connect()
    assert wait(front, peer, IDLE) and not wait(front, peer, 1)
    assert front.cells[counters.CUT] == 0


def test_the_time_of_the_first_request_begins_with_its_first_byte(front: FrontFixture) -> None:
    peer = front.connect()
    assert wait(front, peer, IDLE - 1)
    peer.send(request_frame(id=1, data=BIG, target_width=9)[:3])
    front.settle()
    assert wait(front, peer, GRACE)
    assert not wait(front, peer, 1) and front.cells[counters.CUT] == 1


def test_a_slow_sender_has_time_for_its_bytes(front: FrontFixture) -> None:
    peer = front.connect()
    peer.send(request_frame(id=1, dry_run=True))
    front.settle()
    front.now += 50
    whole = request_frame(id=2, data=BIG, target_width=9)
    peer.send(whole[: 2 * LEAST_RATE])
    front.settle()
    assert wait(front, peer, GRACE + 2)
    assert not wait(front, peer, 1)
    assert peer.connection.state is CLOSED and front.taken() == 0


def test_an_idle_client_is_closed_later_and_is_not_cut(front: FrontFixture) -> None:
    peer = front.connect()
    peer.send(request_frame(id=1, dry_run=True))
    front.settle()
    assert wait(front, peer, IDLE) and not wait(front, peer, 1)
    assert front.cells[counters.CUT] == 0


def test_a_client_that_waits_for_its_answer_is_neither_slow_nor_idle(front: FrontFixture) -> None:
    peer = front.connect()
    peer.send(request_frame(id=1, data=BIG, target_width=9))
    front.settle()
    assert wait(front, peer, 2 * IDLE)
    front.work()
    assert [reply.status for reply in peer.replies()] == [200]


def test_a_pause_does_not_count(front: FrontFixture) -> None:
    held = [front.scheduler.claim_slot(lambda: None) for _ in range(OPTIONS.slots)]
    peer = front.connect()
    peer.send(request_frame(id=1, data=BIG, target_width=9)[:-1])
    front.settle()
    assert wait(front, peer, 5 * GRACE), "it waits for a slot"
    assert held[0] is not None
    front.scheduler.release_slot(held[0])
    front.settle()
    assert wait(front, peer, GRACE) and not wait(front, peer, 5), "the rest is its own affair"


def fill_output(front: FrontFixture, peer: FramePeer) -> None:
    """Answers until the client's socket takes no more."""
    for number in range(1, 100):
        if peer.connection.output.pending:
            return
        peer.send(request_frame(id=number, data=b"tiny", target_width=9))
        front.settle()
        order = front.order()
        assert order is not None
        front.finish(order, bytes(90_000))
    raise AssertionError("the socket takes everything")


def test_a_slow_reader_is_cut(front: FrontFixture) -> None:
    peer = front.connect()
    fill_output(front, peer)
    assert wait(front, peer, GRACE) and not wait(front, peer, 2)
    assert front.cells[counters.CUT] == 1 and front.taken() == 0


def test_bytes_that_were_read_before_give_a_slow_reader_no_time(front: FrontFixture) -> None:
    peer = front.connect()
    fill_output(front, peer)
    assert wait(front, peer, GRACE - 1)
    while peer.connection.output.pending:
        peer.received()
        front.settle()
    fill_output(front, peer)
    assert wait(front, peer, GRACE) and not wait(front, peer, 2)
