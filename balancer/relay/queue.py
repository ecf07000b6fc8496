"""Clients waiting for a place at a backend, because every eligible one has its `maxconn` sessions.

RULES: first come first served in this worker; over the workers whoever waits longest is rung when a place is freed.
Bounded in number and time. A bell can be lost (its ringer killed), so the room also looks by itself every LOOK seconds
while somebody waits.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from balancer.eventloop.timers import Timer
from balancer.pool.board import P_OLDEST_WAIT_MS, P_QUEUED, P_QUEUED_TOTAL
from balancer.relay import ends

if TYPE_CHECKING:
    from balancer.relay.dial import Dial
    from balancer.relay.hub import Hub

LOOK = 0.05


class PendingQueue:
    """One worker's queue. `ring(row)` wakes another worker."""

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub
        self.since: dict[Dial, float] = {}
        self._timer: Timer | None = None
        self.wake: Callable[[int], object] = lambda row: None

    def enqueue(self, session: "Dial") -> None:
        """Queue it, or close it when the room is full or nobody may wait. Who already waits keeps the place."""
        hub = self._hub
        if session in self.since:
            return
        if not hub.settings.queue_timeout or len(self.since) >= hub.settings.max_queue:
            session.close(ends.QUEUE_TIMEOUT, f"queue={len(self.since)}/{hub.settings.max_queue}")
            return
        self.since[session] = hub.loop.now
        hub.pool_cells[P_QUEUED_TOTAL] += 1
        self._show()
        if self._timer is None:
            self._timer = hub.loop.every(LOOK, self._look)

    def remove(self, session: "Dial") -> None:
        """It got its backend, or is closed."""
        if self.since.pop(session, None) is not None:
            self._show()

    def serve(self) -> None:
        """Dial for the longest waiting, as long as there are places."""
        while self.since:
            session = next(iter(self.since))
            if session.closed:
                self.remove(session)
                continue
            session.dial()
            if session in self.since and not session.closed:
                return

    def place_freed(self) -> None:
        """This worker has released a place at a limited backend: it goes to whoever waits longest, here or elsewhere."""
        hub = self._hub
        row = hub.board.longest_waiting_row(hub.pool, but=hub.row)
        if row is not None:
            theirs = hub.board.cells[row * hub.board.columns + hub.board.pool_at(hub.pool) + P_OLDEST_WAIT_MS]
            ours = hub.pool_cells[P_OLDEST_WAIT_MS]
            if not ours or theirs < ours:
                self.wake(row)
                return
        self.serve()

    def _look(self) -> None:
        hub = self._hub
        limit = hub.loop.now - hub.settings.queue_timeout
        for session, since in list(self.since.items()):
            if since > limit:
                break
            session.close(ends.QUEUE_TIMEOUT, "queue-timeout")
            self.remove(session)
        self.serve()
        if not self.since and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _show(self) -> None:
        cells = self._hub.pool_cells
        cells[P_QUEUED] = len(self.since)
        oldest = next(iter(self.since.values()), 0.0)
        cells[P_OLDEST_WAIT_MS] = int(oldest * 1000)
