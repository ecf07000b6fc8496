"""What the sessions of one worker share: loop, election, counts, pipes; and their common endings.

RULES: the only module of the relay that writes board cells. Order at a session's end, on which exact limits
depend: descriptors closed (end of batch), THEN the counts go down, THEN whoever waits for the place is woken.
Nothing here runs per message.
"""

import errno
import os
import resource
from _socket import socket as Socket
from collections.abc import Callable
from typing import Protocol

from balancer.pool.backend import Backend
from balancer.pool.board import (
    B_BYTES_IN,
    B_BYTES_OUT,
    BYTES_IN,
    BYTES_OUT,
    CUT,
    FAILED,
    PAUSES,
    REFUSED,
    RESUMES,
    RETRIES,
    SESSIONS,
    SESSIONS_CLOSED,
    Board,
    base,
)
from balancer.pool.election import Elector
from balancer.pool.limits import Seats
from balancer.prefork.cells import LOAD
from balancer.prefork.log import Log
from balancer.prefork.loop import Loop
from balancer.relay import ends
from balancer.relay.dial import Dial
from balancer.relay.pipes import Pipes
from balancer.relay.session import Session
from balancer.relay.sockets import tcp_options
from balancer.relay.waiting import WaitingRoom

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
    """One per worker. `cells` is the worker's own row, `row` its number."""

    def __init__(
        self, loop: Loop, settings: Settings, board: Board, elector: Elector, row: int, log: Log
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.board = board
        self.elector = elector
        self.row = row
        self.log = log
        self.cells = board.shared.rows.row(row)
        self.seats = Seats(board, row)
        self.sessions: dict[Session, None] = {}  # ordered: oldest first
        self.dialling: dict[
            Dial, float
        ] = {}  # -> since when; constant timeout, so insertion order is deadline order
        self.waiting: WaitingRoom = WaitingRoom(self)
        self.unacknowledged: dict[Session, None] = {}
        self.budget = session_budget()
        self.pipes = Pipes(most=max(8, self.budget // 8)) if settings.splice else None
        self.defer_connect = settings.defer_connect
        self.retries = settings.retries
        self.half_close_timeout = settings.half_close_timeout or 30.0
        self.backend_options = tcp_options(settings.keepalive, settings.user_timeout)
        self.on_room: Callable[[], None] = lambda: None  # the acceptor's: sessions have ended
        self.on_unacknowledged: Callable[[], None] = lambda: None  # the keeper's
        self._ending: list[Session] = []
        self._dropped: list[tuple[Socket | None, Backend]] = []
        self._short_at = 0.0

    # -- asked by a dial

    def without_backend(self, session: Dial) -> None:
        """No backend could be elected for it: queue it or close it."""
        if self.elector.why == "full":
            self.waiting.admit(session)
        elif session.tried:
            session.close(ends.NO_BACKEND, "all backends tried")
        else:
            session.close(ends.NO_BACKEND, "no backend is up")

    def count_retry(self) -> None:
        self.cells[RETRIES] += 1

    def short_of(self, code: int) -> None:
        """This machine is out of something; said once a second at most."""
        if self.loop.now - self._short_at >= 1.0:
            self._short_at = self.loop.now
            word = errno.errorcode.get(code, str(code))
            self.log.error("dial", error=word, sessions=len(self.sessions), then="refuse this client")

    def await_acknowledgement(self, session: Session) -> None:
        """Its peer must acknowledge before it is reset; the keeper looks again soon."""
        self.unacknowledged[session] = None
        self.on_unacknowledged()

    # -- endings

    def retire_backend(self, sock: Socket | None, backend: Backend) -> None:
        """A backend was given up by a session that goes on: close and release at the end of the batch."""
        if not self._ending and not self._dropped:
            self.loop.retire(self._finish)
        self._dropped.append((sock, backend))

    def retire_session(self, session: Session) -> None:
        """Called by the one closer."""
        if not self._ending and not self._dropped:
            self.loop.retire(self._finish)
        self._ending.append(session)

    def _finish(self) -> None:
        """End of the batch: close, then count, then wake."""
        ending, self._ending = self._ending, []
        dropped, self._dropped = self._dropped, []
        limited = False
        for sock, backend in dropped:
            if sock is not None:
                sock.close()
            self.elector.release(backend)
            limited = limited or backend.maxconn > 0
        for session in ending:
            sock = session.backend_socket
            if sock is not None:
                sock.close()
            os.close(session.client_fd)
            backend_or_none = session.backend
            if backend_or_none is not None:
                self.elector.release(backend_or_none)
                limited = limited or backend_or_none.maxconn > 0
            self._forget(session)
        self.cells[LOAD] = len(self.sessions)
        if limited:
            self.waiting.place_freed()
        self.on_room()

    def _forget(self, session: Session) -> None:
        cells = self.cells
        del self.sessions[session]
        cells[SESSIONS] -= 1
        cells[SESSIONS_CLOSED] += 1
        if not session.connected_at:
            self.dialling.pop(session, None)
        if self.unacknowledged:
            self.unacknowledged.pop(session, None)
        if self.waiting.since:
            self.waiting.leave(session)
        up, down = session.up, session.down
        if up.pipe is not None:
            up.discharge()
        if down.pipe is not None:
            down.discharge()
        if up.pauses or down.pauses:
            up.paused = down.paused = False
        self.fold(session)
        end = session.end
        if end != ends.CLEAN:
            self._count_end(session, end)
        if self.log.level >= 1:
            self._tell(session)

    def _count_end(self, session: Session, end: str) -> None:
        if end == ends.KILLED:
            self.cells[CUT] += 1
        elif end == ends.QUEUE_TIMEOUT or (
            end == ends.NO_BACKEND and not session.tried and session.backend is None
        ):
            self.cells[REFUSED] += 1
        elif end in _FAILED_ENDS:
            self.cells[FAILED] += 1

    def fold(self, session: Session) -> None:
        """Add what a session moved since the last fold to the worker's and the backend's totals."""
        up, down = session.up, session.down
        moved_in = up.taken - up.pending - up.lost
        moved_out = down.taken - down.pending - down.lost
        more_in, more_out = moved_in - session.told_in, moved_out - session.told_out
        cells, backend = self.cells, session.backend
        if (more_in or more_out) and backend is not None:
            session.told_in, session.told_out = moved_in, moved_out
            block = base(backend.index)
            cells[BYTES_IN] += more_in
            cells[BYTES_OUT] += more_out
            cells[block + B_BYTES_IN] += more_in
            cells[block + B_BYTES_OUT] += more_out
        if up.pauses or down.pauses:
            pauses = up.pauses + down.pauses
            resumes = pauses - up.paused - down.paused
            cells[PAUSES] += pauses - session.told_pauses
            cells[RESUMES] += resumes - session.told_resumes
            session.told_pauses, session.told_resumes = pauses, resumes

    def _tell(self, session: Session) -> None:
        now = self.loop.now
        begun = session.accepted_at
        connect = f"{(session.connected_at - begun) * 1000:.1f}ms" if session.connected_at else "-1"
        name = session.backend.name if session.backend is not None else "<NOSRV>"
        retries = f"{session.retries}{'+' if session.tried else ''}"
        reason = f' reason="{session.reason}"' if session.reason else ""
        self.log.session(
            f"session client={session.peer_name()} backend={name} end={session.end} connect={connect} "
            f"total={(now - begun) * 1000:.1f}ms in={session.told_in} out={session.told_out} "
            f"retries={retries}{reason}"
        )


def session_budget() -> int:
    """Sessions this process has descriptors for: two each, beside 64 for everything else."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, (min(limit, 1 << 20) - 64) // 2)
