"""The log line of a session that has ended, and the name of a session.

RULES: text; docs/LOG.md explains every field. The line is made while the session's sockets are open still: they know the
addresses of both ends. A line costs what it says; nothing here runs where sessions have none.
"""

import contextlib
from os import getpid

from balancer.eventloop.log_format import quoted
from balancer.options import MAIN
from balancer.relay import ends
from balancer.relay.framed.client import FramedClient
from balancer.relay.peers import peer_details, peer_name
from balancer.relay.session import Session

UNROUTED = (ends.DENIED, ends.PREREAD_TIMEOUT)  # no pool yet


def session_id(session: Session) -> str:
    """Return what names a session for good on this machine: its process, the moment of its accept, its descriptor."""
    return f"{getpid():x}-{int(session.accepted_at * 1e6):x}-{session.client_fd:x}"


def session_line(session: Session, now: float, accepted: str) -> str:
    """Return the line, from its verb on. `accepted` is the time of day of the accept."""
    begun, lane, backend = session.accepted_at, session.lane, session.backend
    connect = f"{(session.connected_at - begun) * 1000:.1f}ms" if session.connected_at else "-1"
    where = peer_details(session.peer)
    if lane.listener_name != MAIN:
        where += f" listener={lane.listener_name}"
    if lane.pool_name != MAIN and session.end not in UNROUTED:
        where += f" pool={lane.pool_name}"
    if isinstance(session.splicing, FramedClient):
        who = f"requests={session.splicing.served}"
    else:
        who = f"backend={backend.name if backend is not None else '<NOSRV>'}"
    bytes_in, bytes_out = session.given()
    source, server = backend_ends(session)
    of_listener, of_pool, of_backend = lane.counts(backend)
    reason = f" reason={quoted(session.reason)}" if session.reason else ""
    return (
        f"session client={session.peer_name()}{where} {who} "
        f"end={session.end} connect={connect} total={(now - begun) * 1000:.1f}ms in={bytes_in} out={bytes_out} "
        f"retries={session.retries}{'+' if session.tried else ''} wait={session.waited * 1000:.1f}ms "
        f"accepted={accepted} source={source} server={server} counts={of_listener}/{of_pool}/{of_backend} "
        f"id={session_id(session)}{reason}"
    )


def backend_ends(session: Session) -> tuple[str, str]:
    """Return the addresses of the connection to the backend, ours and its; "-" where there is none (any more)."""
    source, sock, backend = "-", session.backend_socket, session.backend
    if sock is None or backend is None:
        return source, "-"
    if not session.backend_is_tcp:
        return source, str(backend.address)
    # The kernel has forgotten the peer of a connection that both sides have ended: it is the one this worker dials now.
    server = peer_name(session.lane.elector.target(backend)[1])
    with contextlib.suppress(OSError):
        source = peer_name(sock.getsockname())
        server = peer_name(sock.getpeername())
    return source, server
