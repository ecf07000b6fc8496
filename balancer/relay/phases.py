"""What a session goes through before it dials, when its listener asks for it.

RULES: a phase owns the client's handler from its construction until it hands on with `then(session)`, which is the next
phase, or `Session.begin`, or the client of framed mode. Bytes that a phase reads and does not use go into
`session.first`; a header for the backend goes before them. A listener that asks for nothing begins with `Session.begin`
itself, so its sessions cost no object and no comparison.

Everything that reads a client's first bytes is a phase; `first_phase` has their order. A phase that closes a session
gives the reason.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from balancer.edge.access import AccessList, NetworkSet
from balancer.edge.route import Route
from balancer.eventloop.repeats import RepeatedLine
from balancer.options import Listener
from balancer.relay.deny import DenyAction
from balancer.relay.framed.client import FramedLane
from balancer.relay.peers import server_name
from balancer.relay.postgres import read_ssl_request
from balancer.relay.preread import Begin, read_hello, read_proxy_header
from balancer.relay.routes import RouteTable
from balancer.relay.session import Session, SessionLane
from balancer.relay.source_limits import SourceLimits

if TYPE_CHECKING:
    from balancer.relay.tls.handshake import TlsAccess


def first_phase(
    listener: Listener,
    routes: RouteTable[SessionLane],
    refusals: RepeatedLine,
    sources: SourceLimits | None = None,
    begin: Begin = Session.begin,
    tls: "TlsAccess | None" = None,
) -> Begin:
    """Return the first phase of this listener's sessions; `begin` follows the last one. `tls`: it ends TLS."""
    if listener.defer_connect:
        begin = partial(DeferConnect, begin)
    if tls is not None:
        begin = partial(tls.shake_hands, DenyAction(listener, refusals), begin)
    if not (waits_to_choose(listener) or listener.allow or listener.deny or sources or tls):
        return begin
    deny = DenyAction(listener, refusals)
    if waits_to_choose(listener):
        begin = partial(choose_lane, deny, routes, begin)
    if tls is not None:
        begin = partial(tls.wait_for_hello, deny, begin)
    elif listener.asks_names:
        begin = partial(read_hello, deny, listener.preread_timeout, begin)
    if listener.preread == "postgres" and (tls is not None or listener.asks_names):
        begin = partial(read_ssl_request, deny, listener.preread_timeout, begin)
    if sources is not None:
        begin = partial(check_source, deny, sources, begin)
    if listener.allow or listener.deny:
        begin = partial(check_access, deny, AccessList(listener.allow, listener.deny), begin)
    if listener.proxy_protocol:
        trusted = NetworkSet(network for item in listener.proxy_trusted for network in item.networks)
        begin = partial(read_proxy_header, deny, trusted, listener.preread_timeout, begin)
    return begin


def begin_framed(framed: Mapping[SessionLane, FramedLane], session: Session) -> None:
    """Begin a session of a listener of which some pool is in framed mode: `framed` are the lanes to these pools."""
    lane = framed.get(session.lane)
    if lane is None:
        session.begin()
    else:
        session.splicing = client = lane.new_client(session, lane)
        client.begin()


def first_routes(listener: Listener, routes: RouteTable[SessionLane]) -> RouteTable[SessionLane]:
    """Return the routes to use at the accept: one for all clients where `choose_lane` uses the real ones later."""
    return RouteTable([(Route(""), routes.first)]) if waits_to_choose(listener) and routes.first else routes


def waits_to_choose(listener: Listener) -> bool:
    """Whether the route of a client depends on what it sends."""
    return listener.proxy_protocol or listener.asks_names


def check_access(deny: DenyAction, access: AccessList, then: Begin, session: Session) -> None:
    """`allow` and `deny`, by the claimed address where there is one."""
    reason = access.why_not(session.source_ip)
    if not reason or not deny.deny(session, reason):
        then(session)


def check_source(deny: DenyAction, sources: SourceLimits, then: Begin, session: Session) -> None:
    """`source-maxconn` and `source-rate`."""
    reason = sources.why_not(session) if session.source_ip else ""
    if not reason or not deny.deny(session, reason):
        then(session)


def choose_lane(deny: DenyAction, routes: RouteTable[SessionLane], then: Begin, session: Session) -> None:
    """The routes, once the claimed address and the server name are known."""
    lane = routes.find(session.source_ip, server_name(session.peer))
    if lane is None:
        deny.refuse(session, "no-route")
    else:
        session.lane = lane
        then(session)


class DeferConnect:
    """--defer-connect: wait for the client's first event; its bytes stay in the kernel. A handshake may have read its end
    already, of which no event comes."""

    __slots__ = ("session", "then")

    def __init__(self, then: Begin, session: Session) -> None:
        self.then = then
        self.session = session
        if session.first or session.early:
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
