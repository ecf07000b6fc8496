"""One worker process: its relay, its title, and the drain on a stop.

RULES: owns what concerns the process. Bytes and sessions are relay/'s, the choice of a backend pool/'s, signals and
heartbeat prefork/'s.

A drain: accept what already waits in the queues, accept no more, let sessions end by themselves. In the second half of
the window idle sessions are closed, spread over it, so that their clients do not all come back in the same moment; in
its last quarter the busy ones as well, oldest first, for the same reason; in framed mode they get the replies that are
under way. A session that has no backend yet is not idle and is the last to be closed. At the deadline the rest is cut.
Every session that did not end by itself counts as cut. --drain-spread no leaves every session the whole window. After a
reload the window may have no end: all sessions end by themselves then, unless the master sets an end later.
"""

import gc
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import ceil, inf

from balancer.config.units import counted
from balancer.options import MAIN, Options
from balancer.pool.board import LOG_DROPPED, Board
from balancer.prefork.child import Child
from balancer.prefork.sockets import ListeningSocket
from balancer.relay import ends
from balancer.relay.assembly import WorkerRelay
from balancer.relay.context import TlsContexts, WorkerContext
from balancer.relay.framed.client import FramedClient
from balancer.relay.session import Session

ShowSessions = Callable[[Child, WorkerContext[Session]], object]
DRAIN_LOOK = 0.1
IDLE_PART, BUSY_PART = 0.5, 0.25  # of the window, at its end: when idle and busy sessions are closed
LAST_PART = 1 / 8  # of the window: the last clients of framed mode begin no further request
IDLE = 1.0  # seconds without a byte that make a session idle for the drain
IDLE_LOOKS = round(IDLE / DRAIN_LOOK)
COLLECT = 600.0  # seconds between collections: sessions leave no cycles, so this finds only what is a defect


class RelayWorker:
    """One process of the role `worker`."""

    def __init__(self, child: Child, options: Options, board: Board, tls: TlsContexts) -> None:
        self.child = child
        self.options = options
        self.tls = tls
        self.context: WorkerContext[Session] = WorkerContext(child.loop, board, child.row, child.log)
        listeners, pools = options.listeners, options.pools
        self.relay = WorkerRelay(self.context, listeners, pools, self._sockets_of, child.wake, tls=tls)
        self.relay.recorder.one_in = options.process.recorded_one_in
        self._refused_certificates: dict[str, str] = {}  # listener -> why, as it was logged last
        self.deadline = 0.0
        self._drain_began = 0.0
        self._drain_sessions = 0
        self._drain_rest = 0  # sessions when the busy ones' turn came
        self._drain_looks = DrainLooks(IDLE_LOOKS)

    def start(self) -> None:
        """Do everything up to the moment when the first client can be served."""
        child, loop = self.child, self.child.loop
        child.on_drain = self.drain
        child.on_deadline = self.drain_until
        child.on_cut = self.cut
        child.on_tick = self.tick
        child.on_wake = self.relay.look_for_places
        child.on_new_sockets = self.relay.refresh
        loop.on_error = self.handler_failed
        self.relay.timeouts.start()
        self.relay.recorder.look(loop.now)
        self.relay.serve([child.slot])
        self.show_title()
        if child.slot == 0:  # the same for all workers: logged once
            limits = ",".join(limit_text(one.name, one.maxconns) for one in self.options.listeners)
            budget = f"{self.context.budget} a worker"
            child.log.info("budget", sessions=budget, by="open files", maxconns=limits)
        loop.every(COLLECT, gc.collect)
        gc.disable()

    def tick(self, now: float) -> None:
        """Look around, four times a second, with the heartbeat."""
        if not self.child.draining:
            self.relay.serve([self.child.slot, *self.child.adopted()])
        self.relay.close_downed()
        self.relay.recorder.look(now)
        self.take_certificates()
        self.context.cells[LOG_DROPPED] = self.child.log.dropped
        self.show_title()

    def take_certificates(self) -> None:
        """New handshakes begin with the certificates that the master has renewed; open sessions go on."""
        for name, table in self.tls.listeners.items():
            try:
                if table.take_renewed():
                    self._refused_certificates.pop(name, None)
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                then = "the certificates before stay, and these are tried again"
                if self._refused_certificates.get(name) != str(error):
                    self.child.log.error("reload", listener=name, error=str(error), then=then)
                self._refused_certificates[name] = str(error)

    def show_title(self) -> None:
        now = self.child.loop.now
        title = title_text(self.child.slot, len(self.context.sessions), self.deadline, now)
        self.child.title.set(title, now)

    def _sockets_of(self, listener: str) -> Iterator[ListeningSocket]:
        """Yield a listener's listening sockets, of all slots."""
        return (one for many in self.child.listening.values() for one in many if one.name == listener)

    # -- drain

    def drain(self, deadline: float) -> None:
        """SIGTERM: see the module's head."""
        if self.deadline:
            return
        loop = self.child.loop
        self.relay.accept_waiting()
        self.relay.serve([])
        self.drain_until(deadline)
        loop.every(DRAIN_LOOK, self._drain_on)
        loop.call_later(0, self._drain_on)

    def drain_until(self, deadline: float) -> None:
        """A window from now on; its end may be never."""
        now = self.child.loop.now
        self.deadline, self._drain_began = deadline, now
        self._drain_sessions, self._drain_rest = len(self.context.sessions), 0
        window = max(0.0, deadline - now)
        if window < inf:
            self._drain_looks = DrainLooks(min(IDLE_LOOKS, int(window * IDLE_PART / DRAIN_LOOK)))
        shown = "none" if window == inf else f"{window:.0f}s"
        self.child.log.info("drain", sessions=self._drain_sessions, window=shown)

    def _drain_on(self) -> None:
        now, sessions = self.child.loop.now, self.context.sessions
        if not sessions and not self.relay.undecided:
            self.child.loop.stop()
        elif self.options.process.drain_spread and now < self.deadline < inf:
            looks = self._drain_looks
            looks.look(sessions)
            idle = [session for session in sessions if is_idle(session, now) and looks.are_quiet(session)]
            self._close_some(idle, IDLE_PART, now)
            living = [session for session in sessions if not session.closed]
            left, window = self.deadline - now, self.deadline - self._drain_began
            if left <= LAST_PART * window:
                for session in living:
                    if isinstance(session.splicing, FramedClient):
                        end_session(session, "drain: its last part")
            if left <= BUSY_PART * window:
                self._drain_rest = self._drain_rest or len(living)
                self._close_some(
                    sorted(living, key=lambda one: one.backend is None and one.splicing is None),
                    BUSY_PART,
                    now,
                )

    def _close_some(self, candidates: Sequence[Session], part: float, now: float) -> None:
        """Close as many of them as are too many by now."""
        living = sum(not session.closed for session in self.context.sessions)
        began_with = self._drain_sessions if part == IDLE_PART else self._drain_rest
        too_many = living - staying(began_with, self._drain_began, self.deadline, now, part)
        for session in candidates[: max(0, too_many)]:
            end_session(session, "drain: idle" if part == IDLE_PART else "drain: its last part")

    def cut(self) -> None:
        """Close every session: at the deadline, or on SIGQUIT."""
        sessions = [session for session in self.context.sessions if not session.closed]
        if sessions:
            self.child.log.warning("cut", sessions=len(sessions), then="exit")
        reason = "drain-timeout" if self.deadline else "stopped"
        for session in sessions:
            session.close(ends.KILLED, reason)
        self.relay.refuse_undecided(reason)
        self.child.loop.stop()

    # -- defects

    def handler_failed(self, fd: int, error: Exception) -> None:
        """Close the session whose handler has raised: a defect costs one session. Without a session to blame it costs
        the process."""
        session = self.relay.session_with(fd)
        if session is None:
            raise error
        text = "".join(traceback.format_exception(error))
        self.child.log.error("fault", client=session.peer_name(), traceback=text, then="close this session")
        session.close(ends.OWN_FAULT, type(error).__name__)


def limit_text(listener: str, maxconns: int) -> str:
    """Return a listener's limit for the log; the listener `main` needs no name."""
    limit = str(maxconns or "none")
    return limit if listener == MAIN else f"{listener}:{limit}"


def title_text(slot: int, sessions: int, deadline: float, now: float) -> str:
    """Return what `ps` shows after the program's name."""
    shown = counted(sessions, "session")
    if deadline == inf:
        return f"worker {slot} draining [{shown}]"
    if deadline:
        return f"worker {slot} draining [{shown}, {max(0, round(deadline - now))} s left]"
    return f"worker {slot} [{shown}]"


def staying(sessions: int, began: float, deadline: float, now: float, part: float) -> int:
    """Return how many of the `sessions` a drain began with may stay at `now`: all until the last `part` of the window,
    then ever fewer; the last one has until the deadline."""
    window = deadline - began
    if window <= 0:
        return 0
    left = (deadline - now) / window
    return sessions if left >= part else max(0, ceil(sessions * left / part))


def end_session(session: Session, reason: str) -> None:
    """Close a session; in framed mode behind the replies that are under way."""
    relay = session.splicing
    if isinstance(relay, FramedClient):
        relay.finish(reason)
    else:
        session.close(ends.KILLED, reason)


class DrainLooks:
    """Whether a session has stood still over so many looks of the drain's own. A worker that was stopped for a while has
    looked at nothing meanwhile, so that its silence is not taken for its sessions'."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._seen: dict[Session, tuple[int, int]] = {}  # movement, and looks since it changed

    def look(self, sessions: Iterable[Session]) -> None:
        """Look at every session once."""
        seen = self._seen
        self._seen = {}
        for session in sessions:
            movement = session.movement()
            before, looks = seen.get(session, (movement, -1))
            self._seen[session] = movement, looks + 1 if movement == before else 0

    def are_quiet(self, session: Session) -> bool:
        """Return whether the last looks have seen the same."""
        return self._seen[session][1] >= self._looks


def is_idle(session: Session, now: float) -> bool:
    """Return whether nothing is under way: it has a backend, both sides are silent, nothing is held back, and the backend
    had the last word."""
    activity, relay = session.activity, session.splicing
    if activity is None or session.closed or (session.backend is None and relay is None):
        return False
    if session.movement() != activity.movement or (relay is not None and relay.is_holding()):
        return False
    return now - activity.last_activity >= IDLE and (activity.answered or not session.given()[0])


def run(child: Child, options: Options, board: Board, tls: TlsContexts, show_sessions: ShowSessions) -> int:
    """Serve until drained or cut; return the exit code. The function of the role. `show_sessions` begins to answer the
    console; it raises OSError when it cannot."""
    worker = RelayWorker(child, options, board, tls)
    worker.start()
    try:
        show_sessions(child, worker.context)
    except OSError as error:
        child.log.warning("bind", error=error.strerror, then="`balancerctl sessions` lacks this worker's")
    child.ready()
    return child.run()
