"""The other ends of a session that speak TLS, for tests in a worker without a process."""

import contextlib
import socket
import ssl
from typing import Self

from tests.unit.balancer.relay.simulation import WorkerSimulation, read_all


class TlsPeer:
    """A socket that speaks TLS with the worker; every step lets the worker do its part."""

    tls: ssl.SSLObject

    def __init__(self, worker: WorkerSimulation, sock: socket.socket) -> None:
        self.worker = worker
        self.sock = sock
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    def shake_hands(self) -> Self:
        for _ in range(10):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.exchange()
                continue
            finally:
                self.exchange()
            return self
        raise AssertionError("the handshake stands still")

    def exchange(self) -> None:
        """What this peer has said goes out, the worker works, what it has said comes in."""
        data = self.outgoing.read()
        while data:
            with contextlib.suppress(BlockingIOError):
                data = data[self.sock.send(data) :]
            self.worker.settle(3)
        self.worker.settle()
        self.incoming.write(read_all(self.sock))

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self.exchange()

    def heard(self) -> str:
        """All that has arrived, then how it stands: `hello|open`, `hello|close_notify`, `|reset`, `|truncated`."""
        parts, state = [], "open"
        while state == "open":
            try:
                if not (data := self.tls.read(1 << 16)):
                    state = "close_notify"
                parts.append(data)
            except ssl.SSLZeroReturnError:
                state = "close_notify"
            except ssl.SSLWantReadError:
                try:
                    if not (raw := self.sock.recv(1 << 20)):
                        state = "truncated"
                    self.incoming.write(raw)
                except BlockingIOError:
                    break
                except ConnectionResetError:
                    state = "reset"
        text = b"".join(parts)
        return f"{text.decode() if len(text) < 100 else len(text)}|{state}"


def size_of(text: str) -> int:
    """Of what `heard` has returned."""
    data = text.rpartition("|")[0]
    return int(data) if data.isdigit() else len(data)
