"""The sessions of a backend in every process, side by side: a look at a backend over 64 rows reads 192 bytes of one place
instead of 64 cells of 64 pages.

RULES
- A copy for elections, beside the gauges of the board, which limits go by. A process writes the copy of its own gauge
  after each change of it; the master clears a dead process's.
- Three bytes per process, with at most ROW_ITSELF in them: the sum over all rows then fits into three bytes as well. As
  the digits of a number to the base 2**24 they are added up by one remainder, 0.1 us for 64 of them.
- ROW_ITSELF says that the sessions are to be read from the row: they are more than that, or their process does not keep
  the copy. A sum below it has no such part, so it is exact.
- A board has this table when the balancer boots with more than FEW_PROCESSES workers. Up to there the cells themselves
  are as fast, and a session is spared the two writes, 0.15 us each.

    backend 0: tenants with an even number: row 0, row 1 ... | an odd number: row 0, row 1 ... | backend 1 ...
"""

from collections.abc import Callable, Collection
from struct import Struct

from balancer.shm.memory import shared_memory
from balancer.shm.table import Table

FEW_PROCESSES = 8
ROW_ITSELF = (1 << 15) - 1
_CELL = 3  # bytes
_SUM = (1 << 8 * _CELL) - 1  # the remainder by this is the sum of the digits
_PUT = Struct("<H")  # the part of a cell that is ever other than 0, written at once


class LoadTable:
    """Made before the first fork. `counts` are the rows that it is a copy of."""

    def __init__(self, counts: Table, backends: int) -> None:
        if counts.rows * ROW_ITSELF >= _SUM:
            raise ValueError(f"the sum of {counts.rows} rows may not fit")
        self._tenant = counts.rows * _CELL
        self._memory = shared_memory(2 * self._tenant * backends)

    def writer(self, row: int) -> Callable[[int, int, int], None]:
        """A function for the process of a row: (index of the backend, parity of the tenant, its sessions)."""
        memory, tenant, own, put = self._memory, self._tenant, row * _CELL, _PUT.pack_into

        def write(index: int, parity: int, sessions: int) -> None:
            if sessions > ROW_ITSELF:
                sessions = ROW_ITSELF
            put(memory, (2 * index + parity) * tenant + own, sessions)

        return write

    def reader(
        self, first: int, cells: memoryview, live: int, odd: Collection[int], of_rows: Callable[[int], int]
    ) -> Callable[[int], int]:
        """A function giving the sessions of the backend of an index, in the rows from `first` up to the one in
        `cells[live]`. `odd`: indexes of slots whose tenant has an odd number; `of_rows` reads the rows themselves."""
        memory, tenant, start, number = self._memory, self._tenant, first * _CELL, int.from_bytes
        block = 2 * tenant

        def read(index: int) -> int:
            at = index * block
            found = number(memory[at + start : at + cells[live] * _CELL], "little") % _SUM
            return found if found < ROW_ITSELF else of_rows(index)

        def read_tenant(index: int) -> int:
            at = index * block + (tenant if index in odd else 0)
            found = number(memory[at + start : at + cells[live] * _CELL], "little") % _SUM
            return found if found < ROW_ITSELF else of_rows(index)

        return read_tenant if odd else read

    def clear(self, row: int, backends: int) -> None:
        """Master: the process of a row is gone. `backends`: how many blocks were ever given out."""
        memory, own = self._memory, row * _CELL
        for at in range(own, own + 2 * backends * self._tenant, self._tenant):
            if memory[at : at + _CELL].strip(b"\0"):
                _PUT.pack_into(memory, at, 0)
