"""Phases that read a client's first bytes: a PROXY header, a TLS ClientHello.

RULES: bytes that a phase reads and does not use stay in `session.first`. The drain may close a session in a phase: it
gets no more events, and the phase's timer checks `closed`. A hello is parsed LOOKS times at most, however it is cut.
"""

from collections.abc import Callable
from os import read

from balancer.edge import hello
from balancer.edge.access import NetworkSet, number_of
from balancer.edge.hello import BadHello
from balancer.edge.proxy_protocol import MOST
from balancer.edge.proxy_protocol import parse as parse_proxy_header
from balancer.eventloop.errnos import TRANSIENT
from balancer.eventloop.timers import Timer
from balancer.relay import ends
from balancer.relay.deny import DenyAction
from balancer.relay.peers import DescribedPeer, described
from balancer.relay.session import Session
from balancer.relay.splicing import LAST

LOOKS = 64

Begin = Callable[[Session], object]
Parse = Callable[[Session, bytes], bool]


class Preread:
    """Reads the client until `parse(session, received)` returns True: the bytes are complete and the session has what
    they say. `parse` raises ValueError for wrong bytes. `named` is what the log calls them, `most` their limit, and
    `limit` the option of the timeout."""

    __slots__ = (
        "_deny", "_is_done", "_limit", "_most", "_named", "_parse", "_received", "_session", "_then", "_timer",
    )  # fmt: skip

    def __init__(
        self,
        session: Session,
        then: Begin,
        deny: DenyAction,
        timeout: float,
        parse: Parse,
        named: str,
        most: int,
        limit: str = "preread-timeout",
    ) -> None:
        self._session, self._then, self._deny = session, then, deny
        self._parse, self._named, self._most, self._limit = parse, named, most, limit
        self._received, session.first = session.first, b""
        self._is_done = False
        self._timer: Timer | None = None
        if self._received:
            self._look()
        if not self._is_done and not session.closed:
            self._read(0)  # most clients have sent them by now
        if not self._is_done and not session.closed:
            self._wait(timeout)

    def _wait(self, timeout: float) -> None:
        session = self._session
        loop = session.lane.loop
        self._timer = loop.call_later(timeout, self._too_late)
        if session.is_watched:
            loop.set_handler(session.client_fd, self._read)
            loop.rearm(session.client_fd)
        else:
            session.is_watched = True
            loop.watch_reading(session.client_fd, self._read)

    def _read(self, mask: int) -> None:
        """Read what there is. A FIN behind it brings no further edge, so the read that finds it follows at once."""
        session = self._session
        while True:
            try:
                data = read(session.client_fd, self._most - len(self._received))
            except OSError as error:
                if error.errno not in TRANSIENT:
                    self._end()
                return
            if not data:
                self._end(f"no whole {self._named}")
                return
            self._received += data
            self._look()
            if self._is_done or session.closed or not mask & LAST:
                return

    def _look(self) -> None:
        session = self._session
        try:
            self._is_done = self._parse(session, self._received)
        except ValueError as error:
            self._stop_timer()
            self._deny.refuse(session, str(error))
            return
        if self._is_done:
            self._stop_timer()
            if session.is_watched:
                # The socket may hold more bytes or the end, which the edge-triggered loop has reported already.
                loop = session.lane.loop
                loop.set_handler(session.client_fd, session.on_client_early)
                loop.rearm(session.client_fd)
            self._then(session)

    def _too_late(self) -> None:
        if not self._session.closed:
            self._deny.refuse(self._session, self._limit, ends.PREREAD_TIMEOUT)

    def _end(self, reason: str = "") -> None:
        self._stop_timer()
        self._session.close(ends.CLIENT_LEFT_CONNECTING, reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def read_proxy_header(
    deny: DenyAction, trusted: NetworkSet, timeout: float, then: Begin, session: Session
) -> None:
    """proxy-protocol: wait for the header, and let its address be the client's."""
    address = session.source_ip
    if address and not trusted.holds(number_of(address)):
        # Also with dry-run: its bytes would be read as a header, or reach a backend as payload.
        deny.refuse(session, "proxy-trusted")
    else:
        Preread(session, then, deny, timeout, _parse_proxy_header, "PROXY header", MOST)


def _parse_proxy_header(session: Session, received: bytes) -> bool:
    claim = parse_proxy_header(received)
    if claim is None:
        return False
    session.first = received[claim.size :]
    if claim.source is not None:
        session.peer = DescribedPeer(claim.source, via=session.peer, claim=claim)
        session.source_ip = claim.source[0]
    return True


def read_hello(deny: DenyAction, timeout: float, then: Begin, session: Session) -> None:
    """Routes by name: wait for the ClientHello. All of it stays for the backend."""
    Preread(session, then, deny, timeout, HelloParser(), "ClientHello", hello.MOST)


class HelloParser:
    """Parses a hello again once the bytes that were missing may be there."""

    __slots__ = ("_looks", "_needed")

    def __init__(self) -> None:
        self._looks = self._needed = 0

    def __call__(self, session: Session, received: bytes) -> bool:
        if len(received) < self._needed:
            return False
        self._looks += 1
        if self._looks > LOOKS:
            raise BadHello(f"a hello in more than {LOOKS} pieces")
        found = hello.server_name(received)
        if isinstance(found, hello.MissingBytes):
            self._needed = len(received) + found.count
            if self._needed > hello.MOST:
                raise BadHello(f"no whole hello within {hello.MOST} bytes")
            return False
        session.first = received
        session.peer = peer = described(session.peer)
        peer.server_name = found
        return True
