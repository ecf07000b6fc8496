"""What the splicing relay is for: slow peers, lost peers, bytes that no peer takes. The ends are in test_session.py."""

import contextlib
import os

from balancer.pool.board import L_BYTES_OUT, L_PAUSES, L_RESUMES
from balancer.relay.flow import BULK
from balancer.relay.half import LIMIT
from tests.unit.balancer.relay.simulation import WorkerSimulation, heard, reset


def push(peer: object, amount: int) -> int:
    """As much of `amount` zeros as the kernel takes now."""
    sent = 0
    while sent < amount:
        try:
            sent += peer.send(bytes(min(amount - sent, 1 << 18)))  # type: ignore[attr-defined]
        except BlockingIOError:
            break
    return sent


def test_a_slow_reader_stops_its_sender_and_lets_it_go_on(worker: WorkerSimulation) -> None:
    client, backend = worker.pair()
    total, sent, got = 24 << 20, 0, 0
    while (more := push(backend, total - sent)) > 0:
        sent += more
        worker.settle(3)
    [session] = worker.sessions
    assert session.splicing is not None and session.splicing.down.paused
    assert session.splicing.down.pending <= 1 << 20
    while got < total:
        sent += push(backend, total - sent)
        got += int(heard(client).split("|")[0] or 0)
        worker.settle(3)
    assert got == total
    client.close()
    backend.close()
    worker.settle()
    assert worker.cell(L_PAUSES) == worker.cell(L_RESUMES) > 0
    assert worker.cell(L_BYTES_OUT) == total


def test_bytes_for_a_backend_that_is_gone_are_dropped(worker: WorkerSimulation) -> None:
    """The client sends before it reads, and has filled every buffer when the backend resets."""
    client, backend = worker.pair()
    while push(client, 1 << 20):
        worker.settle(3)
    reset(backend)
    with contextlib.suppress(ConnectionResetError):
        for _ in range(60):
            push(client, 1 << 20)
            worker.pass_time(0.01, 0.01)
    assert worker.ends == ["SD ECONNRESET"]


def test_an_end_beside_a_backend_that_takes_nothing_more_lingers(worker: WorkerSimulation) -> None:
    """Both are found in one event: the client gets the end, and its further bytes are dropped, not reset."""
    client, _ = worker.pair()
    [session] = worker.sessions
    splicing = session.take_over()
    splicing.up.lose_sink()
    splicing.down.ended()
    splicing.settle()
    assert splicing.closing_at > worker.time
    assert heard(client) == "|end"


def test_many_bytes_at_once_go_to_the_splicing_relay(worker: WorkerSimulation) -> None:
    client, backend = worker.pair()
    [session] = worker.sessions
    for size, is_splicing in ((BULK - 1, False), (BULK, True)):
        backend.send(bytes(size))
        worker.settle()
        assert (session.splicing is not None) == is_splicing
    worker.pass_time(1.5)
    assert heard(client) == f"{2 * BULK - 1}|open"
    assert worker.cell(L_BYTES_OUT) == 2 * BULK - 1


def test_an_end_behind_many_bytes_is_passed_on(worker: WorkerSimulation) -> None:
    """The fast path takes all it may; the rest and the end lie behind it."""
    client, backend = worker.pair()
    backend.send(bytes(LIMIT + 10))
    backend.shutdown(1)
    worker.settle()
    assert heard(client) == f"{LIMIT + 10}|end"
    client.close()
    worker.settle()
    assert worker.ends == ["--"]
    assert worker.cell(L_BYTES_OUT) == LIMIT + 10


def test_a_last_answer_that_finds_no_room_is_written_when_there_is(worker: WorkerSimulation) -> None:
    """The backend takes nothing more; its last answer is fetched on that occasion, while the client's queue is full."""
    client, backend = worker.pair()
    [session] = worker.sessions
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(session.client_fd, bytes(1 << 18))
    backend.send(b"last")
    splicing = session.take_over()
    splicing.up.lose_sink()
    splicing.settle()
    assert splicing.down.paused
    heard(client)
    worker.settle()
    assert heard(client) == "last|open"
