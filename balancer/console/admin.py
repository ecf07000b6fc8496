"""The admin socket: one command line in, one JSON object out, then closed.

RULES
- Knows lines and deadlines, not what a command means: `handle(words, connection)` is handed in. Words are split as a
  shell does, so that a name with blanks and a reason can be quoted.
- A client costs little: its uid is checked (root or the balancer's own), a line has at most 4096 bytes and one second to
  arrive, and at most 32 clients are served at once (eventloop/connections.py says which one makes room for a new one).
- An answer may come later (`reload` waits for the new generation): `AdminConnection.send` is called once.
"""

import json
import os
import shlex
import socket
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from balancer.console.peer import AdminPeer, peer_of
from balancer.eventloop.acceptor import Acceptor, ShortageLog
from balancer.eventloop.connection import (
    ENDED,
    OPEN,
    BufferedConnection,
    Claim,
    ConnectionLimits,
    ConnectionProtocol,
)
from balancer.eventloop.connections import Connections
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop

LINE_LIMIT = 4096  # bytes of a command
LINE_DEADLINE = 1.0  # seconds from accept to the end of the line
SEND_DEADLINE = 5.0  # seconds for the peer to take the answer
CLIENT_LIMIT = 32
LIMITS = ConnectionLimits(reads_after_reset=True)  # a command counts although its sender has closed already


class AdminConnection(ConnectionProtocol):
    """One admin client: reads its line, then waits for the answer."""

    def __init__(
        self, connection: BufferedConnection, peer: AdminPeer, ask: Callable[[bytes, "AdminConnection"], None]
    ) -> None:
        self.connection = connection
        self.peer = peer
        self._ask = ask
        self._line = b""
        connection.set_deadline(LINE_DEADLINE)

    def place(self) -> memoryview:
        return self.connection.scratch[: LINE_LIMIT + 1 - len(self._line)]

    def received(self, data: memoryview) -> None:
        self._line += data
        if b"\n" in self._line:
            self._take_line()
        elif len(self._line) > LINE_LIMIT:
            self.send({"error": f"a command has at most {LINE_LIMIT} bytes"})

    def ended(self) -> None:
        # A line that ended without its newline is taken: `echo -n status | nc -U`.
        if self._line:
            self._take_line()
        else:
            self.connection.close("done")

    def expired(self) -> None:
        self.connection.close("timeout")

    def claim(self) -> Claim:
        return Claim.ASKED if self.connection.is_paused else Claim.SILENT

    def send(self, answer: dict[str, Any]) -> None:
        """Answer, then close once the peer has taken it, at most SEND_DEADLINE later."""
        self.send_bytes(json.dumps(answer, separators=(",", ":")).encode() + b"\n")

    def send_bytes(self, answer: bytes | memoryview) -> None:
        """As `send`, an answer that is JSON already."""
        connection = self.connection
        if connection.state in (OPEN, ENDED):
            connection.write((answer,))
            connection.set_deadline(SEND_DEADLINE)
            connection.finish()
            connection.flush()

    def _take_line(self) -> None:
        self.connection.is_paused = True
        self.connection.set_deadline(inf)
        self._ask(self._line.partition(b"\n")[0], self)


class AdminServer:
    """Serves admin clients of listening unix sockets that the master owns. `sockets()`: those that there are by now."""

    def __init__(
        self,
        loop: Loop,
        sockets: Callable[[], Iterable[socket.socket]],
        handle: Callable[[list[str], AdminConnection], None],
        log: Log,
    ) -> None:
        self.loop = loop
        self.sockets = sockets
        self.handle = handle
        self.log = log
        self.is_stopped = False
        self.connections: Connections[AdminConnection] = Connections(CLIENT_LIMIT, self.connection_on)
        shortage = ShortageLog(loop, log, lambda: {"socket": "admin"})
        self.acceptor = Acceptor(loop, self.connections.begin, shortage, room=self.connections.room)
        self.refresh()

    def refresh(self) -> None:
        """Accept from the sockets that there are by now."""
        self.acceptor.serve(() if self.is_stopped else self.sockets())

    def connection_on(self, sock: socket.socket) -> AdminConnection | None:
        peer = peer_of(sock)
        if not self.may_command(peer):
            sock.close()
            return None
        connection = BufferedConnection(
            self.loop, sock, lambda closed, reason: self.connections.discard(admin), LIMITS
        )
        admin = AdminConnection(connection, peer, self.dispatch)
        connection.start(admin)
        return admin

    def may_command(self, peer: AdminPeer) -> bool:
        """Whether the peer runs as root or as this user. The mode of the socket file keeps others out already; this holds
        when it has been loosened."""
        if peer.uid in (0, os.geteuid()):
            return True
        self.log.warning("refuse", socket="admin", uid=peer.uid, peer_pid=peer.pid, reason="not the owner")
        return False

    def dispatch(self, line: bytes, admin: AdminConnection) -> None:
        try:
            words = shlex.split(line.decode("utf-8", "surrogateescape"))
        except ValueError as error:
            admin.send({"error": f"the quotes of the command do not match ({error})"})
            return
        if words:
            self.handle(words, admin)
        else:
            admin.send({"error": "an empty command; try `status`"})

    def stop(self) -> None:
        """Accept no more clients. Answers under way end by their own deadlines."""
        self.is_stopped = True
        self.refresh()

    def is_empty(self) -> bool:
        return not self.connections
