"""What the cells of the shared table mean to the balancer.

RULES
- This module names columns, sums them and writes the few words that outlive a process. It decides nothing:
  verdicts come from the prober, wishes from the console, sessions from the workers.
- One writer per cell. A process counts in its own row only; whoever wants the whole sums the rows. The
  words of ADMIN_ROW outlive their writer: wishes are written by the console, verdicts and addresses by the
  one prober that holds the chair (below). A killed prober therefore leaves its last verdicts standing, and
  its successor continues.
- Only lease rows below the live mark are scanned, so 500 free rows cost nothing.

    row \\ column | 0..15 prefork  | 16..47 the process        | 48 + 24 i .. the block of backend i
    -------------+----------------+---------------------------+------------------------------------
    MASTER_ROW   | live rows      | (prefork's)               |
    RETIRED_ROW  | folds          | totals of the dead        | totals of the dead, by the master
    ADMIN_ROW    | workers wanted | versions, the chair       | wishes by the console, verdict and
                 |                |                           | address by the prober
    FIRST_LEASE  | pid, state ... | a worker's totals, gauges | a worker's sessions with backend i,
       ...       |                |                           | the prober's own totals of checks

A verdict of 0 is "unknown" and counts as up: a table fresh from the boot must serve before the first check
has ended.

The chair: during a reload two probers live side by side. The newer one writes its row and pid into
PROBER_LEASE_ROW and PROBER_LEASE_PID when it starts; a prober that no longer finds itself there stays silent, and takes
the chair back when the one sitting in it is dead (a reload that failed). So verdicts have one writer at a
time without any lock.

Versions: VERDICTS_VERSION is odd while the prober is writing and grows by 2 with every change;
ADMIN_VERSION grows by 1 with every wish. Workers compare two cells per election and rebuild their lists
only when one has moved.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from operator import add

from balancer.shm.layout import (
    ADMIN_ROW,
    FIRST_LEASE,
    MASTER_LIVE_ROWS,
    MASTER_ROW,
    PID,
    PREFORK_COLUMNS,
    Shared,
)
from balancer.shm.table import RETIRED_ROW

# A worker's own columns: totals first, then gauges.
ACCEPTED = PREFORK_COLUMNS + 0
REFUSED = PREFORK_COLUMNS + 1  # closed by a limit or because nothing could serve
FAILED = PREFORK_COLUMNS + 2  # accepted, but no backend could be reached
SESSIONS_CLOSED = PREFORK_COLUMNS + 3
CUT = PREFORK_COLUMNS + 4  # ended by a drain's deadline or an operator
RETRIES = PREFORK_COLUMNS + 5
BYTES_IN = PREFORK_COLUMNS + 6  # client -> backend
BYTES_OUT = PREFORK_COLUMNS + 7  # backend -> client
PAUSES = PREFORK_COLUMNS + 8
RESUMES = PREFORK_COLUMNS + 9
QUEUED_TOTAL = PREFORK_COLUMNS + 10
LOG_DROPPED = PREFORK_COLUMNS + 11  # lines this process could not write
SPARE_TOTALS = range(PREFORK_COLUMNS + 12, PREFORK_COLUMNS + 16)
SESSIONS = PREFORK_COLUMNS + 16  # gauge: clients held; the seats of --maxconns
QUEUED = PREFORK_COLUMNS + 17  # gauge: clients waiting for a seat at a backend
OLDEST_WAIT_MS = PREFORK_COLUMNS + 18  # monotonic ms since when the oldest of them waits, 0 = nobody
# ADMIN_ROW only
VERDICTS_VERSION = PREFORK_COLUMNS + 24
PROBER_LEASE_ROW = PREFORK_COLUMNS + 25
PROBER_LEASE_PID = PREFORK_COLUMNS + 26
ADMIN_VERSION = PREFORK_COLUMNS + 27
FIRST_BLOCK = PREFORK_COLUMNS + 32

WORKER_TOTALS = (*range(ACCEPTED, LOG_DROPPED + 1), *SPARE_TOTALS)

# A backend's block. Lease rows: totals, then gauges.
B_SESSIONS_TOTAL = 0  # sessions given to it, counted before the dial
B_CONNECT_FAILURES = 1
B_BYTES_IN = 2
B_BYTES_OUT = 3
B_CHECKS = 4  # prober
B_CHECK_FAILURES = 5  # prober
B_DOWNS = 6  # prober: times it went down
B_TOTALS = range(7)
B_SESSIONS = 8  # gauge, counted before the dial: the seats of maxconn=
# ADMIN_ROW, by the prober
B_VERDICT = 12
B_SINCE_MS = 13  # monotonic ms of the last change of verdict, 0 = never
B_CHECK = 14  # outcome of the last check, index into CHECK_NAMES
B_STREAK = 15  # results in a row that speak against the verdict
B_CHECK_US = 16  # how long the last good check took
B_SUBJECT = 17  # checksum of the address the verdict is about
B_FAMILY, B_ADDRESS_HI, B_ADDRESS_LO = 18, 19, 20  # a resolved name: 0 | 4 | 6 and the address in two words
# ADMIN_ROW, by the console
B_ADMIN = 21
B_WEIGHT = 22  # 0 = as configured, else weight + 1
BLOCK = 24

UNKNOWN, UP, DOWN = range(3)  # values of B_VERDICT
ADMIN_READY, ADMIN_DRAIN, ADMIN_MAINT = range(3)  # values of B_ADMIN
VERDICT_NAMES = ("up", "up", "down")
ADMIN_NAMES = ("ready", "drain", "maint")
CHECK_NAMES = ("none", "ok", "refused", "timeout", "unreachable", "unresolved", "session-failed", "error")

FEW = 16  # up to so many backends a column is read per backend, beyond it per row: few long slices win
LEAST_CAPACITY = 64


def capacity_for(configured: int) -> int:
    """Blocks to reserve at boot, for good: room for reloads that add backends."""
    return max(LEAST_CAPACITY, 2 * configured)


def columns_for(capacity: int) -> int:
    """Columns that a table with `capacity` backend blocks needs."""
    return FIRST_BLOCK + BLOCK * capacity


def base(index: int) -> int:
    """First column of the block of a backend."""
    return FIRST_BLOCK + BLOCK * index


def totals_for(capacity: int) -> frozenset[int]:
    """The columns that the master folds into RETIRED_ROW when a process ends."""
    blocks = (base(index) + column for index in range(capacity) for column in B_TOTALS)
    return frozenset((*WORKER_TOTALS, *blocks))


class Board:
    """The shared table with the balancer's meaning. Made in the master before the first fork, kept over
    reloads.

    `lock_fd` is a nameless file whose bytes stand for limited things, for record locks (see limits). It is
    opened once here and never again: closing any descriptor of it in a process would drop that process's
    locks.
    """

    def __init__(self, shared: Shared, capacity: int) -> None:
        if shared.rows.columns < columns_for(capacity):
            raise ValueError(f"{shared.rows.columns} columns do not hold {capacity} backends")
        self.shared = shared
        self.capacity = capacity
        self.columns = shared.rows.columns
        self.cells = shared.rows.cells
        self.lock_fd = os.memfd_create("balancer-seats", os.MFD_CLOEXEC)
        self._live = MASTER_ROW * self.columns + MASTER_LIVE_ROWS
        self._admin = ADMIN_ROW * self.columns

    # -- reading

    def live_rows(self) -> int:
        """One past the highest row that can be in use."""
        return int(self.cells[self._live])

    def gauge(self, column: int) -> int:
        """Sum of a gauge over all living processes, draining ones included."""
        columns = self.columns
        cells = self.cells
        return sum(cells[FIRST_LEASE * columns + column : cells[self._live] * columns : columns].tolist())

    def total(self, column: int) -> int:
        """Sum of a total over the living and the dead; from one look to the next it never falls."""
        dead = RETIRED_ROW * self.columns + column
        return self.shared.rows.consistent_read(lambda: int(self.cells[dead]) + self.gauge(column))

    def word(self, index: int, column: int) -> int:
        """One of a backend's words in ADMIN_ROW: verdict, since when, wish, weight, address."""
        return int(self.cells[self._admin + base(index) + column])

    def sessions(self, index: int) -> int:
        """Sessions that all workers hold with a backend, dials included."""
        return self.gauge(base(index) + B_SESSIONS)

    def loads_reader(self, indexes: Sequence[int]) -> Callable[[], list[int]]:
        """A function giving the sessions of these backends at the moment of the call, in their order.

        Few backends are summed down their columns, many along the rows: 3 backends over 64 rows and 1000
        over 4 both stay a handful of slices."""
        first = [FIRST_LEASE * self.columns + base(index) + B_SESSIONS for index in indexes]
        return self._read_columns(first) if len(first) <= FEW else self._read_rows(list(indexes))

    def _read_columns(self, offsets: list[int]) -> Callable[[], list[int]]:
        cells, columns, live = self.cells, self.columns, self._live

        def read() -> list[int]:
            end = cells[live] * columns
            return [sum(cells[offset:end:columns].tolist()) for offset in offsets]

        return read

    def _read_rows(self, indexes: list[int]) -> Callable[[], list[int]]:
        def read() -> list[int]:
            every = self.every_gauge(B_SESSIONS)
            return [every[index] for index in indexes]

        return read

    def every_gauge(self, column: int) -> list[int]:
        """A column of the blocks summed over the living processes, for every backend block."""
        cells, columns = self.cells, self.columns
        sums = [0] * self.capacity
        first, end = FIRST_BLOCK + column, FIRST_BLOCK + BLOCK * self.capacity
        for row in range(FIRST_LEASE, cells[self._live]):
            at = row * columns
            if cells[at + PID]:
                sums = list(map(add, sums, cells[at + first : at + end : BLOCK].tolist()))
        return sums

    def every_total(self, column: int) -> list[int]:
        """As every_gauge, the dead included; from one look to the next none of them falls."""
        at = RETIRED_ROW * self.columns + FIRST_BLOCK

        def read() -> list[int]:
            dead = self.cells[at + column : at + BLOCK * self.capacity : BLOCK].tolist()
            return list(map(add, dead, self.every_gauge(column)))

        return self.shared.rows.consistent_read(read)

    def longest_waiting_row(self, but: int) -> int | None:
        """The row whose queue holds the oldest waiting client, `but` excepted: whom to ring when a seat is
        free."""
        columns = self.columns
        at = FIRST_LEASE * columns + OLDEST_WAIT_MS
        waits = self.cells[at : self.cells[self._live] * columns : columns].tolist()
        rows = [(since, row) for row, since in enumerate(waits, FIRST_LEASE) if since and row != but]
        return min(rows)[1] if rows else None

    # -- the words that outlive a process

    def write_verdicts(self, words: Iterable[tuple[int, int, int]]) -> None:
        """Prober in the chair: write (backend, column, value) words as one change that readers see whole."""
        cells, version = self.cells, self._admin + VERDICTS_VERSION
        cells[version] |= 1
        for index, column, value in words:
            cells[self._admin + base(index) + column] = value
        cells[version] += 1

    def note(self, index: int, column: int, value: int) -> None:
        """Prober in the chair: a word that only people read (last check, streak); no election depends on
        it."""
        self.cells[self._admin + base(index) + column] = value

    def set_admin_state(self, index: int, state: int) -> None:
        """Console: ADMIN_READY, ADMIN_DRAIN or ADMIN_MAINT."""
        self._write_admin(index, B_ADMIN, state)

    def set_weight(self, index: int, weight: int | None) -> None:
        """Console: a weight for now (0 = no new sessions), None = as configured."""
        self._write_admin(index, B_WEIGHT, 0 if weight is None else weight + 1)

    def _write_admin(self, index: int, column: int, value: int) -> None:
        self.cells[self._admin + base(index) + column] = value
        self.cells[self._admin + ADMIN_VERSION] += 1

    def versions(self) -> tuple[int, int]:
        """(of the verdicts, odd while being written; of the wishes)."""
        return int(self.cells[self._admin + VERDICTS_VERSION]), int(self.cells[self._admin + ADMIN_VERSION])

    def weight_of(self, index: int, configured: int) -> int:
        """The weight in force."""
        override = self.word(index, B_WEIGHT)
        return override - 1 if override else configured

    # -- the chair of the prober

    def take_prober_lease(self, row: int, pid: int) -> None:
        """A starting prober: from now on it is the one that writes verdicts."""
        self.cells[self._admin + PROBER_LEASE_ROW] = row
        self.cells[self._admin + PROBER_LEASE_PID] = pid

    def prober_lease(self) -> tuple[int, int, bool]:
        """(row, pid, whether that process still holds that row) of the prober in the chair."""
        row, pid = (
            int(self.cells[self._admin + PROBER_LEASE_ROW]),
            int(self.cells[self._admin + PROBER_LEASE_PID]),
        )
        return row, pid, bool(pid) and self.cells[row * self.columns + PID] == pid

    # -- reload

    def wipe(self, index: int) -> None:
        """Master: forget what an earlier backend left in a block that no living generation uses."""
        for row in (RETIRED_ROW, ADMIN_ROW):
            at = row * self.columns + base(index)
            self.cells[at : at + BLOCK] = memoryview(bytes(8 * BLOCK)).cast("q")
