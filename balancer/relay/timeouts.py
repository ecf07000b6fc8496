"""What time does to sessions: idle and half-close limits, connect deadlines, awaited answers, bytes made visible.

RULES: no timer per session. Dials wait equally long, so their order is their deadline order; everything else is looked at
in one sweep, at most once a second. Whether a session moved is read off its amounts: the data path never
touches a clock.
"""

from balancer.relay.activity import Activity
from balancer.relay.hub import Hub
from balancer.relay.session import Session
from balancer.relay.sockets import apply

SWEEP = 1.0
FINEST = 0.02
ACKNOWLEDGED = 0.01  # how often awaited acknowledgements are looked for


class TimeoutSweep:
    """One worker's timekeeper."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        settings = hub.settings
        self._idle = settings.idle_timeout
        self._half_close = settings.half_close_timeout
        limits = [limit / 4 for limit in (self._idle, self._half_close) if limit]
        self.interval = max(FINEST, min([SWEEP, *limits]))
        self._look = max(FINEST, min(0.1, settings.connect_timeout / 8))
        self._acknowledging = False

    def start(self) -> None:
        loop = self._hub.loop
        loop.every(self.interval, self.sweep)
        loop.every(self._look, self.look_at_dials)
        self._hub.on_unacknowledged = self.watch_acknowledgements

    def sweep(self) -> None:
        """One look at every session."""
        now = self._hub.loop.now
        for session in list(self._hub.sessions):
            if not session.closed:
                self._look_at(session, now)

    def look_at_dials(self) -> None:
        hub = self._hub
        limit = hub.loop.now - hub.settings.connect_timeout
        while hub.dialling:
            session, since = next(iter(hub.dialling.items()))
            if since > limit:
                break
            session.on_connect_timeout()

    def _look_for_acknowledgements(self) -> None:
        hub = self._hub
        self._acknowledging = False
        for splicing in list(hub.unacknowledged):
            if splicing.session.closed or splicing.may_reset(hub.loop.now):
                del hub.unacknowledged[splicing]
        self.watch_acknowledgements()

    def watch_acknowledgements(self) -> None:
        hub = self._hub
        if hub.unacknowledged and not self._acknowledging:
            self._acknowledging = True
            hub.loop.call_later(ACKNOWLEDGED, self._look_for_acknowledgements)

    def _look_at(self, session: Session, now: float) -> None:
        activity = session.activity
        if activity is None:
            activity = session.activity = Activity(session.accepted_at)
        seen = session.movement()
        if seen != activity.seen:
            activity.seen = seen
            activity.last_activity = now
            activity.answered = session.given()[1] > activity.counted_out
            self._hub.fold(session)
        elif self._is_too_quiet(session, now - activity.last_activity):
            session.close(
                session.blame_for_silence(),
                "half-close-timeout" if session.is_half_closed() else "idle-timeout",
            )
            return
        splicing = session.splicing
        if splicing is not None:
            if splicing.closing_at and now >= splicing.closing_at:
                splicing.end_waiting()
                return
            splicing.nudge()
        if not activity.tuned and session.connected_at and now - session.accepted_at >= 1.0:
            activity.tuned = True
            if session.backend_socket is not None:
                apply(session.backend_socket, self._hub.backend_options)

    def _is_too_quiet(self, session: Session, quiet: float) -> bool:
        if self._idle and quiet >= self._idle:
            return True
        return bool(self._half_close) and quiet >= self._half_close and session.is_half_closed()
