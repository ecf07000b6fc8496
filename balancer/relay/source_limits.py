"""Limits per source: sessions at once and new clients in a period, over all workers of all generations.

RULES: a source is an address or, with `source-mask`, its network: one customer has a /64 of IPv6. Clients of unix sockets
have no source. An admitted session is counted until it ends. What others hold is read before the own client is counted:
of two workers that did it in the other order, each would see the other's and refuse the last client within the limit.
"""

from collections.abc import Callable
from functools import partial

from balancer.edge.access import SIX, number_of
from balancer.options import Listener
from balancer.relay.session import Session
from balancer.shm.source_names import LIMITS, Source
from balancer.shm.source_table import SourceCells, SourceCounts

MAXCONN, RATE = range(len(LIMITS))


class SourceLimits:
    """The limits of one listener in one worker."""

    __slots__ = ("_counts", "_held", "_masks", "_maxconn", "_rate")

    def __init__(self, listener: Listener, counts: SourceCounts) -> None:
        self._counts = counts
        self._maxconn, self._rate = listener.source_maxconn, listener.source_rate
        four, six = listener.source_mask
        self._masks = ((1 << 32) - (1 << 32 - four), SIX | (1 << 128) - (1 << 128 - six))
        self._held: dict[Session, SourceCells] = {}

    def why_not(self, session: Session) -> str:
        """Count a new client of its source. Return the limit that it exceeds, as for the log; "" admits it."""
        number = number_of(session.source_ip)
        source = (number & self._masks[number >= SIX]).to_bytes(17)
        counts, now = self._counts, session.lane.loop.now
        cells = counts.cells_of(source)
        reason, limit = "", None
        if self._rate is not None:
            seen = counts.clients_within(cells, self._rate.seconds, now) + 1
            counts.add_client(cells, int(now // self._rate.seconds))
            if seen > self._rate.count:
                reason, limit = f"source-rate={seen}/{self._rate}", RATE
        held = counts.sessions(cells, now)
        if self._maxconn and held >= self._maxconn:
            reason, limit = f"source-maxconn={held}/{self._maxconn}", MAXCONN
        else:
            counts.add_sessions(cells, 1)
            self._held[session] = cells
            counts.own_names.note_busy(source, held + 1, partial(self._sessions_of, now))
        if limit is not None:
            counts.own_names.note_refused(source, limit, now)
        return reason

    def _sessions_of(self, now: float, source: Source) -> int:
        return self._counts.sessions(self._counts.cells_of(source), now)

    def releasing(self, end_session: Callable[[Session], None]) -> Callable[[Session], None]:
        """Return an `end_session` that stops counting the session first."""

        def end(session: Session) -> None:
            cells = self._held.pop(session, None)
            if cells is not None:
                self._counts.add_sessions(cells, -1)
            end_session(session)

        return end
