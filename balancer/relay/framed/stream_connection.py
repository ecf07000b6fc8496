"""One connection to a backend where TLS ends or begins: as in connection.py, with streams in place of descriptors.

RULES
- The handshake belongs to the dial: within another connect-timeout, and a certificate that does not hold is a failed
  dial. It happens once for a connection, which then carries one request after the other.
- An event need not mean a reply: tickets and key updates are no plaintext. And behind a reply may lie an end that brings
  no event: it is looked for before the connection rests.
- A reply whose turn it is not stays in the kernel, but for its first bytes where the event tells of an end: only
  decrypted bytes tell a reply from a close_notify.
- close_notify is sent on connections at rest only: a backend can tell them from those that are given up.
"""

import errno
from _socket import socket as Socket
from typing import Protocol, cast

from balancer.edge.backend_tls import BackendTls
from balancer.eventloop.errnos import TRANSIENT
from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, URGENT, WRITE
from balancer.pool.targets import DialTarget
from balancer.relay.framed.connection import BackendConnection, ConnectionOwner, KeptConnections
from balancer.relay.framed.frame_format import FrameRefused
from balancer.relay.framed.requests import FramedRequest, RequestOwner
from balancer.relay.framed.stream_transfer import transfer_between
from balancer.relay.framed.transfer import FrameTransfer
from balancer.relay.half import LIMIT
from balancer.relay.sockets import acknowledged
from balancer.relay.stream import RawStream, Stream
from balancer.relay.tls.stream import TlsStream

_LAST = READ_HANGUP | HANGUP | ERROR | URGENT
_ALERT = "_ALERT_"


class StreamOwner(RequestOwner, Protocol):
    """A client with a stream."""

    stream: Stream


class StreamConnectionOwner(ConnectionOwner, Protocol):
    """A pool whose connections are these. `tls` is None for backends without TLS."""

    tls: BackendTls | None

    def handshake_failed(
        self, request: FramedRequest, connection: BackendConnection, code: int, fault: str
    ) -> None: ...


class KeptTlsStream(TlsStream):
    """Counts what it has written to the socket."""

    __slots__ = ("written",)

    written: int

    def _send(self, unsent: bytes, is_last: bool = False) -> int:
        given = super()._send(unsent, is_last)
        self.written += len(unsent) - len(self.unsent)
        return given


class StreamConnection(BackendConnection):
    """`stream` has the replies: a TlsStream from the beginning of the handshake on."""

    __slots__ = ("_is_over", "_is_ready", "_written_before", "stream")

    pool: StreamConnectionOwner

    def __init__(
        self, pool: ConnectionOwner, kept: KeptConnections, sock: Socket, target: DialTarget
    ) -> None:
        super().__init__(pool, kept, sock, target)
        self.stream: Stream = RawStream(self.fd)
        self._is_ready = self.pool.tls is None
        self._is_over = False  # behind the reply lies something that brings no event
        self._written_before = 0  # bytes on the socket, before the request

    # -- the handshake

    def send(self) -> None:
        stream = self.stream
        if self._is_ready:
            if isinstance(stream, KeptTlsStream):
                self._written_before = stream.written
            super().send()
        else:
            self._begin_handshake()

    def _begin_handshake(self) -> None:
        pool, tls, backend = self.pool, self.pool.tls, self.kept.backend
        assert tls is not None
        name = tls.name_for(backend.tls_host)
        session = None if backend.is_spare else tls.sessions.get(backend.index)  # it may be of another name
        self.stream = stream = KeptTlsStream(
            self.fd, tls.context, pool.loop.watch_writing, name, session, is_server=False
        )
        stream.written = 0
        pool.dialling[self] = pool.loop.now
        pool.loop.set_handler(self.fd, self.on_handshake)
        self.on_handshake(0)

    def on_handshake(self, mask: int) -> None:
        stream = self.stream
        assert isinstance(stream, KeptTlsStream)
        failure = stream.dial_on(mask)
        if failure == 0:
            self._handshake_over(stream, mask)
        elif failure is not None:
            self._handshake_failed(failure)

    def _handshake_over(self, stream: TlsStream, mask: int) -> None:
        pool, request = self.pool, self.request
        assert request is not None
        self._is_ready = True
        pool.dialling.pop(self, None)
        pool.loop.set_handler(self.fd, self.on_event)
        request.sent_at = pool.loop.now
        self.send()
        if self.fd >= 0 and (mask & _LAST or not stream.is_dry or stream.has_ended):
            self.on_event(READ | mask & _LAST)

    def on_connect_timeout(self) -> None:
        if isinstance(self.stream, TlsStream):
            self._handshake_failed(errno.ETIMEDOUT)
        else:
            super().on_connect_timeout()

    def _handshake_failed(self, code: int) -> None:
        request = self.request
        assert request is not None
        self.leave()
        self.pool.handshake_failed(request, self, code, self.stream.fault)

    # -- replies

    def on_event(self, mask: int) -> None:
        request = self.awaited
        if mask & WRITE:
            self._flush()
        if request is None or mask & _LAST:
            self._on_unusual(mask)
        elif mask & READ:
            turn = request.owner.turn
            if turn is not request and turn is not None:
                self._wait_for_turn(mask)
            else:
                self.take_turn()

    def _flush(self) -> None:
        """Send what the stream has to say by itself."""
        if not self.stream.is_held:
            try:
                self.stream.flush()
            except OSError:
                pass  # the next read reports it

    def take_turn(self) -> None:
        request, data, is_dry = self.request, self.head, False
        assert request is not None
        try:
            size = self.size_of(data)
            while size < 0:
                more, is_dry = self.stream.read(LIMIT)
                if not more:
                    self.broke(0)
                    return
                self.awaited = None
                self.head = data = data + more if data else more
                size = self.size_of(data)
        except (OSError, FrameRefused) as error:
            self._reading_failed(error)
            return
        self.head = b""
        if size != len(data) or request.upload is not None:
            self._begin_reply(data, size)
            return
        owner = cast(StreamOwner, request.owner)
        self._is_over = not is_dry
        try:
            sent = owner.stream.write(data)
        except OSError as error:
            self._client_failed(data, error)
            return
        owner.bytes_out += sent
        if sent == size:
            self._finish(request, size)
        else:
            request.received = size
            self._pass_on(data[sent:], 0)

    def _has_more(self) -> bool:
        try:
            data = self.stream.read(1)[0]
        except OSError as error:
            self._is_over = error.errno not in TRANSIENT
            return False
        self._is_over = not data
        return bool(data)

    def _finish(self, request: FramedRequest, size: int) -> None:
        if not self.sent:
            self._keep_session()
        super()._finish(request, size)
        if self._is_over and self.request is None and self.fd >= 0:
            self._on_idle()

    def _keep_session(self) -> None:
        """Resume it with the next dial: its tickets have come before the first reply."""
        tls, stream = self.pool.tls, self.stream
        if tls is not None and isinstance(stream, TlsStream) and stream.tls.session is not None:
            tls.sessions[self.kept.backend.index] = stream.tls.session

    def _wait_for_turn(self, mask: int) -> None:
        request = self.request
        assert request is not None
        if mask & _LAST and not self.head:
            try:
                self.head = self.stream.read(LIMIT)[0]
            except OSError as error:
                if error.errno not in TRANSIENT:
                    self.broke(error.errno or errno.EIO)
                return
            if not self.head:
                self.broke(0)
                return
        request.owner.wait_for_turn(request)

    # -- ends

    def broke(self, code: int, was_sent: bool = True) -> None:
        request = self.request
        if request is None or not request.is_kept or self.sent or _ALERT not in self.stream.fault:
            # A write of several records may have failed behind the first ones.
            written = self.stream.written if isinstance(self.stream, KeptTlsStream) else 0
            super().broke(code, was_sent or written > self._written_before)
            return
        # In TLS 1.3 a backend that refuses the balancer's certificate says so behind the handshake.
        request.end_upload()
        self._handshake_failed(errno.EPROTO)

    def _is_unheard(self) -> bool:
        if not isinstance(self.stream, TlsStream):
            return super()._is_unheard()
        heard = acknowledged(self.sock)
        return heard is not None and heard <= self._written_before + 1

    def sink_lost(self, code: int) -> None:
        if self.reply is None and not self.head:
            try:
                self.head = self.stream.read(LIMIT)[0]
            except OSError:
                pass
        if self.reply is None and not self.head:
            self.broke(code)
        else:
            self.on_event(READ | READ_HANGUP)

    def shut(self) -> None:
        if isinstance(self.stream, TlsStream):
            self.stream.shut()

    # -- bytes

    def _read_unasked(self) -> bytes:
        return self.stream.read(LIMIT)[0]

    def _write(self, data: bytes) -> int:
        return self.stream.write(data)

    def _transfer_request(self, request: FramedRequest, rest: bytes) -> FrameTransfer:
        reader = cast(StreamOwner, request.owner).stream
        return transfer_between(reader, self.stream, request.left, rest, self.pool.pipes, request.more)

    def _transfer_reply(self, owner: RequestOwner, left: int, rest: bytes) -> FrameTransfer:
        return transfer_between(self.stream, cast(StreamOwner, owner).stream, left, rest, self.pool.pipes)
