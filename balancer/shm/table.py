"""A table of int64 in shared memory: one writer per cell, readers read one cell or sum a column.

RULES
- No lock: two processes doing `+= 1` on one cell lost half of 400,000 increments, and a `multiprocessing.Lock` held by a
  killed process is never released.
- Sparse: cells that are never used cost no memory, so a table may be made far larger than what is needed today. A
  reader must not run over unused rows or columns, since reading a page allocates it.
- A row is folded (its totals added to another row), zeroed and only then given away. The target row's FOLDS is odd
  meanwhile: a sequence lock for readers that must not count a total twice (`consistent_read`).
"""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from balancer.shm.memory import PAGE_BYTES, disown, shared_memory, zero

T = TypeVar("T")

FOLDS = 10  # column of the row that others are folded into: grows by 2 with every fold, odd meanwhile
RETIRED_ROW = 1  # the row that the dead are folded into
_CELL = 8  # bytes
_CACHE_LINE = 8  # cells per 64-byte line
_PAGE = PAGE_BYTES // _CELL  # cells per page


class Table:
    """Rows x columns of int64, inherited over fork.

    A row is padded to whole cache lines, so that two writers never share one. A row of more than a page is padded to
    whole pages, so that zeroing it gives them back; with `has_own_pages` every row is, so that a process can keep its own
    one alone (`keep_row`).
    """

    def __init__(self, rows: int, columns: int, has_own_pages: bool = False) -> None:
        unit = _PAGE if columns > _PAGE or has_own_pages else _CACHE_LINE
        self.rows = rows
        self.columns = -(-columns // unit) * unit
        self._memory = shared_memory(rows * self.columns * _CELL)
        self.cells: memoryview = memoryview(self._memory).cast("q")
        self.on_zero: Callable[[int], object] | None = None  # called with each row that is zeroed

    def row(self, r: int) -> memoryview:
        """A writable view of one row."""
        return self.cells[r * self.columns : (r + 1) * self.columns]

    def keep_row(self, row: int) -> None:
        """Leave this process nothing of the table but the pages of a row; all others read as zeros here, and what is
        written there reaches no other process. Raises OSError."""
        length = self.columns * _CELL
        disown(self.cells, row * length, (row + 1) * length)

    def total(self, column: int, first: int, last: int) -> int:
        """Sum of a column over rows [first, last)."""
        return sum(self.cells[first * self.columns + column : last * self.columns : self.columns])

    def fold(self, row: int, into: int, totals: Iterable[range]) -> None:
        """Master: add the totals of a dead process's row to `into`, then zero the row. The caller frees it after.

        `totals` are the columns that only grow, and of these only the ones that can have been used."""
        cells, source, target = self.cells, row * self.columns, into * self.columns
        worth = []
        for span in totals:
            values = cells[source + span.start : source + span.stop : span.step].tolist()
            if any(values):
                worth += [
                    (target + column, value) for column, value in zip(span, values, strict=True) if value
                ]
        cells[target + FOLDS] += 1
        for cell, value in worth:
            cells[cell] += value
        self.zero(row)
        cells[target + FOLDS] += 1

    def move(self, row: int, totals: Iterable[tuple[int, int]]) -> None:
        """Master: add columns of a row to other columns of it, (from, to), and zero them, as one step."""
        cells, at = self.cells, row * self.columns
        cells[at + FOLDS] += 1
        for column, into in totals:
            if value := cells[at + column]:
                cells[at + into] += value
                cells[at + column] = 0
        cells[at + FOLDS] += 1

    def consistent_read(
        self, read: Callable[[], T], into: int = RETIRED_ROW, sleep: Callable[[float], object] = time.sleep
    ) -> T:
        """What `read` returns when no row is folded meanwhile: a total that is being folded would be counted twice.

        A fold takes some 20 us; the waits are bounded (0.1 s in all) for a master that was stopped during one: then
        the last reading is returned."""
        cell = into * self.columns + FOLDS
        found = None
        for wait in (0.0,) * 10 + (0.001,) * 100:
            before = self.cells[cell]
            if before & 1 == 0:
                found = read()
                if self.cells[cell] == before:
                    return found
            sleep(wait)
        return read() if found is None else found

    def zero(self, row: int) -> None:
        """Zero a row. Pages that hold nothing are not touched."""
        zero(self._memory, row * self.columns * _CELL, self.columns * _CELL)
        if self.on_zero is not None:
            self.on_zero(row)
