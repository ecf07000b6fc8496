"""What one source may have: sessions at once, and new clients in a period; over all workers of all generations.

RULES: a source is an address, or its network where `source-mask` says so: one customer has a /64 of IPv6. A client
without an address is no source. What was admitted is given back when its session ends.
"""

from collections.abc import Callable

from balancer.edge.access import SIX, number_of
from balancer.options import Listener
from balancer.relay.session import Session
from balancer.shm.source_table import Places, SourceCounts, SourceTable


class SourceLimits:
    """The limits of one listener in one worker."""

    __slots__ = ("_counts", "_held", "_masks", "_maxconn", "_rate", "_table")

    def __init__(self, listener: Listener, table: SourceTable, counts: SourceCounts) -> None:
        self._table, self._counts = table, counts
        self._maxconn, self._rate = listener.source_maxconn, listener.source_rate
        four, six = listener.source_mask
        self._masks = ((1 << 32) - (1 << 32 - four), SIX | (1 << 128) - (1 << 128 - six))
        self._held: dict[Session, Places] = {}

    def why_not(self, session: Session) -> str:
        """Count a client of its source. Return which limit it exceeds, with what the source has; "" admits it."""
        number = number_of(session.source_ip)
        places = self._table.places((number & self._masks[number >= SIX]).to_bytes(17))
        counts, now = self._counts, session.lane.loop.now
        reason = ""
        if self._rate is not None:
            period, elapsed = divmod(now, self._rate.seconds)
            counts.note(places, int(period))
            before = counts.noted(places, int(period) - 1, now) * (1 - elapsed / self._rate.seconds)
            seen = counts.noted(places, int(period), now) + int(before)
            if seen > self._rate.count:
                reason = f"source-rate={seen}/{self._rate}"
        if self._maxconn:
            held = counts.held(places, now)
            if held >= self._maxconn:
                reason = f"source-maxconn={held}/{self._maxconn}"
            else:
                counts.hold(places, 1)
                self._held[session] = places
        return reason

    def giving_back(self, end_session: Callable[[Session], None]) -> Callable[[Session], None]:
        """Return what ends a session of this listener."""

        def end(session: Session) -> None:
            places = self._held.pop(session, None)
            if places is not None:
                self._counts.hold(places, -1)
            end_session(session)

        return end
