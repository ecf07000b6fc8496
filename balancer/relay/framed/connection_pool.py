"""Connections to the backends of one pool, kept and shared by all its clients in one worker; one request at a time on
each.

RULES
- A request is counted at its backend before it is sent and released when its reply is whole, or after the close of its
  connection. What was elected is the board's: leastconn counts requests, `maxconn` limits them.
- A connection whose reply is unfinished is closed, never used again. So is one on which bytes arrive that no request has
  asked for; for SUSPICION seconds each connection to its backend then carries one request only.
- A reply that comes late cannot be told from the reply to the next request on its connection. So a connection rests for
  REST seconds after a reply, in which a second one would show; the one that has rested longest is used first, and a
  shorter rest will do where RESTING rest, itself included.
- At a backend that is trusted TRUSTED_RESTING will do: under load all that rest are used in turn, and their sockets push
  each other out of the caches. It is trusted after TRUSTED replies without a fault. Every connection that it
  ends or refuses starts the count again, and so do another address of its name and a time without any connection, in
  which it may have been replaced unseen. A reply that is cut, a wrong one or a byte too many costs it the trust of this
  worker for good, whatever slot it has. Another tenant of its slot begins anew.
- A connection that breaks before the first byte of a reply costs the request a try: on another backend, as often as
  frame-retries allows. A kept connection that the backend had closed by then is no try: what was sent there was not
  acknowledged, or not taken. A reset does not say whether what was sent has been read: it is a try, of any backend.

                 dial                reply whole
    (none)  ----------->  busy  <------------------->  idle  ->  closed (idle-backend-timeout, drain, unasked bytes)
                            \\-> closed (broken, abandoned, unfinished)
"""

import errno
from _socket import AF_UNIX
from _socket import socket as Socket
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from os import write
from sys import maxsize

from balancer.config.units import Address
from balancer.eventloop.errnos import CAPACITY, CROWDED, name_of
from balancer.eventloop.repeats import RepeatedLine
from balancer.options import Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    B_SESSIONS_TOTAL,
    P_CONNECTIONS_IDLE,
    P_CONNECTIONS_IN_USE,
    P_REPLY_TIMES,
    P_REQUESTS_PER_S,
)
from balancer.pool.request_election import RequestElector
from balancer.pool.serving import state_of
from balancer.pool.targets import DialTarget
from balancer.relay import ends
from balancer.relay.context import AnySession, WorkerContext
from balancer.relay.framed.connection import RESTING, BackendConnection, KeptConnections
from balancer.relay.framed.frame_format import FrameFormat
from balancer.relay.framed.requests import FramedRequest
from balancer.relay.queue import PendingQueue
from balancer.relay.sockets import NODELAY, STREAM, TcpOption, apply, is_writable
from balancer.relay.sources import connect_from
from balancer.shm.histogram import Histogram

SUSPICION = 60.0
REST = 0.25
TRUSTED, TRUSTED_RESTING = 4096, 2
DISTRUSTED = 1024  # tenants of slots; beyond them no other one is trusted
SWEEP = 1.0
LEARNED = 1024  # headers
BEGUN = 16_384  # bytes of a big frame that elect its backend; a frame up to this size is read whole


class ConnectionPool:
    """A pool's connections in one worker, and the requests that look for one."""

    _connection_type: type[BackendConnection] = BackendConnection

    def __init__(
        self,
        context: WorkerContext[AnySession],
        pool: Pool,
        frame: FrameFormat,
        elector: RequestElector,
        queue: PendingQueue,
        options: Sequence[TcpOption],
        connects: Histogram,
        new_socket: Callable[[int, int], Socket] = Socket,
    ) -> None:
        self.loop = context.loop
        self.pipes = context.pipes
        self.size_of = frame.sizer(pool.max_frame)
        self.header = frame.header
        self.heads: dict[int, bytes] = {}  # of small frames, by the bytes of the whole frame: see `learn`
        self._small = min(BEGUN, pool.retry_buffer)
        self.elector = elector
        self._elect = elector.elect_request
        self.queue = queue
        self.dialling: dict[BackendConnection, float] = {}  # -> since when
        self.rest = REST
        self.trusted, self.most_distrusted = TRUSTED, DISTRUSTED
        self._context = context
        self._pool = pool
        self._options = (*NODELAY, *options)
        self._connects = connects
        self._replies = Histogram(context.cells[context.board.pool_at(pool.index) + P_REPLY_TIMES :])
        self._former_times: list[float] = []  # seconds, of replies from backends that had a slot before
        self._distrusted: set[Address] = set()  # of backends: a slot keeps its name whoever has it
        self._new_socket = new_socket
        self._kept = [
            KeptConnections(
                elector.present(backend), elector.place_of(backend), pool.backend_conns or maxsize
            )
            for backend in pool.backends
        ]
        elector.on_tenant, elector.on_limits = self._renew, self._note_limits
        self._note_limits()
        self._dropped: list[tuple[BackendConnection | None, Backend | None]] = []
        self._is_freeing = False
        self._misbehaved = RepeatedLine(context.loop, partial(context.log.warning, "backend"))
        self._next_source = 0
        self._open: dict[BackendConnection, None] = {}  # those that are being made included
        self._begun = 0  # requests, when they were last published
        self._shown_at = context.loop.now

    def learn(self, frame: bytes) -> None:
        """Remember the header of a small frame: to find it in the next one of this size costs a third of what reading it
        does."""
        if len(frame) <= self._small:
            if len(self.heads) >= LEARNED:
                self.heads.clear()
            self.heads[len(frame)] = frame[: self.header]

    def _renew(self, backend: Backend) -> None:
        """Another backend has a slot: what is kept leads to the one before it."""
        place = self.elector.place_of(backend)
        former = self._kept[place]
        former.most = 0
        self._drop_idle(former)
        self._former_times += former.reply_times
        former.reply_times = self._former_times  # for the requests that are under way
        self._kept[place] = kept = KeptConnections(backend, place, self._pool.backend_conns or maxsize)
        if backend.address in self._distrusted or len(self._distrusted) == self.most_distrusted:
            kept.answered = -inf

    def _note_limits(self) -> None:
        for kept in self._kept:
            kept.has_limit = self.elector.is_limited(kept.backend)

    # -- a request on its way to a backend

    def begin(self, request: FramedRequest) -> None:
        """Send a new request on an idle connection to the backend that is elected for it: the way of most requests."""
        if self.queue.since:
            self.queue.enqueue(request, self.queue.why)
            return
        now = self.loop.now
        place = self._elect(request.owner.source_ip, now)
        if place < 0:
            self.dispatch(request)
            return
        kept = self._kept[place]
        request.backend = kept.backend
        idle = kept.idle
        if len(idle) < kept.resting and (not idle or idle[0].idle_since > now - self.rest):
            if not self._dial(request, kept, self.elector.target(kept.backend)):
                self.dispatch(request)
            return
        connection = idle.popleft()
        connection.request = request
        request.carrier = connection
        try:
            sent = write(connection.fd, request.data)
        except OSError as error:
            connection.sending_failed(error)
            return
        if sent == request.size:
            connection.awaited = request
        else:
            connection.sent_part(sent)

    def dispatch(self, request: FramedRequest) -> None:
        """Elect a backend for a request that has waited or failed, and send it there, on an idle connection or a new
        one; else queue it, or end its client's connection."""
        elector, queue = self.elector, self.queue
        while True:
            backend = request.backend = elector.elect(request.owner.source_ip, request.tried)
            if backend is None:
                self._without_backend(request)
                return
            if queue.since:
                queue.remove(request)
            if self._carry(request, self._of(backend)):
                return

    def _carry(self, request: FramedRequest, kept: KeptConnections) -> bool:
        """Send a request on an idle connection or a new one; return False when another backend is to be elected."""
        idle = kept.idle
        if idle and (idle[0].idle_since <= self.loop.now - self.rest or len(idle) >= kept.resting):
            connection = idle.popleft()
            connection.request = request
            request.carrier = connection
            request.elected_at = request.sent_at = self.loop.now
            connection.send()
            return True
        return self._dial(request, kept, self.elector.target(kept.backend))

    def _of(self, backend: Backend) -> KeptConnections:
        return self._kept[self.elector.place_of(backend)]

    def _dial(self, request: FramedRequest, kept: KeptConnections, target: DialTarget) -> bool:
        """Open a connection for a request; return False when another backend is to be elected."""
        backend = kept.backend
        family, address, is_near, _ = target
        request.elected_at = self.loop.now
        request.was_sent = False
        if address != kept.address or not kept.open:
            kept.address = address
            kept.count_again()
        connection: BackendConnection | None = None
        try:
            sock = self._new_socket(family, STREAM)
            if backend.sources:
                self._next_source += 1
                sock, code = connect_from(backend.sources, self._next_source, sock, address, self._new_socket)
            else:
                code = sock.connect_ex(address)
        except OSError as error:  # this machine may lack one family only
            code = error.errno or errno.EIO
        else:
            self._context.hold(1)
            connection = self._connection_type(self, kept, sock, target)
            self._open[connection] = None
            kept.open += 1
            connection.request = request
            request.carrier = connection
        if connection is None or code not in (0, errno.EINPROGRESS):
            if connection is not None:
                connection.leave()
            return self._dial_failed(request, kept, target, code)
        if family != AF_UNIX:
            apply(connection.sock, self._options)
        if code and not (is_near and is_writable(connection.fd)):
            self.dialling[connection] = self.loop.now
            self.loop.watch(connection.fd, connection.on_connecting)
        else:
            self.loop.watch_reading(connection.fd, connection.on_event)
            request.sent_at = request.elected_at
            connection.send()
        return True

    def _dial_failed(
        self, request: FramedRequest, kept: KeptConnections, target: DialTarget, code: int
    ) -> bool:
        """Dial the next address of the backend, if it has one; else give its place back. Return as `_dial`."""
        backend, following = kept.backend, target[3]
        if following is not None and (code in CROWDED or code not in CAPACITY):
            self.elector.address_failed(backend, target)
            return self._dial(request, kept, following)
        self._later(None, backend)
        return not self._may_elect_again(request, backend, code)

    def _may_elect_again(self, request: FramedRequest, backend: Backend, code: int, reason: str = "") -> bool:
        """Judge a connect that has failed, in words for the log where errno has none. False: the request waits for a
        place, or its client's connection ends."""
        if code in CROWDED or code in CAPACITY:
            if code != errno.EAGAIN:
                self._context.log_shortage(code, then="another backend, or the queue")
            request.tried = {*request.tried, backend.index, ~backend.index}  # it has not failed
            return True
        self.elector.connect_failed(backend)
        request.dials += 1
        request.tried = {*request.tried, backend.index}
        if request.dials > self._pool.retries:
            timed_out = code == errno.ETIMEDOUT
            request.close(ends.CONNECT_TIMEOUT if timed_out else ends.NO_BACKEND, reason or name_of(code))
            return False
        request.retries += 1
        request.owner.retried()
        return True

    def connected(self, connection: BackendConnection) -> None:
        """A connect that was under way has succeeded."""
        since = self.dialling.pop(connection, None)
        if since is not None:
            self._connects.observe(self.loop.now - since)

    def connect_failed(self, request: FramedRequest, connection: BackendConnection, code: int) -> None:
        """A connect that was under way has failed: another address, or another backend."""
        if not self._dial_failed(request, connection.kept, connection.target, code):
            self.dispatch(request)

    def _without_backend(self, request: FramedRequest) -> None:
        """No backend could be elected: wait for a place, or end the client's connection."""
        why = self.elector.why
        if any(mark < 0 for mark in request.tried):
            request.tried = {index for index in request.tried if index >= 0 and ~index not in request.tried}
            self.queue.enqueue(request, "full")
            self.queue.look_soon()
        elif why != "down":
            if not self._take_over(request):
                self.queue.enqueue(request, why, goes_first=bool(request.tried or request.excused))
        elif request.broken is not None:
            request.backend = request.broken
            request.close(ends.BACKEND_RESET, "all backends tried")
        else:
            request.close(ends.NO_BACKEND, "all backends tried" if request.tried else "no backend is up")

    def _take_over(self, request: FramedRequest) -> bool:
        """Take the place of a request behind this one, whose reply would wait for the reply to this one, and this one for
        its place. That one is sent again, which costs it a try if it was sent before."""
        later = request.owner.later_than(request)
        if later is None or later.carrier is None or later.backend is None:
            return False
        was_sent = not self.is_dialling(later)
        later.breaks += was_sent
        later.carrier.leave(was_sent)
        self.queue.remove(request)
        request.backend = backend = later.backend
        later.backend = None
        later.retries += 1
        later.owner.retried()
        if not self._dial(request, self._of(backend), self.elector.target(backend)):
            self.dispatch(request)
        self.queue.enqueue(later, "full", goes_first=True)
        return True

    def is_dialling(self, request: FramedRequest) -> bool:
        """Return whether its connection is being made: nothing of it has been sent."""
        return request.carrier in self.dialling

    def may_give_way(self, request: FramedRequest) -> bool:
        """Return whether another request may take the place of this one: it can be sent again, and its backend gets new
        requests."""
        backend = request.backend
        if backend is None or state_of(self._context.board, backend) != "up":
            return False
        return request.breaks < self._pool.frame_retries or self.is_dialling(request)

    def retry(self, request: FramedRequest, is_unheard: bool, is_certain: bool, code: int) -> None:
        """A connection has broken before the reply was whole: try another backend while the client has seen nothing of a
        reply, and while all that was sent is still here. A kept connection may have been closed before the request came
        (`is_unheard`): that is no try where it is certain, and the same backend may be tried where it is not."""
        reason = name_of(code) if code else "ended before its reply was whole"
        if not request.is_kept:
            request.close(ends.BACKEND_RESET, reason)
            return
        backend = request.backend
        assert backend is not None
        if is_unheard:
            self._drop_idle(self._of(backend))
        if is_unheard and is_certain and backend.index not in request.excused:
            request.excused = {*request.excused, backend.index}
        else:
            request.breaks += 1
            request.broken = backend
            if not is_unheard:
                request.tried = {*request.tried, backend.index}
            if request.breaks > self._pool.frame_retries:
                request.close(ends.BACKEND_RESET, reason)
                return
            request.retries += 1
            request.owner.retried()
        self.dispatch(request)

    # -- ends

    def drop(self, connection: BackendConnection, request: FramedRequest | None = None) -> None:
        """Close a connection at the end of the batch, and release the place of the request that it carries after that."""
        if connection.fd < 0:
            return
        if connection.request is None:
            connection.shut()
        self.loop.forget_closing(connection.fd)
        connection.fd = -1
        connection.kept.open -= 1
        self.dialling.pop(connection, None)
        self._later(connection, connection.kept.backend if request is not None else None)
        self._count_bytes(connection)

    def _count_bytes(self, connection: BackendConnection) -> None:
        """Put on the board what a connection has carried since the last time."""
        sent, received = (
            connection.sent - connection.counted_sent,
            connection.received - connection.counted_received,
        )
        if sent or received:
            connection.counted_sent, connection.counted_received = connection.sent, connection.received
            self.elector.count_bytes(connection.kept.backend, sent, received)

    def _later(self, connection: BackendConnection | None, backend: Backend | None) -> None:
        if not self._dropped:
            self.loop.retire(self._finish_dropped)
        self._dropped.append((connection, backend))

    def _finish_dropped(self) -> None:
        """Close, then count, then wake."""
        dropped, self._dropped = self._dropped, []
        for connection, _ in dropped:
            if connection is not None:
                connection.sock.close()
                self._context.hold(-1)
                del self._open[connection]
        is_limited = False
        for _, backend in dropped:
            if backend is not None:
                is_limited = self.elector.release(backend) or is_limited
        if is_limited:
            self.queue.place_freed()

    def free_place(self) -> None:
        """A request has ended at a backend with a limit: its place is free once this batch is over."""
        if not self._is_freeing:
            self._is_freeing = True
            self.loop.retire(self._place_freed)

    def _place_freed(self) -> None:
        self._is_freeing = False
        self.queue.place_freed()

    def suspect(self, connection: BackendConnection, what: str) -> None:
        """A backend has said something that no request has asked for."""
        kept = connection.kept
        kept.most = 0
        kept.suspect_until = self.loop.now + SUSPICION
        self.distrust(kept)
        self._misbehaved.report(backend=kept.backend.identity, error=what, then="close the connection")
        self._drop_idle(kept)

    def distrust(self, kept: KeptConnections) -> None:
        """A backend has given a reply that is none: each of its connections rests as long as it can from now on."""
        address = kept.backend.address
        for each in (kept, *self._kept):  # it may have another slot by now
            if each.backend.address == address:
                each.resting, each.answered = RESTING, -inf
        if len(self._distrusted) < self.most_distrusted:
            self._distrusted.add(address)

    def _drop_idle(self, kept: KeptConnections) -> None:
        while kept.idle:
            self.drop(kept.idle.popleft())

    def sweep(self) -> None:
        """Close the connections that have been idle for too long, and those to backends that get no new request."""
        oldest = self.loop.now - self._pool.idle_backend_timeout
        self._show()
        self._replies.observe_all(self._former_times)
        self._former_times.clear()
        for connection in self._open:
            self._count_bytes(connection)
        for kept in self._kept:
            if not kept.most and kept.suspect_until <= self.loop.now:
                kept.most = self._pool.backend_conns or maxsize
            if kept.reply_times:
                self._count_replies(kept)
            if kept.idle and state_of(self._context.board, kept.backend) != "up":
                self._drop_idle(kept)
            while kept.idle and kept.idle[0].idle_since < oldest:
                self.drop(kept.idle.popleft())

    def _count_replies(self, kept: KeptConnections) -> None:
        """Put the replies since the last sweep on the board; trust the backend once they are many."""
        times, kept.reply_times = kept.reply_times, []
        self._replies.observe_all(times)
        kept.answered += len(times)
        if kept.answered >= self.trusted and kept.resting != TRUSTED_RESTING:
            kept.resting = TRUSTED_RESTING
            while len(kept.idle) > TRUSTED_RESTING:
                self.drop(kept.idle.popleft())

    def _show(self) -> None:
        """Publish what is kept and how many requests began since the last time."""
        board, now, kept = self._context.board, self.loop.now, self._kept
        cells, at = self._context.cells, board.pool_at(self._pool.index)
        rested = sum(one.idle_since <= now - self.rest for each in kept for one in each.idle)
        cells[at + P_CONNECTIONS_IDLE] = rested
        cells[at + P_CONNECTIONS_IN_USE] = len(self._open) - rested
        begun = sum(cells[board.backend_at(each.backend.index) + B_SESSIONS_TOTAL] for each in kept)
        seconds = max(now - self._shown_at, SWEEP / 2)
        cells[at + P_REQUESTS_PER_S] = round((begun - self._begun) / seconds)
        self._begun, self._shown_at = begun, now

    def idle(self) -> int:
        """Return the number of idle connections, those that rest included."""
        return sum(len(kept.idle) for kept in self._kept)
