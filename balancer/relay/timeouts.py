"""Limits in time: idle and half-closed sessions, connects, awaited acknowledgements; and bytes made visible on the board.

RULES: no timer per session. The connects of a pool wait equally long, so their order is the order of their deadlines.
The rest is looked at in one sweep, at most once a second. Whether a session has moved follows from its amounts: the
data path reads no clock.
- A sweep is done in slices of sessions, one a turn of the loop: of 5,000 sessions that lasted it was a turn of 34 ms.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from balancer.relay import ends
from balancer.relay.activity import Activity
from balancer.relay.context import WorkerContext
from balancer.relay.pauses import PauseGuard
from balancer.relay.session import Session
from balancer.relay.sockets import apply
from balancer.relay.splicing import CLIENT, SplicingRelay

SWEEP = 1.0
SLICE = 128  # sessions a turn; one that gets its keepalive options costs 7 us
FINEST = 0.02
ACKNOWLEDGED = 0.01  # seconds between two looks at awaited acknowledgements
LASTING = 1.0  # seconds after which a session's backend is worth its keepalive options (four system calls)

# A pool's connects under way (sessions, or connections of framed mode), and its connect-timeout.
Dials = tuple[Mapping[Any, float], float]


class TimeoutSweep:
    """One worker's limits in time. `limits` are all idle, half-close and user timeouts of its listeners, 0 is none."""

    def __init__(
        self, context: WorkerContext[Session], limits: Sequence[float], dials: Sequence[Dials]
    ) -> None:
        self._context = context
        self._dials = dials
        self._unacknowledged: dict[SplicingRelay, None] = {}
        self._is_looking = False
        self._rest: Iterator[Session] | None = None  # of the sweep under way
        self.interval = max(FINEST, min([SWEEP, *(limit / 4 for limit in limits if limit)]))
        self.pauses = PauseGuard(self.interval)

    def start(self) -> None:
        """Begin to look; called once the loop runs."""
        loop = self._context.loop
        loop.every(self.interval, self.sweep)
        shortest = min((timeout for _, timeout in self._dials), default=SWEEP)
        loop.every(max(FINEST, min(0.1, shortest / 8)), self.look_at_dials)

    def sweep(self) -> None:
        """Look at every session once: at a slice now, at the others in the next turns."""
        if self._rest is None:
            self._rest = iter(list(self._context.sessions))
            self._go_on(self._rest)

    def _go_on(self, rest: Iterator[Session]) -> None:
        loop = self._context.loop
        now, some = loop.now, list(islice(rest, SLICE))
        for session in some:
            if not session.closed:
                self._look_at(session, now)
        if len(some) < SLICE:
            self._rest = None
        else:
            loop.call_next_turn(lambda: self._go_on(rest))

    def look_at_dials(self) -> None:
        """End the connects that have taken too long."""
        now = self._context.loop.now
        for dialling, timeout in self._dials:
            while dialling:
                session, since = next(iter(dialling.items()))
                if since > now - timeout:
                    break
                session.on_connect_timeout()

    def await_acknowledgement(self, relay: SplicingRelay) -> None:
        """Call `may_reset` soon, until it returns True."""
        self._unacknowledged[relay] = None
        self._look_again()

    def _look_again(self) -> None:
        if self._unacknowledged and not self._is_looking:
            self._is_looking = True
            self._context.loop.call_later(ACKNOWLEDGED, self._look_for_acknowledgements)

    def _look_for_acknowledgements(self) -> None:
        self._is_looking = False
        now = self._context.loop.now
        for relay in list(self._unacknowledged):
            if relay.session.closed or relay.may_reset(now):
                del self._unacknowledged[relay]
        self._look_again()

    def _look_at(self, session: Session, now: float) -> None:
        activity = session.activity
        if activity is None:
            activity = session.activity = Activity(session.accepted_at)
        movement = session.movement()
        has_moved = movement != activity.movement
        if activity.has_probes and (has_moved or activity.is_under_way):
            self._look_at_peers(session, activity, now)
        if has_moved:
            activity.movement = movement
            activity.last_activity = now
            activity.answered = session.given()[1] > activity.counted_out
            count_progress(session)
        elif is_too_quiet(session, now - activity.last_activity):
            reason = "half-close-timeout" if is_half_closed(session) else "idle-timeout"
            session.close(blame_for_silence(session), reason)
            return
        relay = session.splicing
        if relay is not None:
            if relay.closing_at and now >= relay.closing_at:
                relay.end_waiting()
                return
            relay.nudge()
        if not activity.has_probes and session.connected_at and now - session.accepted_at >= LASTING:
            self._set_probes(session, activity, now)

    def _set_probes(self, session: Session, activity: Activity, now: float) -> None:
        """Give the sockets of a session that lasts what detects a dead peer."""
        activity.has_probes = True
        lane = session.lane
        if session.backend_socket is not None:
            apply(session.backend_socket, lane.backend_options)
        # A window may be closed since the accept; the first look at one that is open sets the user timeout as configured.
        activity.client_paused_since = activity.backend_paused_since = session.accepted_at
        self._look_at_peers(session, activity, now)

    def _look_at_peers(self, session: Session, activity: Activity, now: float) -> None:
        """Learn what is under way to either peer, and keep those that pause."""
        limit, look = session.lane.user_timeout, self.pauses.look
        to_client, activity.client_paused_since = look(
            session.client_fd, activity.client_paused_since, now, limit
        )
        to_backend, activity.backend_paused_since = look(
            session.backend_fd, activity.backend_paused_since, now, limit
        )
        activity.is_under_way = to_client or to_backend


def count_progress(session: Session) -> None:
    """Put what a session has moved since the last time on the board."""
    lane, backend, relay, activity = session.lane, session.backend, session.splicing, session.activity
    bytes_in, bytes_out = session.given() if activity is None else activity.uncounted(session.given())
    lane.account.moved(bytes_in, bytes_out)
    if backend is not None:
        lane.elector.count_bytes(backend, bytes_in, bytes_out)
    if relay is not None:
        lane.account.paused(*relay.uncounted_pauses())


def is_too_quiet(session: Session, quiet: float) -> bool:
    """Return whether `quiet` seconds without a byte are over the session's limits. The half-close limit is for a peer
    that has been given everything; one with bytes to take has the idle limit."""
    lane, activity = session.lane, session.activity
    if lane.idle_timeout and quiet >= lane.idle_timeout:
        return True
    if not lane.half_close_timeout or quiet < lane.half_close_timeout or not is_half_closed(session):
        return False
    relay = session.splicing
    return not (activity is not None and activity.is_under_way) and not (
        relay is not None and relay.is_holding()
    )


def blame_for_silence(session: Session) -> str:
    """Return the end of a session in which nothing has moved for too long: the side whose turn it was."""
    relay = session.splicing
    is_backends = session.over == CLIENT if relay is None else relay.is_backends_turn()
    return ends.BACKEND_IDLE if is_backends and (relay or session.backend_fd >= 0) else ends.CLIENT_IDLE


def is_half_closed(session: Session) -> bool:
    """Return whether one side of a session has ended."""
    return bool(session.over) if session.splicing is None else session.splicing.is_half_closed()
