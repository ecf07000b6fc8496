"""One forked worker: accept -> elect -> session, and the drain on a stop.

RULES: puts the relay's parts together and owns what concerns the process: title, collector, drain. Bytes are
relay/'s business, the choice of a backend pool/'s, signals and heartbeat prefork/'s.

A drain: accept what already waits in the queue, accept no more, let sessions end by themselves. In the second half of the
window idle sessions are closed, spread over it, so that their clients do not all come back in the same instant; in its
last quarter the busy ones as well, oldest first, for the same reason. Who is left at the deadline is cut. Every session
that did not end by itself counts as cut.
"""

import gc
import traceback
from collections.abc import Sequence
from math import ceil

from balancer.options import Options
from balancer.pool.backend import Backend
from balancer.pool.board import LOG_DROPPED, Board
from balancer.pool.election import Elector
from balancer.prefork.child import Child
from balancer.relay import ends
from balancer.relay.accept import Acceptor
from balancer.relay.hub import Hub
from balancer.relay.session import Session
from balancer.relay.timeouts import TimeoutSweep

DRAIN_LOOK = 0.1
IDLE_PART, BUSY_PART = 0.5, 0.25  # of the window, at its end: when idle and busy sessions are closed
IDLE = 1.0  # seconds without a byte that make a session idle for the drain
COLLECT = 600.0  # seconds between collections: sessions leave no cycles, so this finds what nobody foresaw


class Worker:
    """One process's worth of relaying."""

    def __init__(self, child: Child, options: Options, board: Board, backends: Sequence[Backend]) -> None:
        self.child = child
        listener, pool = options.listeners[0], options.pools[0]
        elector = Elector(board, pool, child.row)
        self.hub = Hub(child.loop, options, board, elector, child.row, child.log, listener.index, pool.index)
        self.hub.queue.wake = child.wake
        self.acceptor = Acceptor(self.hub, child.listening)
        self.timeouts = TimeoutSweep(self.hub)
        self.deadline = 0.0
        self._drain_began = 0.0
        self._drain_sessions = 0
        self._drain_rest = 0  # sessions when the busy ones' turn came

    def start(self) -> None:
        """Everything up to the moment the first client can be served."""
        child, loop = self.child, self.child.loop
        child.on_drain = self.drain
        child.on_cut = self.cut
        child.on_tick = self.tick
        child.on_wake = self.hub.queue.serve
        loop.on_error = self.handler_failed
        self.timeouts.start()
        self.acceptor.serve([child.slot])
        self.show_title()
        if child.slot == 0:  # the same for all: said once
            limit = self.hub.settings.maxconns or "none"
            child.log.info("budget", sessions=f"{self.hub.budget} a worker", by="open files", maxconns=limit)
        loop.every(COLLECT, gc.collect)
        gc.disable()

    def tick(self, now: float) -> None:
        """Four times a second, with the heartbeat."""
        if not self.child.draining:
            self.acceptor.serve([self.child.slot, *self.child.adopted()])
        self.hub.process[LOG_DROPPED] = self.child.log.dropped
        self.show_title()

    def show_title(self) -> None:
        now = self.child.loop.now
        self.child.title.set(title_text(self.child.slot, len(self.hub.sessions), self.deadline, now), now)

    # -- drain

    def drain(self, deadline: float) -> None:
        """SIGTERM: see the module's head."""
        if self.deadline:
            return
        loop = self.child.loop
        self.acceptor.empty_queues()
        self.acceptor.serve([])
        self.deadline = deadline
        self._drain_began = loop.now
        self._drain_sessions = len(self.hub.sessions)
        window = f"{max(0.0, deadline - loop.now):.0f}s"
        self.child.log.info("drain", sessions=self._drain_sessions, window=window)
        loop.every(DRAIN_LOOK, self._drain_on)
        loop.call_later(0, self._drain_on)

    def _drain_on(self) -> None:
        now, sessions = self.child.loop.now, self.hub.sessions
        if not sessions:
            self.child.loop.stop()
        elif now < self.deadline:
            self._close_some([session for session in sessions if is_idle(session, now)], IDLE_PART, now)
            living = [session for session in sessions if not session.closed]
            if self.deadline - now <= BUSY_PART * (self.deadline - self._drain_began):
                self._drain_rest = self._drain_rest or len(living)
                self._close_some(living, BUSY_PART, now)

    def _close_some(self, candidates: Sequence[Session], part: float, now: float) -> None:
        """As many of them as are too many by now."""
        sessions = self.hub.sessions
        living = sum(not session.closed for session in sessions)
        began_with = self._drain_sessions if part == IDLE_PART else self._drain_rest
        too_many = living - staying(began_with, self._drain_began, self.deadline, now, part)
        for session in candidates[: max(0, too_many)]:
            session.close(ends.KILLED, "drain: idle" if part == IDLE_PART else "drain: its last part")

    def cut(self) -> None:
        """The deadline, or SIGQUIT."""
        sessions = [session for session in self.hub.sessions if not session.closed]
        if sessions:
            self.child.log.warning("cut", sessions=len(sessions), then="exit")
        for session in sessions:
            session.close(ends.KILLED, "drain-timeout" if self.deadline else "stopped")
        self.child.loop.stop()

    # -- the unforeseen

    def handler_failed(self, fd: int, error: Exception) -> None:
        """A defect must cost one session, not all of them; without a session to blame it costs the process."""
        session = self.hub.session_with(fd)
        if session is None:
            raise error
        text = "".join(traceback.format_exception(error))
        self.child.log.error("fault", client=session.peer_name(), traceback=text, then="close this session")
        session.close(ends.OWN_FAULT, type(error).__name__)


def title_text(slot: int, sessions: int, deadline: float, now: float) -> str:
    """What `ps` shows after the program's name."""
    if deadline:
        return f"worker {slot} draining [{sessions} sessions, {max(0, round(deadline - now))} s left]"
    return f"worker {slot} [{sessions} sessions]"


def staying(sessions: int, began: float, deadline: float, now: float, part: float) -> int:
    """How many of the `sessions` a drain began with may stay at `now`: all until the last `part` of the window, then ever
    fewer; the last one has until the deadline."""
    window = deadline - began
    if window <= 0:
        return 0
    left = (deadline - now) / window
    return sessions if left >= part else max(0, ceil(sessions * left / part))


def is_idle(session: Session, now: float) -> bool:
    """Nothing is under way: both ends silent, nothing held back, and the backend had the last word."""
    activity, splicing = session.activity, session.splicing
    if activity is None or session.closed or (splicing is not None and splicing.is_holding()):
        return False
    return now - activity.last_activity >= IDLE and (activity.answered or not session.given()[0])


def run(child: Child, options: Options, board: Board, backends: Sequence[Backend]) -> int:
    """The role's function: serve until drained or cut; the exit code."""
    worker = Worker(child, options, board, backends)
    worker.start()
    child.ready()
    return child.run()
