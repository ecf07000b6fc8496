"""Limits: how many sessions, where the others wait, and what happens when this machine runs out of something."""

import contextlib
import re
import resource
import signal
import socket
import threading
import time

import psutil

from scripts.lab.backends import Echo, Scripted
from scripts.lab.load import receive
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer


def is_served(client: socket.socket) -> bool:
    try:
        client.sendall(b"?")
        return client.recv(1) == b"?"
    except OSError:
        return False


def connect(lb: Balancer, timeout: float = 5) -> socket.socket:
    return socket.create_connection(lb.address, timeout)


def refused_in(log: str) -> int:
    """Refused clients: the lines, and those that they say were left out."""
    return log.count(" refuse ") + sum(
        int(omitted) for omitted in re.findall(r" refuse .* omitted=(\d+)", log)
    )


def test_maxconns_drops_exactly_what_exceeds_it() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], maxconns=10) as lb:
        clients = [connect(lb) for _ in range(30)]
        served = [client for client in clients if is_served(client)]
        assert len(served) == 10
        wait_for(lambda: refused_in(lb.log()) == 20, "a line or a count for each refused client")
        served[0].close()
        wait_for(lambda: lb.status()["totals"]["sessions"] == 9, "one place")
        with connect(lb) as late:
            assert is_served(late)
        for client in clients:
            client.close()
        lb.check_at_rest()


def test_overflow_queue_leaves_clients_in_the_backlog() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], maxconns=4, overflow="queue") as lb:
        clients = [connect(lb) for _ in range(12)]
        for client in clients:
            client.sendall(b"?")
        answered = 0
        waiting = list(clients)
        deadline = time.monotonic() + 20
        while waiting and time.monotonic() < deadline:
            assert backend.now <= 5  # 4 and a probe
            for client in list(waiting):
                client.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    assert client.recv(1) == b"?"
                    answered += 1
                    client.close()
                    waiting.remove(client)
        assert answered == 12
        lb.check_at_rest()


def test_a_full_backend_queues_in_order_and_over_workers() -> None:
    def script(conn: socket.socket) -> None:
        with contextlib.suppress(Exception):
            receive(conn, 1)
            time.sleep(0.05)
            conn.sendall(b"!")

    with Scripted(script) as backend:
        upstream = f"{backend.name} maxconn=2"
        with Balancer(upstreams=[upstream], check="none", workers=2, queue_timeout="10s") as lb:
            outcomes: list[bytes] = []

            def ask() -> None:
                with connect(lb, 60) as client:
                    client.sendall(b"?")
                    outcomes.append(client.recv(1))

            threads = [threading.Thread(target=ask, daemon=True) for _ in range(24)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert outcomes == [b"!"] * 24
            lb.check_at_rest()


def test_queue_timeout_ends_the_wait() -> None:
    with Echo() as backend:
        options = {"check": "none", "queue_timeout": "300ms", "loglevel": 1}
        with Balancer(upstreams=[f"{backend.name} maxconn=1"], **options) as lb:
            with connect(lb) as first, connect(lb) as second:
                assert is_served(first) != is_served(second)
            lb.wait_line(" end=sQ ")
            lb.check_at_rest()


def test_out_of_descriptors_it_rests_and_recovers() -> None:
    """Naive: accept in a loop on EMFILE (spins), or stop accepting for good."""
    with Echo() as backend, Balancer(upstreams=[backend.address], check="none", workers=1) as lb:
        [worker] = lb.worker_pids()
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (60, 60))
        clients = []
        for _ in range(100):
            client = socket.socket()
            client.settimeout(5)
            client.connect(lb.address)
            clients.append(client)
        lb.expect("RC|error=EMFILE")
        time.sleep(1.5)
        cpu = cpu_seconds(worker)
        time.sleep(1)
        assert cpu_seconds(worker) - cpu < 0.15
        for client in clients:
            client.close()

        def served() -> bool:
            with connect(lb) as client:
                return is_served(client)

        wait_for(served, "service again")
        lb.check_at_rest()


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_defer_connect_waits_for_the_first_byte() -> None:
    with Echo() as backend, Balancer("--defer-connect", upstreams=[backend.address], check="none") as lb:
        with connect(lb) as client:
            time.sleep(0.2)
            assert backend.ever == 0
            assert is_served(client)
            assert backend.ever == 1
        lb.check_at_rest()


def test_a_drain_waits_for_sessions_and_cuts_the_rest() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], drain_timeout="4s", loglevel=1) as lb:
        lb.expected_exit = 5
        with connect(lb) as stays, connect(lb) as ends:
            assert is_served(stays) and is_served(ends)
            lb.signal(signal.SIGTERM)
            lb.wait_line(" drain sessions=")
            assert is_served(stays) and is_served(ends)
            ends.close()
            assert lb.wait_exit() == 5
        assert lb.log().count(" end=KD ") == 1
        assert lb.log().count(" end=-- ") == 1


def test_idle_timeout() -> None:
    with Echo() as backend:
        with Balancer(upstreams=[backend.address], check="none", idle_timeout="400ms", loglevel=1) as lb:
            with connect(lb) as client:
                assert is_served(client)
                started = time.monotonic()
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
                assert 0.3 < time.monotonic() - started < 30
            lb.wait_line(" end=cD .*idle-timeout")
            lb.check_at_rest()


def test_a_long_session_shows_its_bytes_while_it_runs() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], check="none") as lb:
        with connect(lb) as client:
            client.sendall(bytes(50_000))
            receive(client, 50_000)
            wait_for(lambda: lb.status()["totals"]["bytes_in_total"] == 50_000, "the bytes on the board", 3)
        lb.check_at_rest()
