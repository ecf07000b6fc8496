"""A worker in framed mode: clients and backends that speak frames of text over real sockets (see simulation.py).

worker = FramedSimulation(backends=2, order="any")
client = worker.client(); client.ask("a", "b"); ...; worker.backend(0).answer("A"); assert client.replies() == ["A"]
"""

import contextlib
import errno
import socket
from typing import Any

from balancer.pool.board import B_CONNECT_FAILURES, B_SESSIONS
from balancer.relay.framed.frame_format import parse_frame_format
from tests.unit.balancer.relay.simulation import OWN, WorkerSimulation, reset

FORMAT = parse_frame_format("magic=7e7e length=u32 be")
HEADER = FORMAT.header
MOST = 4 << 20


def frame(text: str | bytes) -> bytes:
    payload = text.encode() if isinstance(text, str) else text
    return b"~~" + len(payload).to_bytes(4, "big") + payload


class FramePeer:
    """One end of a connection. `state` is open, end or reset, as far as it has been read."""

    def __init__(self, worker: "FramedSimulation", sock: socket.socket) -> None:
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
        reset(self.sock)
        self.worker.settle()


class FramedSimulation(WorkerSimulation):
    """`options` as WorkerSimulation's."""

    def __init__(self, backends: int = 1, **options: Any) -> None:
        defaults = {"mode": "framed", "frame": FORMAT, "max_frame": MOST, "frame_timeout": 5.0}
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
        return FramePeer(self, self.connect())

    def send_all(self, sock: socket.socket, data: bytes) -> None:
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
