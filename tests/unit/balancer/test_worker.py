"""A worker process: a drain and its arithmetic, a defect, the title."""

import gc
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import inf
from types import SimpleNamespace

import pytest

from balancer.eventloop.loop import Loop
from balancer.options import MAIN, Options, ProcessOptions
from balancer.pool.backend import parse_upstream, with_indexes
from balancer.relay.context import NO_TLS
from balancer.worker import (
    IDLE,
    IDLE_LOOKS,
    DrainLooks,
    RelayWorker,
    is_idle,
    limit_text,
    staying,
    title_text,
)
from tests.unit.balancer.relay.simulation import (
    LISTENER,
    OWN,
    POOL,
    Lines,
    OneSocket,
    WorkerSimulation,
    heard,
    listening,
    make_board,
)


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


def test_without_a_window_none_may_stay() -> None:
    assert staying(5, 100.0, 100.0, 100.0, 0.5) == 0


def test_the_closes_are_spread_over_the_window() -> None:
    """A thousand sessions in steps of a tenth of a second: never more than some of them at once."""
    course = [staying(1000, 0.0, 30.0, step / 10, 0.5) for step in range(301)]
    assert course == sorted(course, reverse=True)
    assert max(before - after for before, after in pairwise(course)) <= 7


def test_the_title() -> None:
    assert title_text(2, 17, 0.0, 5.0) == "worker 2 [17 sessions]"
    assert title_text(2, 1, 0.0, 5.0) == "worker 2 [1 session]"
    assert title_text(2, 17, 30.0, 7.0) == "worker 2 draining [17 sessions, 23 s left]"
    assert title_text(1, 3, inf, 7.0) == "worker 1 draining [3 sessions]"
    assert title_text(0, 0, 30.0, 31.0) == "worker 0 draining [0 sessions, 0 s left]"


def test_a_limit_in_the_log_names_its_listener_unless_it_is_main() -> None:
    assert [limit_text("main", 0), limit_text("main", 5), limit_text("web", 7)] == ["none", "5", "web:7"]


@pytest.fixture
def worker() -> Iterator[WorkerSimulation]:
    worker = WorkerSimulation()
    yield worker
    worker.close()


def test_a_session_is_idle_when_no_answer_is_due(worker: WorkerSimulation) -> None:
    """Silent for a while, nothing held back, and the backend had the last word: such a client loses no answer."""
    client, backend = worker.pair()
    [session] = worker.sessions
    assert not is_idle(session, worker.time)  # not looked at yet
    worker.pass_time(2 * IDLE)
    assert is_idle(session, worker.time)  # no byte yet
    client.send(b"ask")
    worker.pass_time(1.5)
    assert not is_idle(session, worker.time + 100)  # however long: an answer is due
    backend.send(b"answer")
    worker.pass_time(1.0)
    assert not is_idle(session, worker.time)  # a moment ago
    worker.pass_time(2 * IDLE)
    assert is_idle(session, worker.time)


def test_a_session_that_has_moved_since_the_last_sweep_is_not_idle(worker: WorkerSimulation) -> None:
    """Judged on what is so now: a note of the sweep may be as old as a stop of the process."""
    client, backend = worker.pair()
    client.send(b"ask")
    worker.settle()
    backend.send(b"answer")
    worker.pass_time(3 * IDLE)
    [session] = worker.sessions
    assert is_idle(session, worker.time)
    client.send(b"ask again")
    worker.settle()
    assert not is_idle(session, worker.time + 100)


def test_a_session_without_a_backend_is_not_idle(worker: WorkerSimulation) -> None:
    worker.pair()
    worker.pass_time(3 * IDLE)
    [session] = worker.sessions
    backend, session.backend = session.backend, None
    assert not is_idle(session, worker.time)
    session.backend = backend


def test_silence_is_counted_in_looks(worker: WorkerSimulation) -> None:
    client, _ = worker.pair()
    [session] = worker.sessions
    looks = DrainLooks(IDLE_LOOKS)
    course = []
    for _ in range(IDLE_LOOKS + 1):
        looks.look(worker.sessions)
        course.append(looks.are_quiet(session))
    assert course == [False] * IDLE_LOOKS + [True]
    client.send(b"ask")
    worker.settle()
    looks.look(worker.sessions)
    assert not looks.are_quiet(session)


def test_a_session_with_bytes_for_a_slow_reader_is_not_idle(worker: WorkerSimulation) -> None:
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


class SimulatedChild:
    """What a worker needs of its process: a loop with a clock that the test turns, a log, a row, a listening socket."""

    def __init__(self) -> None:
        self.time = 100.0
        self.loop = Loop(clock=lambda: self.time)
        self.log = Lines()
        self.row, self.slot, self.draining = OWN, 0, False
        self.title = SimpleNamespace(text="", set=self.set_title)
        self.listening = {0: (OneSocket(listening(), name=MAIN), OneSocket(listening(), name="other"))}

    def set_title(self, text: str, now: float) -> None:
        self.title.text = text

    def wake(self, row: int) -> None: ...


@pytest.fixture
def child() -> Iterator[SimulatedChild]:
    child = SimulatedChild()
    yield child
    for one in child.listening[0]:
        one.sock.close()
    child.loop.close()


@pytest.fixture
def relay_worker(child: SimulatedChild) -> Iterator[RelayWorker]:
    board = make_board()
    server = listening()
    backends = with_indexes([parse_upstream(f"127.0.0.1:{server.getsockname()[1]} name=b")], {"b": 0})
    options = Options(ProcessOptions(), (LISTENER,), (replace(POOL, backends=backends, index=0),))
    worker = RelayWorker(child, options, board, NO_TLS)  # type: ignore[arg-type]
    worker.start()
    yield worker
    gc.enable()
    worker.cut()
    child.loop.run_once(0)
    server.close()
    os.close(board.lock_fd)


def connect(child: SimulatedChild, place: int = 0) -> socket.socket:
    client = socket.create_connection(child.listening[0][place].sock.getsockname())
    client.setblocking(False)
    for _ in range(4):
        child.loop.run_once(0)
    return client


def test_a_worker_accepts_from_the_sockets_of_its_listeners(
    child: SimulatedChild, relay_worker: RelayWorker
) -> None:
    with connect(child), connect(child, place=1):
        assert len(relay_worker.context.sessions) == 1


def test_a_defect_costs_the_session_of_the_descriptor(
    child: SimulatedChild, relay_worker: RelayWorker
) -> None:
    with connect(child) as first, connect(child) as second:
        session = next(iter(relay_worker.context.sessions))
        child.loop.set_handler(session.client_fd, lambda mask: 1 / 0)
        first.send(b"x")
        second.send(b"y")
        for _ in range(3):
            child.loop.run_once(0)
        assert [heard(first), heard(second)] == ["|reset", "|open"]  # its byte was not read
    assert "fault client=127.0.0.1:" in child.log.others[-1] and "ZeroDivisionError" in child.log.others[-1]
    assert " end=RD " in child.log.sessions[0]


def test_a_defect_without_a_session_ends_the_process(
    child: SimulatedChild, relay_worker: RelayWorker
) -> None:
    with socket.socket() as other:
        child.loop.watch(other.fileno(), lambda mask: 1 / 0)  # epoll reports HUP for it
        with pytest.raises(ZeroDivisionError):
            child.loop.run_once(0)
        child.loop.forget(other.fileno())


def test_a_drain_closes_idle_sessions_in_its_second_half(
    child: SimulatedChild, relay_worker: RelayWorker
) -> None:
    clients = [connect(child) for _ in range(4)]
    for _ in range(40):  # the sweep has seen them silent for longer than IDLE
        child.time += 0.25
        child.loop.run_once(0)
    relay_worker.drain(child.time + 20.0)
    left = {}
    for step in range(1, 41):
        child.time += 0.5
        child.loop.run_once(0)
        left[step / 2] = len(relay_worker.context.sessions)
    assert (left[9.5], left[15.0], left[17.5]) == (4, 2, 1)
    assert left[20.0] == 1  # the last one has until the deadline, when the process is cut
    relay_worker.cut()
    child.loop.run_once(0)
    assert not relay_worker.context.sessions
    for client in clients:
        client.close()


def test_a_drain_does_not_take_its_own_silence_for_that_of_its_sessions(
    child: SimulatedChild, relay_worker: RelayWorker
) -> None:
    """The process was stopped for most of the window: it has seen its sessions for a moment only."""
    clients = [connect(child) for _ in range(4)]
    relay_worker.drain(child.time + 20.0)
    child.loop.run_once(0)
    child.time += 14.0
    for _ in range(IDLE_LOOKS):
        child.time += 0.05
        child.loop.run_once(0)
    assert len(relay_worker.context.sessions) == 4
    for client in clients:
        client.close()


def test_in_the_last_part_a_session_without_a_backend_is_the_last(
    child: SimulatedChild, relay_worker: RelayWorker
) -> None:
    """The oldest of three, which waits for a place; the others wait for an answer."""
    clients = [connect(child) for _ in range(3)]
    for client in clients:
        client.send(b"ask")
    child.loop.run_once(0)
    waiting = next(iter(relay_worker.context.sessions))
    backend, waiting.backend = waiting.backend, None
    relay_worker.drain(child.time + 20.0)
    for _ in range(199):
        child.time += 0.1
        child.loop.run_once(0)
    assert list(relay_worker.context.sessions) == [waiting]
    waiting.backend = backend
    for client in clients:
        client.close()


def test_a_drain_without_an_end_closes_nothing_until_it_is_given_one(
    child: SimulatedChild, relay_worker: RelayWorker
) -> None:
    """Fails where a share of the window, which is never, has always begun."""
    clients = [connect(child) for _ in range(4)]
    relay_worker.drain(inf)
    for _ in range(5):
        child.time += (
            600.0  # each step collects garbage, which takes long in a process that has run many tests
        )
        for client in clients:
            client.send(b"x")  # less than the idle timeout is between two bytes
        for _ in range(3):
            child.loop.run_once(0)
    assert len(relay_worker.context.sessions) == 4
    child.on_deadline(child.time + 20.0)  # type: ignore[attr-defined]
    for _ in range(39):
        child.time += 0.5
        child.loop.run_once(0)
    assert len(relay_worker.context.sessions) == 1
    for client in clients:
        client.close()


@pytest.mark.parametrize(("spread", "left"), [(True, 1), (False, 2)])
def test_drain_spread_no_leaves_sessions_the_whole_window(
    child: SimulatedChild, relay_worker: RelayWorker, spread: bool, left: int
) -> None:
    process = replace(relay_worker.options.process, drain_spread=spread)
    relay_worker.options = replace(relay_worker.options, process=process)
    address = child.listening[0][0].sock.getsockname()
    with socket.create_connection(address) as client, socket.create_connection(address) as other:
        for one in (client, other):
            one.send(b"ask")
        for _ in range(5):
            child.loop.run_once(0)
        assert len(relay_worker.context.sessions) == 2
        relay_worker.drain(child.time + 20.0)
        for _ in range(199):
            child.time += 0.1
            child.loop.run_once(0)
        assert len(relay_worker.context.sessions) == left
