"""Which ends count against a backend: its own, before the client's and before its first byte.

A case says what both sides do; `early` is what the board has counted when the session is over.
"""

import socket
from collections.abc import Iterator

import pytest

from balancer.pool.board import B_CONNECT_FAILURES, B_EARLY_ENDS
from balancer.pool.election import EARLY, EARLY_WHEN_ASKED
from tests.unit.balancer.relay.simulation import WorkerSimulation, listening_unix, reset

NOW, SOON, LATER, LATE = 0.0, EARLY - 0.3, EARLY + 0.5, EARLY_WHEN_ASKED + 1.0

# what both do before the end, seconds until it, who ends how, and whether it counts
CASES = [
    ("nothing", NOW, "backend ends", True),
    ("nothing", NOW, "backend resets", True),
    ("nothing", SOON, "backend ends", True),
    ("nothing", SOON, "backend resets", True),
    ("nothing", LATER, "backend ends", False),  # as servers do with silent clients
    ("nothing", LATER, "backend resets", False),
    ("client asks", NOW, "backend ends", True),
    ("client asks", NOW, "backend resets", True),
    ("client asks", LATER, "backend ends", True),
    ("client asks", LATER, "backend resets", True),
    ("client asks", LATE, "backend ends", False),  # one that takes and never says a word
    ("client asks", LATE, "backend resets", False),
    ("backend speaks", NOW, "backend ends", False),
    ("backend speaks", NOW, "backend resets", False),
    ("client asks, backend speaks", NOW, "backend ends", False),
    ("client asks, backend speaks", NOW, "backend resets", False),
    ("client ends", NOW, "backend ends", False),
    ("client ends", NOW, "backend resets", False),
    ("client asks, client ends", NOW, "backend ends", False),
    ("client asks, client ends", NOW, "backend resets", False),
    ("nothing", NOW, "client ends", False),
    ("nothing", NOW, "client resets", False),
    ("client asks", NOW, "client ends", False),
    ("client asks", NOW, "client resets", False),
    ("client asks much", NOW, "backend ends", True),  # the splicing relay has it
    ("client asks much", NOW, "backend resets", True),
    ("client asks much, client ends", NOW, "backend ends", False),
    ("client asks much", NOW, "client resets", False),
]


class Play:
    """A session with both of its peers, between a listener and a backend of that kind."""

    def __init__(self, worker: WorkerSimulation) -> None:
        self.worker = worker
        self.client, self.backend = worker.pair()

    def act(self, what: str) -> None:
        who, _, how = what.partition(" ")
        side = self.client if who == "client" else self.backend
        if how in ("asks", "speaks"):
            side.sendall(b"x")
        elif how == "asks much":
            side.send(b"x" * 100_000)
        elif how == "ends":
            side.shutdown(socket.SHUT_WR)
        elif how == "resets":
            reset(side)
        self.worker.settle()
        if side is self.client and self.backend.fileno() >= 0:
            swallow(self.backend)  # a close with unread bytes would be a reset

    def finish(self) -> None:
        for side in (self.client, self.backend):
            side.close()
            self.worker.settle()
        assert not self.worker.sessions


def swallow(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 20):
            pass
    except OSError:
        pass


@pytest.fixture(params=[True, False], ids=["splice", "no splice"])
def worker(request: pytest.FixtureRequest) -> Iterator[WorkerSimulation]:
    worker = WorkerSimulation(splice=request.param, idle_timeout=0.0, retries=0)
    yield worker
    worker.close()


@pytest.mark.parametrize(("before", "seconds", "end", "counts"), CASES, ids=lambda value: str(value))
def test_which_end_counts(
    worker: WorkerSimulation, before: str, seconds: float, end: str, counts: bool
) -> None:
    play = Play(worker)
    for what in before.split(", "):
        play.act(what)
    if seconds:
        worker.pass_time(seconds)
    play.act(end)
    play.finish()
    assert worker.backend_cell(B_EARLY_ENDS) == counts


def test_a_session_counts_once_whatever_follows(worker: WorkerSimulation) -> None:
    play = Play(worker)
    play.act("backend ends")
    for _ in range(3):
        play.act("client asks")
    play.act("client asks much")
    play.act("backend resets")
    play.finish()
    assert worker.backend_cell(B_EARLY_ENDS) == 1


def test_a_reset_that_leads_to_another_backend_counts_against_the_first() -> None:
    worker = WorkerSimulation(backends=2, retries=1)
    client = worker.connect()
    worker.settle()
    backend = worker.sessions[0].backend
    assert backend is not None
    first, second = backend.index, 1 - backend.index
    reset(worker.accept(first))
    worker.settle()
    worker.accept(second).sendall(b"hello")
    worker.settle()
    assert client.recv(10) == b"hello"
    for column in (B_EARLY_ENDS, B_CONNECT_FAILURES):
        assert [worker.backend_cell(column, n) for n in (first, second)] == [1, 0]
    worker.close()


def test_a_client_over_a_unix_socket_is_no_other() -> None:
    worker = WorkerSimulation(listening_socket=listening_unix())
    play = Play(worker)
    play.act("backend ends")
    play.finish()
    assert worker.backend_cell(B_EARLY_ENDS) == 1
    worker.close()
