"""The protocol of frames: replies, their order, and the slots, for both kinds of peers."""

import socket
import struct
from collections.abc import Iterator

import pytest

from balancer.eventloop.connection import CLOSED
from tests.unit.workers.resizer.front_fixture import OPTIONS, FramePeer, FrontFixture, request_frame
from workers.resizer import counters
from workers.resizer.frame_assembler import SMALL
from workers.resizer.orders import Bye, encode
from workers.resizer.scheduler import PROMPT
from workers.wire.frames import HEADER, MAGIC, frame
from workers.wire.gob import StructCodec
from workers.wire.messages import IMG_INFO
from workers.wire.types import UINT, StructType

BIG = bytes(range(256)) * 100
WITH_ID = {"id": 1, "data": BIG, "target_width": 9}
WITHOUT_ID = {"data": BIG, "target_width": 9}
ID_BEHIND = StructCodec(
    StructType("Request", 64, (("ImgInfo", IMG_INFO), ("TargetWidth", UINT), ("ID", UINT)))
)


@pytest.fixture
def front() -> Iterator[FrontFixture]:
    front = FrontFixture()
    yield front
    front.close()


def send(front: FrontFixture, peer: FramePeer, **fields: object) -> None:
    peer.send(request_frame(**fields))
    front.settle()


def status_of(peer: FramePeer) -> list[tuple[int, int]]:
    return [(reply.id, reply.status) for reply in peer.replies()]


def names(peer: FramePeer) -> list[str]:
    return [reply.original_name for reply in peer.replies()]


# -- requests with an ID --


def test_a_picture_is_resized_where_it_arrived_and_the_reply_has_every_field(front: FrontFixture) -> None:
    peer = front.connect()
    send(front, peer, **WITH_ID, original_name="a.jpg")
    assert front.taken() == 1
    assert front.work(b"small one") == BIG
    (reply,) = peer.replies()
    assert (reply.id, reply.status, reply.original_name, reply.data) == (1, 200, "a.jpg", b"small one")
    assert (reply.server, reply.workers, reply.resized_width, reply.width) == ("here", 1, 9, 90)
    assert front.taken() == 0


@pytest.mark.parametrize(
    "cut", [1, 8, HEADER, HEADER + 40, 200, SMALL, HEADER + SMALL, HEADER + SMALL + 1, 9000]
)
def test_a_frame_may_arrive_in_pieces(front: FrontFixture, cut: int) -> None:
    peer = front.connect()
    whole = request_frame(**WITH_ID) + request_frame(id=2, dry_run=True)
    for piece in (whole[:cut], whole[cut:-1], whole[-1:]):
        peer.send(piece)
        front.settle()
    assert front.work() == BIG
    assert sorted(status_of(peer)) == [(1, 200), (2, 200)]


def test_a_small_picture_needs_no_slot_until_it_is_whole(front: FrontFixture) -> None:
    peer = front.connect()
    whole = request_frame(id=1, data=b"tiny", target_width=9)
    peer.send(whole[:-1])
    front.settle()
    assert front.taken() == 0
    peer.send(whole[-1:])
    front.settle()
    assert front.work() == b"tiny"
    assert status_of(peer) == [(1, 200)]


def test_replies_with_an_id_come_in_the_order_of_the_work(front: FrontFixture) -> None:
    peer = front.connect()
    send(front, peer, **WITH_ID)
    send(front, peer, id=2, dry_run=True)
    assert status_of(peer) == [(2, 200)]
    front.work()
    assert status_of(peer) == [(1, 200)]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"target_width": 0}, 400),
        ({"fit": "nonsense"}, 400),
        ({"format": "tiff"}, 400),
        ({"target_width": 10**9}, 422),
    ],
)
def test_a_request_with_wrong_fields_is_refused_at_its_head(
    front: FrontFixture, fields: dict[str, object], status: int
) -> None:
    peer = front.connect(over_tcp=True)
    whole = request_frame(**WITH_ID | fields)
    peer.send(whole[: HEADER + SMALL])
    front.settle()
    assert status_of(peer) == [(1, status)]
    assert front.taken() == 0
    peer.send(whole[HEADER + SMALL : -7])
    front.settle()
    peer.send(whole[-7:] + request_frame(id=2, dry_run=True))
    front.settle()
    assert status_of(peer) == [(2, 200)], "the rest is thrown away, and not a byte more"
    assert front.order() is None and front.cells[counters.REQUESTS] == 2
    send(front, peer, **WITH_ID)
    assert front.work() == BIG, "an accepted picture is not thrown away"


def test_a_request_beyond_the_queue_is_refused_at_its_head(front: FrontFixture) -> None:
    front.fill_queue()
    peer = front.connect()
    before = front.taken()
    peer.send(request_frame(**WITH_ID)[: HEADER + SMALL])
    front.settle()
    (reply,) = peer.replies()
    assert (reply.id, reply.status) == (1, 429) and f"{OPTIONS.queue}/{OPTIONS.queue}" in reply.error
    assert front.taken() == before


def test_requests_on_their_way_keep_their_place_as_long_as_they_are_prompt(front: FrontFixture) -> None:
    half = request_frame(**WITH_ID)[:-1]
    crowd = [front.connect() for _ in range(OPTIONS.queue + 1)]
    late, later = front.connect(), front.connect()
    for peer in (*crowd, late):
        peer.send(half)
        front.settle()
    assert status_of(late) == [(1, 429)]
    front.now += PROMPT + 0.01
    front.settle()
    send(front, later, **WITH_ID)
    assert front.work() == BIG
    assert status_of(later) == [(1, 200)]


def test_an_id_behind_its_picture_is_found_when_the_frame_is_complete(front: FrontFixture) -> None:
    peer = front.connect()
    whole = frame(b"".join(ID_BEHIND.encode((("", 0, 0, 0, BIG), 0, 7))))
    peer.send(whole[:-1])
    front.settle()
    assert status_of(peer) == []
    peer.send(whole[-1:])
    front.settle()
    assert status_of(peer) == [(7, 400)] and front.taken() == 0
    peer.send(frame(b"".join(ID_BEHIND.encode((("", 0, 0, 0, BIG), 9, 8)))))
    front.settle()
    assert front.work() == BIG
    assert status_of(peer) == [(8, 200)]


def test_an_id_behind_its_picture_is_refused_at_its_end(front: FrontFixture) -> None:
    front.fill_queue()
    peer = front.connect()
    before = front.taken()
    peer.send(frame(b"".join(ID_BEHIND.encode((("", 0, 0, 0, BIG), 9, 7)))))
    front.settle()
    assert status_of(peer) == [(7, 429)] and front.taken() == before


def test_a_client_over_the_limit_is_answered_but_gets_no_work(front: FrontFixture) -> None:
    peer = front.connect(is_over_limit=True)
    send(front, peer, **WITH_ID)
    send(front, peer, id=2, dry_run=True)
    assert status_of(peer) == [(1, 429), (2, 200)]


def test_a_full_pipeline_is_not_read_from_until_something_is_answered(front: FrontFixture) -> None:
    peer = front.connect()
    send(front, peer, original_name="0", **WITHOUT_ID)
    for number in range(1, OPTIONS.pipeline + 3):
        send(front, peer, original_name=f"{number}", dry_run=True)
    assert front.cells[counters.REQUESTS] == OPTIONS.pipeline
    front.work()
    assert names(peer) == [f"{number}" for number in range(OPTIONS.pipeline + 3)]


def test_a_client_that_does_not_read_its_answers_is_not_read_from(front: FrontFixture) -> None:
    front.answer_bytes = 300_000
    peer = front.connect()
    for number in range(1, 60):
        send(front, peer, id=number, data=b"tiny", target_width=9)
        if (order := front.order()) is not None:
            front.finish(order, bytes(90_000))
    assert peer.connection.output.pending < 300_000 + 100_000, "the limit and one answer more"
    assert front.cells[counters.REQUESTS] < 59
    found = []
    for _ in range(200):
        found += status_of(peer)
        front.settle()
        if (order := front.order()) is not None:
            front.finish(order, bytes(90_000))
    assert sorted(number for number, _ in found) == list(range(1, 60))
    assert front.taken() == 0


# -- health --


def test_a_dry_run_without_a_target_asks_for_health(front: FrontFixture) -> None:
    peer, known = front.connect(), front.connect()
    send(front, peer, original_name="a", dry_run=True)
    assert names(peer) == ["a"]
    front.scheduler.draining = True
    send(front, known, id=1, dry_run=True)
    assert status_of(known)[:1] == [(1, 503)]
    send(front, peer, original_name="b", dry_run=True)
    assert peer.received() == b"" and peer.is_closed, "who would not understand a refusal gets no answer"


# -- original peers --


def test_an_original_peer_is_answered_in_the_order_of_its_requests(front: FrontFixture) -> None:
    peer = front.connect()
    send(front, peer, original_name="a", **WITHOUT_ID)
    send(front, peer, original_name="b", dry_run=True)
    assert names(peer) == []
    front.work()
    replies = peer.replies()
    assert [reply.original_name for reply in replies] == ["a", "b"]
    assert (replies[0].id, replies[0].status, replies[0].server) == (0, 0, ""), (
        "no field beyond the original protocol"
    )


def test_an_original_peer_waits_for_a_full_queue(front: FrontFixture) -> None:
    peer, known = front.connect(), front.connect()
    send(front, known, original_name="x", dry_run=True)
    crowd = front.fill_queue()
    before = front.taken()
    for name in "abc":
        send(front, peer, original_name=name, **WITHOUT_ID)
    assert front.taken() == before + 1
    send(front, known, original_name="y", **WITHOUT_ID)
    assert front.taken() == before + 1, "a peer known as original does not even get a slot"
    for _ in range(len(crowd) + 4):
        front.work()
    assert names(peer) == ["a", "b", "c"] and names(known) == ["x", "y"] and front.taken() == 0


def test_a_refused_picture_ends_the_connection_of_an_original_peer(front: FrontFixture) -> None:
    peer = front.connect()
    send(front, peer, original_name="a", **WITHOUT_ID)
    send(front, peer, original_name="b", **WITHOUT_ID)
    front.work()
    order = front.order()
    assert order is not None
    front.finish(order, b"", 422, "damaged")
    assert names(peer) == ["a"] and peer.is_closed
    assert front.taken() == 0


# -- clients that are gone --


def test_what_waits_is_dropped_when_a_connection_is_reset_and_kept_when_its_peer_half_closes(
    front: FrontFixture,
) -> None:
    worked, lost, half_closed = (front.connect(over_tcp=True) for _ in range(3))
    send(front, worked, **WITH_ID)
    send(front, lost, **WITH_ID)
    send(front, half_closed, **WITH_ID)
    half_closed.sock.shutdown(socket.SHUT_WR)
    lost.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    lost.sock.close()
    front.settle()
    assert front.cells[counters.ABANDONED] == 1 and len(front.scheduler.queue) == 1
    front.work()
    front.work()
    assert status_of(worked) == status_of(half_closed) == [(1, 200)] and front.order() is None
    assert front.taken() == 0


# -- slots --


@pytest.mark.parametrize("has_id", [True, False])
def test_the_slowest_yields_its_slot_and_is_refused_or_cut(front: FrontFixture, has_id: bool) -> None:
    crowd = [front.connect() for _ in range(OPTIONS.slots)]
    whole = request_frame(**(WITH_ID if has_id else WITHOUT_ID))
    for number, slow in enumerate(crowd):
        slow.send(whole[: 9000 + number])
        front.settle()
        front.now += PROMPT + 0.01
        front.settle()
    assert front.taken() == OPTIONS.slots
    peer = front.connect()
    send(front, peer, **WITH_ID)
    assert front.work() == BIG and status_of(peer) == [(1, 200)]
    assert not any(slow.received() for slow in crowd[1:])
    if not has_id:
        assert crowd[0].received() == b"" and crowd[0].is_closed
        return
    assert status_of(crowd[0]) == [(1, 429)]
    crowd[0].send(whole[9000:])
    send(front, crowd[0], id=2, data=BIG, target_width=9)
    assert front.work() == BIG and status_of(crowd[0]) == [(2, 200)], "its connection goes on"


def test_without_a_slot_a_picture_waits_and_a_dry_run_does_not(front: FrontFixture) -> None:
    held = [front.scheduler.claim_slot(lambda: None) for _ in range(OPTIONS.slots)]
    big, small, dry = front.connect(), front.connect(), front.connect()
    send(front, big, **WITH_ID)
    send(front, small, id=2, data=b"tiny", target_width=9)
    send(front, dry, id=3, dry_run=True)
    assert status_of(big) == status_of(small) == [] and status_of(dry) == [(3, 200)]
    for slot in held[:2]:
        assert slot is not None
        front.scheduler.release_slot(slot)
    front.settle()
    assert sorted([front.work(), front.work()]) == sorted([BIG, b"tiny"])
    assert status_of(big) == [(1, 200)] and status_of(small) == [(2, 200)]


@pytest.mark.parametrize("said", [HEADER + 5, HEADER + SMALL, HEADER + 9000])
def test_a_client_that_leaves_in_a_frame_leaves_no_slot_in_use(front: FrontFixture, said: int) -> None:
    peer = front.connect()
    peer.send(request_frame(**WITH_ID)[:said])
    front.settle()
    peer.sock.close()
    front.settle()
    assert peer.connection.state is CLOSED and front.taken() == 0


def test_slots_of_a_client_that_leaves_are_free_at_once_or_with_their_result(front: FrontFixture) -> None:
    peer = front.connect()
    for number in (1, 2, 3):
        send(front, peer, id=number, data=BIG, target_width=9)
    order = front.order()
    assert order is not None and front.taken() == 3
    peer.sock.close()
    front.settle()
    assert front.taken() == 1 and front.cells[counters.ABANDONED] == 3
    front.finish(order)
    assert front.taken() == 0


@pytest.fixture
def wide_front() -> Iterator[FrontFixture]:
    """With two CPU processes."""
    front = FrontFixture(cpus=2)
    yield front
    front.close()


def test_the_slot_of_an_answer_before_its_turn_is_free_when_its_client_leaves(
    wide_front: FrontFixture,
) -> None:
    front, peer = wide_front, wide_front.connect()
    send(front, peer, **WITHOUT_ID)
    first = front.order()
    send(front, peer, **WITHOUT_ID)
    front.work()
    assert peer.replies() == [] and front.taken() == 2
    peer.sock.close()
    front.settle()
    assert front.taken() == 1
    assert first is not None
    front.finish(first)
    assert front.taken() == 0


def test_a_task_over_its_time_has_no_slot_when_its_client_is_gone(wide_front: FrontFixture) -> None:
    front, peer = wide_front, wide_front.connect()
    send(front, peer, original_name="first", **WITHOUT_ID)
    first = front.order()
    send(front, peer, original_name="second", **WITHOUT_ID)
    second = front.order()
    assert first is not None and second is not None
    front.now += 5
    front.ends[first.worker_pid].send(encode(Bye(first.worker_pid)))
    front.replace(first.worker_pid, 21)
    front.now += OPTIONS.job_timeout - 4
    front.scheduler.tick(front.now)
    assert len(front.processes.killed) == 1, "the second one; the first was begun again"
    peer.sock.close()
    front.settle()
    assert front.taken() == 1, "the other one is at work"
    front.replace(second.worker_pid, 22)
    front.work()
    assert front.taken() == 0


# -- the end --


@pytest.mark.parametrize(
    "noise", [MAGIC[:4] + b"nonsense", frame(b"\x07\xff\x81"), MAGIC + b"\xff" * 8, frame(b"\x01" * 6000)]
)
def test_noise_ends_the_connection_after_earlier_replies(front: FrontFixture, noise: bytes) -> None:
    peer = front.connect()
    peer.send(request_frame(id=1, dry_run=True) + noise)
    front.settle()
    assert status_of(peer) == [(1, 200)] and peer.is_closed
    assert front.taken() == 0


def test_a_picture_that_does_not_end_as_its_head_said_ends_the_connection(front: FrontFixture) -> None:
    peer = front.connect()
    peer.send(request_frame(**WITH_ID)[:-1] + b"\x01")
    front.settle()
    assert peer.replies() == [] and peer.is_closed
    assert front.order() is None and front.taken() == 0


def test_draining_answers_what_is_in_flight_and_refuses_the_rest(front: FrontFixture) -> None:
    peer, coming = front.connect(), front.connect()
    send(front, peer, **WITH_ID)
    whole = request_frame(id=7, data=BIG, target_width=9)
    coming.send(whole[:9000])
    front.settle()
    front.drain()
    assert not coming.is_closed
    coming.send(whole[9000:])
    front.settle()
    assert status_of(coming) == [(7, 503)] and coming.is_closed
    front.work()
    assert status_of(peer) == [(1, 200)] and peer.is_closed
    assert front.taken() == 0


def test_draining_refuses_at_the_head_and_reads_the_frame_to_its_end(front: FrontFixture) -> None:
    peer = front.connect()
    send(front, peer, id=1, dry_run=True)
    whole = request_frame(id=7, data=BIG, target_width=9)
    peer.send(whole[:100])
    front.settle()
    front.drain()
    peer.send(whole[100:9000])
    front.settle()
    assert status_of(peer) == [(1, 200), (7, 503)] and not peer.is_closed
    peer.send(whole[9000:])
    front.settle()
    assert peer.received() == b"" and peer.is_closed


def test_draining_refuses_a_request_that_has_no_slot_yet(front: FrontFixture) -> None:
    held = [front.scheduler.claim_slot(lambda: None) for _ in range(OPTIONS.slots)]
    peer = front.connect()
    send(front, peer, id=1, data=b"tiny", target_width=9)
    assert status_of(peer) == [] and len(held) == OPTIONS.slots
    front.drain()
    assert status_of(peer) == [(1, 503)] and peer.is_closed
