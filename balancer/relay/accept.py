"""From accepted clients to sessions: one listener in one worker, within its limits.

RULES: the acceptor (eventloop) owns queues and rests, the session its client; here is what lies between: counts, the
limit of sessions over all workers, routes. What a listener does not ask for costs its sessions no comparison: the
method that starts a batch is chosen when the listener is set up.
"""

import socket
from collections.abc import Callable, Iterable
from functools import partial
from os import close, set_blocking
from typing import TYPE_CHECKING, Protocol

from balancer.eventloop.acceptor import REPORT_SECONDS, Accepted, Acceptor, ShortageLog
from balancer.eventloop.repeats import RepeatedLine
from balancer.options import MAIN, Listener
from balancer.pool.board import L_SESSIONS
from balancer.pool.shared_limit import SharedLimit
from balancer.relay.account import Account
from balancer.relay.closer import Closer
from balancer.relay.context import WorkerContext
from balancer.relay.peers import peer_name
from balancer.relay.phases import first_phase, first_routes
from balancer.relay.preread import Begin
from balancer.relay.queue import UNDECIDED
from balancer.relay.routes import RouteTable
from balancer.relay.session import Session, SessionLane
from balancer.relay.source_limits import SourceLimits
from balancer.relay.tls.handshakes import Handshakes
from balancer.shm.layout import LOAD

if TYPE_CHECKING:
    from balancer.relay.tls.handshake import TlsAccess

LOOK = 0.02  # seconds between two looks for a place that another worker may have freed
Undecided = tuple[Accepted, SessionLane, float]  # accepted at that time; no answer of the limit yet


class Listening(Protocol):
    """A listening socket as the prefork machine hands it over."""

    @property
    def sock(self) -> socket.socket: ...
    @property
    def slot(self) -> int: ...
    @property
    def address(self) -> object: ...


def _room(context: WorkerContext[Session], handshakes: Handshakes) -> int:
    """How many more clients a listener with TLS has room for."""
    return min(context.room(), handshakes.room())


class SessionStarter:
    """Starts the sessions of one listener. `sockets()` are its listening sockets, of all slots that there are by then;
    `patience` is for how long a client waits that cannot be told yet whether it has a place; `make` is the kind of
    session that these clients need, `begin` what they come to behind the phases. `tls`: it ends TLS."""

    def __init__(
        self,
        context: WorkerContext[Session],
        listener: Listener,
        account: Account,
        closer: Closer,
        routes: RouteTable[SessionLane],
        sockets: Callable[[], Iterable[Listening]],
        shortage: ShortageLog,
        on_change: Callable[[], object],
        patience: float,
        make: Callable[[SessionLane, int, object], Session] = Session,
        sources: SourceLimits | None = None,
        begin: Begin = Session.begin,
        tls: "TlsAccess | None" = None,
    ) -> None:
        self._context, self._name = context, listener.name
        self._maxconns = listener.maxconns
        self._account, self._failures = account, closer.failures
        self._routes = entrance = first_routes(listener, routes)
        if entrance.default is not None:
            self._lane = entrance.default  # for start_all
        self._sockets = sockets
        self._sessions, self._cells = context.sessions, context.cells
        self._slots: frozenset[int] = frozenset()
        self._removed: set[object] = set()  # addresses
        self._refusals = RepeatedLine(context.loop, partial(context.log.info, "refuse"))
        self._make = make
        self._begin = first_phase(listener, routes, self._refusals, sources, begin, tls)
        self._limit = SharedLimit(context.board, context.row)
        self._limit_column = context.board.listener_at(listener.index) + L_SESSIONS
        self._lacks_place = False
        self._undecided: list[Undecided] = []
        self._patience = patience or UNDECIDED
        self._silent_until = 0.0
        waits = bool(listener.maxconns) and listener.overflow == "queue"
        self._drops = bool(listener.maxconns) and not waits
        is_plain = entrance.is_direct() and not listener.maxconns and make is Session
        self.acceptor = Acceptor(
            context.loop,
            self.start_all if is_plain else self.start_each,
            shortage,
            room=context.room if tls is None else partial(_room, context, tls.handshakes),
            acquire=self._acquire if waits else None,
            release=self._release,
            on_shutdown=self._remove_address,
            on_change=on_change,
        )
        if waits:
            closer.on_closed = self._look_for_place

    # -- which queues

    def serve(self, slots: Iterable[int]) -> None:
        """Accept from the queues of exactly these slots."""
        wanted = frozenset(slots)
        if wanted != self._slots:
            self._slots = wanted
            self.refresh()

    def refresh(self) -> None:
        """Accept from the sockets of these slots that there are by now."""
        self.acceptor.serve(
            one.sock
            for one in self._sockets()
            if one.slot in self._slots and one.address not in self._removed
        )

    def _remove_address(self, sock: socket.socket) -> None:
        """Close the sockets of an address, in all slots: a reload has removed it, and the master has shut them down."""
        every = list(self._sockets())
        self._removed |= {one.address for one in every if one.sock is sock}
        self.refresh()
        for one in every:
            if one.address in self._removed:
                self._context.loop.retire(one.sock.close)

    # -- a batch of clients

    # The clients of a batch are counted together (three cells for each are 1,200 instructions), and before the first of
    # them dials: a worker may be killed in between, and a listener must not have fewer sessions than its backends.

    def start_all(self, batch: list[Accepted]) -> None:
        """Begin a session for each accepted client: one lane for all, no limit, and no header."""
        self._account.accepted(len(batch), len(batch))
        lane, sessions, begin = self._lane, self._sessions, self._begin
        for fd, address in batch:
            set_blocking(fd, False)
            session = Session(lane, fd, address)
            sessions[session] = None
            begin(session)
        self._cells[LOAD] = len(sessions)

    def start_each(self, batch: list[Accepted]) -> None:
        """Begin a session for each accepted client that has a route and a place."""
        self._account.accepted(len(batch), 0 if self._maxconns else len(batch))
        for accepted in batch:
            fd, address = accepted
            lane = self._routes.find(address[0] if type(address) is tuple else "")
            if lane is None:
                self._account.denied("no-route")
                self._refuse(accepted, reason="no-route")
                if not self._drops:
                    self._release()  # its place was taken before its address was known
            elif not self._drops or self._has_place(accepted, lane, self._context.loop.now):
                set_blocking(fd, False)  # as `_start`, whose call would be 1 % of a short session
                session = self._make(lane, fd, address)
                self._sessions[session] = None
                self._begin(session)
        self._cells[LOAD] = len(self._sessions)

    def _start(self, accepted: Accepted, lane: SessionLane) -> None:
        fd, address = accepted
        set_blocking(fd, False)
        session = self._make(lane, fd, address)
        self._sessions[session] = None
        self._begin(session)

    def _has_place(self, accepted: Accepted, lane: SessionLane, since: float) -> bool:
        """--overflow drop: acquire a place for a client; else refuse it, or let it wait until that can be told."""
        answer = self._limit.acquire(self._limit_column, self._maxconns)
        if answer == "full":
            self._refuse(accepted, sessions=f"{self._limit.measured}/{self._maxconns}", reason="maxconns")
        elif answer == "busy":
            self._hold(accepted, lane, since)
        return answer == "acquired"

    def _refuse(self, accepted: Accepted, **fields: object) -> None:
        fd, address = accepted
        close(fd)
        self._account.refused()
        client, where = peer_name(address), {} if self._name == MAIN else {"listener": self._name}
        self._refusals.report(client=client, **where, **fields, then="close")
        self._failures.refused(client=client, listener=self._name, **fields)

    # -- places of the limit

    def _hold(self, accepted: Accepted, lane: SessionLane, since: float) -> None:
        """Accept nothing more and ask again soon: the lock of the limit is held by a process that does not go on."""
        if not self._undecided:
            self._report_busy()
            self.acceptor.rest(self._patience)
            self._context.loop.call_later(LOOK, self._decide)
        self._undecided.append((accepted, lane, since))

    def _decide(self) -> None:
        """Ask again for the clients that wait for an answer; refuse those that have waited for queue-timeout."""
        waiting, self._undecided = self._undecided, []
        now = self._context.loop.now
        for accepted, lane, since in waiting:
            if now - since >= self._patience:
                self._refuse(accepted, waited=f"{now - since:.1f}s", reason="limit-busy")
            elif self._has_place(accepted, lane, since):
                self._start(accepted, lane)
        self._cells[LOAD] = len(self._sessions)
        if not self._undecided:
            self.acceptor.resume()

    @property
    def undecided(self) -> int:
        """Clients that wait until it can be told whether they have a place."""
        return len(self._undecided)

    def refuse_undecided(self, reason: str) -> None:
        """The worker ends."""
        waiting, self._undecided = self._undecided, []
        for accepted, _, _ in waiting:
            self._refuse(accepted, reason=reason)

    def _report_busy(self) -> None:
        now = self._context.loop.now
        if now >= self._silent_until:
            self._silent_until = now + REPORT_SECONDS
            where = {} if self._name == MAIN else {"listener": self._name}
            self._context.log.warning("accept", error="limit-busy", **where, then=f"again in {LOOK:g} s")

    def _acquire(self) -> bool:
        """--overflow queue: take a place before the accept; without one the client stays in the kernel's queue."""
        answer = self._limit.acquire(self._limit_column, self._maxconns)
        if answer == "acquired":
            return True
        if answer == "busy":
            self._report_busy()
        self._lacks_place = True
        self.acceptor.rest(LOOK)
        return False

    def _release(self) -> None:
        self._limit.release(self._limit_column)

    def _look_for_place(self) -> None:
        """Accept again at once when a place was lacking: sessions of this worker have ended."""
        if self._lacks_place:
            self._lacks_place = False
            self.acceptor.resume()
