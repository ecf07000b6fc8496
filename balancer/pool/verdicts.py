"""How the prober writes verdicts and addresses onto the board, and which prober may.

RULES: used by the prober only; decides nothing. It writes words of ADMIN_ROW while its process holds the prober's lease
(see board), and totals of checks in the process's own row.
"""

import os
from zlib import crc32

from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_MAINT,
    B_ADDRESS_HI,
    B_ADDRESS_LO,
    B_ADMIN,
    B_CHECK,
    B_CHECK_FAILURES,
    B_CHECK_US,
    B_CHECKS,
    B_DOWNS,
    B_FAMILY,
    B_SINCE_MS,
    B_STREAK,
    B_SUBJECT,
    B_VERDICT,
    CHECK_NAMES,
    DOWN,
    UNKNOWN,
    UP,
    Board,
    base,
)
from balancer.pool.targets import pack_address


class VerdictWriter:
    """The lease of one prober, and what it writes while it holds it."""

    def __init__(self, board: Board, row: int) -> None:
        self._board = board
        self._row = row
        self._own = board.shared.rows.row(row)

    # -- the lease

    def acquire(self) -> None:
        """Take the lease: its last holder finds out before it writes again."""
        self._board.take_prober_lease(self._row, os.getpid())

    def holds(self) -> bool:
        """This process is the one that writes."""
        return self._board.prober_lease() == (self._row, os.getpid(), True)

    def is_vacant(self) -> bool:
        """The process that took the lease is gone."""
        return not self._board.prober_lease()[2]

    # -- verdicts

    def restore(self, backend: Backend, now: float) -> tuple[bool, float]:
        """(up, since) as the last prober left it; (True, now), and unknown on the board, when that was about another
        address."""
        word, index = self._board.word, backend.index
        subject = crc32(str(backend.address).encode())
        if word(index, B_SUBJECT) == subject:
            return word(index, B_VERDICT) != DOWN, word(index, B_SINCE_MS) / 1000
        fresh = {B_VERDICT: UNKNOWN, B_SINCE_MS: 0, B_CHECK: 0, B_STREAK: 0, B_FAMILY: 0, B_SUBJECT: subject}
        self._board.write_verdicts([(index, column, value) for column, value in fresh.items()])
        return True, now

    def write_verdict(self, index: int, up: bool, since: float) -> None:
        """Workers see it at their next election."""
        words = [(index, B_VERDICT, UP if up else DOWN), (index, B_SINCE_MS, round(since * 1000))]
        self._board.write_verdicts(words)

    def count_down(self, index: int) -> None:
        self._own[base(index) + B_DOWNS] += 1

    def note_check(self, index: int, outcome: str, seconds: float, streak: int) -> None:
        """What people read of a check: its outcome (one of CHECK_NAMES), how long it took, how many results in a row
        speak against the verdict."""
        at = base(index)
        self._own[at + B_CHECKS] += 1
        self._own[at + B_CHECK_FAILURES] += outcome != "ok"
        self._board.note(index, B_CHECK, CHECK_NAMES.index(outcome))
        self._board.note(index, B_STREAK, streak)
        if outcome == "ok":
            self._board.note(index, B_CHECK_US, round(seconds * 1e6))

    def is_unknown(self, index: int) -> bool:
        """No prober has ever had a result for this backend."""
        return self._board.word(index, B_VERDICT) == UNKNOWN

    def is_in_maintenance(self, index: int) -> bool:
        """An operator has put it into maintenance: it is not checked."""
        return self._board.word(index, B_ADMIN) == ADMIN_MAINT

    # -- addresses

    def write_address(self, index: int, host: str) -> None:
        """The address that a name stands for from now on."""
        words = zip((B_FAMILY, B_ADDRESS_HI, B_ADDRESS_LO), pack_address(host), strict=True)
        self._board.write_verdicts([(index, column, value) for column, value in words])
