"""The speaker of frames: who is answered what, in which order, and where slots go, for both kinds of peers."""

from collections.abc import Iterator

import pytest

from tests.unit.workers.resizer.room import SETTINGS, Guest, Room, framed
from workers.resizer import tally
from workers.resizer.desk import PROMPT
from workers.resizer.intake import SMALL
from workers.resizer.orders import Result
from workers.resizer.speaking import Life
from workers.wire.frames import HEADER, MAGIC, frame
from workers.wire.gob import StructCodec
from workers.wire.messages import IMG_INFO
from workers.wire.types import UINT, StructType

BIG = bytes(range(256)) * 100
OURS = {"id": 1, "data": BIG, "target_width": 9}
ORIGINAL = {"data": BIG, "target_width": 9}
ID_BEHIND = StructCodec(
    StructType("Request", 64, (("ImgInfo", IMG_INFO), ("TargetWidth", UINT), ("ID", UINT)))
)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    room = Room(monkeypatch)
    yield room
    room.close()


def say(room: Room, guest: Guest, **fields: object) -> None:
    guest.say(framed(**fields))
    room.settle()


def status_of(guest: Guest) -> list[tuple[int, int]]:
    return [(reply.id, reply.status) for reply in guest.replies()]


def names(guest: Guest) -> list[str]:
    return [reply.original_name for reply in guest.replies()]


# -- ours --


def test_a_picture_is_worked_on_where_it_arrived_and_answered_with_all_that_is_known(room: Room) -> None:
    guest = room.welcome()
    say(room, guest, **OURS, original_name="a.jpg")
    assert room.taken() == 1
    assert room.work(b"small one") == BIG
    (reply,) = guest.replies()
    assert (reply.id, reply.status, reply.original_name, reply.data) == (1, 200, "a.jpg", b"small one")
    assert (reply.server, reply.workers, reply.resized_width, reply.width) == ("here", 1, 9, 90)
    assert room.taken() == 0


@pytest.mark.parametrize(
    "cut", [1, 8, HEADER, HEADER + 40, 200, SMALL, HEADER + SMALL, HEADER + SMALL + 1, 9000]
)
def test_it_may_arrive_in_pieces(room: Room, cut: int) -> None:
    guest = room.welcome()
    whole = framed(**OURS) + framed(id=2, dry_run=True)
    for piece in (whole[:cut], whole[cut:-1], whole[-1:]):
        guest.say(piece)
        room.settle()
    assert room.work() == BIG
    assert sorted(status_of(guest)) == [(1, 200), (2, 200)]


def test_a_small_picture_needs_no_slot_until_it_is_whole(room: Room) -> None:
    guest = room.welcome()
    whole = framed(id=1, data=b"tiny", target_width=9)
    guest.say(whole[:-1])
    room.settle()
    assert room.taken() == 0
    guest.say(whole[-1:])
    room.settle()
    assert room.work() == b"tiny"
    assert status_of(guest) == [(1, 200)]


def test_answers_come_in_the_order_of_the_work(room: Room) -> None:
    guest = room.welcome()
    say(room, guest, **OURS)
    say(room, guest, id=2, dry_run=True)
    assert status_of(guest) == [(2, 200)]
    room.work()
    assert status_of(guest) == [(1, 200)]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"target_width": 0}, 400),
        ({"fit": "nonsense"}, 400),
        ({"format": "tiff"}, 400),
        ({"target_width": 10**9}, 422),
    ],
)
def test_what_is_refused_for_its_words_is_refused_at_its_head(
    room: Room, fields: dict[str, object], status: int
) -> None:
    guest = room.welcome(over_tcp=True)
    whole = framed(**OURS | fields)
    guest.say(whole[: HEADER + SMALL])
    room.settle()
    assert status_of(guest) == [(1, status)]
    assert room.taken() == 0
    guest.say(whole[HEADER + SMALL : -7])
    room.settle()
    guest.say(whole[-7:] + framed(id=2, dry_run=True))
    room.settle()
    assert status_of(guest) == [(2, 200)], "the rest is thrown away, and not a byte more"
    assert room.order() is None and room.cells[tally.REQUESTS] == 2
    say(room, guest, **OURS)
    assert room.work() == BIG, "what is wanted again is not thrown away"


def test_beyond_the_queue_it_is_told_busy_at_its_head(room: Room) -> None:
    room.fill_queue()
    guest = room.welcome()
    before = room.taken()
    guest.say(framed(**OURS)[: HEADER + SMALL])
    room.settle()
    (reply,) = guest.replies()
    assert (reply.id, reply.status) == (1, 429) and f"{SETTINGS.queue}/{SETTINGS.queue}" in reply.error
    assert room.taken() == before


def test_places_on_their_way_are_taken_as_long_as_they_are_prompt(room: Room) -> None:
    half = framed(**OURS)[:-1]
    crowd = [room.welcome() for _ in range(SETTINGS.queue + 1)]
    late, later = room.welcome(), room.welcome()
    for guest in (*crowd, late):
        guest.say(half)
        room.settle()
    assert status_of(late) == [(1, 429)]
    room.now += PROMPT + 0.01
    room.settle()
    say(room, later, **OURS)
    assert room.work() == BIG
    assert status_of(later) == [(1, 200)]


def test_an_id_behind_its_picture_is_found_when_all_is_here(room: Room) -> None:
    guest = room.welcome()
    whole = frame(b"".join(ID_BEHIND.encode((("", 0, 0, 0, BIG), 0, 7))))
    guest.say(whole[:-1])
    room.settle()
    assert status_of(guest) == []
    guest.say(whole[-1:])
    room.settle()
    assert status_of(guest) == [(7, 400)] and room.taken() == 0
    guest.say(frame(b"".join(ID_BEHIND.encode((("", 0, 0, 0, BIG), 9, 8)))))
    room.settle()
    assert room.work() == BIG
    assert status_of(guest) == [(8, 200)]


def test_an_id_behind_its_picture_is_told_busy_at_its_end(room: Room) -> None:
    room.fill_queue()
    guest = room.welcome()
    before = room.taken()
    guest.say(frame(b"".join(ID_BEHIND.encode((("", 0, 0, 0, BIG), 9, 7)))))
    room.settle()
    assert status_of(guest) == [(7, 429)] and room.taken() == before


def test_a_late_client_is_answered_but_not_worked_for(room: Room) -> None:
    guest = room.welcome(is_late=True)
    say(room, guest, **OURS)
    say(room, guest, id=2, dry_run=True)
    assert status_of(guest) == [(1, 429), (2, 200)]


def test_a_full_pipeline_is_not_read_from_until_something_is_answered(room: Room) -> None:
    guest = room.welcome()
    say(room, guest, original_name="0", **ORIGINAL)
    for number in range(1, SETTINGS.pipeline + 3):
        say(room, guest, original_name=f"{number}", dry_run=True)
    assert room.cells[tally.REQUESTS] == SETTINGS.pipeline
    room.work()
    assert names(guest) == [f"{number}" for number in range(SETTINGS.pipeline + 3)]


def test_a_client_that_does_not_read_its_answers_is_not_read_from(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.resizer.framed.ANSWER_BYTES", 300_000)
    guest = room.welcome()
    for number in range(1, 60):
        say(room, guest, id=number, data=b"tiny", target_width=9)
        if (order := room.order()) is not None:
            room.finish(order, bytes(90_000))
    assert guest.client.outbox.pending < 300_000 + 100_000, "what is allowed and one more"
    assert room.cells[tally.REQUESTS] < 59
    found = []
    for _ in range(200):
        found += status_of(guest)
        room.settle()
        if (order := room.order()) is not None:
            room.finish(order, bytes(90_000))
    assert sorted(number for number, _ in found) == list(range(1, 60))
    assert room.taken() == 0


# -- originals --


def test_an_original_peer_is_answered_in_the_order_of_its_requests(room: Room) -> None:
    guest = room.welcome()
    say(room, guest, original_name="a", **ORIGINAL)
    say(room, guest, original_name="b", dry_run=True)
    assert names(guest) == []
    room.work()
    replies = guest.replies()
    assert [reply.original_name for reply in replies] == ["a", "b"]
    assert (replies[0].id, replies[0].status, replies[0].server) == (0, 0, ""), "no field of ours"


def test_an_original_peer_waits_for_a_full_queue(room: Room) -> None:
    guest, known = room.welcome(), room.welcome()
    say(room, known, original_name="x", dry_run=True)
    crowd = room.fill_queue()
    before = room.taken()
    for name in "abc":
        say(room, guest, original_name=name, **ORIGINAL)
    assert room.taken() == before + 1
    say(room, known, original_name="y", **ORIGINAL)
    assert room.taken() == before + 1, "known as one that cannot be refused it does not even get a slot"
    for _ in range(len(crowd) + 4):
        room.work()
    assert names(guest) == ["a", "b", "c"] and names(known) == ["x", "y"] and room.taken() == 0


def test_an_original_peer_loses_its_connection_with_a_picture_it_cannot_have(room: Room) -> None:
    guest = room.welcome()
    say(room, guest, original_name="a", **ORIGINAL)
    say(room, guest, original_name="b", **ORIGINAL)
    room.work()
    order = room.order()
    assert order is not None
    room.finish(order, b"", 422, "damaged")
    assert names(guest) == ["a"] and guest.is_over
    assert room.taken() == 0


# -- slots --


def test_without_a_slot_a_picture_waits_and_a_dry_run_does_not(room: Room) -> None:
    held = [room.desk.claim(lambda: None) for _ in range(SETTINGS.slots)]
    big, small, dry = room.welcome(), room.welcome(), room.welcome()
    say(room, big, **OURS)
    say(room, small, id=2, data=b"tiny", target_width=9)
    say(room, dry, id=3, dry_run=True)
    assert status_of(big) == status_of(small) == [] and status_of(dry) == [(3, 200)]
    for slot in held[:2]:
        assert slot is not None
        room.desk.release(slot)
    room.settle()
    assert sorted([room.work(), room.work()]) == sorted([BIG, b"tiny"])
    assert status_of(big) == [(1, 200)] and status_of(small) == [(2, 200)]


@pytest.mark.parametrize("said", [HEADER + 5, HEADER + SMALL, HEADER + 9000])
def test_a_client_that_leaves_in_the_middle_leaves_no_slot_behind(room: Room, said: int) -> None:
    guest = room.welcome()
    guest.say(framed(**OURS)[:said])
    room.settle()
    guest.sock.close()
    room.settle()
    assert guest.client.life is Life.CLOSED and room.taken() == 0


def test_a_client_that_leaves_gives_back_what_waits_at_once_and_what_is_worked_on_later(room: Room) -> None:
    guest = room.welcome()
    for number in (1, 2, 3):
        say(room, guest, id=number, data=BIG, target_width=9)
    order = room.order()
    assert order is not None and room.taken() == 3
    guest.sock.close()
    room.settle()
    assert room.taken() == 1 and room.cells[tally.ABANDONED] == 3
    room.finish(order)
    assert room.taken() == 0


def test_a_picture_done_before_its_turn_gives_its_slot_back_when_its_client_leaves(room: Room) -> None:
    guest = room.welcome()
    say(room, guest, **ORIGINAL)
    say(room, guest, **ORIGINAL)
    first, second = guest.client.speaker.order  # type: ignore[union-attr]
    room.desk.waiting.cancel(second.task)
    room.desk.done(second.task, Result(0, 0, 200, 5, text="jpeg"), True)
    guest.sock.close()
    room.settle()
    room.work()
    assert first.task is not None and room.taken() == 0


def test_one_cut_before_its_turn_keeps_its_slot_until_its_process_is_dead(room: Room) -> None:
    guest = room.welcome()
    say(room, guest, **ORIGINAL)
    say(room, guest, **ORIGINAL)
    _, second = guest.client.speaker.order  # type: ignore[union-attr]
    room.desk.waiting.cancel(second.task)
    room.desk.done(second.task, Result(0, 0, 504, text="too long"), False)
    guest.sock.close()
    room.settle()
    assert room.taken() == 2
    assert second.task is not None
    room.desk.late(second.task)
    room.work()
    assert room.taken() == 0


# -- the end --


@pytest.mark.parametrize(
    "noise", [MAGIC[:4] + b"nonsense", frame(b"\x07\xff\x81"), MAGIC + b"\xff" * 8, frame(b"\x01" * 6000)]
)
def test_noise_ends_the_connection_after_what_is_owed(room: Room, noise: bytes) -> None:
    guest = room.welcome()
    guest.say(framed(id=1, dry_run=True) + noise)
    room.settle()
    assert status_of(guest) == [(1, 200)] and guest.is_over
    assert room.taken() == 0


def test_a_picture_that_does_not_end_as_its_head_said_ends_the_connection(room: Room) -> None:
    guest = room.welcome()
    guest.say(framed(**OURS)[:-1] + b"\x01")
    room.settle()
    assert guest.replies() == [] and guest.is_over
    assert room.order() is None and room.taken() == 0


def test_on_the_way_down_what_is_under_way_is_answered_and_the_rest_refused(room: Room) -> None:
    guest, coming = room.welcome(), room.welcome()
    say(room, guest, **OURS)
    whole = framed(id=7, data=BIG, target_width=9)
    coming.say(whole[:9000])
    room.settle()
    room.drain()
    assert not coming.is_over
    coming.say(whole[9000:])
    room.settle()
    assert status_of(coming) == [(7, 503)] and coming.is_over
    room.work()
    assert status_of(guest) == [(1, 200)] and guest.is_over
    assert room.taken() == 0


def test_on_the_way_down_a_head_is_enough_to_refuse_but_the_frame_is_read_to_its_end(room: Room) -> None:
    guest = room.welcome()
    say(room, guest, id=1, dry_run=True)
    whole = framed(id=7, data=BIG, target_width=9)
    guest.say(whole[:100])
    room.settle()
    room.drain()
    guest.say(whole[100:9000])
    room.settle()
    assert status_of(guest) == [(1, 200), (7, 503)] and not guest.is_over
    guest.say(whole[9000:])
    room.settle()
    assert guest.heard() == b"" and guest.is_over
