"""One worker without a process: real sockets, loop, board and election; time only passes when a test says so.

    worker = WorkerSimulation(backends=1, idle_timeout=5.0)
    client = worker.connect(); worker.settle(); backend = worker.accept(); ...
    worker.pass_time(5.0)

RULES: nothing sleeps and nothing blocks: `settle` turns the loop until nothing is left to do. Every session that ends is
in `worker.ends` as the log would tell it.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from balancer.eventloop.loop import Loop
from balancer.options import Pool
from balancer.pool.backend import parse_upstream, with_indexes
from balancer.pool.board import Board, columns_for
from balancer.pool.election import Elector
from balancer.relay.accept import Acceptor
from balancer.relay.hub import Hub
from balancer.relay.timeouts import TimeoutSweep
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, make_shared

OWN, SIBLING = FIRST_LEASE, FIRST_LEASE + 1
CAPACITY = 8


@dataclass
class Choices:
    """What the relay reads of the options."""

    maxconns: int = 0
    overflow: str = "drop"
    defer_connect: bool = False
    retries: int = 2
    connect_timeout: float = 1.0
    idle_timeout: float = 60.0
    half_close_timeout: float = 30.0
    queue_timeout: float = 10.0
    max_queue: int = 4
    keepalive: float = 0.0
    user_timeout: float = 0.0
    splice: bool = True


@dataclass
class Lines:
    """A log that remembers."""

    level: int = 1
    sessions: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def session(self, line: str) -> None:
        self.sessions.append(line)

    def note(self, verb: str, **fields: object) -> None:
        self.others.append(f"{verb} " + " ".join(f"{key}={value}" for key, value in fields.items()))

    info = warning = error = debug = note


@dataclass(frozen=True)
class Queue:
    """A listener as the prefork machine hands it over."""

    sock: socket.socket

    @property
    def fd(self) -> int:
        return self.sock.fileno()

    @property
    def address(self) -> object:
        return self.sock.getsockname()


class WorkerSimulation:
    def __init__(self, backends: int = 1, upstream: str = "", **choices: Any) -> None:
        self.time = 100.0
        self.loop = Loop(clock=lambda: self.time)
        shared = make_shared(columns_for(CAPACITY), rows=FIRST_LEASE + 2)
        shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 2
        self.board = Board(shared, CAPACITY)
        self.servers = [listening() for _ in range(backends)]
        texts = [f"127.0.0.1:{server.getsockname()[1]} {upstream}" for server in self.servers]
        parsed = [parse_upstream(text) for text in texts]
        self.backends = with_indexes(parsed, {each.name: place for place, each in enumerate(parsed)})
        self.lines = Lines()
        self.queue = listening()
        self.settings = Choices(**choices)
        self.pool = Pool("main", self.backends, balance="roundrobin", index=0)
        elector = Elector(self.board, self.pool, OWN)
        self.hub = Hub(self.loop, self.settings, self.board, elector, OWN, self.lines)  # type: ignore[arg-type]
        self.acceptor = Acceptor(self.hub, {0: (Queue(self.queue),)})
        self.timeouts = TimeoutSweep(self.hub)
        self.timeouts.start()
        self.acceptor.serve([0])
        self._opened: list[socket.socket] = []

    def close(self) -> None:
        """Everything that the test opened, and whatever is still at work."""
        for session in list(self.hub.sessions):
            session.close("KD")
        self.turn()
        for sock in (*self._opened, *self.servers, self.queue):
            sock.close()
        if self.hub.pipes is not None:
            self.hub.pipes.close()
        self.loop.close()
        os.close(self.board.lock_fd)

    # -- acts

    def connect(self) -> socket.socket:
        """A client in the queue."""
        client = socket.create_connection(self.queue.getsockname())
        client.setblocking(False)
        self._opened.append(client)
        return client

    def accept(self, server: int = 0) -> socket.socket:
        """The other end of what the worker has dialled."""
        conn, _ = self.servers[server].accept()
        conn.setblocking(False)
        self._opened.append(conn)
        return conn

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A whole session: (client, backend)."""
        client = self.connect()
        self.settle()
        return client, self.accept()

    def turn(self) -> None:
        self.loop.run_once(0)

    def settle(self, turns: int = 12) -> None:
        """Turns enough for everything that loopback delivers at once."""
        for _ in range(turns):
            self.turn()

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        """The clock goes on, the loop with it."""
        until = self.time + seconds
        while self.time < until:
            self.time = min(until, self.time + step)
            self.settle(3)

    # -- questions

    def cell(self, column: int) -> int:
        return int(self.hub.cells[column])

    def backend_cell(self, column: int, server: int = 0) -> int:
        return self.process_cell(self.board.backend_at(self.backends[server].index) + column)

    def process_cell(self, column: int) -> int:
        return int(self.hub.process[column])

    def pool_cell(self, column: int) -> int:
        return int(self.hub.pool_cells[column])

    @property
    def ends(self) -> list[str]:
        """`SD ECONNRESET`: the letters, and the reason when there is one."""
        told = []
        for line in self.lines.sessions:
            letters = line.split(" end=")[1].split()[0]
            reason = line.split('reason="')[1][:-1] if 'reason="' in line else ""
            told.append(f"{letters} {reason}".strip())
        return told


def listening() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    server.setblocking(False)
    return server


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def heard(sock: socket.socket) -> str:
    """All that has arrived, then how it stands: `hello|open`, `hello|end`, `hello|reset`."""
    parts = []
    try:
        while data := sock.recv(1 << 20):
            parts.append(data)
        state = "end"
    except BlockingIOError:
        state = "open"
    except OSError as error:
        assert error.errno in (errno.ECONNRESET, errno.EPIPE)
        state = "reset"
    text = b"".join(parts)
    return f"{text.decode() if len(text) < 100 else len(text)}|{state}"


Act = Callable[[], object]
