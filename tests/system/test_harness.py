"""The harness itself: the load generator's account is exact, and it tells each failure from the others."""

import hashlib
import socket

import pytest

from scripts.lab.backends import Digest, Echo, Scripted
from scripts.lab.load import REPLY, REQUEST, Load, receive, run_load
from scripts.lab.network import close_with_reset, free_port
from scripts.lab.waiting import wait_for


def test_every_request_to_a_sound_backend_is_ok() -> None:
    with Digest(7) as backend:
        outcome = run_load(backend.address, requests=500, clients=8, per_connection=5)
    outcome.check_nothing_lost(500)
    assert outcome.by_backend == {"7": 500}
    assert outcome.connections == pytest.approx(100, abs=8)


def test_a_load_ends_when_told() -> None:
    with Digest() as backend, Load(backend.address, clients=4) as load:
        outcome = load.finish()
    outcome.check_nothing_lost(4)  # one of each client, however early the end


def test_refused_is_refused() -> None:
    outcome = run_load(("127.0.0.1", free_port()), requests=10, clients=2)
    assert (outcome.refused, outcome.attempts) == (10, 10)


def answer(sock: socket.socket) -> tuple[bytes, int]:
    """Read a request; the head of a right answer and the length its body should have."""
    head = receive(sock, REQUEST.size)
    number, payload, wanted = REQUEST.unpack(head)
    digest = hashlib.sha256(head + receive(sock, payload)).digest()
    return REPLY.pack(number, 0, digest), wanted


def reset(sock: socket.socket) -> None:
    answer(sock)
    close_with_reset(sock)


def truncate(sock: socket.socket) -> None:
    head, _ = answer(sock)
    sock.sendall(head + b"x")


def garble(sock: socket.socket) -> None:
    head, wanted = answer(sock)
    sock.sendall(head + bytes(wanted))


def confuse(sock: socket.socket) -> None:
    head, wanted = answer(sock)
    sock.sendall(bytes(8) + head[8:] + bytes(wanted))


def stall(sock: socket.socket) -> None:
    answer(sock)
    sock.settimeout(5)
    sock.recv(1)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (reset, "reset"),
        (truncate, "early_eof"),
        (garble, "corrupt"),
        (confuse, "corrupt"),
        (stall, "timeout"),
    ],
)
def test_each_failure_is_counted_as_what_it_is(script: object, kind: str) -> None:
    with Scripted(script) as backend:  # type: ignore[arg-type]
        outcome = run_load(backend.address, requests=6, clients=3, timeout=0.3, reply=(64, 200))
    outcome.check_exact()
    assert getattr(outcome, kind) == 6, outcome


def test_the_echo_counts_its_connections() -> None:
    with Echo() as backend:
        socks = [socket.create_connection(backend.address) for _ in range(3)]
        for sock in socks:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert (backend.now, backend.most) == (3, 3)
        for sock in socks:
            sock.close()
        wait_for(lambda: backend.now == 0, "the echo's connections to end")
        assert backend.ever == 3
