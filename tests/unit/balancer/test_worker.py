"""A drain's arithmetic, and what the title says of it."""

import socket
from collections.abc import Iterator
from itertools import pairwise

import pytest

from balancer.worker import IDLE, is_idle, staying, title_text
from tests.unit.balancer.relay.simulation import WorkerSimulation


@pytest.mark.parametrize(
    ("now", "part", "sessions", "left"),
    [
        (100.0, 0.5, 10, 10),  # the window 100..120 has begun: all may stay
        (110.0, 0.5, 10, 10),  # half of it is over: from now on fewer
        (115.0, 0.5, 10, 5),
        (119.9, 0.5, 10, 1),  # the last one has until the deadline
        (120.0, 0.5, 10, 0),
        (115.0, 0.25, 10, 10),  # the busy ones' turn comes in the last quarter
        (117.5, 0.25, 10, 5),
        (115.0, 0.5, 0, 0),
    ],
)
def test_how_many_may_stay(now: float, part: float, sessions: int, left: int) -> None:
    assert staying(sessions, 100.0, 120.0, now, part) == left


def test_without_a_window_nobody_stays() -> None:
    assert staying(5, 100.0, 100.0, 100.0, 0.5) == 0


def test_who_leaves_is_spread_over_the_window_and_nobody_comes_back() -> None:
    """A thousand sessions in steps of a tenth of a second: never more than some of them at once."""
    course = [staying(1000, 0.0, 30.0, step / 10, 0.5) for step in range(301)]
    assert course == sorted(course, reverse=True)
    assert max(before - after for before, after in pairwise(course)) <= 7


def test_the_title() -> None:
    assert title_text(2, 17, 0.0, 5.0) == "worker 2 [17 sessions]"
    assert title_text(2, 17, 30.0, 7.0) == "worker 2 draining [17 sessions, 23 s left]"
    assert title_text(0, 0, 30.0, 31.0) == "worker 0 draining [0 sessions, 0 s left]"


@pytest.fixture
def worker() -> Iterator[WorkerSimulation]:
    worker = WorkerSimulation()
    yield worker
    worker.close()


def test_idle_is_who_waits_for_nothing(worker: WorkerSimulation) -> None:
    """Silent for a while, nothing held back, and the backend had the last word: such a client loses no answer."""
    client, backend = worker.pair()
    [session] = worker.sessions
    assert not is_idle(session, worker.time)  # not looked at yet
    worker.pass_time(2 * IDLE)
    assert is_idle(session, worker.time)  # it has never said anything
    client.send(b"ask")
    worker.pass_time(1.5)
    assert not is_idle(session, worker.time + 100)  # however long: an answer is due
    backend.send(b"answer")
    worker.pass_time(1.0)
    assert not is_idle(session, worker.time)  # a moment ago
    worker.pass_time(2 * IDLE)
    assert is_idle(session, worker.time)


def test_who_holds_bytes_for_a_slow_reader_is_not_idle(worker: WorkerSimulation) -> None:
    client, backend = worker.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    [session] = worker.sessions
    client.send(b"ask")
    for _ in range(200):
        try:
            backend.send(bytes(1 << 18))
        except BlockingIOError:
            worker.settle(3)
            if session.splicing is not None and session.splicing.is_holding():
                break
    assert session.splicing is not None and session.splicing.is_holding()
    worker.pass_time(5.0)
    assert not is_idle(session, worker.time)
