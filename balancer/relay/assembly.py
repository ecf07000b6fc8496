"""The relay of one worker, put together: listeners, pools, the lanes between them, and the limits in time.

RULES: builds and connects the parts, once, before the loop runs. Each part has its own module.
"""

import os
from _socket import socket as Socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from balancer.eventloop.acceptor import ShortageLog
from balancer.eventloop.repeats import RepeatedLine
from balancer.options import Listener, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import L_SESSIONS, P_CONNECT_TIMES, Board
from balancer.pool.election import Elector
from balancer.pool.loads import loads_reader
from balancer.pool.request_election import RequestElector
from balancer.relay.accept import Listening, SessionStarter
from balancer.relay.account import Account
from balancer.relay.closer import Closer
from balancer.relay.context import NO_TLS, TlsContexts, WorkerContext
from balancer.relay.downed import DownedBackends
from balancer.relay.early_read import EarlyRead
from balancer.relay.election_recorder import ElectionRecorder
from balancer.relay.framed.client import FramedClient, FramedLane, FramedSession
from balancer.relay.framed.connection_pool import SWEEP, ConnectionPool
from balancer.relay.framed.requests import place_text
from balancer.relay.framed.stream_client import StreamClient
from balancer.relay.lane import Lane, no_header
from balancer.relay.phases import begin_framed
from balancer.relay.postgres import PostgresSession
from balancer.relay.proxy_header import ProxyHeaderSession, header_writer
from balancer.relay.queue import PendingQueue
from balancer.relay.routes import RouteTable
from balancer.relay.session import Session, SessionLane
from balancer.relay.sockets import keepalive_options
from balancer.relay.source_limits import SourceLimits
from balancer.relay.stream import RawStream
from balancer.relay.timeouts import Dials, TimeoutSweep
from balancer.relay.tls.handshakes import Handshakes
from balancer.shm.histogram import Histogram
from balancer.shm.layout import ACCEPTING
from balancer.shm.source_table import SourceCounts

if TYPE_CHECKING:
    from balancer.relay.tls.handshake import TlsAccess

LINGER_SECONDS = 30.0  # where --half-close-timeout 0 sets no limit


@dataclass(frozen=True)
class PoolAccess:
    """What all lanes to one pool share in one worker."""

    pool: Pool
    elector: Elector
    queue: PendingQueue
    connects: Histogram
    dialling: dict[Session, float]
    framed: ConnectionPool | None = None  # in framed mode


def time_limits(listeners: Iterable[Listener], pools: Iterable[Pool]) -> list[float]:
    """Return the limits that the sweep keeps, in seconds; 0 is none."""
    limits = [(one.idle_timeout, one.half_close_timeout, one.user_timeout) for one in listeners]
    return [*chain(*limits), *(one.frame_timeout for one in pools if one.mode == "framed")]


def kind_of_session(listener: Listener, pools: Iterable[Pool]) -> type[Session]:
    """Return the class of a listener's sessions: what their backends are told before the client's first byte, and whether
    TLS ends or begins here."""
    pools = list(pools)
    # `ssl` is imported where TLS is configured only: 1 MB and 3 ms of each start.
    if listener.tls_cert or any(pool.tls and pool.mode != "framed" for pool in pools):
        from balancer.relay.tls.session import TlsSession

        return TlsSession
    if listener.asks_names and listener.preread == "postgres":
        return PostgresSession
    return ProxyHeaderSession if any(pool.send_proxy for pool in pools) else Session


def session_counts(
    board: Board, listener: Listener, pool: Pool
) -> Callable[[Backend | None], tuple[int, int, int]]:
    """Return a function giving the sessions of a listener, a pool and a backend over all processes."""
    of_pool = loads_reader(board, [backend.index for backend in pool.backends]) if pool.backends else list
    column = board.listener_at(listener.index) + L_SESSIONS

    def read(backend: Backend | None) -> tuple[int, int, int]:
        return (
            board.gauge(column),
            sum(of_pool()),
            board.sessions(backend.index) if backend is not None else 0,
        )

    return read


def new_stream_client(session: FramedSession, lane: FramedLane) -> FramedClient:
    """Return the client of a session that leads to a pool with streams; only a listener with TLS has given it one."""
    stream = getattr(session, "client_stream", None) or RawStream(session.client_fd)
    return StreamClient(stream, session, lane)


def framed_descriptors(session: Session) -> list[int]:
    """Return the descriptors of the connections that carry a framed client's requests."""
    relay = session.splicing
    if not isinstance(relay, FramedClient):
        return []
    return [request.carrier.fd for request in relay.requests if request.carrier is not None]


class WorkerRelay:
    """All that relays in one worker. `sockets(name)` gives a listener's listening sockets; `wake(row)` wakes another
    worker; `new_socket` and `close` are socket(2) and close(2); `tls` has the contexts of listeners and pools."""

    def __init__(
        self,
        context: WorkerContext[Session],
        listeners: Sequence[Listener],
        pools: Sequence[Pool],
        sockets: Callable[[str], Iterable[Listening]],
        wake: Callable[[int], object],
        new_socket: Callable[[int, int], Socket] = Socket,
        close: Callable[[int], None] = os.close,
        tls: TlsContexts = NO_TLS,
    ) -> None:
        self.context = context
        self._tls = tls
        self.handshakes = Handshakes(context.loop)
        self._new_socket = new_socket
        keepalive = {route.pool: one.keepalive for one in reversed(listeners) for route in one.routes}
        # Pools in framed mode that are given their bytes by streams.
        self._streamed = {pool.name for pool in pools if pool.tls}
        self._streamed.update(name for one in listeners if one.tls_cert for name in one.pool_names)
        self.pools = {pool.name: self._pool_access(pool, wake, keepalive) for pool in pools}
        self.timeouts = TimeoutSweep(context, time_limits(listeners, pools), self._dials())
        self.lanes: dict[tuple[str, str], SessionLane] = {}  # by the names of listener and pool
        self.closers: list[Closer] = []
        self.starters: list[SessionStarter] = []
        self._downed = [
            DownedBackends(context.board, one.pool, one.elector)
            for one in self.pools.values()
            if one.pool.on_down == "close"
        ]
        electors = [(one.pool, one.elector) for one in self.pools.values() if one.framed is None]
        self.recorder = ElectionRecorder(context, electors)
        self._shortage = ShortageLog(context.loop, context.log, self._occupancy)
        for listener in listeners:
            self._add(listener, partial(sockets, listener.name), close)

    def _add(
        self, listener: Listener, sockets: Callable[[], Iterable[Listening]], close: Callable[[int], None]
    ) -> None:
        """Put together what serves one listener."""
        context = self.context
        at = context.board.listener_at
        account = Account(context.cells[at(listener.index) : at(listener.index + 1)])
        closer = Closer(context, account, close)
        sources = self._source_limits(listener)
        end_session = sources.releasing(closer.end_session) if sources else closer.end_session
        pools = [self.pools[name].pool for name in listener.pool_names]
        for pool in pools:
            lane = self._lane(listener, self.pools[pool.name], account, closer, end_session)
            self.lanes[listener.name, pool.name] = lane
        framed = self._framed_lanes(listener, account)
        tls = self._tls_access(listener)
        self.closers.append(closer)
        self.starters.append(
            SessionStarter(
                context,
                listener,
                account,
                closer,
                RouteTable((one, self.lanes.get((listener.name, one.pool))) for one in listener.routes),
                sockets,
                self._shortage,
                self._show_accepting,
                max((pool.queue_timeout for pool in pools), default=0.0),
                kind_of_session(listener, pools),
                sources,
                partial(begin_framed, framed) if framed else Session.begin,
                tls,
            )
        )

    def _tls_access(self, listener: Listener) -> "TlsAccess | None":
        if not listener.tls_cert:
            return None
        from balancer.relay.tls.handshake import TlsAccess

        return TlsAccess(self._tls.listeners[listener.name], listener.tls_handshake_timeout, self.handshakes)

    def _source_limits(self, listener: Listener) -> SourceLimits | None:
        if not (listener.source_maxconn or listener.source_rate):
            return None
        table = self.context.board.source_tables[listener.name]
        return SourceLimits(listener, SourceCounts(table, self.context.board.counts, self.context.row))

    def _dials(self) -> list[Dials]:
        """The connects under way of every pool."""
        dials: list[Dials] = [(one.dialling, one.pool.connect_timeout) for one in self.pools.values()]
        return dials + [(one.dialling, pool.connect_timeout) for one, pool in self._framed_pools()]

    def _pool_access(
        self, pool: Pool, wake: Callable[[int], object], keepalive: Mapping[str, float]
    ) -> PoolAccess:
        context = self.context
        queue = PendingQueue(context.loop, context.board, context.row, pool, wake)
        connects = Histogram(context.cells[context.board.pool_at(pool.index) + P_CONNECT_TIMES :])
        if pool.mode != "framed" or pool.frame is None:
            return PoolAccess(pool, Elector(context.board, pool, context.row), queue, connects, {})
        elector = RequestElector(context.board, pool, context.row)
        options = keepalive_options(keepalive.get(pool.name, 0.0))
        make = self._kind_of_connections(pool)
        framed = make(context, pool, pool.frame, elector, queue, options, connects, self._new_socket)
        context.loop.every(SWEEP, framed.sweep)
        return PoolAccess(pool, elector, queue, connects, {}, framed)

    def _kind_of_connections(self, pool: Pool) -> Callable[..., ConnectionPool]:
        """Of a pool in framed mode: with streams where one of its listeners ends TLS, or TLS begins at its backends."""
        if pool.name not in self._streamed:
            return ConnectionPool
        from balancer.relay.framed.stream_pool import StreamConnectionPool

        return partial(StreamConnectionPool, self._tls.pools.get(pool.name))

    def _framed_pools(self) -> Iterator[tuple[ConnectionPool, Pool]]:
        return ((one.framed, one.pool) for one in self.pools.values() if one.framed is not None)

    def _framed_lanes(self, listener: Listener, account: Account) -> dict[SessionLane, FramedLane]:
        """Those of a listener's lanes that lead to a pool in framed mode."""
        context = self.context
        refusals = RepeatedLine(context.loop, partial(context.log.info, "refuse"))
        return {
            self.lanes[listener.name, pool.name]: FramedLane(
                context.loop, context.log, pool, one, account, refusals.report,
                place_text(listener.name, pool.name),
                new_stream_client if pool.name in self._streamed else FramedClient,
            )
            for one, pool in self._framed_pools()
            if (listener.name, pool.name) in self.lanes
        }  # fmt: skip

    def _lane(
        self,
        listener: Listener,
        access: PoolAccess,
        account: Account,
        closer: Closer,
        end_session: Callable[[Session], None],
    ) -> SessionLane:
        context = self.context
        return Lane(
            context=context,
            loop=context.loop,
            pipes=context.pipes if listener.splice else None,
            account=account,
            elector=access.elector,
            queue=access.queue,
            count_connect=access.connects.observe,
            dialling=access.dialling,
            retries=access.pool.retries,
            idle_timeout=listener.idle_timeout,
            half_close_timeout=listener.half_close_timeout,
            linger_limit=listener.half_close_timeout or LINGER_SECONDS,
            user_timeout=listener.user_timeout,
            backend_options=keepalive_options(listener.keepalive),
            end_session=end_session,
            drop_backend=closer.drop_backend,
            await_acknowledgement=self.timeouts.await_acknowledgement,
            early=EarlyRead(),
            new_socket=self._new_socket,
            header=header_writer(access.pool.send_proxy) if access.pool.send_proxy else no_header,
            listener_name=listener.name,
            pool_name=access.pool.name,
            counts=session_counts(context.board, listener, access.pool),
            backend_tls=self._tls.pools.get(access.pool.name),
            has_sources=any(backend.sources for backend in access.pool.backends),
        )

    # -- what the worker asks for

    def serve(self, slots: Sequence[int]) -> None:
        """Accept from the queues of exactly these slots."""
        for starter in self.starters:
            starter.serve(slots)

    def refresh(self) -> None:
        """Accept from the sockets of the same slots that there are by now."""
        for starter in self.starters:
            starter.refresh()

    def accept_waiting(self) -> None:
        """Accept the clients that wait already, as far as the limits go."""
        for starter in self.starters:
            starter.acceptor.accept_waiting()

    @property
    def undecided(self) -> int:
        """Accepted clients that are no sessions yet."""
        return sum(starter.undecided for starter in self.starters)

    def refuse_undecided(self, reason: str) -> None:
        """The worker ends: close the clients that are no sessions yet."""
        for starter in self.starters:
            starter.refuse_undecided(reason)

    def look_for_places(self) -> None:
        """Dial for queued sessions: another worker says that it has freed a place."""
        for access in self.pools.values():
            access.queue.serve()

    def close_downed(self) -> None:
        """End the sessions of backends that have gone down, where their pool wants that."""
        for downed in self._downed:
            downed.look(self.context.sessions)

    def session_with(self, fd: int) -> Session | None:
        """Return the session that holds a descriptor, or has dropped it in this batch."""
        held = (
            (each, session)
            for session in self.context.sessions
            for each in (session.client_fd, session.backend_fd, *framed_descriptors(session))
        )
        dropped = (pair for closer in self.closers for pair in closer.dropped())
        return next((session for each, session in chain(dropped, held) if each == fd >= 0), None)

    def _occupancy(self) -> dict[str, object]:
        return {"sessions": f"{len(self.context.sessions)}/{self.context.budget}"}

    def _show_accepting(self) -> None:
        is_accepting = any(starter.acceptor.is_accepting for starter in self.starters)
        self.context.cells[ACCEPTING] = int(is_accepting)
