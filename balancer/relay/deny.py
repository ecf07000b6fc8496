"""How a listener turns clients away.

RULES: the one place that closes a session because of a rule of its listener; writes the one line about it.
"""

from balancer.eventloop.repeats import RepeatedLine
from balancer.options import MAIN, Listener
from balancer.relay import ends
from balancer.relay.session import Session
from balancer.relay.sockets import forget_on_close, reset_on_close


class Door:
    """How a listener turns clients away."""

    __slots__ = ("_action", "_is_dry", "_name", "_refusals", "_word")

    def __init__(self, listener: Listener, refusals: RepeatedLine) -> None:
        self._word = listener.deny_action
        self._action = {"reset": reset_on_close, "drop": forget_on_close}.get(listener.deny_action)
        self._name = listener.name
        self._refusals = refusals
        self._is_dry = listener.dry_run

    def deny(self, session: Session, reason: str) -> bool:
        """Turn a client away, or with dry-run only say so. Return whether it is gone."""
        if not self._is_dry:
            self.turn_away(session, reason)
            return True
        self._report(session, reason, "nothing: dry-run")
        return False

    def turn_away(self, session: Session, reason: str, end: str = ends.DENIED) -> None:
        """Log it, and close the session as `deny-action` says."""
        self._report(session, reason, self._word)
        if self._action is not None:
            self._action(session.client_fd)
        session.close(end, reason)

    def _report(self, session: Session, reason: str, then: str) -> None:
        where = {} if self._name == MAIN else {"listener": self._name}
        self._refusals.report(client=session.peer_name(), **where, reason=reason, then=then)
