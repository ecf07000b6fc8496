"""The end of sessions: at the end of a batch, and in an order on which exact limits depend.

RULES: descriptors are closed, THEN the counts go down, THEN those that wait for a place are woken. Were a count lower
than the number of open sockets for a moment, a limit would let one session too many in. One closer per listener, so
that a batch is added up once.
"""

import os
from _socket import socket as Socket
from collections.abc import Callable, Iterator

from balancer.pool.backend import Backend
from balancer.pool.board import L_BYTES_IN, L_BYTES_OUT, L_ENDS, L_SESSION_TIMES, L_SESSIONS
from balancer.relay.account import Account
from balancer.relay.context import WorkerContext
from balancer.relay.ends import CLEAN
from balancer.relay.failures import FailureRecorder
from balancer.relay.pauses import leave_socket
from balancer.relay.queue import PendingQueue
from balancer.relay.session import Session
from balancer.relay.session_line import session_line
from balancer.shm.histogram import SUM, bucket_of
from balancer.shm.layout import LOAD


class Closer:
    """Closes what the sessions of one listener leave. `on_closed` is called after each batch in which sessions ended."""

    __slots__ = (
        "_account",
        "_cells",
        "_close",
        "_counts",
        "_dropped",
        "_ending",
        "_leave",
        "_log",
        "_loop",
        "_sessions",
        "_times",
        "failures",
        "on_closed",
    )

    def __init__(
        self,
        context: WorkerContext[Session],
        account: Account,
        close: Callable[[int], None] = os.close,
        leave: Callable[[int], None] = leave_socket,
    ) -> None:
        self._loop, self._log = context.loop, context.log
        self._sessions, self._cells = context.sessions, context.cells
        self._account, self.failures = account, FailureRecorder(context)
        self._counts = account.cells
        self._times = account.cells[L_SESSION_TIMES:]  # a histogram
        self._close = close
        self._leave = leave
        self._ending: list[Session] = []
        self._dropped: list[tuple[Session, Socket | None, Backend]] = []
        self.on_closed: Callable[[], None] | None = None

    def end_session(self, session: Session) -> None:
        """Close a session's descriptors at the end of the batch."""
        ending, loop = self._ending, self._loop
        if not ending and not self._dropped:
            loop.retire(self._finish)
        ending.append(session)
        loop.forget_closing(session.client_fd, session.backend_fd)

    def drop_backend(self, session: Session, sock: Socket | None, backend: Backend) -> None:
        """Close the backend's socket of a session that goes on without it, at the end of the batch."""
        if not self._ending and not self._dropped:
            self._loop.retire(self._finish)
        self._dropped.append((session, sock, backend))

    def dropped(self) -> Iterator[tuple[int, Session]]:
        """Yield the descriptors that sessions have dropped in this batch."""
        return ((sock.fileno(), session) for session, sock, _ in self._dropped if sock is not None)

    def _finish(self) -> None:
        """Close, then count, then wake."""
        sessions, log = self._sessions, self._log
        close = self._close
        ending, self._ending = self._ending, []
        freed: list[PendingQueue] = []  # of the pools that have a free place now
        if self._dropped:
            self._close_dropped(freed)
        bytes_in = bytes_out = unclean = 0
        now, times = self._loop.now, self._times
        seconds = 0.0
        for session in ending:
            if log.level >= 1 and log.wants_session(session.end == CLEAN):
                self._write_line(session)  # while its sockets know their addresses
            if session.activity is None and session.splicing is None:
                more_in, more_out = session.bytes_in, session.bytes_out
            else:
                more_in, more_out = self._uncounted(session)
            if session.backend_socket is not None:
                session.backend_socket.close()
            close(session.client_fd)
            del sessions[session]
            bytes_in += more_in
            bytes_out += more_out
            age = now - session.accepted_at
            times[bucket_of(age)] += 1
            seconds += age
            backend = session.backend
            if backend is not None:
                lane = session.lane
                if lane.elector.release(backend, more_in, more_out) and lane.queue not in freed:
                    freed.append(lane.queue)
            if session.end != CLEAN or session.splicing is not None:
                unclean += self._forget(session)
        cells = self._counts
        times[SUM] += int(seconds * 1e6)
        cells[L_BYTES_IN] += bytes_in
        cells[L_BYTES_OUT] += bytes_out
        cells[L_ENDS] += len(ending) - unclean
        cells[L_SESSIONS] -= len(ending)  # last: a reader that finds no session open finds every end counted
        self._cells[LOAD] = len(sessions)
        for queue in freed:
            queue.place_freed()
        if self.on_closed is not None:
            self.on_closed()

    def _uncounted(self, session: Session) -> tuple[int, int]:
        """Return the bytes (in, out) of a session that are not on the board yet; before the close of its sockets."""
        activity = session.activity
        if activity is None:
            return session.given()
        if activity.has_probes:
            self._leave(session.client_fd)
            self._leave(session.backend_fd)
        return activity.uncounted(session.given())

    def _write_line(self, session: Session) -> None:
        now = self._loop.now
        self._log.session(session_line(session, now, self._log.time_before(now - session.accepted_at)))

    def _close_dropped(self, freed: list[PendingQueue]) -> None:
        dropped, self._dropped = self._dropped, []
        for session, sock, backend in dropped:
            if sock is not None:
                sock.close()
            lane = session.lane
            if lane.elector.release(backend) and lane.queue not in freed:
                freed.append(lane.queue)

    def _forget(self, session: Session) -> bool:
        """Undo what only sessions with an unusual life leave behind, and count an end that was not clean. Return whether
        that was so."""
        lane = session.lane
        if not session.connected_at:
            lane.dialling.pop(session, None)
            if lane.queue.since:
                lane.queue.remove(session)
        relay = session.splicing
        if relay is not None:
            relay.discharge()
            self._account.paused(*relay.uncounted_pauses())
            session.splicing = None  # it refers to the session
        if session.end == CLEAN:
            return False
        self._account.ended(session.end)
        self.failures.ended(session)
        return True
