"""Sessions whose sides are streams: TLS ends at the client, at the backend, or at both.

RULES: a plain session in everything but its bytes. The fast path is the same: what is read is written at once and whole,
and whatever is out of the ordinary goes to the relay, for good. Only listeners with TLS make these sessions.

- close_notify is passed on as FIN, and FIN as close_notify with FIN behind it. When both directions are over, a side that
  still lacks its close_notify gets it before the close.
- What a stream has read and nobody has taken brings no event: `early` stands for it until there is a backend.
- A backend's handshake is part of the dial: PROXY header first, in the clear, then TLS, within another connect-timeout. A
  certificate that does not hold is a failed dial.
"""

import errno

from balancer.eventloop.errnos import TRANSIENT
from balancer.eventloop.loop import ERROR, HANGUP, READ, URGENT, WRITE
from balancer.relay import ends
from balancer.relay.flow import ANNOUNCED, Flow
from balancer.relay.framed.stream_client import StreamClient
from balancer.relay.half import ENDED, GONE, LIMIT, OPEN, SHUT
from balancer.relay.lane import no_header
from balancer.relay.proxy_header import ProxyHeaderSession
from balancer.relay.session import Session, SessionLane
from balancer.relay.sockets import PROMPT, set_acks
from balancer.relay.splicing import BACKEND, CLIENT, DEAD, LAST, READABLE, SplicingRelay
from balancer.relay.stream import RawStream, Stream
from balancer.relay.tls.handshakes import Handshakes
from balancer.relay.tls.stream import TlsStream

_UNUSUAL = ERROR | URGENT
_BOTH = READ | WRITE


class TlsSession(ProxyHeaderSession):
    """A session with a stream on either side."""

    __slots__ = (
        "backend_stream", "client_stream", "dial_fault", "dialled", "failure", "handshake_until", "handshakes",
    )  # fmt: skip

    def __init__(self, lane: SessionLane, client_fd: int, address: object) -> None:
        super().__init__(lane, client_fd, address)
        self.client_stream: Stream = RawStream(client_fd)
        self.backend_stream: Stream = RawStream(-1)  # with the connect
        self.handshakes: Handshakes | None = None  # while the client's is unfinished
        self.handshake_until = 0.0  # the loop's time
        self.failure = ""  # of TLS_FAILURES
        self.dialled: TlsStream | None = None  # while the backend's handshake is unfinished
        self.dial_fault = ""  # what was wrong with the last one that has failed

    # -- the backend's handshake

    def connected(self, mask: int) -> None:
        lane, backend = self.lane, self.backend
        tls = lane.backend_tls
        if tls is None:
            self.backend_stream = RawStream(self.backend_fd)
            if lane.header is no_header:
                Session.connected(self, mask)
            else:
                super().connected(mask)
            return
        assert backend is not None
        name = tls.name_for(backend.tls_host)
        session = None if backend.is_spare else tls.sessions.get(backend.index)  # it may be of another name
        stream = TlsStream(
            self.backend_fd, tls.context, lane.loop.watch_writing, name, session, is_server=False
        )
        stream.unsent = lane.header(self)
        if self.acks_late and self.backend_socket is not None:  # each side waits for the other in a handshake
            self.acks_late = False
            set_acks(self.backend_socket, PROMPT)
        self.backend_stream = self.dialled = stream
        lane.dialling[self] = lane.loop.now
        lane.loop.set_handler(self.backend_fd, self.on_backend_handshake)
        self.on_backend_handshake(mask & ~WRITE)

    def on_backend_handshake(self, mask: int) -> None:
        """Go on with the handshake of the backend that has taken the connect."""
        stream = self.dialled
        assert stream is not None
        failure = stream.dial_on(mask)
        if failure == 0:
            self._handshake_over(stream, mask)
        elif failure is not None:
            self._handshake_failed(failure)

    def _handshake_over(self, stream: TlsStream, mask: int) -> None:
        """Relay, as `Session.connected` does without TLS."""
        lane = self.lane
        loop = lane.loop
        self.dialled = None
        lane.dialling.pop(self, None)
        self.connected_at = loop.now
        loop.set_handler(self.backend_fd, self.on_backend)
        loop.set_handler(self.client_fd, self.on_client)
        self._set_nodelay()
        data, self.first = self.first, b""
        if data:
            self._give_first(data)
        if self.early & READABLE and not self.closed:
            (self.splicing or self).on_client(self.early)
        if (mask & LAST or not stream.is_dry or stream.has_ended) and not self.closed:
            (self.splicing or self).on_backend(READ | mask & LAST)

    def _give_first(self, data: bytes) -> None:
        try:
            sent = self.backend_stream.write(data)
        except OSError as error:
            self._stopped(CLIENT, data, 0, error)
            return
        if sent == len(data):
            self.bytes_in += sent
        else:
            self._stopped(CLIENT, data, sent)

    def _handshake_failed(self, code: int) -> None:
        """Give the backend up, with the reason in words where TLS has one."""
        stream, backend, lane = self.dialled, self.backend, self.lane
        self.dialled = None
        if stream is not None and stream.fault and backend is not None:
            self.dial_fault = stream.fault
            lane.context.log_failed_handshake(backend.identity, stream.fault)
        if self.dial_failed(code):
            self.dial()

    def on_connect_timeout(self) -> None:
        if self.dialled is not None:
            self._handshake_failed(errno.ETIMEDOUT)
        else:
            super().on_connect_timeout()

    # -- the first bytes

    def _relay_at_once(self) -> bool:
        if self.lane.backend_tls is not None:
            return False
        self.backend_stream = RawStream(self.backend_fd)
        if not self.first and self.lane.header is no_header:
            return False
        if not super()._relay_at_once():
            return False
        if self.early & READABLE and not self.closed:
            (self.on_client_again if self.splicing is None else self.splicing.on_client)(self.early)
        return True

    def read_first(self) -> bool:
        lane, fd = self.lane, self.client_fd
        try:
            if lane.header is no_header:
                self.first = lane.early.read(fd, self._read_client)
            else:  # it goes with the header
                self.first = self._read_client(fd, LIMIT)
        except OSError as error:
            if error.errno not in TRANSIENT:
                broken = f"TLS: {error.strerror}" if error.errno == errno.EPROTO else ""
                self.close(ends.CLIENT_LEFT_CONNECTING, broken)
                return False
        return True

    def _read_client(self, fd: int, size: int) -> bytes:
        data, is_dry = self.client_stream.read(size)
        if not data or not is_dry:
            self.early |= READ
        return data

    # -- the fast path

    def on_client(self, mask: int) -> None:
        stream = self.client_stream
        is_usual = mask == READ or (mask == _BOTH and not stream.unsent)
        if (self.over or not is_usual) and not self._is_readable(CLIENT, mask, stream):
            return
        try:
            data, is_dry = stream.read(LIMIT)
        except OSError as error:
            self._stopped(CLIENT, b"", 0, error)
            return
        if not data:
            self._ended(CLIENT)
            return
        try:
            sent = self.backend_stream.write(data)
        except OSError as error:
            self.take_over().write_failed(CLIENT, data, 0, error)
            return
        if sent != len(data):
            self.take_over().write_failed(CLIENT, data, sent, None)
            return
        self.bytes_in += sent
        if not is_dry or (not is_usual and mask & LAST):
            self.take_over().look_behind(CLIENT, LIMIT, mask)

    def on_backend(self, mask: int) -> None:
        stream = self.backend_stream
        is_usual = mask == READ or (mask == _BOTH and not stream.unsent)
        if (self.over or not is_usual) and not self._is_readable(BACKEND, mask, stream):
            return
        try:
            data, is_dry = stream.read(LIMIT)
        except OSError as error:
            self._stopped(BACKEND, b"", 0, error)
            return
        if not data:
            self._ended(BACKEND)
            return
        try:
            sent = self.client_stream.write(data)
        except OSError as error:
            self.take_over().write_failed(BACKEND, data, 0, error)
            return
        if sent != len(data):
            self.take_over().write_failed(BACKEND, data, sent, None)
            return
        self.bytes_out += sent
        if not is_dry or (not is_usual and mask & LAST):
            self.take_over().look_behind(BACKEND, LIMIT, mask)

    def _is_readable(self, side: int, mask: int, stream: Stream) -> bool:
        """Handle an event that is not just bytes; return whether there may be bytes, or an end, to read."""
        if mask & _UNUSUAL or (mask & WRITE and stream.unsent) or (self.over == side and mask & DEAD):
            relay = self.take_over()
            (relay.on_client if side == CLIENT else relay.on_backend)(mask)
            return False
        if self.over == side or mask == WRITE:  # over: the FIN behind its close_notify
            return False
        is_tcp = self.client_is_tcp if side == CLIENT else self.backend_is_tcp
        if mask & LAST and (not mask & HANGUP or self.over) and is_tcp and stream.fd is not None:
            self._pass_on_last(side, mask, stream)
            return False
        return True

    def _pass_on_last(self, side: int, mask: int, stream: Stream) -> None:
        """Pass on what stands before an end that is announced, with the end: as in the plain session, FIN follows a short
        read of a socket."""
        try:
            data, is_short = stream.read(LIMIT)
        except OSError as error:
            self._stopped(side, b"", 0, error)
            return
        if not data:
            self._ended(side)
            return
        sink = self.backend_stream if side == CLIENT else self.client_stream
        try:
            sent = sink.write_last(data) if is_short else sink.write(data)
        except OSError as error:
            self.take_over().write_failed(side, data, 0, error)
            return
        if sent != len(data):
            self.take_over().write_failed(side, data, sent, None)
            return
        if side == CLIENT:
            self.bytes_in += sent
        else:
            self.bytes_out += sent
        if is_short:
            self._ended(side)
        else:
            self.take_over().look_behind(side, LIMIT, mask)

    def _ended(self, side: int) -> None:
        """Pass the end on; everything before it has been written."""
        if side == BACKEND and not self.over and not self.bytes_out:
            self.ended_early()
        other = self.backend_stream if side == CLIENT else self.client_stream
        is_last = bool(self.over)
        if not is_last or other.fd is None:
            other.shut()
        if is_last and not other.unsent:
            self.close(ends.CLEAN)
            return
        if not is_last:
            self.over = side
        if other.unsent:
            relay = self.take_over()
            if is_last:
                flow = relay.flow_from(side)
                flow.ended()
                flow.shut()

    def _make_relay(self) -> SplicingRelay:
        lane = self.lane
        return TlsRelay(
            self, lane.loop, lane.pipes, lane.linger_limit, lane.await_acknowledgement,
            self.client_stream, self.backend_stream,
        )  # fmt: skip

    # -- the end

    def close(self, end: str, reason: str = "") -> None:
        if self.closed:
            return
        handshakes, account = self.handshakes, self.lane.account
        if handshakes is not None:
            self.handshakes = None
            handshakes.unfinished -= 1
            if end in (ends.CLIENT_LEFT_CONNECTING, ends.PREREAD_TIMEOUT):
                self.failure = self.failure or "incomplete"
            if self.failure:
                account.handshake_failed(self.failure)
        elif isinstance(self.client_stream, TlsStream) and self.client_stream.is_truncated:
            account.truncated()
        if self.dial_fault and end == ends.NO_BACKEND:
            reason = self.dial_fault
        self.dialled = None
        self._keep_backend_session()
        if isinstance(self.splicing, StreamClient):
            self.splicing.part()
        super().close(end, reason)

    def _keep_backend_session(self) -> None:
        """Resume it with the next dial: by now its tickets have come."""
        tls, backend, stream = self.lane.backend_tls, self.backend, self.backend_stream
        if tls is not None and backend is not None and self.connected_at and isinstance(stream, TlsStream):
            session = stream.tls.session
            if session is not None:
                tls.sessions[backend.index] = session


class TlsRelay(SplicingRelay):
    """A relay whose streams may hold bytes that no flow knows of: close_notify, answers to key updates."""

    __slots__ = ()

    def on_client(self, mask: int) -> None:
        if mask & WRITE and self.client.unsent:
            self._send(self.client, self.down)
        super().on_client(mask)

    def on_backend(self, mask: int) -> None:
        if mask & WRITE and self.backend.unsent:
            self._send(self.backend, self.up)
        super().on_backend(mask)

    def _send(self, stream: Stream, flow: Flow) -> None:
        """Send what waits, unless it is behind pending bytes: those take it with them."""
        if flow.pending:
            return
        try:
            stream.flush()
        except OSError as error:
            flow.error = error.errno or 0
            flow.lose_sink()
            self.settle()
            return
        if flow.sink == SHUT and not stream.unsent:
            self.settle()

    def _announce(self, flow: Flow, mask: int) -> None:
        """Behind the bytes of a stream that the socket has given lies its close_notify: the end has to be read."""
        if mask & LAST:
            flow.final = ANNOUNCED

    def _close(self) -> None:
        """Close once both sides have their close_notify; one that is gone takes none."""
        sides = ((self.client, self.down), (self.backend, self.up))
        for stream, flow in sides:
            if stream.fd is None and flow.source == ENDED and flow.sink == OPEN:
                stream.shut()
                flow.shut()
        if not any(stream.unsent and flow.sink != GONE for stream, flow in sides):
            super()._close()

    def _cause(self) -> str:
        for stream in (self.client, self.backend):
            if isinstance(stream, TlsStream) and stream.fault:
                return f"TLS: {stream.fault}"
        return super()._cause()
