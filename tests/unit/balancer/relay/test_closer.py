"""The end of sessions: what is closed, counted and woken, and in which order."""

import errno
import os
import socket

import pytest

from balancer.pool.board import (
    B_BYTES_IN,
    B_BYTES_OUT,
    B_SESSIONS,
    L_BYTES_IN,
    L_BYTES_OUT,
    L_ENDS,
    L_REFUSED,
    L_SESSION_TIMES,
    L_SESSIONS,
    LISTENERS,
    MOST_ENDS,
)
from balancer.relay import ends
from balancer.relay.context import session_budget
from balancer.shm.histogram import bucket_of
from balancer.shm.layout import LOAD
from tests.unit.balancer.relay.simulation import WorkerSimulation, heard


def test_descriptors_are_closed_before_anything_is_counted() -> None:
    """A place that is free on the board while its socket is open would let one session too many in."""
    counts = []

    def close(fd: int) -> None:
        counts.append((worker.cell(L_SESSIONS), worker.backend_cell(B_SESSIONS)))
        os.close(fd)

    worker = WorkerSimulation(close=close)
    worker.pair()
    worker.sessions[0].close(ends.KILLED, "test")
    worker.turn()
    assert counts == [(1, 1)]
    assert (worker.cell(L_SESSIONS), worker.backend_cell(B_SESSIONS), worker.process_cell(LOAD)) == (0, 0, 0)
    worker.close()


@pytest.mark.parametrize(("size", "timeout"), [(3, 30.0), (100_000, 0.0)])
def test_a_socket_that_is_closed_with_bytes_under_way_is_left_to_the_kernels_own_limits(
    size: int, timeout: float
) -> None:
    """A client that pauses would be reset by the user timeout, which nobody moves ahead any more."""
    told = []

    def close(fd: int) -> None:
        with socket.socket(fileno=os.dup(fd)) as sock:
            told.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000)
        os.close(fd)

    worker = WorkerSimulation(close=close, user_timeout=30.0)
    client, backend = worker.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    worker.pass_time(1.5)  # long enough to be worth the timeout
    backend.send(bytes(size))
    worker.settle()
    client.shutdown(socket.SHUT_WR)
    backend.close()
    worker.settle()
    assert worker.ends == ["--"] and told == [timeout]
    worker.close()


def test_waiting_clients_are_woken_last(worker: WorkerSimulation) -> None:
    worker.pair()
    seen = []
    worker.closer.on_closed = lambda: seen.append((worker.cell(L_SESSIONS), worker.cell(L_ENDS)))
    [session] = worker.sessions
    session.close(ends.CLEAN)
    assert seen == []
    worker.turn()
    assert seen == [(0, 1)]


def test_every_byte_is_counted_once_by_sweep_and_closer(worker: WorkerSimulation) -> None:
    """By the sweep while the session lives, by its end, and after the splicing relay has taken it over."""
    client, backend = worker.pair()
    source, server = backend.getpeername()[1], worker.servers[0].getsockname()[1]
    [session] = worker.sessions
    for round_ in range(1, 4):
        client.send(b"12345")
        backend.send(b"123")
        worker.pass_time(1.5)
        if round_ == 2:
            session.take_over()
        assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (5 * round_, 3 * round_)
    assert heard(client) == "123123123|open"
    client.send(b"the last word")
    client.close()
    worker.settle()
    assert heard(backend).endswith("the last word|end")
    backend.close()
    worker.settle()
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (28, 9)
    assert (worker.backend_cell(B_BYTES_IN), worker.backend_cell(B_BYTES_OUT)) == (28, 9)
    [line] = worker.lines.sessions
    assert "in=28 out=9" in line
    assert f" wait=0.0ms accepted=-4.5s source=127.0.0.1:{source} server=127.0.0.1:{server} " in line
    assert " counts=1/1/1 id=" in line


@pytest.mark.parametrize("takes_over", [False, True])
def test_the_ages_of_a_batch_are_counted_at_its_end(worker: WorkerSimulation, takes_over: bool) -> None:
    worker.pair()
    worker.pass_time(7.0)
    worker.pair()
    worker.pass_time(2.0)
    if takes_over:
        worker.sessions[0].take_over()
    assert worker.times(LISTENERS, L_SESSION_TIMES).count == 0
    for session, end in zip(worker.sessions, (ends.CLEAN, ends.KILLED), strict=True):
        session.close(end)
    worker.turn()
    found = worker.times(LISTENERS, L_SESSION_TIMES)
    assert (found.count, found.seconds) == (2, 11.0)
    assert (found.counts[bucket_of(9.0)], found.counts[bucket_of(2.0)]) == (1, 1)


def test_every_end_there_is_has_its_place_in_the_order() -> None:
    """An end without a column could not be counted; a clean one is counted as the first of them."""
    named = [value for name, value in vars(ends).items() if name.isupper() and isinstance(value, str)]
    assert sorted(named) == sorted(ends.ORDER) and ends.ORDER[0] == ends.CLEAN
    assert len(ends.ORDER) == len(set(ends.ORDER)) <= MOST_ENDS


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize("end", ends.ORDER)
def test_an_end_is_counted_once_and_in_its_own_column(
    worker: WorkerSimulation, end: str, takes_over: bool
) -> None:
    """In a batch with two clean ends, one of them by the splicing relay."""
    for _ in range(3):
        worker.pair()
    first, second, third = worker.sessions
    second.take_over()
    if takes_over:
        third.take_over()
    first.close(ends.CLEAN)
    second.close(ends.CLEAN)
    third.close(end, "test")
    worker.turn()
    counts = {each: worker.cell(L_ENDS + n) for n, each in enumerate(ends.ORDER)}
    expected = dict.fromkeys(ends.ORDER, 0)
    expected[ends.CLEAN] = 2
    expected[end] += 1
    assert counts == expected
    assert worker.cell(L_REFUSED) == worker.cell(L_SESSIONS) == 0


def test_a_shortage_is_logged_once_a_second(worker: WorkerSimulation) -> None:
    for _ in range(5):
        worker.context.log_shortage(errno.EMFILE)
    worker.pass_time(1.1)
    worker.context.log_shortage(errno.EMFILE)
    assert [line.split()[1] for line in worker.lines.others if line.startswith("dial ")] == [
        "error=EMFILE"
    ] * 2


@pytest.mark.parametrize(("limit", "budget"), [(20_000, 9968), (65, 1), (1, 1), (1 << 40, (1 << 19) - 32)])
def test_sessions_that_the_descriptors_are_enough_for(limit: int, budget: int) -> None:
    assert session_budget(limit) == budget


def test_a_session_is_found_by_its_descriptors_and_by_those_it_has_dropped(worker: WorkerSimulation) -> None:
    """A defect costs the session of its descriptor; after a failed dial the session has another one."""
    worker.pair()
    session = worker.sessions[0]
    first = session.backend_fd
    found = [worker.relay.session_with(fd) for fd in (session.client_fd, first, -1, 999)]
    assert found == [session, session, None, None]
    assert session.dial_failed(errno.ECONNREFUSED)
    assert session.backend_fd == -1
    assert worker.relay.session_with(first) is session
    session.close("KD")
