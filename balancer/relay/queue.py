"""Clients that wait for a place at a pool's backends, because every eligible one has its `maxconn` sessions ("full"), or
because that cannot be told now ("busy": the lock of a limit is held by a process that does not go on).

RULES: first come first served in one worker; over the workers of the pool, a freed place goes to the client that has
waited longest. Bounded in number and time; with queue-timeout 0 or max-queue 0 the full refuse at once, and the others
wait for UNDECIDED at most. A wake-up (SIGURG) can be lost when its sender is killed, so a worker also
looks for places itself every LOOK seconds while clients wait.
"""

from collections.abc import Callable
from itertools import islice
from typing import Protocol

from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer
from balancer.options import Pool
from balancer.pool.board import P_OLDEST_WAIT_MS, P_QUEUED, P_QUEUED_TOTAL, P_WAIT_TIMES, Board
from balancer.relay import ends
from balancer.shm.histogram import Histogram

LOOK = 0.05
SOON = 0.01  # seconds until a backend without room in its accept queue is dialled again
# Seconds that a client without a queue waits until it can be told whether it has a place: a process that is stopped with
# a lock is killed as hung before that.
UNDECIDED = 5.0


class QueuedSession(Protocol):
    """What the queue needs of a session."""

    closed: bool
    waited: float  # seconds in this queue

    def dial(self) -> None: ...
    def close(self, end: str, reason: str = "") -> None: ...


class PendingQueue:
    """One pool's queue in one worker. `wake(row)` wakes the worker of another row."""

    def __init__(self, loop: Loop, board: Board, row: int, pool: Pool, wake: Callable[[int], object]) -> None:
        self._loop = loop
        self._board = board
        self._row = row
        self._pool = pool.index
        self._at = board.pool_at(pool.index)
        self._cells = board.counts.row(row)[self._at : board.pool_at(pool.index + 1)]
        self._waits = Histogram(self._cells[P_WAIT_TIMES:])
        self._timeout = pool.queue_timeout
        self._max_queue = pool.max_queue
        self._wake = wake
        self._timer: Timer | None = None
        self._soon: Timer | None = None
        self.since: dict[QueuedSession, float] = {}
        self._ahead: dict[QueuedSession, None] = {}  # those that go first, in their order
        self._why: dict[QueuedSession, str] = {}  # why those wait that do not wait for a place

    @property
    def why(self) -> str:
        """What those wait for that join a queue: as those before them."""
        return next(iter(self._why.values()), "full")

    def enqueue(self, session: QueuedSession, why: str, goes_first: bool = False) -> None:
        """Queue a session, or close it when it may not wait for a place. One that is queued keeps its place. `why` is the
        election's. One that `goes_first` has had a place before,
        and waits behind those before it that have."""
        is_new = session not in self.since
        if why != "full":
            self._why[session] = why
        else:
            begins = self._why.pop(session, None) is not None or is_new  # to wait for a place
            limit = self._board.max_queue_of(self._pool, self._max_queue)  # a reload may have changed it
            if not self._timeout or (begins and not limit) or (is_new and len(self.since) >= limit):
                waiting = len(self.since) - (not is_new)
                session.close(ends.QUEUE_TIMEOUT, f"queue={waiting}/{limit}")
                return
        if not is_new:
            return
        if goes_first:
            ahead = {one: self.since[one] for one in self._ahead}
            self.since = ahead | {session: self._loop.now} | self.since
            self._ahead[session] = None
        else:
            self.since[session] = self._loop.now
        self._cells[P_QUEUED_TOTAL] += 1
        self._show()
        if self._timer is None:
            self._timer = self._loop.every(LOOK, self._look)

    def look_soon(self) -> None:
        """Look for a place again before the regular look: a backend had none for the moment."""
        if self._soon is None:
            self._soon = self._loop.call_later(SOON, self._look_again)

    def _look_again(self) -> None:
        self._soon = None
        self.serve()

    def remove(self, session: QueuedSession) -> None:
        """Take a session out: it has a backend, or it is closed."""
        since = self.since.pop(session, None)
        if since is not None:
            self._why.pop(session, None)
            self._ahead.pop(session, None)
            waited = self._loop.now - since
            session.waited += waited
            self._waits.observe(waited)
            self._show()

    def serve(self) -> None:
        """Dial for the sessions that wait, the oldest first, as long as there are places."""
        while self.since:
            session = next(iter(self.since))
            if session.closed:
                self.remove(session)
                continue
            session.dial()
            if session in self.since and not session.closed:
                return

    def place_freed(self) -> None:
        """Give a place that this worker has freed to the client that has waited longest, here or in another worker."""
        row = self._board.longest_waiting_row(self._pool, but=self._row)
        if row is not None:
            theirs = self._board.counts.row(row)[self._at + P_OLDEST_WAIT_MS]
            ours = self._cells[P_OLDEST_WAIT_MS]
            if not ours or theirs < ours:
                self._wake(row)
                return
        self.serve()

    def _look(self) -> None:
        """Close the sessions that have waited too long; look for a place for the others."""
        limit = self._loop.now - (self._timeout or UNDECIDED)
        for session, since in list(self.since.items()):
            if since > limit:
                continue  # not the last one: some go first
            why = self._why.get(session, "")
            session.close(ends.QUEUE_TIMEOUT, f"queue-timeout: {why}" if why else "queue-timeout")
            self.remove(session)
        self.serve()
        if not self.since and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _show(self) -> None:
        """Publish the length and the oldest wait."""
        self._cells[P_QUEUED] = len(self.since)
        first = islice(
            self.since.values(), len(self._ahead) + 1
        )  # behind those that go first is the oldest other one
        oldest = min(first, default=0.0)
        self._cells[P_OLDEST_WAIT_MS] = int(oldest * 1000)
