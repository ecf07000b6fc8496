"""What the sessions of one worker share: loop, election, counts, pipes; and their common endings.

RULES: the only module of the relay that writes board cells. Order at a session's end, on which exact limits
depend: descriptors closed (end of batch), THEN the counts go down, THEN whoever waits for the place is woken.
Nothing here runs per message.
"""

import resource
from _socket import socket as Socket
from collections.abc import Callable
from itertools import chain
from os import close
from typing import Protocol

from balancer.eventloop.errnos import name_of
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.pool.backend import Backend
from balancer.pool.board import (
    L_BYTES_IN,
    L_BYTES_OUT,
    L_CLOSED,
    L_CUT,
    L_FAILED,
    L_PAUSES,
    L_REFUSED,
    L_RESUMES,
    L_RETRIES,
    L_SESSIONS,
    Board,
)
from balancer.pool.election import Elector
from balancer.pool.shared_limit import SharedLimit
from balancer.relay import ends
from balancer.relay.dial import Dial
from balancer.relay.pipes import Pipes
from balancer.relay.queue import PendingQueue
from balancer.relay.session import Session
from balancer.relay.sockets import tcp_options
from balancer.relay.splicing import SplicingRelay
from balancer.shm.layout import LOAD

_FAILED_ENDS = frozenset({ends.NO_BACKEND, ends.CONNECT_TIMEOUT, ends.OWN_RESOURCES})


class Settings(Protocol):
    """The options the relay reads; times in seconds, 0 = never."""

    @property
    def maxconns(self) -> int: ...
    @property
    def overflow(self) -> str: ...
    @property
    def defer_connect(self) -> bool: ...
    @property
    def retries(self) -> int: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def half_close_timeout(self) -> float: ...
    @property
    def queue_timeout(self) -> float: ...
    @property
    def max_queue(self) -> int: ...
    @property
    def keepalive(self) -> float: ...
    @property
    def user_timeout(self) -> float: ...
    @property
    def splice(self) -> bool: ...


class Hub:
    """One per worker. `process` is the worker's own row, `cells` and `pool_cells` its listener's and pool's blocks."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        board: Board,
        elector: Elector,
        row: int,
        log: Log,
        listener: int = 0,
        pool: int = 0,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.board = board
        self.elector = elector
        self.row = row
        self.log = log
        self.process = board.counts.row(row)
        self.cells = self.process[board.listener_at(listener) : board.listener_at(listener + 1)]
        self.pool = pool
        self.pool_cells = self.process[board.pool_at(pool) : board.pool_at(pool + 1)]
        self.limit_column = board.listener_at(listener) + L_SESSIONS
        self.seats = SharedLimit(board, row)
        self.sessions: dict[Session, None] = {}  # ordered: oldest first
        # -> since when; all wait equally long, so insertion order is deadline order
        self.dialling: dict[Dial, float] = {}
        self.queue: PendingQueue = PendingQueue(self)
        self.unacknowledged: dict[SplicingRelay, None] = {}
        self.budget = session_budget()
        self.pipes = Pipes(most=max(8, self.budget // 8)) if settings.splice else None
        self.defer_connect = settings.defer_connect
        self.retries = settings.retries
        self.early_read_backoff = 0  # after clients that had not spoken when they were accepted
        self.early_read_skips = 0  # dials from now on that are not tried at once
        self.half_close_timeout = settings.half_close_timeout or 30.0
        self.backend_options = tcp_options(settings.keepalive, settings.user_timeout)
        self.on_room: Callable[[], None] = lambda: None  # the acceptor's: sessions have ended
        self.on_unacknowledged: Callable[[], None] = lambda: None  # the keeper's
        self._ending: list[Session] = []
        self._dropped: list[tuple[Dial, Socket | None, Backend]] = []
        self._short_at = 0.0

    # -- asked by a dial

    def without_backend(self, session: Dial) -> None:
        """No backend could be elected for it: queue it or close it."""
        if self.elector.why == "full":
            session.mind_client()
            self.queue.enqueue(session)
        elif session.tried:
            session.close(ends.NO_BACKEND, "all backends tried")
        else:
            session.close(ends.NO_BACKEND, "no backend is up")

    def count_retry(self) -> None:
        self.cells[L_RETRIES] += 1

    def short_of(self, code: int) -> None:
        """This machine is out of something; said once a second at most."""
        if self.loop.now - self._short_at >= 1.0:
            self._short_at = self.loop.now
            self.log.error(
                "dial", error=name_of(code), sessions=len(self.sessions), then="refuse this client"
            )

    def await_acknowledgement(self, splicing: SplicingRelay) -> None:
        """Its peer must acknowledge before it is reset; the keeper looks again soon."""
        self.unacknowledged[splicing] = None
        self.on_unacknowledged()

    # -- endings

    def session_with(self, fd: int) -> Dial | None:
        """The session that holds a descriptor, or has given it up in this batch."""
        held = ((each, each_fd) for each in self.sessions for each_fd in (each.client_fd, each.backend_fd))
        given_up = ((session, sock.fileno()) for session, sock, _ in self._dropped if sock is not None)
        return next((session for session, each in chain(given_up, held) if each == fd >= 0), None)

    def retire_backend(self, session: Dial, sock: Socket | None, backend: Backend) -> None:
        """A backend was given up by a session that goes on: close and release at the end of the batch."""
        if not self._ending and not self._dropped:
            self.loop.retire(self._finish)
        self._dropped.append((session, sock, backend))

    def retire_session(self, session: Session) -> None:
        """Called by the one closer."""
        ending = self._ending
        if not ending and not self._dropped:
            self.loop.retire(self._finish)
        ending.append(session)
        self.loop.forget_closing(session.client_fd, session.backend_fd)

    def _finish(self) -> None:
        """End of the batch: close, then count, then wake."""
        ending, self._ending = self._ending, []
        limited = False
        if self._dropped:
            limited = self._close_dropped()
        bytes_in = bytes_out = 0
        for session in ending:
            if session.backend_socket is not None:
                session.backend_socket.close()
            close(session.client_fd)
            del self.sessions[session]
            if session.activity is None and session.splicing is None:
                more_in, more_out = session.bytes_in, session.bytes_out
            else:
                more_in, more_out = _uncounted(session)
            bytes_in += more_in
            bytes_out += more_out
            backend = session.backend
            if backend is not None:
                self.elector.release(backend, more_in, more_out)
                limited = limited or backend.maxconn > 0
            if session.end != ends.CLEAN or session.splicing is not None:
                self._forget(session)
            if self.log.level >= 1:
                self._tell(session)
            session.splicing = None  # which leads back to the session
        cells = self.cells
        cells[L_SESSIONS] -= len(ending)
        cells[L_CLOSED] += len(ending)
        cells[L_BYTES_IN] += bytes_in
        cells[L_BYTES_OUT] += bytes_out
        self.process[LOAD] = len(self.sessions)
        if limited:
            self.queue.place_freed()
        self.on_room()

    def _close_dropped(self) -> bool:
        """The backends that were given up; whether one of them is limited."""
        dropped, self._dropped = self._dropped, []
        for _, sock, backend in dropped:
            if sock is not None:
                sock.close()
            self.elector.release(backend)
        return any(backend.maxconn for _, _, backend in dropped)

    def _forget(self, session: Session) -> None:
        """What an ordinary session leaves nothing of."""
        if not session.connected_at:
            self.dialling.pop(session, None)
            if self.queue.since:
                self.queue.remove(session)
        splicing = session.splicing
        if splicing is not None:
            self.unacknowledged.pop(splicing, None)
            splicing.discharge()
            self._fold_pauses(splicing)
        self._count_end(session, session.end)

    def _count_end(self, session: Session, end: str) -> None:
        if end == ends.KILLED:
            self.cells[L_CUT] += 1
        elif end == ends.QUEUE_TIMEOUT or (
            end == ends.NO_BACKEND and not session.tried and session.backend is None
        ):
            self.cells[L_REFUSED] += 1
        elif end in _FAILED_ENDS:
            self.cells[L_FAILED] += 1

    def fold(self, session: Session) -> None:
        """Add what a living session moved since the last fold to the worker's and the backend's totals."""
        if session.backend is not None:
            more_in, more_out = _uncounted(session)
            self.cells[L_BYTES_IN] += more_in
            self.cells[L_BYTES_OUT] += more_out
            self.elector.count_bytes(session.backend, more_in, more_out)
        if session.splicing is not None:
            self._fold_pauses(session.splicing)

    def _fold_pauses(self, splicing: SplicingRelay) -> None:
        up, down = splicing.up, splicing.down
        pauses = up.pauses + down.pauses
        resumes = pauses - up.paused - down.paused
        self.cells[L_PAUSES] += pauses - splicing.counted_pauses
        self.cells[L_RESUMES] += resumes - splicing.counted_resumes
        splicing.counted_pauses, splicing.counted_resumes = pauses, resumes

    def _tell(self, session: Session) -> None:
        now = self.loop.now
        begun = session.accepted_at
        connect = f"{(session.connected_at - begun) * 1000:.1f}ms" if session.connected_at else "-1"
        name = session.backend.name if session.backend is not None else "<NOSRV>"
        bytes_in, bytes_out = session.given()
        retries = f"{session.retries}{'+' if session.tried else ''}"
        reason = f' reason="{session.reason}"' if session.reason else ""
        self.log.session(
            f"session client={session.peer_name()} backend={name} end={session.end} connect={connect} "
            f"total={(now - begun) * 1000:.1f}ms in={bytes_in} out={bytes_out} "
            f"retries={retries}{reason}"
        )


def _uncounted(session: Session) -> tuple[int, int]:
    """Bytes (in, out) given to the peers since this was last asked."""
    activity = session.activity
    bytes_in, bytes_out = session.given()
    if activity is None:
        return bytes_in, bytes_out
    untold = bytes_in - activity.counted_in, bytes_out - activity.counted_out
    activity.counted_in, activity.counted_out = bytes_in, bytes_out
    return untold


def session_budget() -> int:
    """Sessions this process has descriptors for: two each, beside 64 for everything else."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, (min(limit, 1 << 20) - 64) // 2)
