"""One socket to the balancer or a resizer: dials, sends requests, reads replies, reports its end.

RULES: non-blocking; edge-triggered, so it reads until the kernel has nothing left, but at most READS buffers a turn.
Every end goes through `close` with a reason, and `on_lost` is called once.
"""

import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice

from balancer.config.units import Address
from balancer.eventloop.errnos import WOULD_BLOCK
from balancer.eventloop.loop import ERROR, HANGUP, READ, WRITE, Loop
from workers.client.jobs import ClientJob
from workers.client.pipeline import RequestPipeline
from workers.wire.messages import Request, Response

READ_SIZE = 256 * 1024
READS = 8
MAX_BUFFERS = 64  # in one sendmsg
SEND_AT_ONCE = (
    64 * 1024
)  # a picture of this size gets a system call of its own, so that the server can begin with it


class ClientConnection:
    """One connection from its dial to its end. `serial`: its number among all connections of this process."""

    on_open: Callable[["ClientConnection"], object]
    on_replies: Callable[["ClientConnection", list[tuple[ClientJob, Response]]], object]
    on_lost: Callable[["ClientConnection", str], object]

    def __init__(
        self, loop: Loop, address: Address, serial: int, next_id: Callable[[], int], max_frame: int
    ) -> None:
        self._loop = loop
        self.address = address
        self.serial = serial
        self.pipeline: RequestPipeline[ClientJob] = RequestPipeline(next_id, max_frame)
        self.is_open = False
        self.is_closed = False
        self.carries_suspect = False  # a suspect is the only request in flight
        self.is_draining = False  # its resizer is busy or draining: it gets no more jobs
        self.dialled_at = loop.now
        self.bytes_out = 0
        self.bytes_in = 0
        self._unsent: deque[memoryview] = deque()
        self._is_ending = False
        self._sock = socket.socket(address.socket_family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def dial(self) -> None:
        """Begin to connect; on_open or on_lost follows, from the loop."""
        if self.address.family != "unix":
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._sock.connect_ex(self.address.sockaddr())
        if code not in (0, errno.EINPROGRESS):
            self._loop.call_next_turn(lambda: self.close(f"cannot connect: {os.strerror(code)}"))
            return
        self._loop.watch(self._sock.fileno(), self._on_event)

    def is_idle(self) -> bool:
        """True when no request is in flight."""
        return not len(self.pipeline)

    def send(self, job: ClientJob, request: Request) -> None:
        """Queue the request; a small one is sent by flush(). Raises MessageError when it cannot be encoded."""
        for part in self.pipeline.add(job, request):
            if len(part):
                self._unsent.append(memoryview(part))
        if len(request.data) >= SEND_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Send what the socket buffer takes; the rest follows when it has room."""
        if self.is_open and self._unsent:
            self._flush()

    def close(self, reason: str) -> None:
        """Close the socket and report `reason`; a second call does nothing."""
        if self.is_closed:
            return
        self.is_closed, self.is_open = True, False
        self._unsent.clear()
        if self._loop.is_watched(self._sock.fileno()):
            self._loop.forget(self._sock.fileno())
        self._loop.retire(self._sock.close)
        self.on_lost(self, reason)

    def _on_event(self, mask: int) -> None:
        if not self.is_open and not self._finish_dial(mask):
            return
        if mask & WRITE and self._unsent:
            self._flush()
        if mask & ~(READ | WRITE):
            self._is_ending = (
                True  # EPOLLRDHUP comes once, EOF may follow the data: a short read proves nothing
            )
        if mask & ~WRITE:
            self._read()

    def _finish_dial(self, mask: int) -> bool:
        if not mask & (WRITE | ERROR | HANGUP):
            return False
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.close(f"cannot connect: {os.strerror(code)}")
            return False
        self.is_open = True
        self.on_open(self)
        return not self.is_closed

    def _flush(self) -> None:
        while self._unsent:
            try:
                count = self._sock.sendmsg(list(islice(self._unsent, MAX_BUFFERS)))
            except OSError as error:
                if error.errno not in WOULD_BLOCK:
                    self._read()  # replies that arrived before the error count
                    self.close(f"lost: {error.strerror}")
                return
            self.bytes_out += count
            self._drop(count)

    def _drop(self, count: int) -> None:
        unsent = self._unsent
        while unsent and count >= len(unsent[0]):
            count -= len(unsent.popleft())
        if count:
            unsent[0] = unsent[0][count:]

    def _read(self) -> None:
        for _ in range(READS):
            if self.is_closed:
                return
            try:
                data = self._sock.recv(READ_SIZE)
            except OSError as error:
                if error.errno not in WOULD_BLOCK:
                    self.close(f"lost: {error.strerror}")
                return
            if not data:
                self.close("lost: closed by the other side")
                return
            self._receive(data)
            if len(data) < READ_SIZE and not self._is_ending:
                return
        self._loop.call_next_turn(self._read)

    def _receive(self, data: bytes) -> None:
        self.bytes_in += len(data)
        answers = self.pipeline.receive(data)
        if answers:
            self.on_replies(self, answers)
        if self.pipeline.violation:
            self.close(f"protocol: {self.pipeline.violation}")
