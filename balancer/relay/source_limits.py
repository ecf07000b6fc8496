"""Limits per source: sessions at once and new clients in a period, over all workers of all generations.

RULES: a source is an address or, with `source-mask`, its network: one customer has a /64 of IPv6. Clients of unix sockets
have no source. An admitted session is counted until it ends.
"""

from collections.abc import Callable

from balancer.edge.access import SIX, number_of
from balancer.options import Listener
from balancer.relay.session import Session
from balancer.shm.source_table import SourceCells, SourceCounts, SourceTable


class SourceLimits:
    """The limits of one listener in one worker."""

    __slots__ = ("_counts", "_held", "_masks", "_maxconn", "_rate", "_table")

    def __init__(self, listener: Listener, table: SourceTable, counts: SourceCounts) -> None:
        self._table, self._counts = table, counts
        self._maxconn, self._rate = listener.source_maxconn, listener.source_rate
        four, six = listener.source_mask
        self._masks = ((1 << 32) - (1 << 32 - four), SIX | (1 << 128) - (1 << 128 - six))
        self._held: dict[Session, SourceCells] = {}

    def why_not(self, session: Session) -> str:
        """Count a new client of its source. Return the limit that it exceeds, as for the log; "" admits it."""
        number = number_of(session.source_ip)
        cells = self._table.cells_of((number & self._masks[number >= SIX]).to_bytes(17))
        counts, now = self._counts, session.lane.loop.now
        reason = ""
        if self._rate is not None:
            period, elapsed = divmod(now, self._rate.seconds)
            counts.add_client(cells, int(period))
            before = counts.clients(cells, int(period) - 1, now) * (1 - elapsed / self._rate.seconds)
            seen = counts.clients(cells, int(period), now) + int(before)
            if seen > self._rate.count:
                reason = f"source-rate={seen}/{self._rate}"
        if self._maxconn:
            held = counts.sessions(cells, now)
            if held >= self._maxconn:
                reason = f"source-maxconn={held}/{self._maxconn}"
            else:
                counts.add_sessions(cells, 1)
                self._held[session] = cells
        return reason

    def releasing(self, end_session: Callable[[Session], None]) -> Callable[[Session], None]:
        """Return an `end_session` that stops counting the session first."""

        def end(session: Session) -> None:
            cells = self._held.pop(session, None)
            if cells is not None:
                self._counts.add_sessions(cells, -1)
            end_session(session)

        return end
