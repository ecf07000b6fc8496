"""Clients that come and go, and a backend that counts the connections that are open at one instant.

    Churn        many clients in a process of their own, each counting the connections that are open at once
    Counting     a backend process that peeks at every connection whenever it accepts one

RULES: a connection counts while its peer has not closed it, which a peek at the socket tells; what was opened is not
remembered. So a count never includes a connection that has ended, and every one looked at is open at this instant.
"""

import contextlib
import json
import random
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.lab.helpers import HelperProcess
from scripts.lab.network import Address, is_open


class Counting(HelperProcess):
    """Backends that greet, echo, and at each accept count the connections that the peer has not closed.

    `backends` addresses in one process: the count is over all of them."""

    def __init__(self, backends: int = 1) -> None:
        super().__init__("tests.system.churn", "counting", backends)
        self.addresses = [("127.0.0.1", int(self.read_line())) for _ in range(backends)]
        self.address = self.addresses[0]

    @property
    def name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"


class Churn(HelperProcess):
    """`clients` that connect, wait for the greeting, hold the connection up to `hold` seconds, close, and come again.

    A client that is turned away comes again within the same time."""

    def __init__(self, address: Address, clients: int, hold: float, seed: int = 1) -> None:
        super().__init__("tests.system.churn", "churn", *address, clients, hold, seed)


@dataclass
class Counts:
    """Connections that a helper process has seen; `most` is the most that were open at one instant."""

    most: int = 0
    ever: int = 0
    turned_away: int = 0
    broken: int = 0
    refused: int = 0

    def see(self, holding: Iterator[socket.socket]) -> None:
        """After an accept, or a greeting: count the open ones by a peek at each.

        The count is never too high: each of them was opened before this instant and is still open at its peek."""
        self.ever += 1
        self.most = max(self.most, sum(map(is_open, holding)))


def wants_end(selector: selectors.BaseSelector) -> None:
    selector.register(sys.stdin, selectors.EVENT_READ, None)


def count_connections(backends: int) -> Counts:
    """The process of the backends."""
    counts = Counts()
    selector = selectors.DefaultSelector()
    wants_end(selector)
    listening = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in range(backends)]
    for sock in listening:
        sock.setblocking(False)
        print(sock.getsockname()[1], flush=True)
        selector.register(sock, selectors.EVENT_READ, sock)
    holding: set[socket.socket] = set()
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return counts
            if key.data in listening:
                greet_all(key.data, holding, counts, selector)
            elif not echo(key.data):
                selector.unregister(key.data)
                holding.discard(key.data)
                key.data.close()


def greet_all(
    listening: socket.socket, holding: set[socket.socket], counts: Counts, selector: selectors.BaseSelector
) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            conn, _ = listening.accept()
            conn.setblocking(False)
            holding.add(conn)
            counts.see(iter(holding))
            with contextlib.suppress(OSError):
                conn.send(b"hello")
            selector.register(conn, selectors.EVENT_READ, conn)


def echo(conn: socket.socket) -> bool:
    """Send back what has come; False at the end of the connection."""
    try:
        data = conn.recv(4096)
        if data:
            conn.send(data)
        return bool(data)
    except BlockingIOError:
        return True
    except OSError:
        return False


class Churner:
    """One client of many in one loop."""

    def __init__(self, crowd: "Crowd") -> None:
        self.crowd = crowd
        self.sock: socket.socket | None = None
        self.wake = 0.0  # when to act next: connect, or hang up
        self.greeted = False

    def act(self, now: float) -> None:
        """Its time has come."""
        if self.sock is not None:
            self.leave()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.wake = now + 8.0  # a client that is not served for so long gives up
        self.greeted = False
        with contextlib.suppress(BlockingIOError):
            self.sock.connect(self.crowd.address)
        self.crowd.selector.register(self.sock, selectors.EVENT_READ, self)

    def leave(self) -> None:
        assert self.sock is not None
        self.crowd.holding.discard(self.sock)
        self.crowd.selector.unregister(self.sock)
        self.sock.close()
        self.sock = None

    def hear(self, now: float) -> None:
        """The greeting, or the end."""
        assert self.sock is not None
        counts, rng = self.crowd.counts, self.crowd.rng
        try:
            data = self.sock.recv(64)
        except ConnectionRefusedError:
            counts.refused += 1
            data = b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and not self.greeted:
            self.greeted = True
            self.wake = now + rng.random() * self.crowd.hold
            self.crowd.holding.add(self.sock)
            counts.see(iter(self.crowd.holding))
        elif not data:
            if self.greeted:
                counts.broken += 1
            else:
                counts.turned_away += 1
            self.leave()
            self.wake = now + rng.random() * self.crowd.hold


class Crowd:
    """All churning clients of a process."""

    def __init__(self, address: Address, clients: int, hold: float, seed: int) -> None:
        self.address = address
        self.hold = hold
        self.rng = random.Random(seed)
        self.counts = Counts()
        self.holding: set[socket.socket] = set()
        self.selector = selectors.DefaultSelector()
        self.clients = [Churner(self) for _ in range(clients)]

    def run(self) -> Counts:
        wants_end(self.selector)
        while True:
            now = time.monotonic()
            for client in self.clients:
                if client.wake <= now:
                    client.act(now)
            for key, _ in self.selector.select(0.002):
                if key.data is None:
                    return self.counts
                client = key.data
                if client.sock is key.fileobj:
                    client.hear(time.monotonic())


def main(words: list[str]) -> None:
    if words[0] == "counting":
        counts = count_connections(int(words[1]))
    else:
        host, port, clients, hold, seed = words[1:]
        counts = Crowd((host, int(port)), int(clients), float(hold), int(seed)).run()
    print(json.dumps(vars(counts)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
