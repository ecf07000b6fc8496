"""Lanes with links that carry nothing and a clock that is told: who is dialled, who gets what, what is tried again."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from workers.client.connection import Conversation
from workers.client.jobs import Job, Queue
from workers.client.lane import DIAL_TIMEOUT, NEVER_MET, PATIENCE, Calls, Lane, Limits
from workers.client.pacing import Pacer
from workers.client.scan import Picture
from workers.wire.messages import Request, Response


class FakeLink:
    """What a lane sees of a link."""

    def __init__(self, serial: int, now: float, next_id: Callable[[], int]) -> None:
        self.serial = serial
        self.talk: Conversation[Job] = Conversation(next_id, 10_000)
        self.dialled_at = now
        self.is_open = self.is_closed = self.is_sour = self.is_alone = False
        self.end = ""
        self.on_lost: Callable[[Any, str], None] = lambda link, reason: None

    def is_idle(self) -> bool:
        return not len(self.talk)

    def send(self, job: Job, request: Request) -> None:
        self.talk.put(job, request)

    def flush(self) -> None:
        pass

    def close(self, reason: str) -> None:
        if not self.is_closed:
            self.is_closed, self.is_open, self.end = True, False, reason
            self.on_lost(self, reason)


class World:
    """A lane, its links, and what was settled."""

    def __init__(self, jobs: int, low: int = 1, high: int = 0, in_flight: int = 4, retries: int = 3) -> None:
        self.now = 100.0
        self.links: list[FakeLink] = []
        self.settled: dict[str, str] = {}
        self._ids = count(1)
        fresh = iter([Job(Picture(f"{n}", 1, 1, 0), f"{n}-2x2") for n in range(jobs)])
        calls = Calls(lambda: self.now, self.dial, lambda job, now: Request(job.picture.path), self.settle)
        self.lane = Lane(Queue(fresh, jobs), Pacer(low, high), Limits(in_flight, retries, 10.0), calls)
        self.lane.work()

    def dial(self, lane: Lane) -> Any:
        link = FakeLink(len(self.links) + 1, self.now, self._ids.__next__)
        link.on_lost = lane.lost
        self.links.append(link)
        return link

    def settle(self, job: Job, response: Response | None, reason: str) -> None:
        assert job.picture.path not in self.settled, "settled twice"
        self.settled[job.picture.path] = reason or str(response.status if response else "nothing")

    def open(self, *serials: int) -> None:
        for serial in serials:
            link = self.links[serial - 1]
            link.is_open = True
            self.lane.opened(link)  # type: ignore[arg-type]

    def carried(self, serial: int) -> list[str]:
        return [job.picture.path for job in self.links[serial - 1].talk.in_flight()]

    def answer(self, serial: int, status: int = 200, names: list[str] | None = None) -> None:
        """Reply to what link `serial` carries (or to `names` of it)."""
        link = self.links[serial - 1]
        answers = []
        for id, (job, _) in list(link.talk._in_flight.items()):
            if names is None or job.picture.path in names:
                del link.talk._in_flight[id]
                answers.append((job, Response(id=id, status=status)))
        link.talk.answered += len(answers)
        self.lane.answered(link, answers)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            self.lane.tick()


def test_jobs_go_out_up_to_the_depth() -> None:
    world = World(6, in_flight=4)
    assert len(world.links) == 1
    world.open(1)
    assert world.carried(1) == ["0", "1", "2", "3"]
    world.answer(1, names=["1"])
    assert world.carried(1) == ["0", "2", "3", "4"]
    world.answer(1)
    world.answer(1)
    assert world.settled == dict.fromkeys("012345", "200")


def test_no_more_connections_than_jobs() -> None:
    assert len(World(3, low=8).links) == 3
    assert len(World(30, low=8).links) == 8


@pytest.mark.parametrize("status", [429, 503])
def test_busy_sours_the_link_and_the_job_goes_to_a_new_one(status: int) -> None:
    world = World(4, in_flight=2)
    world.open(1)
    world.answer(1, status, names=["0"])
    assert world.carried(1) == ["1"], "a sour link gets no more"
    assert len(world.links) == 1
    world.wait(0.25)
    assert len(world.links) == 2
    world.open(2)
    world.answer(1, names=["1"])
    assert world.links[0].is_closed
    assert world.links[0].end == ""
    assert world.carried(2) == ["2", "3"] or "0" in world.carried(2)
    world.wait(1)
    world.answer(2)
    world.wait(1)
    world.answer(2)
    assert world.settled == dict.fromkeys("0123", "200")


def test_only_busy_shrinks_the_number_of_connections() -> None:
    for status, wanted in ((429, 6), (503, 8)):
        world = World(100, low=1, high=8)
        world.lane.pacer.wanted = 8
        world.open(1)
        world.answer(1, status)
        assert world.lane.pacer.wanted == wanted


def test_a_lost_link_s_jobs_come_again_alone() -> None:
    world = World(6, in_flight=3)
    world.open(1)
    world.answer(1, names=["0"])
    world.links[0].close("lost: reset")
    assert len(world.links) == 2, "it had answered, so the next is dialled at once"
    world.wait(5)
    world.open(2)
    assert world.carried(2) == ["1"], "a suspect gets no company"
    world.answer(2)
    assert world.carried(2) == ["2"]
    world.answer(2)
    world.answer(2)
    assert world.carried(2) == ["4", "5"]
    world.answer(2)
    assert world.settled == dict.fromkeys("012345", "200")


def test_retries_end() -> None:
    world = World(1, retries=2)
    for serial in (1, 2, 3):
        world.open(serial)
        assert world.carried(serial) == ["0"]
        world.links[serial - 1].talk.answered = 1
        world.links[serial - 1].close("lost: reset")
        world.wait(1)
    assert world.settled == {"0": "lost: reset"}
    assert len(world.links) == 3


def test_an_old_idle_link_makes_room_for_a_new_one() -> None:
    """What is left may not go to any link there is: one of them is given up for a newer one."""
    world = World(2, low=2, in_flight=1)
    world.open(1, 2)
    world.answer(1, names=["0"])
    assert not world.links[0].is_closed
    world.links[1].talk.answered = 1
    world.lane.pacer.low = world.lane.pacer.high = world.lane.pacer.wanted = 1
    world.links[1].close("lost: reset")
    world.wait(3)
    assert world.links[0].is_closed
    world.open(3)
    world.answer(3)
    assert world.settled == {"0": "200", "1": "200"}


def test_protocol_violations_are_final() -> None:
    world = World(6, in_flight=2)
    world.open(1)
    world.links[0].talk.violation = "repeated ID 7"
    world.links[0].talk.answered = 1
    world.links[0].close("protocol: repeated ID 7")
    assert world.settled == {"0": "protocol: repeated ID 7", "1": "protocol: repeated ID 7"}


def test_timeouts_count_from_the_place_in_the_queue() -> None:
    world = World(2, in_flight=2, retries=0)
    world.open(1)
    world.wait(9)
    assert not world.links[0].is_closed
    world.answer(1, names=["0"])
    world.wait(8)
    assert not world.links[0].is_closed, "the second waited for the first"
    world.wait(4)
    assert world.links[0].end == "timeout: no reply in 10 s"
    assert world.settled["1"].startswith("timeout")


def test_a_dial_that_never_ends_is_ended() -> None:
    world = World(1)
    world.wait(DIAL_TIMEOUT + 0.5)
    assert world.links[0].end == "cannot connect: timed out"


def fail_dials(world: World, seconds: float) -> None:
    end = world.now + seconds
    while world.now < end:
        for link in world.links:
            if not link.is_closed:
                link.close("cannot connect: refused")
        world.wait(0.25)


def test_a_wrong_address_is_given_up_soon() -> None:
    world = World(1000, low=4)
    fail_dials(world, 20)
    assert len(world.links) <= NEVER_MET + 4
    assert len(world.settled) == 1000
    assert set(world.settled.values()) == {"cannot connect: refused"}


def test_a_service_that_was_there_gets_more_patience_and_one_job_at_a_time() -> None:
    world = World(1000, low=4)
    world.open(1)
    world.answer(1)
    assert len(world.settled) == 4
    burnt = 0
    while len(world.settled) < 1000 and world.now < 200:
        for link in world.links:
            if not link.is_closed:
                if not link.is_open:
                    world.open(link.serial)
                burnt += len(link.talk)
                link.close("lost: closed by the other side")
        world.wait(0.25)
    assert len(world.settled) == 1000
    assert len(world.links) <= 4 + PATIENCE + 2
    assert burnt <= 4 * 4 + PATIENCE, "an absent service must not eat the retries of everybody"


def test_one_reply_ends_the_trouble() -> None:
    world = World(100, low=2)
    fail_dials(world, 0.3)
    world.wait(1)
    world.open(world.links[-1].serial)
    assert len(world.carried(world.links[-1].serial)) == 1, "the probe"
    world.answer(world.links[-1].serial)
    assert len(world.carried(world.links[-1].serial)) == 4
    world.wait(0.5)
    assert sum(not link.is_closed for link in world.links) == 2


def test_the_end_settles_nothing() -> None:
    world = World(5)
    world.open(1)
    world.lane.end()
    assert world.settled == {}
    assert world.links[0].is_closed
    assert len(world.links) == 1
