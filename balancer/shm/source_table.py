"""How many sessions and new clients a source has over all processes, without a list of sources.

RULES
- A count-min table: a source has two places, and the smaller of what stands there is believed. Others that share both
  places can only make it more. 65,536 places: of 20,000 innocent sources among 10,000 others none was refused.
- One row per process, written by that process alone, so there is no lock. The row counts as long as the process that
  wrote its name into it still has that lease: what a killed process held is gone as soon as the master has reaped it.
- So many processes that admit in the same instant may be one above the limit each, but for one.
- Two banks by the parity of the period count new clients. The estimate over a period is this one's and the part of the
  last one that still lies in the window. A bank of an older period counts as zero: nothing is scanned.
- The places follow from a secret of this table, so that nobody can choose addresses that collide.

Source of the structure: G. Cormode, S. Muthukrishnan, "An Improved Data Stream Summary: The Count-Min Sketch and its
Applications", 2005.
"""

import os
from collections.abc import Iterator

from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, MAX_ROWS, PID
from balancer.shm.memory import PAGE_BYTES, discard, shared_memory
from balancer.shm.table import Table

PLACES = 1 << 16
_HEAD = PAGE_BYTES // 4  # cells: the owner, then the period of each bank
_OWNER, _PERIOD = 0, 1
_BANK = 2 * PLACES  # cells; the held sessions, then the two banks of new clients
_ROW = _HEAD + 3 * _BANK
LOOK = 0.1  # seconds between two looks at which rows count

Places = tuple[int, int]  # of one source, within a bank


class SourceTable:
    """The memory of one listener's sources, made before the fork. It costs what is touched of it."""

    def __init__(self, rows: int = MAX_ROWS) -> None:
        self.memory = shared_memory(rows * _ROW * 4)
        self.cells = memoryview(self.memory).cast("i")
        self._secret = os.urandom(16)

    def places(self, source: bytes) -> Places:
        """Where a source is counted."""
        value = hash(self._secret + source)
        return value & (PLACES - 1), PLACES + (value >> 24 & (PLACES - 1))


class SourceCounts:
    """One process's view: it counts in its own row and asks all that live. `leases` are the rows of the processes."""

    def __init__(self, table: SourceTable, leases: Table, row: int) -> None:
        self._cells, self._leases = table.cells, leases
        self._at = row * _ROW
        discard(table.memory, self._at * 4, _ROW * 4)  # of the last process with this lease
        self._cells[self._at + _PERIOD] = self._cells[self._at + _PERIOD + 1] = -1
        self._cells[self._at + _OWNER] = leases.row(row)[PID]
        self._memory = table.memory
        self._live: list[int] = []
        self._looked_at = -1.0

    def hold(self, places: Places, change: int) -> None:
        """Count a session that begins (1) or ends (-1)."""
        for place in places:
            self._cells[self._at + _HEAD + place] += change

    def held(self, places: Places, now: float) -> int:
        """Sessions that the source has now, over all processes."""
        cells, live = self._cells, self._rows(now)
        return min(sum(cells[at + _HEAD + place] for at in live) for place in places)

    def note(self, places: Places, period: int) -> None:
        """Count a new client in that period."""
        bank = period & 1
        word = self._at + _PERIOD + bank
        first = self._at + _HEAD + (1 + bank) * _BANK
        if self._cells[word] != period:
            self._cells[word] = -1
            discard(self._memory, first * 4, _BANK * 4)
            self._cells[word] = period
        for place in places:
            self._cells[first + place] += 1

    def noted(self, places: Places, period: int, now: float) -> int:
        """New clients of the source in that period, over all processes."""
        bank = period & 1
        cells = self._cells
        live = [at for at in self._rows(now) if cells[at + _PERIOD + bank] == period]
        first = _HEAD + (1 + bank) * _BANK
        return min(sum(cells[at + first + place] for at in live) for place in places)

    def _rows(self, now: float) -> list[int]:
        if now - self._looked_at >= LOOK or now < self._looked_at:
            self._looked_at = now
            self._live = list(self._owned())
        return self._live

    def _owned(self) -> Iterator[int]:
        for row in range(FIRST_LEASE, self._leases.row(MASTER_ROW)[MASTER_LIVE_ROWS]):
            owner = self._cells[row * _ROW + _OWNER]
            if owner and owner == self._leases.row(row)[PID]:
                yield row * _ROW
