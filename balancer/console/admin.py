"""The admin socket: one command line in, one JSON object out, then closed.

RULES
- Knows lines and deadlines, not what a command means: `handle(words, reply)` is given from outside.
- A stranger costs nothing: peers are checked by uid (root or the balancer's own), a line has at most 4096 bytes and one
  second to arrive, and at most 16 clients are served at once; the seventeenth is closed.
- An answer may come later (`reload` waits for the new generation): `Reply.send` is called once, whenever.
"""

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from balancer.eventloop.acceptor import Acceptor, Connections, ShortageLog
from balancer.eventloop.log import Log
from balancer.eventloop.loop import READ, Loop
from balancer.eventloop.timers import Timer

LINE_LIMIT = 4096  # bytes of a command
LINE_DEADLINE = 1.0  # seconds from accept to the end of the line
SEND_DEADLINE = 5.0  # seconds for the peer to take the answer
CLIENT_LIMIT = 16
UCRED = struct.Struct("3i")


class Reply:
    """One admin client: collects its line, then waits to be told the answer."""

    def __init__(self, server: "AdminServer", conn: socket.socket) -> None:
        self.server = server
        self.conn = conn
        self.line = b""
        self.out = b""
        self.asked = False
        self.timer: Timer = server.loop.call_later(LINE_DEADLINE, self.close)
        server.loop.watch(conn.fileno(), self.on_event)

    def on_event(self, mask: int) -> None:
        try:
            if self.out:
                self.flush()
            elif mask & READ and not self.asked:
                self.read()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def read(self) -> None:
        while b"\n" not in self.line and len(self.line) <= LINE_LIMIT:
            chunk = self.conn.recv(LINE_LIMIT)
            if not chunk:
                break
            self.line += chunk
        line, newline, _ = self.line.partition(b"\n")
        if not newline:
            # A line that ended without its newline is taken: `echo -n status | nc -U` is a person too.
            if len(self.line) > LINE_LIMIT:
                self.send({"error": f"a command has at most {LINE_LIMIT} bytes"})
                return
            if not line:
                self.close()
                return
        self.asked = True
        self.timer.cancel()
        self.server.dispatch(line.decode("utf-8", "replace").split(), self)

    def send(self, answer: dict[str, Any]) -> None:
        """Answer, then close once the peer has taken it (or after 5 s)."""
        if self.conn.fileno() < 0 or self.out:
            return
        self.asked = True
        self.timer.cancel()
        self.timer = self.server.loop.call_later(SEND_DEADLINE, self.close)
        self.out = json.dumps(answer, separators=(",", ":")).encode() + b"\n"
        try:
            self.flush()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def flush(self) -> None:
        while self.out:
            self.out = self.out[self.conn.send(self.out) :]
        self.close()

    def close(self) -> None:
        fd = self.conn.fileno()
        if fd < 0:
            return
        self.timer.cancel()
        self.server.connections.discard(self)
        self.server.loop.forget(fd)
        self.server.loop.retire(self.conn.close)


class AdminServer:
    """Serves admin clients of a listening unix socket that somebody else owns."""

    def __init__(
        self, loop: Loop, listener: socket.socket, handle: Callable[[list[str], Reply], None], log: Log
    ) -> None:
        self.loop = loop
        self.handle = handle
        self.log = log
        self.connections: Connections[Reply] = Connections(CLIENT_LIMIT, self.connection_for)
        shortage = ShortageLog(loop, log, lambda: {"socket": "admin"})
        self.acceptor = Acceptor(loop, self.connections.begin, shortage)
        self.acceptor.serve([listener])

    def connection_for(self, conn: socket.socket) -> Reply | None:
        if self.may_command(conn):
            return Reply(self, conn)
        conn.close()
        return None

    def may_command(self, conn: socket.socket) -> bool:
        """The file's mode keeps others out already; this holds when somebody has loosened it."""
        _pid, uid, _gid = UCRED.unpack(conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        if uid in (0, os.geteuid()):
            return True
        self.log.warning("refuse", socket="admin", uid=uid, reason="not the owner")
        return False

    def dispatch(self, words: list[str], reply: Reply) -> None:
        if not words:
            reply.send({"error": "an empty command; try `status`"})
            return
        self.handle(words, reply)

    def stop(self) -> None:
        """Accept nobody any more; answers under way are finished by their own deadlines."""
        self.acceptor.serve([])

    def is_empty(self) -> bool:
        return not self.connections
