"""One connection to a backend: it carries one request at a time, and is kept between them.

RULES: see connection_pool.py, which owns it. Here is what happens on its descriptor; the first method is the way of a
small reply, and all that is not ordinary has a method of its own.
"""

import errno
from _socket import MSG_PEEK, SO_ERROR, SOL_SOCKET
from _socket import socket as Socket
from collections import deque
from fcntl import ioctl
from os import read, write
from termios import FIONREAD
from typing import Protocol

from balancer.eventloop.errnos import TRANSIENT, name_of
from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, URGENT, WRITE, Loop
from balancer.pool.backend import Backend
from balancer.pool.request_election import RequestElector
from balancer.pool.targets import DialTarget
from balancer.relay import ends
from balancer.relay.framed.frame_format import FrameRefused, Sizer
from balancer.relay.framed.requests import FramedRequest, RequestOwner
from balancer.relay.framed.transfer import BLOCKED, BULK, DONE, DRY, LOST, MORE, FrameTransfer, splice_whole
from balancer.relay.half import LIMIT
from balancer.relay.pipes import Pipes
from balancer.relay.sockets import acknowledged

_LAST = READ_HANGUP | HANGUP | ERROR | URGENT
_NOTHING = b"\0\0\0\0"
RESTING = 16  # idle connections with which a shorter rest will do: see connection_pool.py
BEYOND = "bytes beyond a reply"
UNASKED = "bytes that no request has asked for"


class ConnectionOwner(Protocol):
    """What a connection needs of its pool (connection_pool.py)."""

    loop: Loop
    size_of: Sizer
    header: int  # bytes
    heads: dict[int, bytes]
    elector: RequestElector
    pipes: Pipes
    dialling: "dict[BackendConnection, float]"

    def free_place(self) -> None: ...
    def learn(self, frame: bytes) -> None: ...
    def suspect(self, connection: "BackendConnection", what: str) -> None: ...
    def distrust(self, kept: "KeptConnections") -> None: ...
    def drop(self, connection: "BackendConnection", request: FramedRequest | None = None) -> None: ...
    def connected(self, connection: "BackendConnection") -> None: ...
    def connect_failed(self, request: FramedRequest, connection: "BackendConnection", code: int) -> None: ...
    def retry(self, request: FramedRequest, is_unheard: bool, is_certain: bool, code: int) -> None: ...


class KeptConnections:
    """The idle connections to one backend, the one that has been idle longest first."""

    __slots__ = (
        "address", "answered", "backend", "has_limit", "idle", "is_long", "most", "open", "place", "reply_times",
        "resting", "suspect_until",
    )  # fmt: skip

    def __init__(self, backend: Backend, place: int, most: int) -> None:
        self.backend = backend
        self.place = place  # in the pool
        self.most = most  # idle connections; none while the backend is under suspicion
        self.idle: deque[BackendConnection] = deque()
        self.open = 0  # connections, idle or not, and those that are being made
        self.suspect_until = 0.0
        self.reply_times: list[float] = []  # seconds, of the replies since the last sweep
        self.resting = RESTING
        self.answered = 0.0  # requests, up to the last sweep; -inf: it will never be trusted
        self.address: object = None  # that was dialled last
        self.has_limit = False
        self.is_long = False  # the last reply was: of the next one the header is looked at, and all spliced

    def count_again(self) -> None:
        """A connection has failed or leads elsewhere, or none was left to show it: another program may reply next."""
        self.resting = RESTING
        self.answered = min(self.answered, -len(self.reply_times))


class BackendConnection:
    """One connection to a backend. `request`: the one it carries, None while it is idle. `awaited`: the same while all of
    it is sent and nothing of its reply has been read."""

    __slots__ = (
        "awaited", "counted_received", "counted_sent", "fd", "head", "header", "heads", "idle_since", "kept", "pool",
        "received", "reply", "request", "sent", "size_of", "sock", "target",
    )  # fmt: skip

    def __init__(
        self, pool: ConnectionOwner, kept: KeptConnections, sock: Socket, target: DialTarget
    ) -> None:
        self.pool = pool
        self.kept = kept
        self.sock = sock
        self.target = target
        self.fd = sock.fileno()
        self.size_of, self.header, self.heads = pool.size_of, pool.header, pool.heads
        self.request: FramedRequest | None = None
        self.awaited: FramedRequest | None = None
        self.head = b""  # the first bytes of a reply whose header is not complete
        self.reply: FrameTransfer | None = None  # the rest of a reply
        self.sent = self.received = 0  # bytes of the requests carried before this one, and of their replies
        self.counted_sent = self.counted_received = 0  # of these, the pool's
        self.idle_since = 0.0

    # -- the way of a small reply

    def on_event(self, mask: int) -> None:
        request = self.awaited
        if request is None or mask != READ:
            self._on_unusual(mask)
            return
        owner, kept = request.owner, self.kept
        turn = owner.turn
        if turn is not request and turn is not None:
            self._wait_for_turn(mask)
            return
        if kept.is_long:
            self._begin_long_reply()
            return
        try:
            data = read(self.fd, LIMIT)
        except OSError as error:
            self._reading_failed(error)
            return
        size = len(data)
        if data[: self.header] != self.heads.get(size):
            self._on_other_bytes(data)
            return
        try:
            sent = write(owner.fd, data)
        except OSError as error:
            self._client_failed(data, error)
            return
        owner.bytes_out += sent
        if sent == size:
            self._finish(request, size)
        else:
            request.received = size
            self._pass_on(data[sent:], 0)

    def _finish(self, request: FramedRequest, size: int) -> None:
        """The reply is whole, and written: the connection is idle."""
        pool, kept = self.pool, self.kept
        idle, now = kept.idle, pool.loop.now
        self.request = self.awaited = None
        kept.reply_times.append(now - request.sent_at)
        self.sent += request.size
        self.received += size
        if len(idle) < kept.most:
            self.idle_since = now
            idle.append(self)
            pool.elector.release_request(kept.place)
            if kept.has_limit:
                pool.free_place()
        else:
            pool.drop(self, request)
        request.owner.answered(request, size)

    # -- every other reply

    def _on_other_bytes(self, data: bytes) -> None:
        """Go on with bytes that are not known to be one small reply."""
        try:
            size = self.size_of(data)
        except FrameRefused as error:
            self._reading_failed(error)
            return
        if size == len(data):
            self.pool.learn(data)
        self._begin_reply(data, size)

    def _on_unusual(self, mask: int) -> None:
        request = self.request
        if mask & WRITE and request is not None and request.upload is not None:
            request.owner.pump_upload(request)
            request = self.request
        if not mask & (READ | _LAST):
            return
        if request is None:
            if self.fd >= 0:
                self._on_idle()
        elif self.reply is not None:
            self.pump_reply()
        elif request.owner.turn is not request and request.owner.turn is not None:
            self._wait_for_turn(mask)
        else:
            self.take_turn()
            if self.request is None and self.fd >= 0 and mask & _LAST:
                self._on_idle()  # its end may be behind the reply

    def take_turn(self) -> None:
        """Read what has arrived of the reply: the client gets it now."""
        try:
            data = read(self.fd, LIMIT)
            if not data:
                self.broke(0)
                return
            data = self.head + data
            size = self.size_of(data)
        except (OSError, FrameRefused) as error:
            self._reading_failed(error)
            return
        self._begin_reply(data, size)

    def _begin_long_reply(self) -> None:
        """Look at the header of what is probably a long reply, and splice it with the rest."""
        request, pool = self.request, self.pool
        assert request is not None
        try:
            size = self.size_of(self.sock.recv(self.header, MSG_PEEK))
        except (OSError, FrameRefused) as error:
            self._reading_failed(error)
            return
        if size < BULK:
            self.kept.is_long = False
            self.take_turn()
            return
        owner = request.owner
        reply = splice_whole(self.fd, owner.fd, size, pool.pipes)
        if reply is None:
            owner.bytes_out += size
            self._finish(request, size)
            return
        request.received = size
        owner.bytes_out += size - reply.left - reply.waiting()
        self._go_on(reply)

    def _begin_reply(self, data: bytes, size: int) -> None:
        """Go on behind the first bytes of a reply, of which `size` is the whole; -1: that is not known yet."""
        request = self.request
        assert request is not None
        if not data:
            self.broke(0)
            return
        self.awaited = None
        if size < 0:
            self.head = data
            return
        self.head = b""
        if len(data) > size:
            self.pool.suspect(self, BEYOND)
        request.received = size
        self.kept.is_long = size >= LIMIT
        self._pass_on(data[:size], max(0, size - len(data)))

    def _pass_on(self, rest: bytes, left: int) -> None:
        request = self.request
        assert request is not None
        self._go_on(self._transfer_reply(request.owner, left, rest))

    def _go_on(self, reply: FrameTransfer) -> None:
        request = self.request
        assert request is not None
        request.owner.turn = request
        request.is_kept = False
        self.awaited = None
        self.reply = reply
        self.pump_reply()

    def pump_reply(self) -> None:
        """Move on the reply under way."""
        request, reply = self.request, self.reply
        if request is None or reply is None:
            return
        owner = request.owner
        before = reply.left + reply.waiting()
        outcome = reply.pump()
        owner.bytes_out += before - reply.left - reply.waiting()
        if outcome == DONE:
            self.reply = None
            if reply.beyond or self._has_more():  # no event follows: the transfer has left it there
                self.pool.suspect(self, BEYOND)
            if request.upload is None:
                self._finish(request, request.received)
            else:
                self._finish_early(request)
        elif outcome == BLOCKED:
            owner.wait_for_room()
        elif outcome == MORE:
            self.pool.loop.call_next_turn(self.pump_reply, self.fd)
        elif outcome == LOST:
            owner.fail(ends.CLIENT_RESET, name_of(reply.error))
        elif outcome != DRY:
            self.broke(reply.error)

    def _has_more(self) -> bool:
        """Return whether bytes lie behind a reply that has been read."""
        return ioctl(self.fd, FIONREAD, _NOTHING) != _NOTHING

    def _finish_early(self, request: FramedRequest) -> None:
        """The reply is whole before its request is: the connection is of no further use."""
        self.kept.reply_times.append(self.pool.loop.now - request.sent_at)
        self.sent += request.given()
        self.received += request.received
        self.pool.drop(self, request)
        self.request = None
        request.owner.cut_upload(request)
        request.owner.answered(request, request.received)

    def _wait_for_turn(self, mask: int) -> None:
        """Leave the reply in the kernel. Of one that has not begun it is seen at once that it never will."""
        request = self.request
        assert request is not None
        try:
            begun = bool(self.sock.recv(1, MSG_PEEK)) if mask & _LAST else True
        except OSError as error:
            self._reading_failed(error)
            return
        if not begun:
            self.broke(0)
            return
        request.owner.wait_for_turn(request)

    # -- ends

    def _on_idle(self) -> None:
        """Something has happened although no request is under way: an end, or bytes that were not asked for."""
        try:
            if self._read_unasked():
                self.pool.suspect(self, UNASKED)
                return
        except OSError as error:
            if error.errno in TRANSIENT:
                return
        self.kept.idle.remove(self)
        self.kept.count_again()
        self.pool.drop(self)

    def _reading_failed(self, error: Exception) -> None:
        if isinstance(error, FrameRefused):
            self.pool.suspect(self, str(error))
            self.broke(errno.EPROTO)
        elif isinstance(error, OSError) and error.errno not in TRANSIENT:
            self.broke(error.errno or errno.EIO)

    def _client_failed(self, data: bytes, error: OSError) -> None:
        request = self.request
        assert request is not None
        if error.errno in TRANSIENT:
            request.received = len(data)
            self._pass_on(data, 0)
        else:
            request.owner.fail(ends.CLIENT_RESET, name_of(error.errno))

    def broke(self, code: int, was_sent: bool = True) -> None:
        """The backend has ended the connection (`code` 0) or broken it before the reply was whole."""
        request = self.request
        if request is None:
            return
        if self.head or self.reply is not None:
            self.pool.distrust(self.kept)  # a reply that is cut
        self.kept.count_again()
        is_unheard = self.sent > 0 and (not was_sent or self._is_unheard())
        self.abandon(was_sent)
        # A reset may owe the acknowledgement of what was read.
        self.pool.retry(request, is_unheard, not was_sent or code != errno.ECONNRESET, code)

    def _is_unheard(self) -> bool:
        """Return whether the backend's kernel has acknowledged no byte of this request."""
        heard = acknowledged(self.sock)
        return heard is not None and heard <= self.sent + 1  # the SYN counts as one

    def abandon(self, was_sent: bool = True) -> None:
        """Close the connection: its request goes on without it, or ends."""
        request, reply = self.request, self.reply
        assert request is not None
        request.was_sent = was_sent and self not in self.pool.dialling
        self.sent += request.given() if request.was_sent else 0
        if reply is not None:
            request.received -= reply.left + reply.waiting()
            reply.discharge()
            self.reply = None
        request.end_upload()
        self.received += request.received
        self.pool.drop(self, request)
        self.request = self.awaited = None
        request.carrier = None

    def leave(self, was_sent: bool = False) -> FramedRequest:
        """Close a connection of which nothing has been read; return its request, whose place stays taken."""
        request = self.request
        assert request is not None
        self.sent += request.given() if was_sent else 0
        self.kept.count_again()
        self.pool.drop(self)
        self.request = self.awaited = None
        request.carrier = None
        return request

    def sink_lost(self, code: int) -> None:
        """The backend takes no more of the request: its reply may lie in the receive queue all the same."""
        request = self.request
        assert request is not None
        try:
            has_reply = bool(self.sock.recv(1, MSG_PEEK))
        except OSError:
            has_reply = False
        if has_reply:
            self.on_event(READ | READ_HANGUP)
        else:
            self.broke(code)

    @property
    def is_receiving(self) -> bool:
        """A reply has begun and is not whole, and the backend's next bytes are awaited."""
        return bool(self.head) or (self.reply is not None and not self.reply.waiting())

    @property
    def is_blocked(self) -> bool:
        """Bytes of the request wait for the backend."""
        request = self.request
        return request is not None and request.upload is not None and request.upload.waiting() > 0

    @property
    def is_held_up(self) -> bool:
        """Bytes of the reply wait for the client."""
        return self.reply is not None and self.reply.waiting() > 0

    def watch_writing(self) -> None:
        """Report room for the rest of the request."""
        self.pool.loop.watch_writing(self.fd)

    # -- connecting

    def on_connecting(self, mask: int) -> None:
        """Judge the outcome of the connect."""
        if mask & (ERROR | HANGUP):
            self._connect_failed(self.sock.getsockopt(SOL_SOCKET, SO_ERROR) or errno.ECONNREFUSED)
        elif mask & WRITE:
            pool = self.pool
            pool.connected(self)
            pool.loop.set_handler(self.fd, self.on_event)
            pool.loop.rearm(self.fd)  # for reading only
            assert self.request is not None
            self.request.sent_at = pool.loop.now
            self.send()

    def on_connect_timeout(self) -> None:
        """The connect has taken too long (called by the sweep)."""
        self._connect_failed(errno.ETIMEDOUT)

    def _connect_failed(self, code: int) -> None:
        self.pool.connect_failed(self.leave(), self, code)

    def send(self) -> None:
        """Give the backend what there is of the request; what follows is passed on as it comes."""
        request = self.request
        assert request is not None
        try:
            sent = self._write(request.whole())
        except OSError as error:
            self.sending_failed(error)
            return
        if sent == request.size and request.more is None:
            self.awaited = request
        else:  # of a request that is sent again the client may still be held back
            self.sent_part(sent)

    def sending_failed(self, error: OSError) -> None:
        """A write of a request has failed."""
        if error.errno not in TRANSIENT:
            self.broke(error.errno or errno.EIO, was_sent=False)
        else:
            self.sent_part(0)

    def sent_part(self, sent: int) -> None:
        """The backend has been given the first `sent` bytes of what there is of the request."""
        request = self.request
        assert request is not None
        data = request.whole()
        if request.is_kept:
            request.more = request.more or []
        else:
            request.data = b""
        request.upload = self._transfer_request(request, data[sent:])
        request.owner.pump_upload(request)

    # -- bytes

    def _read_unasked(self) -> bytes:
        return self.sock.recv(1, MSG_PEEK)

    def _write(self, data: bytes) -> int:
        return write(self.fd, data)

    def _transfer_request(self, request: FramedRequest, rest: bytes) -> FrameTransfer:
        return FrameTransfer(request.owner.fd, self.fd, request.left, rest, self.pool.pipes, request.more)

    def _transfer_reply(self, owner: RequestOwner, left: int, rest: bytes) -> FrameTransfer:
        return FrameTransfer(self.fd, owner.fd, left, rest, self.pool.pipes)

    def shut(self) -> None:
        """Say that this is the end, where that takes more than the close."""
