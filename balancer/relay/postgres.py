"""PostgreSQL clients (`preread = postgres`): their TLS begins behind a question of PostgreSQL's own.

    client       SSLRequest (8 bytes)  ->   us          S  <-  we answer, so that the client sends its ClientHello
    us           SSLRequest            ->   backend     S  <-  the backend's answer, taken off
    client       ClientHello ...       ->   backend     TLS between the two from here on

Where the listener ends TLS, the first line is all of it.

RULES: a client that begins with TLS at once (sslnegotiation=direct) is passed on as it is. Bytes in the clear behind the
question are refused on both sides, else they would be read as part of what is encrypted (CVE-2021-23214, CVE-2021-23222).
A backend without TLS, or that takes longer than connect-timeout to answer, is a failed dial.

Source: PostgreSQL 17, "Frontend/Backend Protocol", 54.2.10 and 54.2.11.
"""

import errno
from contextlib import suppress
from os import read, write

from balancer.eventloop.errnos import TRANSIENT
from balancer.relay.deny import DenyAction
from balancer.relay.preread import Begin, Preread
from balancer.relay.proxy_header import ProxyHeaderSession
from balancer.relay.session import Session
from balancer.relay.splicing import READABLE

SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
GSS_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x30"
YES, NO = b"S", b"N"
MOST = 2 * len(SSL_REQUEST) + 1  # bytes: both questions, and one that must not be there
_TLS_HANDSHAKE = b"\x16"


class PostgresSession(ProxyHeaderSession):
    """A session whose client may have asked for TLS as PostgreSQL does; its backend is asked likewise."""

    __slots__ = ("asks_tls", "awaits_answer")

    def __init__(self, *accepted: object) -> None:
        super().__init__(*accepted)  # type: ignore[arg-type]
        self.asks_tls = self.awaits_answer = False

    def _relay_at_once(self) -> bool:
        return not self.asks_tls and super()._relay_at_once()

    def connected(self, mask: int) -> None:
        if not self.asks_tls:
            super().connected(mask)
            return
        self.awaits_answer = True
        lane = self.lane
        lane.dialling[self] = lane.loop.now
        lane.loop.set_handler(self.backend_fd, self.on_answer)
        try:
            write(self.backend_fd, lane.header(self) + SSL_REQUEST)
        except OSError as error:
            self._answer_failed(error.errno or errno.EIO)
            return
        if mask & READABLE:
            self.on_answer(mask)

    def on_answer(self, mask: int) -> None:
        """The backend has answered the question for TLS, or has gone."""
        try:
            answer = read(self.backend_fd, 1)
        except OSError as error:
            if error.errno not in TRANSIENT:
                self._answer_failed(error.errno or errno.EIO)
            return
        if answer != YES:
            self._answer_failed(errno.EPROTO if answer else errno.ECONNRESET)
            return
        self.awaits_answer = False
        lane = self.lane
        lane.dialling.pop(self, None)
        lane.loop.set_handler(self.backend_fd, self.on_backend_first if self.acks_late else self.on_backend)
        Session.connected(self, mask)

    def on_connect_timeout(self) -> None:
        if self.awaits_answer:
            self._answer_failed(errno.ETIMEDOUT)
        else:
            super().on_connect_timeout()

    def _answer_failed(self, code: int) -> None:
        self.awaits_answer = False
        if self.dial_failed(code):
            self.dial()


def read_ssl_request(deny: DenyAction, timeout: float, then: Begin, session: Session) -> None:
    """Wait for the client's question and answer it; or for the first byte of TLS."""
    Preread(session, then, deny, timeout, RequestParser(), "SSLRequest", MOST)


class RequestParser:
    """Answers the questions of one client: no to Kerberos, which libpq may ask for first, yes to TLS."""

    __slots__ = ("_answered",)

    def __init__(self) -> None:
        self._answered = 0  # bytes

    def __call__(self, session: Session, received: bytes) -> bool:
        asked = received[self._answered :]
        if asked.startswith(_TLS_HANDSHAKE) and not self._answered:
            session.first = received
            return True
        request = asked[: len(SSL_REQUEST)]
        if not SSL_REQUEST.startswith(request) and (self._answered or not GSS_REQUEST.startswith(request)):
            raise ValueError(f"no SSLRequest: begins with {request!r}")
        if len(request) < len(SSL_REQUEST):
            return False
        if asked != request:
            raise ValueError("bytes behind the SSLRequest, before its answer")
        asks_tls = request == SSL_REQUEST
        if isinstance(session, PostgresSession):  # else TLS ends here, and the backend speaks without
            session.asks_tls = asks_tls
        self._answered += len(request)
        with suppress(OSError):  # the client has gone, which the next read finds
            write(session.client_fd, YES if asks_tls else NO)
        return asks_tls
