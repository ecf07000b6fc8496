"""One socket to the balancer or a resizer: dials, sends frames, reads replies, says when it is over.

RULES: non-blocking always; edge-triggered, so it reads until the kernel has nothing left, but at most READS buffers a
turn. Knows no jobs beyond carrying them; every end goes through `close` with a reason, and `on_lost` is told once.
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
from workers.client.connection import Conversation
from workers.client.jobs import Job
from workers.wire.messages import Request, Response

READ_SIZE = 256 * 1024
READS = 8
PIECES = 64  # buffers of one sendmsg
AT_ONCE = 64 * 1024  # from here on a picture is worth a system call of its own: the other side can begin


class Link:
    """One connection from its dial to its end. `serial`: its number among all of this process."""

    on_open: Callable[["Link"], object]
    on_answers: Callable[["Link", list[tuple[Job, Response]]], object]
    on_lost: Callable[["Link", str], object]

    def __init__(
        self, loop: Loop, address: Address, serial: int, next_id: Callable[[], int], max_frame: int
    ) -> None:
        self._loop = loop
        self.address = address
        self.serial = serial
        self.talk: Conversation[Job] = Conversation(next_id, max_frame)
        self.is_open = False
        self.is_closed = False
        self.is_alone = False  # it carries a suspect, which gets no company
        self.is_sour = False  # its resizer is busy or leaving: it gets no more jobs
        self.dialled_at = loop.now
        self.sent = 0
        self.received = 0
        self._waiting: deque[memoryview] = deque()
        self._is_ending = False
        self._sock = socket.socket(address.socket_family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def dial(self) -> None:
        """Begin to connect; on_open or on_lost follows, from the loop."""
        if self.address.family != "unix":
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._sock.connect_ex(self.address.sockaddr())
        if code not in (0, errno.EINPROGRESS):
            self._loop.again(lambda: self.close(f"cannot connect: {os.strerror(code)}"))
            return
        self._loop.watch(self._sock.fileno(), self._on_event)

    def is_idle(self) -> bool:
        """True when nothing is under way on it."""
        return not len(self.talk)

    def send(self, job: Job, request: Request) -> None:
        """Queue the request; small ones wait for flush(). Raises MessageError when it cannot be written."""
        for part in self.talk.put(job, request):
            if len(part):
                self._waiting.append(memoryview(part))
        if len(request.data) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Send what the kernel takes; the rest follows when it has room."""
        if self.is_open and self._waiting:
            self._flush()

    def close(self, reason: str) -> None:
        """End it; harmless a second time."""
        if self.is_closed:
            return
        self.is_closed, self.is_open = True, False
        self._waiting.clear()
        if self._loop.is_watched(self._sock.fileno()):
            self._loop.forget(self._sock.fileno())
        self._loop.retire(self._sock.close)
        self.on_lost(self, reason)

    def _on_event(self, mask: int) -> None:
        if not self.is_open and not self._finish_dial(mask):
            return
        if mask & WRITE and self._waiting:
            self._flush()
        if mask & ~(READ | WRITE):
            self._is_ending = (
                True  # told once: the end may lie right behind the data, a short read proves nothing
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
        while self._waiting:
            try:
                count = self._sock.sendmsg(list(islice(self._waiting, PIECES)))
            except OSError as error:
                if error.errno not in WOULD_BLOCK:
                    self._read()  # what was answered before the connection broke still counts
                    self.close(f"lost: {error.strerror}")
                return
            self.sent += count
            self._drop(count)

    def _drop(self, count: int) -> None:
        waiting = self._waiting
        while waiting and count >= len(waiting[0]):
            count -= len(waiting.popleft())
        if count:
            waiting[0] = waiting[0][count:]

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
            self._take(data)
            if len(data) < READ_SIZE and not self._is_ending:
                return
        self._loop.again(self._read)

    def _take(self, data: bytes) -> None:
        self.received += len(data)
        answers = self.talk.receive(data)
        if answers:
            self.on_answers(self, answers)
        if self.talk.violation:
            self.close(f"protocol: {self.talk.violation}")
