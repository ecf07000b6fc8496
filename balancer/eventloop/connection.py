"""A buffered connection: one non-blocking socket in the loop, its output queue, its deadline, and how it ends.

    connection = BufferedConnection(loop, sock, on_closed)
    connection.start(protocol)              an accepted socket; or connection.connect(address, protocol)
    connection.write(parts); connection.flush()

RULES: the connection owns the socket; what bytes mean is the protocol's business (`ConnectionProtocol`), which may be
replaced while the connection lives. One closer, `close`, which takes a reason and works once.
- The peer is not read while `is_paused`: back-pressure is not reading.
- One connection reads at most `turn_bytes` per turn, then the others have their turn.
- `write` queues, `flush` sends. What was written inside `received` or `ended` is sent when the read is over, in one call.
- The handler is edge-triggered: a short read means that the kernel has nothing left, until EPOLLRDHUP was reported; from
  then on it reads until the end is seen.

    CONNECTING --connected--> OPEN --the peer's FIN--> ENDED (output still goes)
    OPEN, ENDED --finish()--> FINISHING (flush) --> LINGERING (FIN sent, input thrown away) --> CLOSED
    any         --close(reason)---------------------------------------------------------------> CLOSED
LINGERING because close(2) with unread input resets the connection, and the reset overtakes the answer.
"""

import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from math import inf
from typing import Any

from balancer.eventloop.errnos import WOULD_BLOCK
from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, WRITE, Loop
from balancer.eventloop.output import OutputQueue, Part, Release
from balancer.eventloop.timers import Timer

_GONE = ERROR | HANGUP
_READABLE = READ | READ_HANGUP | _GONE


class ConnectionState(Enum):
    CONNECTING = "connecting"
    OPEN = "open"
    ENDED = "ended"
    FINISHING = "finishing"
    LINGERING = "lingering"
    CLOSED = "closed"


CONNECTING, OPEN, ENDED, FINISHING, LINGERING, CLOSED = ConnectionState


class Claim(IntEnum):
    """What an accepted connection does with its place in a server that is full: the lowest yields first (connections.py).

    ANSWERED: everything was sent. IDLE: answered, and nothing of another request is here. SILENT: no whole request yet.
    UNREAD: its answer waits for the peer to read. ASKED: the peer waits for our answer; such a one does not yield.
    """

    ANSWERED, IDLE, SILENT, UNREAD, ASKED = range(5)


class ConnectionProtocol:
    """What a connection calls on the protocol on top of it; by itself, nothing is done about it."""

    __slots__ = ()

    def opened(self) -> None:
        """The connect succeeded. Not called for an accepted socket."""

    def place(self) -> memoryview | None:
        """Where the next bytes belong, at least one and at most as many as may be read now; None: `scratch` will do."""
        return None

    def received(self, data: memoryview) -> None:
        """`data` was read: the beginning of `place`, or bytes that are valid during this call only."""

    def hung_up(self) -> None:
        """The peer's FIN is here, behind bytes perhaps that were not read yet; called while paused too."""

    def ended(self) -> None:
        """The peer's FIN was read: the connection is in ENDED, and nothing more is read. Writing is still possible."""

    def sent(self, count: int) -> None:
        """`count` bytes were sent; `connection.output.pending` is what is left."""

    def expired(self) -> None:
        """The deadline has passed. Set another one, or close."""

    def closed(self, reason: str) -> None:
        """The connection is closed, for the first and last time."""

    def claim(self) -> Claim:
        """What this connection does with its place, as far as the protocol knows: IDLE, SILENT or ASKED."""
        return Claim.SILENT


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of one kind of connection."""

    turn_bytes: int = 2 << 20  # read from one connection before the others have their turn
    linger_seconds: float = 2.0  # for the peer to see the end
    linger_bytes: int = 1 << 40  # thrown away meanwhile
    copy_bytes: int = 0  # of output copied out of borrowed memory when the peer reads slowly
    # The peer has reset the connection or closed both ways: read what it sent before (a client its answers), or close.
    reads_after_reset: bool = False


DEFAULT_LIMITS = ConnectionLimits()


class BufferedConnection:
    """One connection. `bytes_in`, `bytes_out`, `active_at` (loop time of the last read or send) are for its owner."""

    __slots__ = (
        "_linger_left",
        "_on_closed",
        "_timer",
        "active_at",
        "bytes_in",
        "bytes_out",
        "deadline",
        "error",
        "fd",
        "is_paused",
        "limits",
        "loop",
        "output",
        "peer_hung_up",
        "protocol",
        "read_flags",
        "sock",
        "state",
    )
    scratch = memoryview(bytearray(64 * 1024))  # shared by all connections

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_closed: Callable[["BufferedConnection", str], object] = lambda connection, reason: None,
        limits: ConnectionLimits = DEFAULT_LIMITS,
    ) -> None:
        self.loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        self.limits = limits
        self.protocol: ConnectionProtocol
        self.state = OPEN
        self.is_paused = False
        self.peer_hung_up = (
            False  # EPOLLRDHUP, EPOLLHUP or EPOLLERR was reported: a short read proves nothing
        )
        self.read_flags = 0  # of recv(2): MSG_TRUNC throws bytes away without copying them
        self.error: OSError | None = None  # what broke the connection
        self.output = OutputQueue()
        self.bytes_in = self.bytes_out = 0
        self.active_at = loop.now
        self.deadline = inf
        self._timer: Timer | None = None
        self._linger_left = limits.linger_bytes
        self._on_closed = on_closed

    # -- beginning

    def start(self, protocol: ConnectionProtocol) -> None:
        """Serve an accepted socket."""
        self.protocol = protocol
        self.loop.watch(self.fd, self.on_event)

    def connect(self, address: Any, protocol: ConnectionProtocol) -> None:
        """Begin to connect; `protocol.opened` or the end follows, from the loop. `error` says why it failed."""
        self.protocol = protocol
        self.state = CONNECTING
        code = self.sock.connect_ex(address)
        if code in (0, errno.EINPROGRESS):
            self.loop.watch(self.fd, self._on_connecting)
        else:
            self.loop.call_next_turn(lambda: self._connect_failed(code), self.fd)

    def _on_connecting(self, mask: int) -> None:
        if not mask & (WRITE | _GONE):
            return
        if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._connect_failed(code)
            return
        self.state = OPEN
        self.loop.set_handler(self.fd, self.on_event)
        self.protocol.opened()
        if self.state is not CLOSED:
            self.on_event(mask)

    def _connect_failed(self, code: int) -> None:
        self.error = OSError(code, os.strerror(code))
        self.close("connect")

    # -- reading

    def on_event(self, mask: int) -> None:
        """The loop's handler."""
        if mask & ~(READ | WRITE):
            if mask & _GONE and self.state is not LINGERING and not self.limits.reads_after_reset:
                self.close("reset")
                return
            if mask & (READ_HANGUP | _GONE) and not self.peer_hung_up:
                self.peer_hung_up = True
                self.protocol.hung_up()
        if mask & WRITE and self.output.pending:
            self.flush()
        if mask & _READABLE:
            if self.state is LINGERING:
                self._discard()
            else:
                self.read()

    def read(self) -> None:
        """Read what there is, as far as this connection may go on, then flush. To be called after a pause."""
        before = self.bytes_in
        while self.state is OPEN and not self.is_paused:
            if self.bytes_in - before >= self.limits.turn_bytes:
                self.loop.call_next_turn(self.read, self.fd)
                break
            place = self.protocol.place()
            if place is None:
                place = self.scratch
            try:
                count = self.sock.recv_into(place, 0, self.read_flags)
            except OSError as error:
                if error.errno not in WOULD_BLOCK:
                    self._break(error)
                break
            if not count:
                self.state = ENDED
                self.protocol.ended()
                break
            self.bytes_in += count
            self.protocol.received(place[:count])
            if count < len(place) and not self.peer_hung_up:
                break
        if self.bytes_in != before:
            self.active_at = self.loop.now
        if self.output.pending:
            self.flush()

    # -- writing

    def write(self, parts: Sequence[Part], release: Release | None = None) -> None:
        """Queue parts that are not copied; `release` is called once when their memory is no longer needed."""
        if self.state is not CLOSED:
            self.output.put(parts, release)
        elif release is not None:
            release()

    def flush(self) -> None:
        """Send what the socket takes; the rest follows when it has room."""
        output, count = self.output, 0
        if not output.pending or self.state in (CONNECTING, LINGERING, CLOSED):
            return
        try:
            while output.pending:
                sent = self.sock.sendmsg(output.gather())
                output.sent(sent)
                count += sent
        except OSError as error:
            if error.errno not in WOULD_BLOCK:
                self._break(error)
                return
            output.copy_out(self.limits.copy_bytes)
        if count:
            self.bytes_out += count
            self.active_at = self.loop.now
            self.protocol.sent(count)
        if self.state is FINISHING and not output.pending:
            self._linger()

    # -- deadline

    def set_deadline(self, seconds: float) -> None:
        """Call `protocol.expired` in `seconds` from now (inf: never), in place of the deadline before. To move it to a
        later time costs no timer."""
        self.deadline = when = self.loop.now + seconds
        timer = self._timer
        if when < inf and (timer is None or timer.when > when):
            if timer is not None:
                timer.cancel()
            self._timer = self.loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.deadline > self.loop.now:
            if self.deadline < inf:
                self._timer = self.loop.call_at(self.deadline, self._on_timer)
            return
        self.deadline = inf
        if self.state is LINGERING:
            self.close("done")
        else:
            self.protocol.expired()

    # -- ending

    def finish(self) -> None:
        """Read nothing more; close once all that was written has been sent and the peer has seen the end."""
        if self.state in (OPEN, ENDED):
            self.state = FINISHING
            if not self.output.pending:
                self._linger()

    def close(self, reason: str) -> None:
        """The one closer."""
        if self.state is CLOSED:
            return
        self.state = CLOSED
        self.loop.forget_closing(self.fd)
        self.loop.retire(self.sock.close)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.output.clear()
        self.protocol.closed(reason)
        self._on_closed(self, reason)

    def _break(self, error: OSError) -> None:
        """A system call failed: the connection is broken."""
        self.error = self.error or error
        if self.limits.reads_after_reset and not self.peer_hung_up:
            self.peer_hung_up = True
            self.read()
        self.close("reset")

    def _linger(self) -> None:
        self.state = LINGERING
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.error = error
            self.close("reset")
            return
        self.set_deadline(self.limits.linger_seconds)
        self._discard()

    def _discard(self) -> None:
        """Throw away what arrives, until the peer's end. MSG_TRUNC: TCP copies nothing."""
        count = taken = 0
        while self.state is LINGERING:
            try:
                count = self.sock.recv_into(self.scratch, 0, socket.MSG_TRUNC)
            except OSError as error:
                if error.errno in WOULD_BLOCK:
                    return
                count = 0
            taken += count
            self._linger_left -= count
            if not count or self._linger_left <= 0:
                self.close("done")
            elif taken >= self.limits.turn_bytes:
                self.loop.call_next_turn(self._discard, self.fd)
                return
