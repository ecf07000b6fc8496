"""The phases of a listener that ends TLS: the hello chooses the context, then the handshake.

RULES: the hello is parsed, and the context chosen, before the TLS object exists (see edge/tls.py). One time limit for
both. A client that is refused is told why by an alert and closed without a reset, which would overtake it; one that
speaks no TLS gets the listener's `deny-action`.
"""

from dataclasses import dataclass
from ssl import SSLCertVerificationError, SSLError, SSLObject
from typing import cast

from balancer.edge import hello
from balancer.edge.tls import ContextTable
from balancer.eventloop.loop import READ
from balancer.eventloop.timers import Timer
from balancer.relay import ends
from balancer.relay.deny import DenyAction
from balancer.relay.half import LIMIT
from balancer.relay.peers import described, server_name
from balancer.relay.preread import Begin, HelloParser, Preread
from balancer.relay.session import Session
from balancer.relay.splicing import LAST
from balancer.relay.tls.handshakes import Handshakes
from balancer.relay.tls.session import TlsSession
from balancer.relay.tls.stream import TlsStream

TIMEOUT = "tls-handshake-timeout"


@dataclass(frozen=True, slots=True)
class TlsAccess:
    """What the handshakes of one listener need, and its two phases. `timeout` is seconds."""

    contexts: ContextTable
    timeout: float
    handshakes: Handshakes

    def wait_for_hello(self, deny: DenyAction, then: Begin, session: Session) -> None:
        """The first phase: the ClientHello stays in `session.first`."""
        session = cast(TlsSession, session)
        session.handshakes = self.handshakes
        self.handshakes.unfinished += 1
        session.handshake_until = session.lane.loop.now + self.timeout
        Preread(session, then, deny, self.timeout, TlsHelloParser(), "ClientHello", hello.MOST, limit=TIMEOUT)

    def shake_hands(self, deny: DenyAction, then: Begin, session: Session) -> None:
        """The second one."""
        ServerHandshake(self, deny, then, cast(TlsSession, session))


class TlsHelloParser(HelloParser):
    """As for routes; the session notes what other bytes are."""

    __slots__ = ()

    def __call__(self, session: Session, received: bytes) -> bool:
        try:
            return super().__call__(session, received)
        except ValueError:
            cast(TlsSession, session).failure = "not-tls"
            raise


class ServerHandshake:
    """The handshake of a client whose hello is in `session.first`; `Handshakes` says when a step is taken."""

    __slots__ = ("_began", "_deny", "_handshakes", "_mask", "_session", "_stream", "_then", "_timer")

    def __init__(self, access: TlsAccess, deny: DenyAction, then: Begin, session: TlsSession) -> None:
        self._handshakes, self._deny, self._then, self._session = access.handshakes, deny, then, session
        loop, fd = session.lane.loop, session.client_fd
        context = access.contexts.choose(server_name(session.peer))
        self._stream = session.client_stream = TlsStream(fd, context, loop.watch_writing)
        self._stream.feed(session.first)
        session.first = b""
        self._began = session.handshake_until - access.timeout
        self._mask = 0  # events that no step has seen
        self._timer: Timer = loop.call_at(session.handshake_until, self._too_late)
        if session.is_watched:
            loop.set_handler(fd, self.on_client)
        else:
            session.is_watched = True
            loop.watch_reading(fd, self.on_client)
        self._handshakes.go_on(self)

    @property
    def fd(self) -> int:
        return self._session.client_fd

    def on_client(self, mask: int) -> None:
        self._mask |= mask
        self._handshakes.go_on(self)

    def advance(self) -> None:
        """Go on as far as the client's bytes allow."""
        if self._session.closed:
            self._timer.cancel()
            return
        mask, self._mask = self._mask, 0
        try:
            is_over = self._stream.shake_hands(mask)
        except SSLError as error:
            self._failed(error)
        except OSError:
            self._end(ends.CLIENT_LEFT_CONNECTING)
        else:
            if is_over:
                self._finish(mask)
            elif self._stream.has_ended:
                self._end(ends.CLIENT_LEFT_CONNECTING, "no whole TLS handshake")

    def _finish(self, mask: int) -> None:
        session, stream = self._session, self._stream
        session.peer = peer = described(session.peer)
        peer.tls = HandshakeFacts(stream.tls)
        session.lane.account.shook_hands(session.lane.loop.now - self._began, stream.tls.session_reused)
        session.first = stream.read_buffered(LIMIT)
        if not stream.is_dry or stream.has_ended or stream.fault or mask & LAST:
            session.early |= READ | mask & LAST
        self._timer.cancel()
        session.handshakes = None
        self._handshakes.unfinished -= 1
        session.lane.loop.set_handler(session.client_fd, session.on_client_early)
        self._then(session)

    def _failed(self, error: SSLError) -> None:
        session = self._session
        session.failure, sentence = reason_of(error)
        self._timer.cancel()
        end = ends.CLIENT_LEFT_CONNECTING if session.failure == "alert" else ends.DENIED
        self._deny.dismiss(session, sentence, end)

    def _too_late(self) -> None:
        if not self._session.closed:
            self._deny.refuse(self._session, TIMEOUT, ends.PREREAD_TIMEOUT)
        self._handshakes.forget(self)

    def _end(self, end: str, reason: str = "") -> None:
        self._timer.cancel()
        self._session.close(end, reason)


class HandshakeFacts:
    """TlsFacts of a finished handshake. OpenSSL is asked when the log or a header wants to know: most sessions spare the
    20 us. The version is gone once the connection is broken."""

    __slots__ = ("_tls", "version")

    def __init__(self, tls: SSLObject) -> None:
        self._tls = tls
        self.version = tls.version() or "-"

    @property
    def cipher(self) -> str:
        cipher = self._tls.cipher()
        return cipher[0] if cipher else "-"

    @property
    def alpn(self) -> str:
        return self._tls.selected_alpn_protocol() or ""

    @property
    def common_name(self) -> str | None:
        certificate = self._tls.getpeercert()
        if not certificate:
            return None
        subject = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
        return next((value for part in subject for key, value in part if key == "commonName"), "")


_SENTENCES = {
    "NO_SHARED_CIPHER": "no cipher in common",
    "UNSUPPORTED_PROTOCOL": "no version of TLS in common",
    "VERSION_TOO_LOW": "no version of TLS in common",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no client certificate",
}
_ALERT = "_ALERT_"


def reason_of(error: SSLError) -> tuple[str, str]:
    """One of TLS_FAILURES, and a sentence for the log."""
    word = error.reason or "broken message"
    if isinstance(error, SSLCertVerificationError):
        return "certificate", f"client certificate: {error.verify_message}"
    if word == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "certificate", _SENTENCES[word]
    if _ALERT in word:
        return "alert", f"the client refuses: {word.partition(_ALERT)[2].lower().replace('_', ' ')}"
    return "protocol", _SENTENCES.get(word, f"TLS: {word.lower().replace('_', ' ')}")
