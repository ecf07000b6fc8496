"""The shared table: what one process may tell all others without asking anybody.

RULES
- Every cell is an aligned int64 with exactly ONE writing process; readers read one cell or sum a column. (Two processes
  doing `+= 1` on one cell lost half of 400,000 increments; a `multiprocessing.Lock` held by a killed process is never
  released.) So there is no lock here, and nothing that a kill -9 can leave behind: the memory has no name.
- A row is a lease, not an index: the master hands it to a child at fork and takes it back after waitpid only. Then it
  FOLDS the totals into RETIRED_ROW, ZEROES the row, FREES it, in this order: a reader may for an instant count a total
  twice, never miss it for good, and gauges of the dead are gone at once. Who must not see that instant (totals never
  fall from one look to the next) reads through `unfolding`: FOLDS is odd while a row is being folded.
- This module knows the columns of processes. What a service counts lives in columns from PREFORK_COLUMNS on.

      row            writer    holds
      MASTER_ROW     master    generation, live rows, slots, what it has done since boot
      RETIRED_ROW    master    totals of the dead
      ADMIN_ROW      console   what operators ask for (WANTED_WORKERS, WORKERS_WISHES, the service's own columns)
      FIRST_LEASE..  its lessee  one process each; only rows [FIRST_LEASE, MASTER_LIVE_ROWS) can be in use

The slots table has one row per slot of the listening role and one writer, the master: which process serves the slot's
queue, which sibling is named to help, and which share of new connections is steered there.
"""

import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from typing import TypeVar

T = TypeVar("T")

PID, ROLE, SLOT, GENERATION, BEAT_MS, STATE, ACCEPTING, LOAD = range(8)
STARTED_MS = 8
DEADLINE_MS = 9  # 0, or when the drain of this process ends
WANTED_WORKERS = 10  # ADMIN_ROW only, with the number of such wishes so far: the same wish may come twice
WORKERS_WISHES = 11
FOLDS = WANTED_WORKERS  # RETIRED_ROW only: grows by 2 with every row folded into it, odd meanwhile
PREFORK_COLUMNS = 16

MASTER_ROW, RETIRED_ROW, ADMIN_ROW, FIRST_LEASE = 0, 1, 2, 3

# The master's row gives its own meaning to columns that a process without listener does not need.
MASTER_GENERATION = GENERATION
MASTER_STEERED = (
    ACCEPTING  # 1 = new connections are steered by the shares of the slots table, 0 = the kernel's plain hash
)
MASTER_LIVE_ROWS = LOAD
MASTER_RESPAWNS = 12  # processes replaced since boot
MASTER_HANGS = 13  # processes killed because their heartbeat stood still
MASTER_UPCOMING = WANTED_WORKERS  # generation that the next plan would be forked as
MASTER_SLOTS = 15  # slots that own sockets (rows of the slots table in use); never fewer than workers

FREE, STARTING, READY, DRAINING = range(4)  # values of STATE

# columns of the slots table
ADOPTER, SHARE, SLOT_PID, SLOT_STATE = range(4)
SLOT_COLUMNS = 8
# values of SLOT_STATE
SLOT_UNUSED, SLOT_SERVED, SLOT_STARTING, SLOT_PAUSED, SLOT_STALE, SLOT_EMPTY, SLOT_SURPLUS = range(7)

MAX_SLOTS = 128
MAX_ROWS = 512  # 3 generations of as many workers, and helpers

NOTICE_BYTES = 4000

_CACHE_LINE = 8  # int64 per 64-byte line
_HEAD = 24  # serial, length, checksum


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

    def unfolding(self, read: Callable[[], T], into: int = RETIRED_ROW) -> T:
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
            time.sleep(wait)
        return read() if found is None else found

    def zero(self, row: int) -> None:
        self.cells[row * self.columns : (row + 1) * self.columns] = memoryview(bytes(8 * self.columns)).cast(
            "q"
        )


class Notice:
    """A short text with one writer, read by all: a sequence lock with a checksum.

    The serial is odd while the writer is at work. The checksum is for machines that reorder stores, and for a writer
    killed half way; the reader's retries are bounded because that writer may never come back.
    """

    def __init__(self) -> None:
        self._memory = RawArray("B", _HEAD + NOTICE_BYTES)
        self._bytes = memoryview(self._memory).cast("B")
        self._head = self._bytes[:_HEAD].cast("q")

    def write(self, text: str) -> int:
        """Replace the text (cut to 4000 bytes); returns its serial number."""
        raw = text.encode()[:NOTICE_BYTES].decode(errors="ignore").encode()
        head = self._head
        begun = (head[0] | 1) if head[0] & 1 else head[0] + 1
        head[0] = begun
        self._bytes[_HEAD : _HEAD + len(raw)] = raw
        head[1] = len(raw)
        head[2] = zlib.crc32(raw)
        head[0] = begun + 1
        return (begun + 1) // 2

    def read(self) -> tuple[int, str]:
        """(serial, text); serial 0 means nothing was ever written, -1 that no whole text could be read just now."""
        for _ in range(100):
            serial = self._head[0]
            if serial & 1:
                continue
            length = min(max(self._head[1], 0), NOTICE_BYTES)
            raw = bytes(self._bytes[_HEAD : _HEAD + length])
            if self._head[0] == serial and (serial == 0 or zlib.crc32(raw) == self._head[2]):
                return serial // 2, raw.decode()
        return -1, ""


@dataclass(frozen=True)
class Shared:
    """Everything all processes see, made by the master before the first fork."""

    rows: Table
    slots: Table
    notice: Notice


def make_shared(columns: int, rows: int = MAX_ROWS) -> Shared:
    """The shared memory of one master; `columns` is what the service asks for."""
    return Shared(
        rows=Table(rows, max(columns, PREFORK_COLUMNS)),
        slots=Table(MAX_SLOTS, SLOT_COLUMNS),
        notice=Notice(),
    )
