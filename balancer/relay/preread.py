"""Phases that read a client's first bytes: a PROXY header, a TLS ClientHello.

RULES: what they read and do not use goes on in `session.first`. A session that somebody else closes gets no more events,
and the phase's own timer looks first. A hello is looked at LOOKS times at most, whatever pieces it comes in.
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
from balancer.relay.door import Door
from balancer.relay.peers import Introduced
from balancer.relay.session import Session

LOOKS = 64

Begin = Callable[[Session], object]

Judge = Callable[[Session, bytes], bool]


class Preread:
    """Reads until `judge(session, received)` has seen enough and has done what follows from it; it raises ValueError
    saying what is wrong. `named` stands in the log when the client leaves before; `most` bytes are waited for."""

    __slots__ = ("_door", "_is_done", "_judge", "_most", "_named", "_received", "_session", "_then", "_timer")

    def __init__(
        self, session: Session, then: Begin, door: Door, timeout: float, judge: Judge, named: str, most: int
    ) -> None:
        self._session, self._then, self._door = session, then, door
        self._judge, self._named, self._most = judge, named, most
        self._received, session.first = session.first, b""
        self._is_done = False
        self._timer: Timer | None = None
        if self._received:
            self._look()
        if not self._is_done and not session.closed:
            self._read(0)  # mostly it is there
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
        """Read what there is."""
        try:
            data = read(self._session.client_fd, self._most - len(self._received))
        except OSError as error:
            if error.errno not in TRANSIENT:
                self._end()
            return
        if not data:
            self._end(f"no whole {self._named}")
            return
        self._received += data
        self._look()

    def _look(self) -> None:
        session = self._session
        try:
            is_enough = self._judge(session, self._received)
        except ValueError as error:
            self._stop_timer()
            self._door.turn_away(session, str(error))
            return
        if is_enough:
            self._stop_timer()
            self._is_done = True
            if session.is_watched:
                # More may lie in the socket, or its end: on an edge-triggered loop nobody would hear of them again.
                loop = session.lane.loop
                loop.set_handler(session.client_fd, session.on_client_early)
                loop.rearm(session.client_fd)
            self._then(session)

    def _too_late(self) -> None:
        if not self._session.closed:
            self._door.turn_away(self._session, "preread-timeout", ends.PREREAD_TIMEOUT)

    def _end(self, reason: str = "") -> None:
        self._stop_timer()
        self._session.close(ends.CLIENT_LEFT_CONNECTING, reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def read_proxy_header(door: Door, trusted: NetworkSet, timeout: float, then: Begin, session: Session) -> None:
    """proxy-protocol: wait for the header, and let its address be the client's."""
    address = session.source_ip
    if address and not trusted.holds(number_of(address)):
        # Not for dry-run to let in: what it sends would be taken for a header, or reach a backend as payload.
        door.turn_away(session, "proxy-trusted")
    else:
        Preread(session, then, door, timeout, _judge_proxy_header, "PROXY header", MOST)


def _judge_proxy_header(session: Session, received: bytes) -> bool:
    claim = parse_proxy_header(received)
    if claim is None:
        return False
    session.first = received[claim.size :]
    if claim.source is not None:
        session.peer = Introduced(claim.source, via=session.peer, claim=claim)
        session.source_ip = claim.source[0]
    return True


def read_hello(door: Door, timeout: float, then: Begin, session: Session) -> None:
    """Routes by name: wait for the ClientHello. All of it stays for the backend."""
    Preread(session, then, door, timeout, HelloJudge(), "ClientHello", hello.MOST)


class HelloJudge:
    """Looks at a hello when what was missing may be there."""

    __slots__ = ("_looks", "_needed")

    def __init__(self) -> None:
        self._looks = self._needed = 0

    def __call__(self, session: Session, received: bytes) -> bool:
        if len(received) < self._needed:
            return False
        self._looks += 1
        if self._looks > LOOKS:
            raise BadHello(f"a hello in more than {LOOKS} pieces")
        found = hello.parse(received)
        if isinstance(found, hello.MissingBytes):
            self._needed = len(received) + found.count
            if self._needed > hello.MOST:
                raise BadHello(f"no whole hello within {hello.MOST} bytes")
            return False
        session.first = received
        peer = session.peer
        if isinstance(peer, Introduced):
            session.peer = Introduced(peer.address, peer.via, peer.claim, found)
        else:
            session.peer = Introduced(peer, hello=found)
        return True
