"""The last clients that were refused and sessions that have failed, each with its place and reason: for `balancerctl
errors`.

RULES
- Nothing here runs for a session that ends well, or that its client or an operator has ended.
- A few of each second and kind are recorded, then one with how many were left out (`omitted`); the text is made for those
  only, so that a crowd that is turned away costs hardly more than a counter.
- The ring is shared memory of the kind of the events', so that it outlives the process that wrote. One writer per ring.

    refuse   client listener reason ...                 closed at the accept, without a session
    session  client listener pool backend end reason id
"""

from functools import partial
from typing import Any

from balancer.eventloop.log_format import value_text
from balancer.eventloop.repeats import RepeatedLine
from balancer.relay import ends
from balancer.relay.context import WorkerContext
from balancer.relay.session import Session
from balancer.relay.session_line import UNROUTED, session_id

# Neither we nor a backend has failed: the client has left or is silent, or somebody here wanted the end.
NO_FAILURES = frozenset(
    (ends.CLIENT_LEFT_CONNECTING, ends.CLIENT_LEFT_QUEUED, ends.CLIENT_RESET, ends.CLIENT_IDLE, ends.KILLED)
)


class FailureRecorder:
    """Records those of one listener in one worker."""

    def __init__(self, context: WorkerContext[Session]) -> None:
        self._loop, self._ring, self._row = context.loop, context.board.failures, context.row
        self.refused = RepeatedLine(context.loop, partial(self._write, "refuse")).report
        self._sessions = RepeatedLine(context.loop, self._write_session)

    def ended(self, session: Session) -> None:
        """A session has not ended cleanly."""
        if session.end not in NO_FAILURES:
            self._sessions.report(session=session)

    def _write_session(self, session: Session, **omitted: Any) -> None:
        lane, backend = session.lane, session.backend
        pool = "" if session.end in UNROUTED else lane.pool_name
        self._write(
            "session", client=session.peer_name(), listener=lane.listener_name, pool=pool,
            backend=backend.name if backend is not None else "", end=session.end, reason=session.reason,
            id=session_id(session), **omitted,
        )  # fmt: skip

    def _write(self, kind: str, **fields: object) -> None:
        text = " ".join(f"{key}={value_text(value)}" for key, value in fields.items() if value != "")
        self._ring.append(self._row, kind, text, 0, int(self._loop.now * 1000))
