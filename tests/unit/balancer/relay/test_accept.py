"""The door: how many at a time, which queues, and what happens when there is no room."""

import errno
import os
from collections.abc import Iterator

import pytest

from balancer.pool.board import ACCEPTED, REFUSED, SESSIONS, SESSIONS_CLOSED
from balancer.relay.accept import GREED, LOOK, REST
from balancer.shm.layout import ACCEPTING, LOAD
from tests.unit.balancer.relay.world import World, heard


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def limited() -> Iterator[World]:
    world = World(maxconns=2)
    yield world
    world.close()


@pytest.fixture
def patient() -> Iterator[World]:
    world = World(maxconns=2, overflow="queue")
    yield world
    world.close()


def test_greed_doubles_while_the_queue_is_full(world: World) -> None:
    world.settle()
    for _ in range(40):
        world.connect()
    taken = []
    for _ in range(6):
        before = world.cell(ACCEPTED)
        world.turn()
        taken.append(world.cell(ACCEPTED) - before)
    assert taken == [1, 2, 4, 8, GREED, 40 - 31]


def test_only_the_named_queues_are_served(world: World) -> None:
    world.acceptor.serve([])
    world.connect()
    world.settle()
    assert world.cell(ACCEPTED) == world.cell(ACCEPTING) == 0
    world.acceptor.serve([0])
    world.settle()
    assert world.cell(ACCEPTED) == world.cell(ACCEPTING) == 1


def test_queues_are_emptied_before_they_are_left(world: World) -> None:
    for _ in range(30):
        world.connect()
    world.acceptor.empty_queues()
    assert world.cell(ACCEPTED) == world.cell(LOAD) == 30


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_out_of_something_it_rests(world: World, code: int) -> None:
    """Accepting fails with EMFILE even when the queue is empty: whoever asks again at once spins."""
    asked = []

    def fails() -> tuple[int, object]:
        asked.append(world.time)
        raise OSError(code, "none left")

    [door] = world.acceptor._open.values()
    accept, door._accept = door._accept, fails
    world.connect()
    world.settle(50)
    assert len(asked) == 1
    assert world.cell(ACCEPTING) == 0
    assert not world.acceptor.is_accepting()
    world.pass_time(REST * 0.9, 0.02)
    assert len(asked) == 1
    world.pass_time(REST * 0.2, 0.02)
    assert len(asked) == 2
    door._accept = accept
    world.pass_time(REST * 1.1, 0.02)
    assert world.cell(ACCEPTED) == world.cell(ACCEPTING) == 1
    assert len(world.lines.others) == 1, "said once, not five times a second"
    assert f"error={errno.errorcode[code]}" in world.lines.others[0]


def test_a_stillborn_connection_is_passed_over(world: World) -> None:
    [door] = world.acceptor._open.values()
    accept, first = door._accept, [OSError(errno.ECONNABORTED, "gone")]

    def once() -> tuple[int, object]:
        if first:
            raise first.pop()
        return accept()

    door._accept = once
    world.connect()
    world.settle()
    assert world.cell(ACCEPTED) == world.cell(ACCEPTING) == 1


def test_sessions_fill_the_descriptors_there_are(world: World) -> None:
    world.hub.budget = 3
    for _ in range(5):
        world.connect()
    world.settle(20)
    assert world.cell(LOAD) == 3
    assert world.cell(ACCEPTING) == 0
    next(iter(world.hub.sessions)).close("KD")
    world.pass_time(REST * 1.2, 0.02)
    assert world.cell(ACCEPTED) == 4
    assert world.cell(LOAD) == 3


def test_pipes_take_room_as_sessions_do(world: World) -> None:
    world.hub.budget = 4
    pipe = world.hub.pipes.take() if world.hub.pipes is not None else None
    for _ in range(5):
        world.connect()
    world.settle(20)
    assert world.cell(LOAD) == 4 - (pipe is not None)
    if pipe is not None and world.hub.pipes is not None:
        world.hub.pipes.give_back(pipe, 1)
        world.pass_time(REST * 1.2, 0.02)
        assert world.cell(LOAD) == 4


def test_who_exceeds_maxconns_is_refused_and_counted(limited: World) -> None:
    clients = [limited.connect() for _ in range(5)]
    limited.settle(20)
    assert [heard(client) for client in clients].count("|end") == 3
    assert (limited.cell(ACCEPTED), limited.cell(REFUSED), limited.cell(SESSIONS_CLOSED)) == (5, 3, 3)
    assert limited.cell(SESSIONS) == 2
    assert "sessions=2/2 reason=maxconns" in limited.lines.others[0]


def test_with_overflow_queue_the_kernel_keeps_them(patient: World) -> None:
    clients = [patient.connect() for _ in range(3)]
    patient.settle(20)
    assert patient.cell(ACCEPTED) == patient.cell(SESSIONS) == 2
    assert heard(clients[2]) == "|open"
    patient.pass_time(1.0, LOOK)
    assert patient.cell(ACCEPTED) == 2
    next(iter(patient.hub.sessions)).close("KD")
    patient.settle()
    assert patient.cell(ACCEPTED) == 3, "a seat of our own is taken again at once"
    assert patient.cell(SESSIONS) == 2


def test_a_removed_address_is_not_asked_again(world: World) -> None:
    """A reload has shut the listener down: level-triggered, it would be reported for ever."""
    spare = os.dup(world.queue.fileno())
    world.queue.shutdown(0)
    world.settle()
    assert not world.acceptor.is_accepting()
    turns = world.loop.turns
    world.settle(3)
    assert world.loop.turns == turns + 3
    os.close(spare)
