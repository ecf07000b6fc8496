"""The door: how many at a time, which queues, and what happens when there is no room."""

import errno
import os
from collections.abc import Iterator

import pytest

from balancer.pool.board import L_ACCEPTED, L_CLOSED, L_REFUSED, L_SESSIONS
from balancer.relay.accept import LOOK, MAX_ACCEPTS, REST
from balancer.shm.layout import ACCEPTING, LOAD
from tests.unit.balancer.relay.simulation import WorkerSimulation, heard


@pytest.fixture
def worker() -> Iterator[WorkerSimulation]:
    worker = WorkerSimulation()
    yield worker
    worker.close()


@pytest.fixture
def limited() -> Iterator[WorkerSimulation]:
    worker = WorkerSimulation(maxconns=2)
    yield worker
    worker.close()


@pytest.fixture
def patient() -> Iterator[WorkerSimulation]:
    worker = WorkerSimulation(maxconns=2, overflow="queue")
    yield worker
    worker.close()


def test_greed_doubles_while_the_queue_is_full(worker: WorkerSimulation) -> None:
    worker.settle()
    for _ in range(40):
        worker.connect()
    taken = []
    for _ in range(6):
        before = worker.cell(L_ACCEPTED)
        worker.turn()
        taken.append(worker.cell(L_ACCEPTED) - before)
    assert taken == [1, 2, 4, 8, MAX_ACCEPTS, 40 - 31]


def test_only_the_named_queues_are_served(worker: WorkerSimulation) -> None:
    worker.acceptor.serve([])
    worker.connect()
    worker.settle()
    assert worker.cell(L_ACCEPTED) == worker.process_cell(ACCEPTING) == 0
    worker.acceptor.serve([0])
    worker.settle()
    assert worker.cell(L_ACCEPTED) == worker.process_cell(ACCEPTING) == 1


def test_queues_are_emptied_before_they_are_left(worker: WorkerSimulation) -> None:
    for _ in range(30):
        worker.connect()
    worker.acceptor.empty_queues()
    assert worker.cell(L_ACCEPTED) == worker.process_cell(LOAD) == 30


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_out_of_something_it_rests(worker: WorkerSimulation, code: int) -> None:
    """Accepting fails with EMFILE even when the queue is empty: whoever asks again at once spins."""
    asked = []

    def fails() -> tuple[int, object]:
        asked.append(worker.time)
        raise OSError(code, "none left")

    [door] = worker.acceptor._open.values()
    accept, door._accept = door._accept, fails
    worker.connect()
    worker.settle(50)
    assert len(asked) == 1
    assert worker.process_cell(ACCEPTING) == 0
    assert not worker.acceptor.is_accepting()
    worker.pass_time(REST * 0.9, 0.02)
    assert len(asked) == 1
    worker.pass_time(REST * 0.2, 0.02)
    assert len(asked) == 2
    door._accept = accept
    worker.pass_time(REST * 1.1, 0.02)
    assert worker.cell(L_ACCEPTED) == worker.process_cell(ACCEPTING) == 1
    assert len(worker.lines.others) == 1, "said once, not five times a second"
    assert f"error={errno.errorcode[code]}" in worker.lines.others[0]


def test_a_stillborn_connection_is_passed_over(worker: WorkerSimulation) -> None:
    [door] = worker.acceptor._open.values()
    accept, first = door._accept, [OSError(errno.ECONNABORTED, "gone")]

    def once() -> tuple[int, object]:
        if first:
            raise first.pop()
        return accept()

    door._accept = once
    worker.connect()
    worker.settle()
    assert worker.cell(L_ACCEPTED) == worker.process_cell(ACCEPTING) == 1


def test_sessions_fill_the_descriptors_there_are(worker: WorkerSimulation) -> None:
    worker.hub.budget = 3
    for _ in range(5):
        worker.connect()
    worker.settle(20)
    assert worker.process_cell(LOAD) == 3
    assert worker.process_cell(ACCEPTING) == 0
    next(iter(worker.hub.sessions)).close("KD")
    worker.pass_time(REST * 1.2, 0.02)
    assert worker.cell(L_ACCEPTED) == 4
    assert worker.process_cell(LOAD) == 3


def test_pipes_take_room_as_sessions_do(worker: WorkerSimulation) -> None:
    worker.hub.budget = 4
    pipe = worker.hub.pipes.take() if worker.hub.pipes is not None else None
    for _ in range(5):
        worker.connect()
    worker.settle(20)
    assert worker.process_cell(LOAD) == 4 - (pipe is not None)
    if pipe is not None and worker.hub.pipes is not None:
        worker.hub.pipes.give_back(pipe, 1)
        worker.pass_time(REST * 1.2, 0.02)
        assert worker.process_cell(LOAD) == 4


def test_who_exceeds_maxconns_is_refused_and_counted(limited: WorkerSimulation) -> None:
    clients = [limited.connect() for _ in range(5)]
    limited.settle(20)
    assert [heard(client) for client in clients].count("|end") == 3
    assert (limited.cell(L_ACCEPTED), limited.cell(L_REFUSED), limited.cell(L_CLOSED)) == (5, 3, 3)
    assert limited.cell(L_SESSIONS) == 2
    assert "sessions=2/2 reason=maxconns" in limited.lines.others[0]


def test_with_overflow_queue_the_kernel_keeps_them(patient: WorkerSimulation) -> None:
    clients = [patient.connect() for _ in range(3)]
    patient.settle(20)
    assert patient.cell(L_ACCEPTED) == patient.cell(L_SESSIONS) == 2
    assert heard(clients[2]) == "|open"
    patient.pass_time(1.0, LOOK)
    assert patient.cell(L_ACCEPTED) == 2
    next(iter(patient.hub.sessions)).close("KD")
    patient.settle()
    assert patient.cell(L_ACCEPTED) == 3, "a seat of our own is taken again at once"
    assert patient.cell(L_SESSIONS) == 2


def test_a_removed_address_is_not_asked_again(worker: WorkerSimulation) -> None:
    """A reload has shut the listener down: level-triggered, it would be reported for ever."""
    spare = os.dup(worker.queue.fileno())
    worker.queue.shutdown(0)
    worker.settle()
    assert not worker.acceptor.is_accepting()
    turns = worker.loop.turns
    worker.settle(3)
    assert worker.loop.turns == turns + 3
    os.close(spare)
