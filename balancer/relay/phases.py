"""What a session goes through before it dials, when its listener asks for it.

RULES: a phase owns the client's handler from its construction until it hands on with `then(session)`, which is the next
phase or `Session.begin`. Bytes that a phase reads and does not use go into `session.first`; a header for the backend
goes before them. A listener that asks for nothing begins with `Session.begin` itself, so its sessions cost no object
and no comparison.

This is the place of what reads the first bytes of a client: a PROXY header, a TLS handshake, a ClientHello. Their order
is `first_phase`'s.
"""

from collections.abc import Callable
from functools import partial

from balancer.options import Listener
from balancer.relay.session import Session

Begin = Callable[[Session], object]


def first_phase(listener: Listener) -> Begin:
    """Return what begins a session of this listener; built from the last phase to the first."""
    begin: Begin = Session.begin
    if listener.defer_connect:
        begin = partial(DeferConnect, begin)
    return begin


class DeferConnect:
    """--defer-connect: wait for the client's first event; its bytes stay in the kernel."""

    __slots__ = ("session", "then")

    def __init__(self, then: Begin, session: Session) -> None:
        self.then = then
        self.session = session
        session.is_watched = True
        session.lane.loop.watch_reading(session.client_fd, self.on_client)

    def on_client(self, mask: int) -> None:
        session = self.session
        session.lane.loop.set_handler(session.client_fd, session.on_client_early)
        session.on_client_early(mask)
        if not session.closed:
            self.then(session)
