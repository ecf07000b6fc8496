"""Peers for framed mode: a client and backends whose frames say whose they are.

    payload   client u32 | number u32 | bytes of the reply u32 | filler        a request
    payload   client u32 | number u32 | name of the backend u32 | filler        its reply

A backend of its own process:  python -m tests.system.framed_peer PORT NAME well|badly [CERTIFICATE]

RULES: real sockets, the frames of workers/wire. A reply is checked byte by byte: a frame of another client, a second one
or a damaged one is counted in `wrong`.
"""

import hashlib
import itertools
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import Struct

from scripts.lab.backends import ThreadedBackend
from scripts.lab.waiting import wait_for
from workers.wire.frames import FrameReader, frame, header

HEAD = Struct("!III")
SECONDS = 30.0
MOST = 1 << 20  # bytes of a reply, whatever was asked for


def filler(client: int, number: int, size: int) -> bytes:
    return hashlib.shake_128(f"{client}/{number}".encode()).digest(size)


def request(client: int, number: int, size: int, reply: int) -> bytes:
    return frame(HEAD.pack(client, number, reply) + filler(client, number, size))


def reply_to(payload: bytes, name: int) -> bytes:
    client, number, size = HEAD.unpack_from(payload)
    return frame(HEAD.pack(client, number, name) + filler(client, number, min(size, MOST))[::-1])


Behaviour = Callable[["FramedBackend", socket.socket, bytes], bool]


def behave_well(backend: "FramedBackend", conn: socket.socket, payload: bytes) -> bool:
    """Answer; return whether the connection goes on."""
    conn.sendall(reply_to(payload, backend.name_number))
    return True


def misbehave_at_once(backend: "FramedBackend", conn: socket.socket, payload: bytes) -> bool:
    """Each reply is wrong, in a way that shows as soon as it is read: it does not matter how late this process comes to
    send what follows, nor whether a worker is new and has not seen the others."""
    whole = reply_to(payload, backend.name_number)
    kind = random.choice([*["double", "then double", "beyond", "then unasked", "wrong length"] * 6, "cut"])
    if kind == "cut":
        conn.sendall(whole[: len(whole) // 2])
        return False
    if kind == "wrong length":
        conn.sendall(header(1 << 40) + whole)
        return True
    conn.sendall(whole + (whole if "double" in kind else b"more"))
    if "then" in kind:
        time.sleep(0.002)
        conn.sendall(whole if "double" in kind else frame(b"nobody has asked for this"))
    return True


class FramedBackend(ThreadedBackend):
    """A thread for each connection; counts requests at once, at the moment when each has been read whole."""

    def __init__(
        self,
        name_number: int,
        behave: Behaviour = behave_well,
        seconds: float = 0.0,
        port: int = 0,
        wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock,
    ) -> None:
        super().__init__(self.accept_all, port=port)
        self.wrap = wrap  # in TLS
        self.name_number = name_number
        self.behave = behave
        self.seconds = seconds
        self.turns = itertools.count()  # for behaviours
        self.lock = threading.Lock()
        self.now = self.most = self.requests = self.connections = 0
        self.open: set[socket.socket] = set()

    def accept_all(self) -> None:
        while not self.stopping.is_set():
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.connections += 1
                self.open.add(conn)
            threading.Thread(target=self.converse, args=(conn,), daemon=True).start()

    def converse(self, conn: socket.socket) -> None:
        reader, stream = FrameReader(), conn
        try:
            stream = self.wrap(conn)
            while data := stream.recv(1 << 18):
                for payload in reader.feed(data):
                    with self.lock:
                        self.requests += 1
                        self.now += 1
                        self.most = max(self.most, self.now)
                    if self.seconds:
                        time.sleep(self.seconds)
                    with self.lock:
                        self.now -= 1
                    if not self.behave(self, stream, bytes(payload)):
                        return
        except OSError:
            pass
        finally:
            with self.lock:
                self.open.discard(conn)
            stream.close()

    def end(self, seconds: float = 5.0) -> None:
        super().end(seconds)
        with self.lock:
            left = list(self.open)
        for conn in left:
            try:
                conn.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class OwningClient:
    """Sends requests on one connection after the other and checks that each reply is its own. `at_once` are under way on
    one connection; with `order` "strict" replies must come in the order of the requests."""

    def __init__(
        self,
        address: tuple[str, int],
        number: int,
        order: str = "strict",
        at_once: int = 4,
        wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock,
    ) -> None:
        self.wrap = wrap  # in TLS
        self.address = address
        self.number = number
        self.order = order
        self.at_once = at_once
        self.rng = random.Random(number)
        self.answered = self.lost = self.connections = self.breaks = (
            0  # breaks: connections with lost requests
        )
        self.by_backend: Counter[int] = Counter()
        self.wrong: list[str] = []

    def run(self, requests: int, sizes: tuple[int, int] = (1, 3000), pause: float = 0.0) -> None:
        """Have `requests` answered; those that are under way when a connection ends are lost, and asked for again."""
        left = deque(range(requests))
        while left and not self.wrong:
            self.connections += 1
            try:
                with socket.create_connection(self.address, SECONDS) as sock:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    with self.wrap(sock) as stream:
                        self._converse(stream, left, sizes, pause)
            except TimeoutError:
                self.wrong.append(f"client {self.number}: no reply in {SECONDS:g} s")
            except OSError:
                time.sleep(0.01)

    def run_until_ended(self, sizes: tuple[int, int] = (1, 3000)) -> None:
        """Have requests answered on one connection until the peer ends it, and read what it has sent before."""
        reader, waiting, number, is_open = FrameReader(), dict[int, int](), 0, True
        with socket.create_connection(self.address, SECONDS) as sock, suppress(ConnectionError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                while is_open and len(waiting) < self.at_once:
                    waiting[number] = self.rng.randint(*sizes)
                    try:
                        sock.sendall(request(self.number, number, self.rng.randint(*sizes), waiting[number]))
                    except ConnectionError:
                        is_open = False
                    number += 1
                data = sock.recv(1 << 18)
                if not data:
                    return
                for payload in reader.feed(data):
                    self._check(bytes(payload), waiting)

    def _converse(self, sock: socket.socket, left: deque[int], sizes: tuple[int, int], pause: float) -> None:
        reader = FrameReader()
        waiting: dict[int, int] = {}  # number -> bytes of the reply, in the order of the requests
        try:
            while left or waiting:
                while left and len(waiting) < self.at_once:
                    number = left.popleft()
                    waiting[number] = self.rng.randint(*sizes)
                    sock.sendall(request(self.number, number, self.rng.randint(*sizes), waiting[number]))
                data = sock.recv(1 << 18)
                if not data:
                    raise ConnectionResetError
                for payload in reader.feed(data):
                    self._check(bytes(payload), waiting)
                if pause:
                    time.sleep(self.rng.expovariate(1 / pause))
        finally:
            self.lost += len(waiting)
            self.breaks += bool(waiting)
            left.extendleft(reversed(waiting))

    def _check(self, payload: bytes, waiting: dict[int, int]) -> None:
        client, number, name = HEAD.unpack_from(payload)
        expected = next(iter(waiting), None) if self.order == "strict" else number
        if client != self.number or number not in waiting or number != expected:
            self.wrong.append(f"client {self.number} waits for {list(waiting)}: a reply to {client}/{number}")
            raise ConnectionResetError
        if payload[HEAD.size :] != filler(client, number, waiting.pop(number))[::-1]:
            self.wrong.append(f"client {self.number}: a damaged reply to {number}")
            raise ConnectionResetError
        self.answered += 1
        self.by_backend[name] += 1


class Visitors:
    """Clients that come again and again for a few requests, each in a thread, until they are told to stop."""

    def __init__(self, clients: Sequence[OwningClient], requests: int = 10) -> None:
        self.clients = clients
        self.requests = requests  # of one visit
        self._visits: list[int] = []  # of each thread that has ended
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(one,), daemon=True) for one in clients]
        for thread in self._threads:
            thread.start()

    def _visit(self, client: OwningClient) -> None:
        visits = 0
        while not self._stopping.is_set() and not client.wrong:
            client.run(self.requests)
            visits += 1
        self._visits.append(visits)

    def answered(self) -> int:
        return sum(client.answered for client in self.clients)

    def wait_more(self, count: int) -> None:
        wanted = self.answered() + count
        wait_for(lambda: self.answered() >= wanted, f"{count} more replies", 60)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(120)

    def check_nothing_failed(self) -> None:
        assert not [one for client in self.clients for one in client.wrong]
        assert sum(client.lost for client in self.clients) == 0
        visits = sum(self._visits)
        assert sum(client.connections for client in self.clients) == visits, "one connection for each visit"
        assert self.answered() == visits * self.requests


def run_together(clients: Sequence[OwningClient], requests: int, **options: object) -> None:
    """Run all clients to their end, each in a thread."""
    threads = [
        threading.Thread(target=client.run, args=(requests,), kwargs=options, daemon=True)
        for client in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    wrong = [one for client in clients for one in client.wrong]
    assert not wrong, wrong
    answered = [client.answered for client in clients]
    assert answered == [requests] * len(clients), answered


def wrapping(certificate: str) -> Callable[[socket.socket], socket.socket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return lambda sock: context.wrap_socket(sock, server_side=True)


if __name__ == "__main__":
    own_port, own_name, manner, *certificate = sys.argv[1:]
    manners = {"well": behave_well, "badly": misbehave_at_once}
    more = {"wrap": wrapping(*certificate)} if certificate else {}
    # Each takes a while to answer, so that work is lost when it is killed.
    with FramedBackend(int(own_name), manners[manner], 0.003, int(own_port), **more):
        sys.stdin.read()
