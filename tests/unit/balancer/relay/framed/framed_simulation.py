"""A worker in framed mode: clients and backends that speak frames of text over real sockets (see simulation.py).

worker = FramedSimulation(backends=2, order="any")
client = worker.client(); client.ask("a", "b"); ...; worker.backend(0).answer("A"); assert client.replies() == ["A"]
"""

import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from balancer.edge.backend_tls import make_backend_tls
from balancer.edge.certificates import TrustFile, read_certificate
from balancer.edge.tls import ContextTable, ListenerTls, make_context
from balancer.pool.board import B_CONNECT_FAILURES, B_SESSIONS
from balancer.relay.context import TlsContexts
from balancer.relay.framed.frame_format import parse_frame_format
from tests.authority import Authority
from tests.unit.balancer.edge.handshakes import client_context
from tests.unit.balancer.relay.simulation import OWN, WorkerSimulation, reset

FORMAT = parse_frame_format("magic=7e7e length=u32 be")
HEADER = FORMAT.header
MOST = 4 << 20


def frame(text: str | bytes) -> bytes:
    payload = text.encode() if isinstance(text, str) else text
    return b"~~" + len(payload).to_bytes(4, "big") + payload


@cache
def authority() -> Authority:
    return Authority()


@cache
def file_of(name: str) -> Any:
    return read_certificate(f"{name}.pem", authority().issue(name), 0.0)


def tls_contexts() -> tuple[TlsContexts, ssl.SSLContext, ssl.SSLContext]:
    """Of a worker whose clients and backends speak TLS; of a client; of a backend."""
    table = ContextTable(ListenerTls(tls_cert=(file_of("a.example"),)), make_context)
    to_backends = make_backend_tls(True, TrustFile("ca.pem", authority().pem))
    of_backend = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    file_of("127.0.0.1").load_into(of_backend)
    return TlsContexts({"main": table}, {"main": to_backends}), client_context(authority()), of_backend


class TlsSocket:
    """A socket that speaks TLS; `shake_hands` is called until it returns True."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str | None) -> None:
        self.sock = sock
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self.outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._unsent = b""
        self.is_truncated = False
        self.setsockopt, self.fileno, self.close = sock.setsockopt, sock.fileno, sock.close

    def shake_hands(self) -> bool:
        try:
            self.tls.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False
        finally:
            self.flush()
            with contextlib.suppress(BlockingIOError):
                self._incoming.write(self.sock.recv(1 << 16))

    def flush(self) -> bool:
        self._unsent += self.outgoing.read()
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        return not self._unsent

    def send(self, data: bytes) -> int:
        if not self.flush():
            raise BlockingIOError
        sent = self.tls.write(data[:16_384])
        self.flush()
        return sent

    def recv(self, size: int) -> bytes:
        self.flush()
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                if not (raw := self.sock.recv(size)):
                    self.is_truncated = True
                    return b""
                self._incoming.write(raw)

    def shutdown(self, how: int) -> None:
        waiting = self._incoming.read()
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self._incoming.write(waiting)
        self.flush()
        self.sock.shutdown(how)


class FramePeer:
    """One end of a connection. `state` is open, end or reset, as far as it has been read."""

    def __init__(self, worker: "FramedSimulation", sock: Any) -> None:
        self.worker = worker
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # parts of a frame leave as they are sent
        self.received = b""
        self.state = "open"

    def send(self, data: bytes) -> None:
        self.worker.send_all(self.sock, data)

    def ask(self, *texts: str | bytes) -> None:
        """Send frames in one segment."""
        self.send(b"".join(map(frame, texts)))
        self.worker.settle()

    answer = ask

    def heard(self) -> bytes:
        """All that has arrived and was not returned by `frames`."""
        if self.sock.fileno() < 0:
            return b""
        try:
            while data := self.sock.recv(1 << 20):
                self.received += data
                self.worker.settle(1)
            self.state = "end"
        except BlockingIOError:
            pass
        except OSError as error:
            assert error.errno in (errno.ECONNRESET, errno.EPIPE)
            self.state = "reset"
        return self.received

    def frames(self) -> list[str]:
        """The whole frames that have arrived since the last call."""
        data, found = self.heard(), []
        while len(data) >= HEADER and len(data) >= HEADER + int.from_bytes(data[2:HEADER], "big"):
            assert data[:2] == b"~~", data[:20]
            size = HEADER + int.from_bytes(data[2:HEADER], "big")
            found.append(data[HEADER:size].decode())
            data = data[size:]
        self.received = data
        return found

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
        self.worker.settle()

    def close(self) -> None:
        self.sock.close()
        self.worker.settle()

    def reset(self) -> None:
        reset(getattr(self.sock, "sock", self.sock))
        self.worker.settle()


class FramedSimulation(WorkerSimulation):
    """`options` as WorkerSimulation's; `tls`: who speaks it, "clients", "backends" or both."""

    def __init__(self, backends: int = 1, tls: str = "", **options: Any) -> None:
        defaults: dict[str, Any] = {
            "mode": "framed",
            "frame": FORMAT,
            "max_frame": MOST,
            "frame_timeout": 5.0,
        }
        self.with_tls = tls
        self.accepted: list[tuple[int, TlsSocket]] = []  # whose handshakes are under way
        self.contexts_of: dict[int, ssl.SSLContext | None] = {}  # by backend; None: it never answers
        if tls:
            contexts, self.client_context, self.backend_context = tls_contexts()
            has_backends = "backends" in tls
            contexts = contexts if has_backends else TlsContexts(contexts.listeners)
            defaults |= {"contexts": contexts, "tls": has_backends}
            defaults |= {"tls_cert": (file_of("a.example"),)} if "clients" in tls else {}
        super().__init__(backends, **(defaults | options))
        self.listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the master's
        self.peers: list[list[FramePeer]] = [[] for _ in range(backends)]
        framed = self.relay.pools[self.pool.name].framed
        assert framed is not None
        self.connections = framed
        framed.rest = 0.0  # as if every connection had rested

    def place(self, server: int) -> int:
        """The backend that is elected after `server` others (by roundrobin): the numbers that tests count in."""
        return (server + OWN) % len(self.servers)

    def client(self) -> FramePeer:
        if "clients" not in self.with_tls:
            return FramePeer(self, self.connect())
        sock = TlsSocket(self.connect(), self.client_context, "a.example")
        for _ in range(20):
            if sock.shake_hands():
                return FramePeer(self, sock)
            self.settle(3)
        raise AssertionError("the handshake stands still")

    def turn(self) -> None:
        super().turn()
        if "backends" in self.with_tls:
            for server in range(len(self.peers)):
                self._accept(server)
            for server, sock in list(self.accepted):
                with contextlib.suppress(OSError):
                    if not sock.shake_hands():
                        continue
                    self.peers[server].append(FramePeer(self, sock))
                self.accepted.remove((server, sock))

    def _accept(self, server: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock = self.accept(self.place(server))
                context = self.contexts_of.get(server, self.backend_context)
                if context is not None:
                    self.accepted.append((server, TlsSocket(sock, context, None)))

    def send_all(self, sock: Any, data: bytes) -> None:
        """Send, with the loop turning while the other side is slow."""
        for _ in range(10_000):
            with contextlib.suppress(BlockingIOError):
                data = data[sock.send(data) :]
            if not data:
                return
            self.turn()
        raise AssertionError("nothing is taken any more")

    def dialled(self, server: int = 0) -> list[FramePeer]:
        """The connections to a backend, in the order of their dials."""
        if "backends" in self.with_tls:
            self.settle(3)
            return self.peers[server]
        with contextlib.suppress(BlockingIOError):
            while True:
                self.peers[server].append(FramePeer(self, self.accept(self.place(server))))
        return self.peers[server]

    def backend(self, server: int = 0, connection: int = -1) -> FramePeer:
        """One connection of a backend, the last one unless said otherwise."""
        return self.dialled(server)[connection]

    def under_way(self, server: int = 0) -> int:
        return self.backend_cell(B_SESSIONS, self.place(server))

    def failures(self, server: int = 0) -> int:
        return self.backend_cell(B_CONNECT_FAILURES, self.place(server))

    @property
    def request_lines(self) -> list[str]:
        return [line for line in self.lines.sessions if line.startswith("request ")]

    @property
    def ends(self) -> list[str]:
        """Of sessions."""
        mine = self.lines.sessions
        self.lines.sessions = [line for line in mine if line.startswith("session ")]
        try:
            return super().ends
        finally:
            self.lines.sessions = mine

    @property
    def request_ends(self) -> list[str]:
        return [line.split(" end=")[1].split()[0] for line in self.request_lines]


Start = Callable[..., FramedSimulation]


@contextlib.contextmanager
def simulations(tls: str) -> Iterator[Start]:
    """Yield a function that starts a worker; `tls` is who speaks it unless the call says otherwise. At the end the
    workers are closed and have left nothing behind."""
    made: list[FramedSimulation] = []

    def begin(backends: int = 1, tls: str = tls, **options: Any) -> FramedSimulation:
        made.append(FramedSimulation(backends, tls, **options))
        return made[-1]

    yield begin
    for worker in made:
        worker.close()
        assert not any(worker.under_way(server) for server in range(len(worker.servers)))
        assert worker.connections.queue.since == {}
        assert worker.context.pipes.held == 0
        assert not worker.connections.dialling


def exchange(client: FramePeer, backend: Callable[[], FramePeer], text: str) -> None:
    """One request and its reply."""
    client.ask(text)
    assert heard_in_time(client.worker, lambda: backend().frames()) == [text]
    backend().answer(text.upper())
    assert heard_in_time(client.worker, client.frames) == [text.upper()]


def heard_in_time(worker: FramedSimulation, frames: Callable[[], list[str]]) -> list[str]:
    """The next frames. On a busy machine the kernel delivers over loopback a little later than at once."""
    for _ in range(2000):
        if found := frames():
            return found
        worker.settle(3)
    return []


def misbehaved(worker: FramedSimulation) -> list[str]:
    return [line for line in worker.lines.others if line.startswith("backend ")]
