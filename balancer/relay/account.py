"""The counts of one listener in its worker's row.

RULES: writes the count cells of a listener, but for those of sessions that have ended: the closer adds up a batch of them
itself. Counts and decides nothing else.
"""

from balancer.pool.board import (
    L_ACCEPTED,
    L_BYTES_IN,
    L_BYTES_OUT,
    L_DENIALS,
    L_ENDS,
    L_HANDSHAKE_TIMES,
    L_PAUSES,
    L_REFUSED,
    L_RESUMES,
    L_RETRIES,
    L_SESSIONS,
    L_TLS_FAILURES,
    L_TLS_HANDSHAKES,
    L_TLS_RESUMED,
    L_TLS_TRUNCATED,
    TLS_FAILURES,
)
from balancer.relay import ends
from balancer.shm.histogram import Histogram

_COLUMN_OF = {end: column for column, end in enumerate(ends.ORDER, L_ENDS)}
_TLS_COLUMN_OF = {reason: column for column, reason in enumerate(TLS_FAILURES, L_TLS_FAILURES)}
_DENIAL_COLUMN_OF = {rule: column for column, rule in enumerate(ends.DENIALS, L_DENIALS)}


class Account:
    """One listener's counts in one worker."""

    __slots__ = ("_handshake_times", "cells")

    def __init__(self, cells: memoryview) -> None:
        self.cells = cells  # the listener's block
        self._handshake_times = Histogram(cells[L_HANDSHAKE_TIMES:])

    def accepted(self, count: int, sessions: int) -> None:
        """Count `count` accepted clients; `sessions` of them become sessions that no shared limit has counted."""
        self.cells[L_ACCEPTED] += count
        self.cells[L_SESSIONS] += sessions

    def refused(self) -> None:
        """Count an accepted client that was closed without a session."""
        self.cells[L_REFUSED] += 1

    def denied(self, rule: str) -> None:
        """Count a client that a rule of the listener turns away, or with dry-run would; one of ends.DENIALS."""
        self.cells[_DENIAL_COLUMN_OF[rule]] += 1

    def retried(self) -> None:
        """Count a session that dials another backend."""
        self.cells[L_RETRIES] += 1

    def moved(self, bytes_in: int, bytes_out: int) -> None:
        """Count bytes of a session that goes on."""
        self.cells[L_BYTES_IN] += bytes_in
        self.cells[L_BYTES_OUT] += bytes_out

    def paused(self, pauses: int, resumes: int) -> None:
        """Count how often a session stopped and resumed reading."""
        self.cells[L_PAUSES] += pauses
        self.cells[L_RESUMES] += resumes

    def ended(self, end: str) -> None:
        """Count the end of a session that did not end cleanly."""
        self.cells[_COLUMN_OF[end]] += 1

    def shook_hands(self, seconds: float, is_resumed: bool) -> None:
        """Count a TLS handshake that has succeeded, and how long it took."""
        self.cells[L_TLS_HANDSHAKES] += 1
        self.cells[L_TLS_RESUMED] += is_resumed
        self._handshake_times.observe(seconds)

    def handshake_failed(self, reason: str) -> None:
        """Count one that has not, for one of TLS_FAILURES."""
        self.cells[_TLS_COLUMN_OF[reason]] += 1

    def truncated(self) -> None:
        """Count a client that has ended its TCP connection without ending its TLS."""
        self.cells[L_TLS_TRUNCATED] += 1
