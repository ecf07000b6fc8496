"""Large and slow: every byte in both directions at once, readers that stop, memory that does not grow.

Each test names the naive relay that was seen to fail it.
"""

import array
import contextlib
import fcntl
import os
import random
import select
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from scripts.lab.backends import Scripted
from scripts.lab.load import receive
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer
from tests.system.stalls import StallMeter

MB = 1 << 20
KB = 1 << 10


def in_pipes(pid: int) -> int:
    """Bytes that stand in a process's pipes: memory which no process is charged for."""
    standing = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith("pipe:") and os.stat(link).st_mode & 0o400:
                fd = os.open(link, os.O_RDONLY | os.O_NONBLOCK)
                count = array.array("i", [0])
                fcntl.ioctl(fd, termios.FIONREAD, count)
                os.close(fd)
                standing += count[0]
    return standing // 2  # each pipe has two ends here, and both show the same


@contextlib.contextmanager
def highest(measure: Callable[[], int]) -> Iterator[list[int]]:
    """The highest value while the block ran, in the only cell of what it yields."""
    most = [0]
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(0.05):
            most[0] = max(most[0], measure())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield most
    stopping.set()
    watcher.join()


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
    """Naive: forget what a write did not take; keep reading while it is refused, without end."""
    sent: dict[str, bytes] = {}
    got: dict[str, tuple[int, bytes]] = {}

    def exchange(conn: socket.socket, name: str, seed: int) -> None:
        def send() -> None:
            sent[name] = send_randomly(conn, total, seed)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        time.sleep(0.5)  # what has been sent so far is too much for a relay that keeps it all
        got[name] = digest_of_rest(conn)
        sender.join()

    with Scripted(lambda conn: exchange(conn, "backend", 1)) as backend:
        with Balancer(upstreams=[backend.address], check="none", splice=splice, workers=1) as lb:
            [worker] = lb.worker_pids()
            before = lb.memory([worker])
            with highest(lambda: lb.memory([worker]) + in_pipes(worker)) as most:
                with socket.create_connection(lb.address, 60) as client:
                    exchange(client, "client", 2)
                wait_for(lambda: len(sent) == len(got) == 2, "both digests", 10)
            assert got["client"] == (total, sent["backend"])
            assert got["backend"] == (total, sent["client"])
            grown = (most[0] - before) / MB
            print(f"splice={splice}: {total // MB} MB each way, memory +{grown:.1f} MB at most")
            assert grown <= 8
            totals = lb.check_at_rest()["totals"]
            assert totals["bytes_in_total"] == totals["bytes_out_total"] == total
            assert totals["pauses_total"] == totals["resumes_total"]


@pytest.mark.parametrize(
    ("total", "stops", "seconds"),
    [(200 * MB, 10, 0.1), pytest.param(1024 * MB, 50, 5, marks=pytest.mark.soak)],
)
@pytest.mark.parametrize("splice", ["yes", "no"])
def test_a_reader_that_stops_and_goes_on(splice: str, total: int, stops: int, seconds: float) -> None:
    """Naive: forget what a write did not take (the digest); no event to resume on (it hangs)."""
    block = os.urandom(MB)

    def script(conn: socket.socket) -> None:
        for _ in range(total // MB):
            conn.sendall(block)

    with (
        Scripted(script) as backend,
        Balancer(upstreams=[backend.address], check="none", splice=splice) as lb,
    ):
        digest = sha256()
        part = total // stops
        with socket.create_connection(lb.address, 60) as client:
            got = 0
            while data := client.recv(MB):
                digest.update(data)
                if got // part != (got + len(data)) // part:
                    time.sleep(seconds)
                got += len(data)
        expected = sha256()
        for _ in range(total // MB):
            expected.update(block)
        assert digest.digest() == expected.digest()
        totals = lb.check_at_rest()["totals"]
        print(f"splice={splice}: {totals['pauses_total']} pauses, {totals['resumes_total']} resumes")
        assert totals["pauses_total"] == totals["resumes_total"] >= stops // 2


def answer_or_flood(conn: socket.socket) -> None:
    """A first byte of `p`: echo. Anything else: 1 GB."""
    if conn.recv(1) == b"p":
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := conn.recv(64):
            conn.sendall(data)
        return
    block = bytes(MB)
    for _ in range(1024):
        conn.sendall(block)


def compare_pings(busy: tuple[str, int], calm: tuple[str, int], count: int) -> tuple[float, float]:
    """99th percentile of a ping's seconds through each, in turns: what else the machine does hits both alike."""
    delays: dict[tuple[str, int], list[float]] = {busy: [], calm: []}
    with contextlib.ExitStack() as stack:
        pings = {}
        for address in (busy, calm):
            pings[address] = stack.enter_context(socket.create_connection(address, 5))
            pings[address].sendall(b"p")
        for _ in range(count):
            for address, ping in pings.items():
                begun = time.perf_counter()
                ping.sendall(b"x")
                receive(ping, 1)
                delays[address].append(time.perf_counter() - begun)
    busy_p99, calm_p99 = (sorted(delays[address])[count * 99 // 100] for address in (busy, calm))
    return busy_p99, calm_p99


@contextlib.contextmanager
def slow_readers(address: tuple[str, int], count: int) -> Iterator[list[int]]:
    """Clients that ask for 1 GB and read 1,000 bytes a second each; yields what they have read so far."""
    stopping = threading.Event()
    got = [0]
    readers = []

    def read_on() -> None:
        while not stopping.wait(1.0):
            for reader in readers:
                with contextlib.suppress(BlockingIOError):
                    got[0] += len(reader.recv(1000))

    try:
        for _ in range(count):
            reader = socket.socket()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            reader.settimeout(20)
            reader.connect(address)
            reader.sendall(b"s")
            readers.append(reader)
        for reader in readers:
            receive(reader, 10_000)
            reader.setblocking(False)
        reading = threading.Thread(target=read_on, daemon=True)
        reading.start()
        yield got
        stopping.set()
        reading.join()
    finally:
        for reader in readers:
            reader.close()


@pytest.mark.parametrize(("readers", "pings"), [(60, 1000), pytest.param(200, 5000, marks=pytest.mark.soak)])
def test_slow_readers_cost_little_and_disturb_no_other(readers: int, pings: int) -> None:
    """Naive: keep reading while the client refuses; sendall, which retries until all is taken.

    The delays are measured up to three times: a time slice lost to other tests can only add to them."""
    with Scripted(answer_or_flood) as backend:
        with (
            Balancer(upstreams=[backend.address], check="none") as lb,
            Balancer(upstreams=[backend.address], check="none") as calm,
        ):
            workers = lb.worker_pids()
            before = lb.memory(workers)
            with slow_readers(lb.address, readers):
                with highest(lambda: lb.memory(workers) + sum(map(in_pipes, workers))) as most:
                    for _ in range(3):
                        busy_p99, calm_p99 = compare_pings(lb.address, calm.address, pings)
                        if busy_p99 <= 2 * calm_p99 + 0.0005:
                            break
            grown = most[0] - before
            print(
                f"{readers} slow readers: memory +{grown / MB:.1f} MB (pipes included), "
                f"p99 {busy_p99 * 1000:.2f} ms, without them {calm_p99 * 1000:.2f} ms"
            )
            assert grown <= readers * 128 * KB + 10 * MB
            assert busy_p99 <= 2 * calm_p99 + 0.0005
            lb.check_at_rest(seconds=5)


@pytest.mark.parametrize("rounds", [3000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_one_byte_ping_pong_never_waits_for_a_delayed_acknowledgement(rounds: int) -> None:
    """One byte each way, and now and then two in two writes each way, the second of which Nagle's algorithm holds back
    until a delayed acknowledgement, 40 ms later. Naive: no TCP_NODELAY on the backend's or on the client's socket."""

    def script(conn: socket.socket) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(Exception):
            while True:
                for _ in range(2):
                    conn.send(receive(conn, 1))
                answer = receive(conn, 2)
                for byte in answer:
                    conn.send(bytes([byte]))
                    select.select([], [], [], 0.0002)  # a moment, so that the relay sees two messages

    delays = []
    with Scripted(script) as backend, Balancer(upstreams=[backend.address], check="none") as lb:
        with socket.create_connection(lb.address, 5) as client, StallMeter(lb.worker_pids()) as stalls:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(rounds):
                begun, waited = time.monotonic(), stalls.waited()
                if number % 3 < 2:
                    client.send(b"a")
                    receive(client, 1)
                else:
                    client.send(b"b")
                    select.select([], [], [], 0.0002)
                    client.send(b"c")
                    receive(client, 2)
                took = time.monotonic() - begun
                if took > 0.02:
                    took -= stalls.stalled(begun) + stalls.waited() - waited
                delays.append(took)
        late = [delay for delay in delays if delay > 0.03]
        print(
            f"{rounds} ping-pongs: p99 {sorted(delays)[rounds * 99 // 100] * 1000:.2f} ms, {len(late)} of 30 ms and more"
        )
        assert not late
        lb.check_at_rest()


@pytest.mark.parametrize("pings", [1000, pytest.param(5000, marks=pytest.mark.soak)])
def test_four_bulk_flows_leave_small_messages_their_turn(pings: int) -> None:
    """In one worker, as fast as it goes. What a ping waits for at most is each bulk flow's share of one turn."""

    def script(conn: socket.socket) -> None:
        if conn.recv(1) == b"p":
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := conn.recv(64):
                conn.sendall(data)
            return
        block = bytes(MB)
        with contextlib.suppress(OSError):
            while True:
                conn.sendall(block)

    with Scripted(script) as backend, Balancer(upstreams=[backend.address], check="none", workers=1) as lb:
        stopping = threading.Event()

        def swallow() -> None:
            with socket.create_connection(lb.address, 5) as bulk:
                bulk.sendall(b"s")
                buffer = bytearray(MB)
                while not stopping.is_set():
                    bulk.recv_into(buffer)

        threads = [threading.Thread(target=swallow, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        delays = []
        with socket.create_connection(lb.address, 5) as ping, StallMeter(lb.worker_pids()) as stalls:
            ping.sendall(b"p")
            for _ in range(pings):
                begun, waited = time.monotonic(), stalls.waited()
                ping.sendall(b"x")
                receive(ping, 1)
                took = time.monotonic() - begun
                if took > 0.02:
                    took -= stalls.stalled(begun) + stalls.waited() - waited
                delays.append(took)
        stopping.set()
        for thread in threads:
            thread.join()
        delays.sort()
        print(
            f"beside 4 bulk flows: p50 {delays[pings // 2] * 1000:.2f} ms, p99 {delays[pings * 99 // 100] * 1000:.2f} ms"
        )
        assert delays[pings * 99 // 100] < 0.05
        lb.check_at_rest(seconds=5)
