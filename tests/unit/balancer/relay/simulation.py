"""A worker's relay without a process: real sockets, loop, board and election; time passes only when a test says so.

    worker = WorkerSimulation(backends=1, idle_timeout=5.0)
    client = worker.connect(); worker.settle(); backend = worker.accept(); ...
    worker.pass_time(5.0)

RULES: nothing sleeps and nothing blocks: `settle` turns the loop until nothing is left to do. Every session that has
ended is in `worker.ends`, as the log shows it.
"""

import contextlib
import errno
import os
import socket
import struct
from _socket import socket as Socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from balancer.edge.route import Route
from balancer.eventloop.loop import Loop
from balancer.options import MAIN, Listener, Pool
from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.board import (
    L_ENDS,
    L_SESSION_TIMES,
    LISTENERS,
    P_QUEUED_TOTAL,
    P_WAIT_TIMES,
    POOLS,
    BlockKind,
    Board,
    columns_for,
)
from balancer.pool.election import Elector
from balancer.pool.targets import DialTarget
from balancer.relay import ends
from balancer.relay.assembly import WorkerRelay
from balancer.relay.context import NO_TLS, TlsContexts, WorkerContext
from balancer.relay.session import Session
from balancer.shm.histogram import USED, Distribution, distribution
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, make_shared
from balancer.shm.source_table import SourceTable

OWN, SIBLING = FIRST_LEASE, FIRST_LEASE + 1
CAPACITY = 8


@dataclass
class Lines:
    """A log that remembers."""

    level: int = 1
    sessions: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def wants_session(self, is_clean: bool) -> bool:
        return True

    def time_before(self, seconds: float) -> str:
        return f"-{seconds:g}s"

    def session(self, line: str) -> None:
        self.sessions.append(line)

    def note(self, verb: str, **fields: object) -> None:
        self.others.append(f"{verb} " + " ".join(f"{key}={value}" for key, value in fields.items()))

    info = warning = error = debug = note


@dataclass(frozen=True)
class OneSocket:
    """A listening socket as the prefork machine hands it over."""

    sock: socket.socket
    slot: int = 0
    name: str = MAIN

    @property
    def address(self) -> object:
        return self.sock.getsockname()


# What a test says nothing of.
LISTENER = Listener(
    MAIN, (), idle_timeout=60.0, keepalive=0.0, user_timeout=0.0, routes=(Route(MAIN),), index=0
)
POOL = Pool(MAIN, (), balance="roundrobin", connect_timeout=1.0, retries=2, queue_timeout=10.0, max_queue=4)


def make_board() -> Board:
    """A board with two live rows."""
    shared = make_shared(columns_for(CAPACITY), rows=FIRST_LEASE + 2)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 2
    return Board(shared, CAPACITY)


class WorkerSimulation:
    """`options` are fields of the listener and of its pools; `pools` gets one backend each, the only one gets all.
    `new_socket` and `close` stand for the system calls. `clogged`: connects to the backends neither succeed nor fail."""

    def __init__(
        self,
        backends: int = 1,
        upstream: str = "",
        upstream_host: str = "127.0.0.1",
        pools: Sequence[str | Pool] = (MAIN,),
        listening_socket: socket.socket | None = None,
        clogged: bool = False,
        new_socket: Callable[[int, int], Socket] = Socket,
        close: Callable[[int], None] = os.close,
        contexts: TlsContexts = NO_TLS,
        **options: Any,
    ) -> None:
        self.time = 100.0
        self.loop = Loop(clock=lambda: self.time)
        self.board = make_board()
        self.servers = [listening() for _ in range(backends)]
        texts = [f"{upstream_host}:{server.getsockname()[1]} {upstream}" for server in self.servers]
        parsed = [parse_upstream(text) for text in texts]
        self.backends = with_indexes(parsed, {each.name: place for place, each in enumerate(parsed)})
        self.lines = Lines()
        self.listening = listening_socket or listening()
        self._opened: list[socket.socket] = []
        if clogged:
            for server in self.servers:
                self.clog(server)
        self.woken: list[int] = []  # rows
        of_listener = {each.name for each in fields(Listener)}
        of_pool = {name: options.pop(name) for name in list(options) if name not in of_listener}
        self.context: WorkerContext[Session] = WorkerContext(self.loop, self.board, OWN, self.lines)  # type: ignore[arg-type]
        records = self._pools(pools, of_pool)
        self.pool = records[0]
        self.board.source_tables[LISTENER.name] = SourceTable()
        self.board.counts.row(OWN)[PID] = os.getpid()
        self.relay = WorkerRelay(
            self.context,
            [replace(LISTENER, **options)],
            records,
            lambda name: [OneSocket(self.listening)],
            self.woken.append,
            new_socket,
            close,
            contexts,
        )
        self.acceptor = self.relay.starters[0].acceptor
        self.closer = self.relay.closers[0]
        self.lane = next(iter(self.relay.lanes.values()))
        self.relay.timeouts.start()
        self.relay.serve([0])

    def _pools(self, pools: Sequence[str | Pool], options: dict[str, Any]) -> list[Pool]:
        records = [
            replace(POOL, name=one, index=place, **options)
            if isinstance(one, str)
            else replace(one, index=place)
            for place, one in enumerate(pools)
        ]
        if len(records) == 1:
            return [replace(records[0], backends=self.backends)]
        return [
            replace(one, backends=(backend,)) for one, backend in zip(records, self.backends, strict=True)
        ]

    def close(self) -> None:
        """Everything that the test opened, and whatever is still at work. Every end that the log has is counted, and how
        long the session lasted; every wait in a queue as well."""
        for session in list(self.context.sessions):
            session.close("KD")
        self.turn()
        counted = Counter({end: self.cell(L_ENDS + n) for n, end in enumerate(ends.ORDER)})
        assert +counted == Counter(end.split()[0] for end in self.ends)
        assert self.times(LISTENERS, L_SESSION_TIMES).count == len(self.ends)
        for pool in range(len(self.relay.pools)):
            assert self.times(POOLS, P_WAIT_TIMES, pool).count == self.pool_cell(P_QUEUED_TOTAL, pool)
        for sock in (*self._opened, *self.servers, self.listening):
            sock.close()
        self.context.pipes.close()
        self.loop.close()
        os.close(self.board.lock_fd)

    # -- acts

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A client in the queue."""
        if self.listening.family == socket.AF_UNIX:
            client = socket.socket(socket.AF_UNIX)
            client.connect(self.listening.getsockname())
        else:
            client = socket.create_connection(self.listening.getsockname(), source_address=(source, 0))
        client.setblocking(False)
        self._opened.append(client)
        return client

    def clog(self, server: socket.socket) -> None:
        """From now on connects to it neither succeed nor fail."""
        server.listen(0)
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
            self._opened.append(filler)

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

    def process_cell(self, column: int) -> int:
        return int(self.context.cells[column])

    def cell(self, column: int) -> int:
        """Of the listener."""
        return self.process_cell(self.board.listener_at(0) + column)

    def pool_cell(self, column: int, pool: int = 0) -> int:
        return self.process_cell(self.board.pool_at(pool) + column)

    def times(self, kind: BlockKind, histogram: int, index: int = 0) -> Distribution:
        """A histogram of this worker."""
        at = kind.at(index) + histogram
        return distribution(self.context.cells[at : at + USED].tolist())

    def backend_cell(self, column: int, server: int = 0) -> int:
        return self.process_cell(self.board.backend_at(self.backends[server].index) + column)

    @property
    def sessions(self) -> list[Session]:
        """Those that live, oldest first."""
        return list(self.context.sessions)

    @property
    def ends(self) -> list[str]:
        """`SD ECONNRESET`: the letters, and the reason when there is one."""
        ended = []
        for line in self.lines.sessions:
            letters = line.split(" end=")[1].split()[0]
            reason = line.split('reason="')[1][:-1] if 'reason="' in line else ""
            ended.append(f"{letters} {reason}".strip())
        return ended


Make = Callable[..., WorkerSimulation]


class FarElector(Elector):
    """As if the backends were on another machine."""

    def target(self, backend: Backend) -> DialTarget:
        return (*super().target(backend)[:2], False, None)


def listening() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    server.setblocking(False)
    return server


def listening_unix() -> socket.socket:
    """A listening socket in the abstract namespace."""
    server = socket.socket(socket.AF_UNIX)
    server.bind("")
    server.listen(64)
    return server


class PairedSocket(socket.socket):
    """A backend's socket that is connected to `other` from its beginning, with a small send buffer."""

    other: socket.socket
    kind = socket.SOCK_STREAM

    @classmethod
    def make(cls) -> Self:
        ours, other = socket.socketpair(socket.AF_UNIX, cls.kind)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        sock = cls(fileno=ours.detach())
        sock.other = other
        for side in (sock, other):
            side.setblocking(False)
        return sock

    def connect_ex(self, address: object) -> int:
        return 0

    def drain(self) -> bytes:
        """All that has arrived at `other`."""
        return read_all(self.other)


def fill(sock: socket.socket) -> None:
    """Write `?` until the peer takes no more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"?")


def read_all(sock: socket.socket) -> bytes:
    """All that has arrived, without whether it is the end."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(1 << 20):
            parts.append(data)
    return b"".join(parts)


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
