"""Bytes go through unchanged for every kind of address, and the figures add up afterwards."""

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo, Scripted
from scripts.lab.load import receive, run_load
from scripts.lab.network import has_ipv6
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer


def test_a_thousand_requests_over_three_backends_add_up() -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(3)]
        lb = stack.enter_context(Balancer(upstreams=[backend.address for backend in backends]))
        outcome = run_load(lb.address, requests=1000, clients=16, payload=(64, 100_000), reply=(64, 100_000))
        outcome.check_nothing_lost(1000)
        assert len(outcome.by_backend) == 3
        status = lb.check_at_rest()
        totals = status["totals"]
        assert totals["accepted_total"] == outcome.connections
        assert totals["refused_total"] == totals["failed_total"] == 0
        assert sum(backend["sessions_total"] for backend in status["backends"]) == outcome.connections
        for way in ("bytes_in_total", "bytes_out_total"):
            assert sum(backend[way] for backend in status["backends"]) == totals[way] > 1000 * 64


def test_a_server_that_speaks_first_is_heard_first() -> None:
    with Echo(greeting=True) as backend, Balancer(upstreams=[backend.address]) as lb:
        with socket.create_connection(lb.address, 2) as client:
            assert receive(client, len(backend.name) + 1) == f"{backend.name}\n".encode()
        lb.check_at_rest()


def test_a_half_closed_client_gets_its_whole_reply() -> None:
    """A relay that closes both sides at the first end of stream fails here."""
    size = 2_000_000

    def count_then_answer(conn: socket.socket) -> None:
        got = 0
        while data := conn.recv(65536):
            got += len(data)
        conn.sendall(got.to_bytes(8, "big") + bytes(size))

    with Scripted(count_then_answer) as backend, Balancer(upstreams=[backend.address]) as lb:
        for _ in range(5):
            with socket.create_connection(lb.address, 5) as client:
                client.sendall(bytes(size))
                client.shutdown(socket.SHUT_WR)
                assert int.from_bytes(receive(client, 8), "big") == size
                assert len(receive(client, size)) == size
                assert client.recv(1) == b""
        lb.check_at_rest()


@contextmanager
def echo_at_unix(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    conn, _ = listener.accept()
                except OSError:
                    return
                while data := conn.recv(65536):
                    conn.sendall(data)
                conn.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def say_hello(family: int, address: object) -> None:
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(address)  # type: ignore[arg-type]
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"


def test_unix_sockets_on_both_sides() -> None:
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="pb-"))
        )  # paths below 108 bytes
        upstream, listen = directory / "upstream", directory / "listen"
        stack.enter_context(echo_at_unix(upstream))
        lb = stack.enter_context(Balancer(f"--bind=unix:{listen}", upstreams=[f"unix:{upstream}"]))
        for _ in range(20):
            say_hello(socket.AF_UNIX, str(listen))
        lb.check_at_rest()


@pytest.mark.skipif(not has_ipv6(), reason="needs ::1")
def test_ipv6_on_both_sides_and_several_addresses() -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Echo(host="::1"))
        words = ("--bind=[::1]:0", "--bind=127.0.0.1:0")
        lb = stack.enter_context(Balancer(*words, upstreams=[backend.address]))
        six = int(lb.wait_line(r"\bbind address=\[::1\]:(\d+)\b")[1])
        four = int(lb.wait_line(r"\bbind address=127\.0\.0\.1:(\d+)\b")[1])
        for _ in range(10):
            say_hello(socket.AF_INET6, ("::1", six))
            say_hello(socket.AF_INET, ("127.0.0.1", four))
        wait_for(lambda: backend.now == 0, "the backend's connections to end")
        lb.check_at_rest()
