"""The counts of one listener in its worker's row.

RULES: the only module that writes the count cells of a listener. Counts and decides nothing else.
"""

from balancer.pool.board import (
    L_ACCEPTED,
    L_BYTES_IN,
    L_BYTES_OUT,
    L_CLOSED,
    L_CUT,
    L_FAILED,
    L_PAUSES,
    L_REFUSED,
    L_RESUMES,
    L_RETRIES,
    L_SESSIONS,
)
from balancer.relay import ends

_FAILED_ENDS = frozenset({ends.NO_BACKEND, ends.CONNECT_TIMEOUT, ends.OWN_RESOURCES})


class Account:
    """One listener's counts in one worker."""

    __slots__ = ("_cells",)

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells  # the listener's block

    def accepted(self, count: int, sessions: int) -> None:
        """Count `count` accepted clients; `sessions` of them become sessions that no shared limit has counted."""
        self._cells[L_ACCEPTED] += count
        self._cells[L_SESSIONS] += sessions

    def refused(self) -> None:
        """Count an accepted client that was closed without a session."""
        self._cells[L_REFUSED] += 1
        self._cells[L_CLOSED] += 1  # accepted = closed once no session is left

    def retried(self) -> None:
        """Count a session that dials another backend."""
        self._cells[L_RETRIES] += 1

    def moved(self, bytes_in: int, bytes_out: int) -> None:
        """Count bytes of a session that goes on."""
        self._cells[L_BYTES_IN] += bytes_in
        self._cells[L_BYTES_OUT] += bytes_out

    def paused(self, pauses: int, resumes: int) -> None:
        """Count how often a session stopped and resumed reading."""
        self._cells[L_PAUSES] += pauses
        self._cells[L_RESUMES] += resumes

    def failed(self, end: str, was_dialled: bool) -> None:
        """Count a session that did not end cleanly; `was_dialled`: a backend was tried for it."""
        if end == ends.KILLED:
            self._cells[L_CUT] += 1
        elif end == ends.QUEUE_TIMEOUT or (end == ends.NO_BACKEND and not was_dialled):
            self._cells[L_REFUSED] += 1
        elif end in _FAILED_ENDS:
            self._cells[L_FAILED] += 1

    def closed(self, sessions: int, bytes_in: int, bytes_out: int) -> None:
        """Count sessions whose descriptors are closed, and the bytes of them that `moved` has not counted."""
        cells = self._cells
        cells[L_SESSIONS] -= sessions
        cells[L_CLOSED] += sessions
        cells[L_BYTES_IN] += bytes_in
        cells[L_BYTES_OUT] += bytes_out
