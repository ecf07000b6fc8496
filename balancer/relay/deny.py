"""Refuse clients by a rule of their listener: access lists, limits of sources, wrong first bytes, no route.

RULES: every such close goes through DenyAction, which writes its log line and counts it by the rule. A handshake that
fails has counts of its own.
"""

from balancer.eventloop.repeats import RepeatedLine
from balancer.options import MAIN, Listener
from balancer.relay import ends
from balancer.relay.session import Session
from balancer.relay.sockets import forget_on_close, reset_on_close


class DenyAction:
    """What `deny-action` and `dry-run` of a listener say."""

    __slots__ = ("_action", "_is_dry", "_name", "_refusals", "_word")

    def __init__(self, listener: Listener, refusals: RepeatedLine) -> None:
        self._word = listener.deny_action
        self._action = {"reset": reset_on_close, "drop": forget_on_close}.get(listener.deny_action)
        self._name = listener.name
        self._refusals = refusals
        self._is_dry = listener.dry_run

    def deny(self, session: Session, reason: str) -> bool:
        """Refuse a client, or only log it with dry-run. Return whether the session is closed."""
        if not self._is_dry:
            self.refuse(session, reason)
            return True
        self._count(session, reason)
        self._report(session, reason, "nothing: dry-run")
        return False

    def refuse(self, session: Session, reason: str, end: str = ends.DENIED) -> None:
        """Log the refusal and close the session as `deny-action` says."""
        self._count(session, reason)
        self._report(session, reason, self._word)
        if self._action is not None:
            self._action(session.client_fd)
        session.close(end, reason)

    def dismiss(self, session: Session, reason: str, end: str = ends.DENIED) -> None:
        """Log the refusal of a client that has been told why, and close: a reset would overtake that."""
        self._report(session, reason, "close")
        session.close(end, reason)

    def _count(self, session: Session, reason: str) -> None:
        """The reason of a rule begins with its name; every other is about the client's first bytes."""
        rule = reason.partition("=")[0]
        session.lane.account.denied(rule if rule in ends.DENIALS else "first-bytes")

    def _report(self, session: Session, reason: str, then: str) -> None:
        where = {} if self._name == MAIN else {"listener": self._name}
        self._refusals.report(client=session.peer_name(), **where, reason=reason, then=then)
