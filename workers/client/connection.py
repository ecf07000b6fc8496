"""One connection to the balancer or a resizer: dials, sends requests, reads replies, reports its end.

RULES: the socket belongs to BufferedConnection, the protocol to RequestPipeline. Every end goes through `close` with a
reason, and `on_lost` is called once.
"""

import socket
from collections.abc import Callable

from balancer.config.units import Address
from balancer.eventloop.connection import (
    CLOSED,
    OPEN,
    BufferedConnection,
    ConnectionLimits,
    ConnectionProtocol,
)
from balancer.eventloop.loop import Loop
from workers.client.jobs import ClientJob
from workers.client.pipeline import RequestPipeline
from workers.wire.messages import Request, Response

SEND_AT_ONCE = (
    64 * 1024
)  # a picture of this size gets a system call of its own, so that the server can begin with it
_LIMITS = ConnectionLimits(reads_after_reset=True)  # replies that arrived before a reset count


class ClientConnection(ConnectionProtocol):
    """One connection from its dial to its end. `serial`: its number among all connections of this process."""

    on_open: Callable[["ClientConnection"], object]
    on_replies: Callable[["ClientConnection", list[tuple[ClientJob, Response]]], object]
    on_lost: Callable[["ClientConnection", str], object]

    def __init__(
        self, loop: Loop, address: Address, serial: int, next_id: Callable[[], int], max_frame: int
    ) -> None:
        self.address = address
        self.serial = serial
        self.pipeline: RequestPipeline[ClientJob] = RequestPipeline(next_id, max_frame)
        self.carries_suspect = False  # a suspect is the only request in flight
        self.is_draining = False  # its resizer is busy or draining: it gets no more jobs
        self.dialled_at = loop.now
        sock = socket.socket(address.socket_family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._connection = BufferedConnection(loop, sock, limits=_LIMITS)

    @property
    def is_open(self) -> bool:
        """True while requests can be sent."""
        return self._connection.state is OPEN

    @property
    def is_closed(self) -> bool:
        """True after on_lost."""
        return self._connection.state is CLOSED

    @property
    def bytes_in(self) -> int:
        """Bytes received."""
        return self._connection.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes sent."""
        return self._connection.bytes_out

    def dial(self) -> None:
        """Begin to connect; on_open or on_lost follows, from the loop."""
        if self.address.family != "unix":
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.connect(self.address.sockaddr(), self)

    def is_idle(self) -> bool:
        """True when no request is in flight."""
        return not len(self.pipeline)

    def send(self, job: ClientJob, request: Request) -> None:
        """Queue the request; a small one is sent by flush(). Raises MessageError when it cannot be encoded."""
        self._connection.write(self.pipeline.add(job, request))
        if len(request.data) >= SEND_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Send what the socket buffer takes; the rest follows when it has room."""
        self._connection.flush()

    def close(self, reason: str) -> None:
        """Close the socket and report `reason`; a second call does nothing."""
        self._connection.close(reason)

    # -- called by the connection ---------------------------------------------------------------------------------

    def opened(self) -> None:
        self.on_open(self)

    def received(self, data: memoryview) -> None:
        answers = self.pipeline.receive(data)
        if answers:
            self.on_replies(self, answers)
        if self.pipeline.violation:
            self.close(f"protocol: {self.pipeline.violation}")

    def ended(self) -> None:
        self.close("lost: closed by the other side")

    def sent(self, count: int) -> None:
        """No action: a request is done when its reply has come."""

    def expired(self) -> None:
        """Not called: the dispatcher watches the deadlines of its jobs."""

    def closed(self, reason: str) -> None:
        error = self._connection.error
        if error is not None and reason in ("connect", "reset"):
            reason = f"{'cannot connect' if reason == 'connect' else 'lost'}: {error.strerror}"
        self.on_lost(self, reason)
