"""What a session goes through before it dials, when its listener asks for it.

RULES: a phase owns the client's handler from its construction until it hands on with `then(session)`, which is the next
phase, or `Session.begin`, or the client of framed mode. Bytes that a phase reads and does not use go into
`session.first`; a header for the backend goes before them. A listener that asks for nothing begins with `Session.begin`
itself, so its sessions cost no object and no comparison.

This is the place of what reads the first bytes of a client: a PROXY header, a TLS handshake, a ClientHello. Their order
is `first_phase`'s. A phase that closes a session says why; a session that is closed by somebody else meanwhile (a drain)
gets no more events, and a phase's own timer looks first.
"""

from collections.abc import Callable, Mapping
from functools import partial
from os import read

from balancer.edge.access import AccessList, NetworkSet, number_of
from balancer.edge.proxy_protocol import MOST, BadProxyHeader, ProxyClaim, parse
from balancer.eventloop.errnos import TRANSIENT
from balancer.eventloop.repeats import RepeatedLine
from balancer.eventloop.timers import Timer
from balancer.options import MAIN, Listener
from balancer.relay import ends
from balancer.relay.framed.client import FramedClient, FramedLane
from balancer.relay.peers import ClaimedPeer
from balancer.relay.routes import RouteTable
from balancer.relay.session import Session, SessionLane
from balancer.relay.sockets import forget_on_close, reset_on_close
from balancer.relay.source_limits import SourceLimits

Begin = Callable[[Session], object]


def first_phase(
    listener: Listener,
    routes: RouteTable[SessionLane],
    refusals: RepeatedLine,
    sources: SourceLimits | None = None,
    begin: Begin = Session.begin,
) -> Begin:
    """Return what begins a session of this listener; built from the last phase, `begin`, to the first."""
    if listener.defer_connect:
        begin = partial(DeferConnect, begin)
    if not (listener.proxy_protocol or listener.allow or listener.deny or sources):
        return begin
    door = Door(listener, refusals)
    if listener.proxy_protocol:
        begin = partial(choose_lane, door, routes, begin)
    if sources is not None:
        begin = partial(check_source, door, sources, begin)
    if listener.allow or listener.deny:
        begin = partial(check_access, door, AccessList(listener.allow, listener.deny), begin)
    if listener.proxy_protocol:
        trusted = NetworkSet(network for item in listener.proxy_trusted for network in item.networks)
        begin = partial(ReadProxyHeader, door, trusted, listener.preread_timeout, begin)
    return begin


def begin_framed(framed: Mapping[SessionLane, FramedLane], session: Session) -> None:
    """Begin a session of a listener of which some pool is in framed mode: `framed` are the lanes to these pools."""
    lane = framed.get(session.lane)
    if lane is None:
        session.begin()
    else:
        session.splicing = client = FramedClient(session, lane)
        client.begin()


def first_routes(listener: Listener, routes: RouteTable[SessionLane]) -> RouteTable[SessionLane]:
    """Return what a client's own address decides: the routes, or nothing where the address that counts comes later."""
    return RouteTable([(None, routes.first)]) if listener.proxy_protocol and routes.first else routes


class Door:
    """How a listener turns clients away."""

    __slots__ = ("_action", "_is_dry", "_name", "_refusals", "_word")

    def __init__(self, listener: Listener, refusals: RepeatedLine) -> None:
        self._word = listener.deny_action
        self._action = {"reset": reset_on_close, "drop": forget_on_close}.get(listener.deny_action)
        self._name = listener.name
        self._refusals = refusals
        self._is_dry = listener.dry_run

    def deny(self, session: Session, reason: str) -> bool:
        """Turn a client away, or with dry-run only say so. Return whether it is gone."""
        if not self._is_dry:
            self.turn_away(session, reason)
            return True
        self._report(session, reason, "nothing: dry-run")
        return False

    def turn_away(self, session: Session, reason: str, end: str = ends.DENIED) -> None:
        """Log it, and close the session as `deny-action` says."""
        self._report(session, reason, self._word)
        if self._action is not None:
            self._action(session.client_fd)
        session.close(end, reason)

    def _report(self, session: Session, reason: str, then: str) -> None:
        where = {} if self._name == MAIN else {"listener": self._name}
        self._refusals.report(client=session.peer_name(), **where, reason=reason, then=then)


def check_access(door: Door, access: AccessList, then: Begin, session: Session) -> None:
    """`allow` and `deny`: by the address that counts."""
    reason = access.why_not(session.source_ip)
    if not reason or not door.deny(session, reason):
        then(session)


def check_source(door: Door, sources: SourceLimits, then: Begin, session: Session) -> None:
    """`source-maxconn` and `source-rate`: what the address that counts has already."""
    reason = sources.why_not(session) if session.source_ip else ""
    if not reason or not door.deny(session, reason):
        then(session)


def choose_lane(door: Door, routes: RouteTable[SessionLane], then: Begin, session: Session) -> None:
    """The routes, once the address that counts is known."""
    lane = routes.find(session.source_ip)
    if lane is None:
        door.turn_away(session, "no-route")
    else:
        session.lane = lane
        then(session)


class ReadProxyHeader:
    """proxy-protocol: wait for the header, and let its address be the client's."""

    __slots__ = ("_door", "_is_done", "_received", "_session", "_then", "_timer")

    def __init__(
        self, door: Door, trusted: NetworkSet, timeout: float, then: Begin, session: Session
    ) -> None:
        self._door, self._then, self._session = door, then, session
        self._received = b""
        self._is_done = False
        self._timer: Timer | None = None
        address = session.source_ip
        if address and not trusted.holds(number_of(address)):
            # Not for dry-run to let in: what it sends would be taken for a header, or reach a backend as payload.
            door.turn_away(session, "proxy-trusted")
            return
        self._read(0)  # mostly the header is there
        if not self._is_done and not session.closed:
            session.is_watched = True
            loop = session.lane.loop
            loop.watch_reading(session.client_fd, self._read)
            self._timer = loop.call_later(timeout, self._too_late)

    def _read(self, mask: int) -> None:
        """Read what there is; hand on once the header is complete."""
        session = self._session
        wanted = MOST - len(self._received)
        try:
            data = read(session.client_fd, wanted)
        except OSError as error:
            if error.errno not in TRANSIENT:
                self._end(ends.CLIENT_LEFT_CONNECTING)
            return
        if not data:
            self._end(ends.CLIENT_LEFT_CONNECTING, "no whole PROXY header")
            return
        self._received += data
        try:
            claim = parse(self._received)
        except BadProxyHeader as error:
            self._stop_timer()
            self._door.turn_away(session, str(error))
            return
        if claim is not None:
            self._stop_timer()
            self._hand_on(claim)

    def _hand_on(self, claim: ProxyClaim) -> None:
        session, then = self._session, self._then
        session.first = self._received[claim.size :]
        if claim.source is not None:
            session.peer = ClaimedPeer(claim, session.peer)
            session.source_ip = claim.source[0]
        if session.is_watched:
            # More may lie in the socket, or its end: on an edge-triggered loop nobody would hear of them again.
            loop = session.lane.loop
            loop.set_handler(session.client_fd, session.on_client_early)
            loop.rearm(session.client_fd)
        self._is_done = True
        then(session)

    def _too_late(self) -> None:
        if not self._session.closed:
            self._door.turn_away(self._session, "preread-timeout", ends.PREREAD_TIMEOUT)

    def _end(self, end: str, reason: str = "") -> None:
        self._stop_timer()
        self._session.close(end, reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class DeferConnect:
    """--defer-connect: wait for the client's first event; its bytes stay in the kernel."""

    __slots__ = ("session", "then")

    def __init__(self, then: Begin, session: Session) -> None:
        self.then = then
        self.session = session
        if session.first:
            then(session)
            return
        loop = session.lane.loop
        if session.is_watched:
            loop.set_handler(session.client_fd, self.on_client)
        else:
            session.is_watched = True
            loop.watch_reading(session.client_fd, self.on_client)

    def on_client(self, mask: int) -> None:
        session = self.session
        session.lane.loop.set_handler(session.client_fd, session.on_client_early)
        session.on_client_early(mask)
        if not session.closed:
            self.then(session)
