"""Who asks for an act, over the admin socket or on the page: what the kernel says, not the peer itself.

RULES: SO_PEERCRED holds the ids at the moment of connect(2). The program's name is that of the process which has the pid
now; a process that has ended already has none.
"""

import socket
import struct
from dataclasses import dataclass
from typing import Protocol

from balancer.relay.peers import peer_name

UCRED = struct.Struct("3i")


class Operator(Protocol):
    """Whoever asks."""

    def labels(self) -> dict[str, object]:
        """Who it is, for the log."""


@dataclass(frozen=True, slots=True)
class AdminPeer:
    """A process that has connected. `pid` is 0 when it is in a PID namespace that ours does not see."""

    uid: int
    pid: int

    def program(self) -> str:
        """Its name, as `ps -o comm` shows it; empty when it has ended."""
        try:
            with open(f"/proc/{self.pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
                return file.read().removesuffix("\n")
        except OSError:
            return ""

    def labels(self) -> dict[str, object]:
        return {"uid": self.uid, "peer_pid": self.pid, "program": self.program() or "?"}


@dataclass(frozen=True, slots=True)
class PagePeer:
    """Who knows the token of the page. `client` is the address of the browser, or of the web server in between;
    `process` is the one at the other end of a unix socket."""

    client: str
    process: AdminPeer | None = None

    def labels(self) -> dict[str, object]:
        more = {} if self.process is None else self.process.labels()
        return {"who": "page", "client": self.client} | more


def peer_of(sock: socket.socket) -> AdminPeer:
    """The peer of a connected unix socket."""
    pid, uid, _gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    return AdminPeer(uid, pid)


def page_peer_of(sock: socket.socket) -> PagePeer:
    """The peer of a connected socket of the HTTP server."""
    if sock.family == socket.AF_UNIX:
        return PagePeer("unix", peer_of(sock))
    try:
        return PagePeer(peer_name(sock.getpeername()))
    except OSError:  # it has gone already
        return PagePeer("?")
