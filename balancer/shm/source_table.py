"""Sessions and new clients of each source over all processes, in a table of fixed size.

RULES
- A count-min sketch: a source has two cells, and the smaller count is the estimate. Sources that share both cells can
  only raise it.
- One row per process, written by that process alone, so there is no lock. A row counts while the process whose pid it
  holds still has that lease, so the counts of a killed process end when the master reaps it.
- N processes that admit at the same instant may exceed a limit by N - 1.
- New clients are counted in two banks, by the parity of the period. A bank of an older period counts as zero.
- Behind its counts a row holds names of its sources (source_names.py), since no name can be had from a count.
- The cells of a source depend on a secret of the table, so that a client cannot choose addresses that collide.

Source of the structure: G. Cormode, S. Muthukrishnan, "An Improved Data Stream Summary: The Count-Min Sketch and its
Applications", 2005.
"""

import os
from collections.abc import Iterator

from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, MAX_ROWS, PID
from balancer.shm.memory import PAGE_BYTES, shared_memory, zero
from balancer.shm.source_names import NAMES_BYTES, NamedSource, SourceNames, read_names
from balancer.shm.table import Table

CELLS = 1 << 16
_HEAD = PAGE_BYTES // 4  # cells: the owner, then the period of each bank
_OWNER, _PERIOD = 0, 1
_PERIODS = 1 << 31  # a period's number is kept modulo this: a cell has 32 bits
_BANK = 2 * CELLS  # cells; first the sessions, then the two banks of new clients
_NAMES = _HEAD + 3 * _BANK
_ROW = _NAMES + -(-NAMES_BYTES // PAGE_BYTES) * PAGE_BYTES // 4
LOOK = 0.1  # seconds between two looks at which rows count

SourceCells = tuple[int, int]  # of one source, within a bank


class SourceTable:
    """The memory of one listener's sources, made before the fork; only touched pages exist."""

    def __init__(self, rows: int = MAX_ROWS) -> None:
        self.memory = shared_memory(rows * _ROW * 4)
        self.cells = memoryview(self.memory).cast("i")
        self._secret = os.urandom(16)

    def cells_of(self, source: bytes) -> SourceCells:
        """The cells of a source, as offsets in a bank."""
        value = hash(self._secret + source)
        return value & (CELLS - 1), CELLS + (value >> 24 & (CELLS - 1))


class SourceReader:
    """The sums over all living processes. `leases` has a row per process."""

    def __init__(self, table: SourceTable, leases: Table) -> None:
        self._cells, self._leases = table.cells, leases
        self._memory = table.memory
        self.cells_of = table.cells_of
        self._live: list[int] = []
        self._looked_at = -1.0

    def sessions(self, source: SourceCells, now: float) -> int:
        """Sessions that the source has now."""
        cells, live = self._cells, self._rows(now)
        return min(sum(cells[at + _HEAD + cell] for at in live) for cell in source)

    def clients(self, source: SourceCells, period: int, now: float) -> int:
        """New clients of the source in that period."""
        period %= _PERIODS
        bank = period & 1
        cells = self._cells
        live = [at for at in self._rows(now) if cells[at + _PERIOD + bank] == period]
        first = _HEAD + (1 + bank) * _BANK
        return min(sum(cells[at + first + cell] for at in live) for cell in source)

    def clients_within(self, source: SourceCells, seconds: float, now: float) -> int:
        """New clients of the source in the last `seconds`: those of this period, and as much of the period before as the
        window still covers."""
        period, elapsed = divmod(now, seconds)
        before = self.clients(source, int(period) - 1, now) * (1 - elapsed / seconds)
        return self.clients(source, int(period), now) + int(before)

    def names(self, now: float) -> Iterator[NamedSource]:
        """What the processes have noted of sources; one may come several times."""
        for at in self._rows(now):
            yield from read_names(self._memory, (at + _NAMES) * 4)

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


class SourceCounts(SourceReader):
    """One process's view: it counts in its own row."""

    def __init__(self, table: SourceTable, leases: Table, row: int) -> None:
        super().__init__(table, leases)
        self._at = row * _ROW
        zero(table.memory, self._at * 4, _ROW * 4)  # counts of the last process with this lease
        self._cells[self._at + _PERIOD] = self._cells[self._at + _PERIOD + 1] = -1
        self._cells[self._at + _OWNER] = leases.row(row)[PID]
        self.own_names = SourceNames(table.memory, (self._at + _NAMES) * 4)

    def add_sessions(self, source: SourceCells, change: int) -> None:
        """Count a session that begins (1) or ends (-1)."""
        for cell in source:
            self._cells[self._at + _HEAD + cell] += change

    def add_client(self, source: SourceCells, period: int) -> None:
        """Count a new client in that period."""
        period %= _PERIODS
        bank = period & 1
        word = self._at + _PERIOD + bank
        first = self._at + _HEAD + (1 + bank) * _BANK
        if self._cells[word] != period:
            self._cells[word] = -1
            zero(self._memory, first * 4, _BANK * 4)
            self._cells[word] = period
        for cell in source:
            self._cells[first + cell] += 1
