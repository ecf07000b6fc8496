"""A table of int64 in shared memory: one writer per cell, readers read one cell or sum a column.

RULES
- No lock: two processes doing `+= 1` on one cell lost half of 400,000 increments, and a `multiprocessing.Lock` held by a
  killed process is never released. The memory has no name, so a kill -9 leaves nothing behind.
- A row is folded (its totals added to another row), zeroed and only then given away. The target row's FOLDS is odd
  meanwhile: a sequence lock for readers that must not count a total twice (`consistent_read`).
"""

import time
from collections.abc import Callable, Iterable
from multiprocessing.sharedctypes import RawArray
from typing import TypeVar

T = TypeVar("T")

FOLDS = 10  # column of the row that others are folded into: grows by 2 with every fold, odd meanwhile
RETIRED_ROW = 1  # the row that the dead are folded into
_CACHE_LINE = 8  # int64 per 64-byte line


class Table:
    """Rows x columns of int64 in anonymous shared memory, inherited over fork.

    A row is padded to whole cache lines, so that two writers never share one. `multiprocessing.RawArray` is memory
    without a name: nothing is left behind by a kill -9. It writes zeros over all of it, 6 MB with 64 backends, once
    for all processes.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = -(-columns // _CACHE_LINE) * _CACHE_LINE
        self._memory = RawArray("q", rows * self.columns)
        self.cells: memoryview = memoryview(self._memory).cast("B").cast("q")

    def row(self, r: int) -> memoryview:
        """A writable view of one row."""
        return self.cells[r * self.columns : (r + 1) * self.columns]

    def total(self, column: int, first: int = 0, last: int | None = None) -> int:
        """Sum of a column over rows [first, last)."""
        end = self.rows if last is None else last
        return sum(self.cells[first * self.columns + column : end * self.columns : self.columns])

    def fold(self, row: int, into: int, totals: Iterable[int]) -> None:
        """Master: add the totals of a dead process's row to `into`, then zero the row. The caller frees it after."""
        cells, target = self.cells, into * self.columns
        last = self.row(row).tolist()
        worth = [(target + column, last[column]) for column in totals if last[column]]
        cells[target + FOLDS] += 1
        for cell, value in worth:
            cells[cell] += value
        self.zero(row)
        cells[target + FOLDS] += 1

    def consistent_read(
        self, read: Callable[[], T], into: int = RETIRED_ROW, sleep: Callable[[float], object] = time.sleep
    ) -> T:
        """What `read` gives when no row is folded meanwhile: neither before nor after the fold is a total counted twice.

        A fold takes some 20 us; the waits are bounded (0.1 s in all) for a master that was stopped in just that
        stretch: then the last reading has to do."""
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
        self.cells[row * self.columns : (row + 1) * self.columns] = memoryview(bytes(8 * self.columns)).cast(
            "q"
        )
