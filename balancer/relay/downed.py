"""Ends the sessions of backends that have gone down, in pools with `on-down = close`.

RULES: one for each such pool in a worker; looks four times a second, and costs one comparison while nothing has changed.
Only sessions that are connected end here: a dial that fails goes to another backend. A backend that was down before is
left alone: in panic it is given sessions all the same.
"""

from collections.abc import Iterable

from balancer.options import Pool
from balancer.pool.board import W_TENANT, Board
from balancer.pool.election import Elector
from balancer.pool.serving import state_of
from balancer.relay import ends
from balancer.relay.session import Session


class DownedBackends:
    """The backends of one pool, and which of them are known to be down."""

    def __init__(self, board: Board, pool: Pool, elector: Elector) -> None:
        self._board, self._pool, self._elector = board, pool, elector
        self._versions = (-1, -1)
        self._down: frozenset[int] = frozenset()

    def look(self, sessions: Iterable[Session]) -> None:
        """Close what has to end, if a verdict has changed."""
        versions = self._board.versions(self._pool.index)
        if versions == self._versions or versions[0] & 1:
            return
        self._versions = versions
        before = self._down
        self._down = frozenset(
            one.index for one in self._pool.backends if state_of(self._board, one) == "down"
        )
        if fresh := self._down - before:
            for session in list(sessions):
                if self._is_at(session, fresh):
                    session.close(ends.BACKEND_DOWN, "backend is down")

    def _is_at(self, session: Session, backends: frozenset[int]) -> bool:
        backend = session.backend
        return (
            backend is not None
            and backend.index in backends
            and backend.parity == self._board.word(backend.index, W_TENANT) & 1  # else of the tenant before
            and session.lane.elector is self._elector
            and session.connected_at > 0
            and not session.closed
        )
