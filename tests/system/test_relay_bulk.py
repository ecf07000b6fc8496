"""Large and slow: every byte in both directions at once, readers that stop, memory that does not grow.

Naive relays that fail here: sendall (blocks, or buffers without bound), reading on while the other side is slow.
"""

import os
import random
import socket
import threading
import time
from hashlib import sha256

import pytest

from tests.system.backends import Echo, Scripted
from tests.system.harness import Balancer, wait_for
from tests.system.load import receive

MB = 1 << 20


def send_randomly(conn: socket.socket, total: int, seed: int) -> bytes:
    """`total` random bytes in random chunks, then the end; their digest."""
    dice = random.Random(seed)
    block = dice.randbytes(MB)
    digest = sha256()
    sent = 0
    while sent < total:
        size = min(dice.randint(1, 65_536), total - sent)
        at = dice.randint(0, MB - size)
        piece = block[at : at + size]
        conn.sendall(piece)
        digest.update(piece)
        sent += size
    conn.shutdown(socket.SHUT_WR)
    return digest.digest()


def digest_of_rest(conn: socket.socket) -> tuple[int, bytes]:
    digest, size = sha256(), 0
    while data := conn.recv(1 << 18):
        digest.update(data)
        size += len(data)
    return size, digest.digest()


@pytest.mark.parametrize("total", [32 * MB, pytest.param(256 * MB, marks=pytest.mark.soak)])
@pytest.mark.parametrize("splice", ["yes", "no"])
def test_both_ways_at_once(total: int, splice: str) -> None:
    sent: dict[str, bytes] = {}
    got: dict[str, tuple[int, bytes]] = {}

    def exchange(conn: socket.socket, who: str, seed: int) -> None:
        def send() -> None:
            sent[who] = send_randomly(conn, total, seed)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        got[who] = digest_of_rest(conn)
        sender.join()

    with Scripted(lambda conn: exchange(conn, "backend", 1)) as backend:
        with Balancer(upstreams=[backend.address], check="none", splice=splice, workers=1) as lb:
            [worker] = lb.worker_pids()
            before = lb.memory([worker])
            with socket.create_connection(lb.address, 60) as client:
                exchange(client, "client", 2)
            wait_for(lambda: len(sent) == len(got) == 2, "both digests", 10)
            assert got["client"] == (total, sent["backend"])
            assert got["backend"] == (total, sent["client"])
            assert lb.memory([worker]) - before < 8 * MB
            status = lb.check_at_rest()
            assert status["totals"]["bytes_in_total"] == status["totals"]["bytes_out_total"] == total


@pytest.mark.parametrize("splice", ["yes", "no"])
def test_a_reader_that_stops_and_goes_on(splice: str) -> None:
    total = 200 * MB
    block = os.urandom(MB)

    def script(conn: socket.socket) -> None:
        for _ in range(total // MB):
            conn.sendall(block)

    with Scripted(script) as backend, Balancer(upstreams=[backend.address], check="none", splice=splice) as lb:
        digest = sha256()
        with socket.create_connection(lb.address, 60) as client:
            got = 0
            while data := client.recv(MB):
                digest.update(data)
                if got // (20 * MB) != (got + len(data)) // (20 * MB):
                    time.sleep(0.1)
                got += len(data)
        expected = sha256()
        for _ in range(total // MB):
            expected.update(block)
        assert digest.digest() == expected.digest()
        lb.check_at_rest()


@pytest.mark.parametrize("readers", [60, pytest.param(200, marks=pytest.mark.soak)])
def test_slow_readers_cost_little_and_disturb_nobody(readers: int) -> None:
    """Each asks for 1 GB and reads almost nothing."""

    def script(conn: socket.socket) -> None:
        if conn.recv(1) == b"p":
            while data := conn.recv(64):
                conn.sendall(data)
            return
        block = bytes(MB)
        for _ in range(1024):
            conn.sendall(block)

    with Scripted(script) as backend, Balancer(upstreams=[backend.address], check="none") as lb:
        before = lb.memory()
        slow = []
        for _ in range(readers):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            client.settimeout(20)
            client.connect(lb.address)
            client.sendall(b"s")
            slow.append(client)
        for client in slow:
            receive(client, 10_000)
        time.sleep(1)
        delays = []
        with socket.create_connection(lb.address, 5) as ping:
            ping.sendall(b"p")
            for _ in range(300):
                begun = time.perf_counter()
                ping.sendall(b"x")
                receive(ping, 1)
                delays.append(time.perf_counter() - begun)
        assert sorted(delays)[len(delays) * 95 // 100] < 0.02
        assert lb.memory() - before < readers * 128 * 1024 + 10 * MB
        for client in slow:
            client.close()
        lb.check_at_rest(seconds=5)


def test_one_byte_ping_pong_never_waits_for_a_delayed_acknowledgement() -> None:
    """Naive: no TCP_NODELAY on one of the four ends."""
    with Echo() as backend, Balancer(upstreams=[backend.address], check="none") as lb:
        with socket.create_connection(lb.address, 5) as client:
            delays = []
            for _ in range(3000):
                begun = time.perf_counter()
                client.send(b"a")
                client.send(b"b")  # two small writes: what Nagle would hold back
                receive(client, 2)
                delays.append(time.perf_counter() - begun)
        delays.sort()
        assert delays[len(delays) * 99 // 100] < 0.035
        lb.check_at_rest()
