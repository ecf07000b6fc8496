"""The harness itself: the load generator's account is exact, and it tells each failure from the others."""

import hashlib
import os
import socket
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo, Scripted
from scripts.lab.kernel import dialled
from scripts.lab.load import REPLY, REQUEST, Load, receive, run_load
from scripts.lab.network import close_with_reset, free_port
from scripts.lab.process import LabProcess, is_running
from scripts.lab.waiting import WaitFailed, best_of, wait_for


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


def test_a_program_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    with LabProcess(["sh", "-c", "echo no such thing; exit 3"], tmp_path / "log") as program:
        with pytest.raises(WaitFailed, match=r"ended with 3 before /ready/\nno such thing"):
            program.wait_line("ready")


def test_no_process_of_a_program_outlives_the_with(tmp_path: Path) -> None:
    """A child that ignores the signals of its group, and leaves the group. Fails where only the group is killed."""
    script = "trap '' TERM HUP; set -m; sleep 60 & echo child=$!; wait"
    with LabProcess(["bash", "-c", script], tmp_path / "log") as program:
        child = int(program.wait_line(r"child=(\d+)")[1])
        assert is_running(child) and os.getpgid(child) != os.getpgid(program.pid)
    wait_for(lambda: not is_running(child), "the child gone", 1.0)


def test_a_condition_that_never_holds_is_named() -> None:
    with pytest.raises(WaitFailed, match=r"waited [\d.]+ s in vain for rain; last value: \[\]"):
        wait_for(list, "rain", 0.05)


def test_a_time_that_has_to_be_held_may_be_missed_but_not_each_time() -> None:
    slow, fast = iter([3.0, 2.0, 0.5, 9.0]), iter([3.0, 2.0, 0.5])
    assert best_of(lambda: next(slow), 1.0, "a reply", 3) == 0.5 and next(slow) == 9.0
    with pytest.raises(WaitFailed, match=r"a reply: 3\.000, 2\.000 s, 1 s allowed"):
        best_of(lambda: next(fast), 1.0, "a reply", 2)


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


def test_a_client_of_another_listener_with_the_same_port_was_not_dialled() -> None:
    with (
        socket.create_server(("127.0.0.1", free_port())) as server,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket() as client,
    ):
        port = server.getsockname()[1]
        client.bind(("127.0.0.5", port))
        client.connect(other.getsockname())
        accepted, _ = other.accept()
        with accepted:
            assert dialled(port) == set()
            with socket.create_connection(server.getsockname()) as dialling:
                assert dialled(port) == {os.fstat(dialling.fileno()).st_ino}
