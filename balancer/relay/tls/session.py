"""Sessions whose sides are streams: TLS ends at the client, at the backend, or at both.

RULES: a plain session in everything but its bytes. The fast path is the same: what is read is written at once and whole,
and whatever is out of the ordinary goes to the relay, for good. Only listeners with TLS make these sessions.

- close_notify is passed on as FIN, and FIN as close_notify with FIN behind it. When both directions are over, a side that
  still lacks its close_notify gets it before the close.
- What a stream has read and nobody has taken brings no event: `early` stands for it until there is a backend.
"""

from balancer.eventloop.errnos import TRANSIENT
from balancer.eventloop.loop import ERROR, READ, URGENT, WRITE
from balancer.relay import ends
from balancer.relay.flow import ANNOUNCED, Flow
from balancer.relay.half import ENDED, LIMIT, OPEN, SHUT
from balancer.relay.lane import no_header
from balancer.relay.proxy_header import ProxyHeaderSession
from balancer.relay.session import SessionLane
from balancer.relay.splicing import BACKEND, CLIENT, DEAD, LAST, READABLE, SplicingRelay
from balancer.relay.stream import RawStream, Stream
from balancer.relay.tls.handshakes import Handshakes
from balancer.relay.tls.stream import TlsStream

_UNUSUAL = ERROR | URGENT


class TlsSession(ProxyHeaderSession):
    """A session with a stream on either side."""

    __slots__ = ("backend_stream", "client_stream", "failure", "handshake_until", "handshakes")

    def __init__(self, lane: SessionLane, client_fd: int, address: object) -> None:
        super().__init__(lane, client_fd, address)
        self.client_stream: Stream = RawStream(client_fd)
        self.backend_stream: Stream = RawStream(-1)  # with the connect
        self.handshakes: Handshakes | None = None  # while the client's is unfinished
        self.handshake_until = 0.0  # the loop's time
        self.failure = ""  # of TLS_FAILURES

    # -- the first bytes

    def _relay_at_once(self) -> bool:
        self.backend_stream = RawStream(self.backend_fd)
        if not self.first and self.lane.header is no_header:
            return False
        if not super()._relay_at_once():
            return False
        if self.early & READABLE and not self.closed:
            (self.on_client_again if self.splicing is None else self.splicing.on_client)(self.early)
        return True

    def connected(self, mask: int) -> None:
        self.backend_stream = RawStream(self.backend_fd)
        super().connected(mask)

    def read_first(self) -> bool:
        try:
            self.first, is_dry = self.client_stream.read(LIMIT)
        except OSError as error:
            if error.errno not in TRANSIENT:
                self.close(ends.CLIENT_LEFT_CONNECTING)
                return False
            return True
        if not self.first or not is_dry:
            self.early |= READ
        return True

    # -- the fast path

    def on_client(self, mask: int) -> None:
        if mask != READ and (mask & _UNUSUAL or (mask & WRITE and self.client_stream.unsent)):
            self.take_over().on_client(mask)
            return
        if self.over == CLIENT:  # the FIN behind its close_notify
            if mask & DEAD:
                self.take_over().on_client(mask)
            return
        try:
            data, is_dry = self.client_stream.read(LIMIT)
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
        if not is_dry or (mask != READ and mask & LAST):
            self.take_over().look_behind(CLIENT, LIMIT, mask)

    def on_backend(self, mask: int) -> None:
        if mask != READ and (mask & _UNUSUAL or (mask & WRITE and self.backend_stream.unsent)):
            self.take_over().on_backend(mask)
            return
        if self.over == BACKEND:
            if mask & DEAD:
                self.take_over().on_backend(mask)
            return
        if mask == WRITE:
            return
        try:
            data, is_dry = self.backend_stream.read(LIMIT)
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
        if not is_dry or (mask != READ and mask & LAST):
            self.take_over().look_behind(BACKEND, LIMIT, mask)

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
        super().close(end, reason)


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
            stream.unsent = b""
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
        """Close once both sides have their close_notify."""
        for stream, flow in ((self.client, self.down), (self.backend, self.up)):
            if stream.fd is None and flow.source == ENDED and flow.sink == OPEN:
                stream.shut()
                flow.shut()
        if not self.client.unsent and not self.backend.unsent:
            super()._close()

    def _cause(self) -> str:
        for stream in (self.client, self.backend):
            if isinstance(stream, TlsStream) and stream.fault:
                return f"TLS: {stream.fault}"
        return super()._cause()
