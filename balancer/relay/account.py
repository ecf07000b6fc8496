"""The counts of one listener in its worker's row.

RULES: writes the count cells of a listener, but for those of sessions that have ended: the closer adds up a batch of them
itself. Counts and decides nothing else.
"""

from balancer.pool.board import (
    L_ACCEPTED,
    L_BYTES_IN,
    L_BYTES_OUT,
    L_ENDS,
    L_PAUSES,
    L_REFUSED,
    L_RESUMES,
    L_RETRIES,
    L_SESSIONS,
)
from balancer.relay import ends

_COLUMN_OF = {end: column for column, end in enumerate(ends.ORDER, L_ENDS)}


class Account:
    """One listener's counts in one worker."""

    __slots__ = ("cells",)

    def __init__(self, cells: memoryview) -> None:
        self.cells = cells  # the listener's block

    def accepted(self, count: int, sessions: int) -> None:
        """Count `count` accepted clients; `sessions` of them become sessions that no shared limit has counted."""
        self.cells[L_ACCEPTED] += count
        self.cells[L_SESSIONS] += sessions

    def refused(self) -> None:
        """Count an accepted client that was closed without a session."""
        self.cells[L_REFUSED] += 1

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
