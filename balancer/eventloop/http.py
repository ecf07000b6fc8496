"""HTTP/1.1 for servers: h11 reads and writes the protocol, a router decides what to answer.

    connection.start(HttpConnection(connection, router))

RULES: one exchange (request and answer) at a time per connection; pipelined requests wait in the bounded buffer, and
each has its turn after the other connections. While an exchange is under way, nothing of the next one is read.
- The router sees a request when its head is complete. It answers, now or later, or gives a place for the body, now or
  later; until then the body is not read: that is the back-pressure.
- After an answer before the end of the body the rest of it is thrown away: up to `skip_bytes` of a Content-Length in the
  kernel (MSG_TRUNC), and the connection goes on; else the connection ends (`Connection: close`, FIN, linger). A client
  that waits for `100 Continue` may never send its body: its connection ends too.
- A body with a Content-Length does not pass through h11: it is read straight into its place. h11 offers no way to skip
  a body, so the next request of that connection gets a new parser. A chunked body passes through h11.
- Every refusal is an answer with a sentence. Only a broken, silent or slow connection is closed without one.

    head --> router.begin --answer-----------------------------> sent --> next head (keep-alive)
                         \\--receive(body)--> body.complete --answer--/ \\--> finish (last answer)
"""

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from typing import Any, Protocol

import h11

from balancer.eventloop.connection import ENDED, OPEN, BufferedConnection, Claim, ConnectionProtocol
from balancer.eventloop.output import Release

Header = tuple[str, str]


class HttpError(ValueError):
    """The request cannot be served: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One answer. `headers` without Content-Length and Connection, which the connection adds."""

    status: int
    headers: tuple[Header, ...]
    body: bytes | memoryview

    @property
    def reason(self) -> str:
        return HTTPStatus(self.status).phrase


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one connection; seconds are `inf` where the owner watches the time itself."""

    head_bytes: int = 16 * 1024
    head_seconds: float = inf  # from the first byte (or the accept) to the end of a head
    send_seconds: float = inf  # for the peer to take an answer
    idle_seconds: float = inf  # between two requests
    skip_bytes: int = 0  # of a body that was refused, read and thrown away so that the connection goes on


DEFAULT_HTTP_LIMITS = HttpLimits()


class HttpBody(Protocol):
    """Where a request's body goes. `filled` and `complete` may raise HttpError to refuse the request; so may `place` when
    the body comes in chunks. (A body with a Content-Length is judged at its head.)"""

    def place(self, count: int) -> memoryview:
        """Room for the next bytes, at least one. `count` bytes are still to come, or have come in chunks."""

    def filled(self, count: int) -> None:
        """The first `count` bytes of the last `place` were written."""

    def complete(self) -> None:
        """The body is complete. The answer follows, now or later."""


def joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Every value of each name: a second Origin must not hide the first one."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = b"%b, %b" % (found[name], value) if name in found else value
    return found


def _nothing() -> None:
    """What an exchange does that holds nothing."""


class HttpExchange:
    """One request and the way to answer it.

    `headers`: names in lower case; the values of one that comes several times, joined by commas.
    `body_length`: from Content-Length; 0 without a body, None when it comes in chunks.
    `on_abandoned` is called once if the exchange ends without `answer`: the connection is gone, or an HttpError refused
    the request. It frees what the router holds for the exchange.
    `on_hung_up` is called if the client ends its side before the answer: it is gone, or has half-closed and still reads.
    """

    __slots__ = ("_http", "body", "body_length", "headers", "method", "on_abandoned", "on_hung_up", "target")

    def __init__(
        self,
        http: "HttpConnection",
        method: str,
        target: str,
        headers: dict[bytes, bytes],
        body_length: int | None,
    ) -> None:
        self._http = http
        self.method = method
        self.target = target
        self.headers = headers
        self.body_length = body_length
        self.body: HttpBody | None = None
        self.on_abandoned: Callable[[], object] = _nothing
        self.on_hung_up: Callable[[], object] = _nothing

    def receive(self, body: HttpBody) -> None:
        """Read the body of this request; sends `100 Continue` to a client that waits for it."""
        self._http.receive(self, body)

    @property
    def sock(self) -> socket.socket:
        """The connected socket, to ask who is there."""
        return self._http.connection.sock

    @property
    def is_open(self) -> bool:
        """True while an answer would be sent."""
        return self is self._http.exchange

    def pause(self) -> None:
        """Read no more of the body until `resume`."""
        self._http.connection.is_paused = True

    def resume(self) -> None:
        """Read on."""
        self._http.resume(self)

    def answer(self, answer: HttpAnswer, release: Release | None = None) -> None:
        """Answer, now or later. `release` is called once when the memory of the body is no longer needed."""
        self._http.answer(self, answer, release)


class HttpRouter(Protocol):
    """What is answered to whom."""

    def begin(self, exchange: HttpExchange) -> None:
        """A request's head is complete: answer, receive its body, or do either later. May raise HttpError."""

    def refusal(self, error: HttpError) -> HttpAnswer:
        """The answer that tells an error, the connection's own included (400, 431, 501)."""


class HttpConnection(ConnectionProtocol):
    """The protocol on one BufferedConnection. `exchange`: the one under way."""

    __slots__ = (
        "_behind",
        "_is_advancing",
        "_is_bypassed",
        "_is_draining",
        "_is_skipping",
        "_parser",
        "_remaining",
        "connection",
        "exchange",
        "is_between",
        "limits",
        "router",
    )

    def __init__(
        self,
        connection: BufferedConnection,
        router: HttpRouter,
        limits: HttpLimits = DEFAULT_HTTP_LIMITS,
    ) -> None:
        self.connection = connection
        self.router = router
        self.limits = limits
        self.exchange: HttpExchange | None = None
        self.is_between = False  # the last answer was sent, and nothing of the next request is here
        self._is_advancing = False
        self._is_draining = False
        self._is_skipping = False  # the body was answered, and its rest is thrown away
        self._is_bypassed = False  # the body does not pass through the parser,
        self._remaining = 0  # so many bytes of it are still to come,
        self._behind = b""  # and this was read behind it
        self._parser = self._new_parser()
        connection.set_deadline(limits.head_seconds)

    def _new_parser(self) -> Any:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.head_bytes - 1)

    # -- ConnectionProtocol

    def place(self) -> memoryview | None:
        exchange = self.exchange
        if self._is_skipping:
            return self.connection.scratch[: self._remaining]
        if exchange is None:
            # h11 limits what is incomplete: a head that came whole in one big read would pass at any length.
            room = self.limits.head_bytes - len(self._parser.trailing_data[0])
            return self.connection.scratch[: max(1, room)]
        if self._remaining and exchange.body is not None:
            return exchange.body.place(self._remaining)[: self._remaining]
        return None

    def received(self, data: memoryview) -> None:
        exchange = self.exchange
        if self._is_skipping:
            self._skip(len(data))
            return
        if self._remaining and exchange is not None and exchange.body is not None:
            try:
                self._remaining -= len(data)
                exchange.body.filled(len(data))
                if not self._remaining and self.exchange is exchange:
                    self._complete(exchange.body)
            except HttpError as error:
                self._refuse(error)
            return
        if self.is_between:
            self.is_between = False
            self.connection.set_deadline(self.limits.head_seconds)
        self._parser.receive_data(data)
        self._advance()

    def hung_up(self) -> None:
        if self.exchange is not None:
            self.exchange.on_hung_up()

    def ended(self) -> None:
        if self.exchange is not None:
            self.connection.close("cut-short")
        elif self._is_skipping:
            self.connection.finish()
        else:
            self._parser.receive_data(b"")
            self._advance()

    def sent(self, count: int) -> None:
        connection = self.connection
        is_over = self.exchange is None and not self._is_skipping and not connection.output.pending
        if is_over and connection.state in (OPEN, ENDED):
            self._next()

    def expired(self) -> None:
        self.connection.close("idle" if self.is_between else "timeout")

    def closed(self, reason: str) -> None:
        self.is_between = False
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.on_abandoned()

    def claim(self) -> Claim:
        """A request whose body is still coming is not whole. One that waits in the parser for its turn is."""
        if self.is_between:
            return Claim.IDLE
        has_asked = self.connection.is_paused if self.exchange is None else not self._is_body_coming()
        return Claim.ASKED if has_asked else Claim.SILENT

    def drain(self) -> None:
        """Accept no further request: close between two requests, or after the answer under way."""
        self._is_draining = True
        if self.is_between:
            self.connection.finish()

    # -- reading a request

    def _advance(self) -> None:
        """Handle what the parser has, until an exchange is under way or more is to be read."""
        self._is_advancing = True
        try:
            while (
                self.connection.state in (OPEN, ENDED)
                and not self.connection.is_paused
                and not self._is_bypassed
            ):
                event = self._parser.next_event()
                if event is h11.NEED_DATA:
                    return
                self._handle(event)
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            sentence = f"not HTTP as it should be: {error}"
            if status == 431:
                sentence = f"a head has at most {self.limits.head_bytes} bytes"
            self._refuse(HttpError(status, sentence), is_last=True)
        except HttpError as error:
            self._refuse(error)
        finally:
            self._is_advancing = False

    def _handle(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.ConnectionClosed):
            self.connection.finish()
        elif self.exchange is not None and self.exchange.body is not None:
            if isinstance(event, h11.Data):
                self._put(self.exchange.body, event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._complete(self.exchange.body)

    def _begin(self, request: Any) -> None:
        headers = dict(request.headers)
        if len(headers) != len(request.headers):
            headers = joined(request.headers)
        length = None if b"transfer-encoding" in headers else int(headers.get(b"content-length", b"0"))
        method, target = (part.decode("ascii", "replace") for part in (request.method, request.target))
        self.exchange = exchange = HttpExchange(self, method, target, headers, length)
        if length == 0:
            self._parser.next_event()  # EndOfMessage
        self.connection.set_deadline(inf)
        self.router.begin(exchange)
        if exchange.body is None:
            self.connection.is_paused = True

    def receive(self, exchange: HttpExchange, body: HttpBody) -> None:
        """HttpExchange.receive."""
        if exchange is not self.exchange:
            return
        exchange.body = body
        early = self._parser.trailing_data[0]
        if self._parser.they_are_waiting_for_100_continue and not early:
            self.connection.write(
                (self._parser.send(h11.InformationalResponse(status_code=100, headers=[])),)
            )
        if exchange.body_length is not None:
            try:
                self._put(body, self._bypass(early, exchange.body_length))
                if not self._remaining and self.exchange is exchange:
                    self._complete(body)
            except HttpError as error:
                self._refuse(error)
        if not self._is_advancing and self.exchange is exchange and self._is_body_coming():
            self._resume()

    def resume(self, exchange: HttpExchange) -> None:
        """HttpExchange.resume."""
        if exchange is self.exchange:
            self._resume()

    def _bypass(self, early: bytes, length: int) -> bytes:
        """The parser is left out from here on. Returns what of a body of `length` bytes is in `early` already."""
        count = min(len(early), length)
        self._is_bypassed = True
        self._behind = early[count:]
        self._remaining = length - count
        return early[:count]

    def _put(self, body: HttpBody, data: bytes) -> None:
        """Copy what was read elsewhere to its place."""
        left = memoryview(data)
        while left and self.exchange is not None:
            place = body.place(len(left))
            count = min(len(place), len(left))
            place[:count] = left[:count]
            body.filled(count)
            left = left[count:]

    def _complete(self, body: HttpBody) -> None:
        self.connection.is_paused = True
        body.complete()

    # -- answering

    def _refuse(self, error: HttpError, is_last: bool = False) -> None:
        exchange = self.exchange
        if exchange is None:
            exchange = self.exchange = HttpExchange(self, "", "", {}, 0)
        exchange.on_abandoned()
        self.answer(exchange, self.router.refusal(error), None, is_last)

    def answer(
        self, exchange: HttpExchange, answer: HttpAnswer, release: Release | None, is_last: bool = False
    ) -> None:
        """HttpExchange.answer."""
        if exchange is not self.exchange:  # abandoned
            if release is not None:
                release()
            return
        connection, parser = self.connection, self._parser
        self.exchange = None
        is_coming = self._is_body_coming()
        skips = is_coming and not is_last and self._may_skip(exchange)
        is_last = is_last or self._is_draining or (is_coming and not skips)
        headers = [*answer.headers, ("Content-Length", str(len(answer.body)))]
        if is_last:
            headers.append(("Connection", "close"))
        response = h11.Response(status_code=answer.status, headers=headers, reason=answer.reason.encode())
        parts = [parser.send(response)]
        if exchange.method != "HEAD":
            parts += parser.send_with_data_passthrough(h11.Data(data=answer.body)) or []  # type: ignore[arg-type]
        parser.send(h11.EndOfMessage())
        connection.is_paused = True
        self._is_skipping = skips
        connection.write([part for part in parts if part], release)
        connection.set_deadline(self.limits.send_seconds)
        if is_last or parser.our_state is not h11.DONE:
            connection.finish()
        elif skips:
            self._begin_skipping(exchange)
        if not self._is_advancing:
            connection.flush()

    def _may_skip(self, exchange: HttpExchange) -> bool:
        length = exchange.body_length
        is_awaited = length is not None and not self._parser.they_are_waiting_for_100_continue
        return is_awaited and (length or 0) <= self.limits.skip_bytes

    def _begin_skipping(self, exchange: HttpExchange) -> None:
        """Throw away what is still to come of the body; what is here already is the parser's, or was put in its place."""
        if not self._is_bypassed:
            self._bypass(self._parser.trailing_data[0], exchange.body_length or 0)
        self.connection.read_flags = socket.MSG_TRUNC
        self.connection.loop.call_next_turn(self._go_on_skipping, self.connection.fd)

    def _go_on_skipping(self) -> None:
        self.connection.is_paused = False
        self._skip(0)
        self.connection.read()

    def _skip(self, count: int) -> None:
        """`count` more bytes were thrown away."""
        self._remaining -= count
        if not self._remaining and self._is_skipping:
            connection = self.connection
            self._is_skipping, connection.read_flags, connection.is_paused = False, 0, True
            if not connection.output.pending:
                self._next()

    def _is_body_coming(self) -> bool:
        return self._remaining > 0 if self._is_bypassed else self._parser.their_state is h11.SEND_BODY

    def _next(self) -> None:
        """The answer was sent: wait for the next request, or begin it after the other connections had their turn."""
        if self._is_bypassed:
            self._is_bypassed = False
            self._parser = self._new_parser()
            if self._behind:  # b"" would be the end
                self._parser.receive_data(self._behind)
                self._behind = b""
        else:
            self._parser.start_next_cycle()
        if self._parser.trailing_data[0]:
            self.connection.set_deadline(self.limits.head_seconds)
        else:
            self.is_between = True
            self.connection.set_deadline(self.limits.idle_seconds)
            if self._is_draining:
                self.connection.finish()
                return
        self.connection.loop.call_next_turn(self._resume, self.connection.fd)

    def _resume(self) -> None:
        self.connection.is_paused = False
        self._advance()
        self.connection.read()
