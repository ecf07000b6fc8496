"""The columns and rows of the shared tables that the prefork machine itself uses.

RULES
- Every cell is an aligned int64 with exactly ONE writing process; readers read one cell or sum a column. (Two processes
  doing `+= 1` on one cell lost half of 400,000 increments; a `multiprocessing.Lock` held by a killed process is never
  released.) So there is no lock here, and a kill -9 leaves nothing behind: the memory has no name.
- A row is leased: the master gives it to a child at fork and takes it back only after waitpid. Then it FOLDS the totals
  into RETIRED_ROW, ZEROES the row and FREES it, in this order. For an instant a reader may count a total twice; it
  never misses one for good, and the gauges of a dead process are gone at once. A reader whose totals must never fall
  from one reading to the next uses `consistent_read`: FOLDS is odd while a row is being folded.
- This module knows the columns of processes. A service counts in columns from PREFORK_COLUMNS on.

      row            writer    holds
      MASTER_ROW     master    generation, live rows, slots, what it has done since boot
      RETIRED_ROW    master    totals of dead processes
      ADMIN_ROW      console   what operators ask for (WANTED_WORKERS, WORKERS_REQUESTS, REFRESH_REQUESTS)
      FIRST_LEASE..  its process  one process each; only rows [FIRST_LEASE, MASTER_LIVE_ROWS) can be in use

The slots table has one row per slot of the listening role and one writer, the master: which process serves the slot's
queue, which sibling is named to help, and which share of new connections is steered there.
"""

from dataclasses import dataclass

from balancer.shm.events import EventRing
from balancer.shm.memory import disown
from balancer.shm.notice import Notice
from balancer.shm.table import Table

PID, ROLE, SLOT, GENERATION, BEAT_MS, STATE, ACCEPTING, LOAD = range(8)
STARTED_MS = 8
DEADLINE_MS = 9  # 0, or when the drain of this process ends
WANTED_WORKERS = 10  # ADMIN_ROW only, with the number of such requests so far: the same one may come twice
WORKERS_REQUESTS = 11
REFRESH_REQUESTS = (
    12  # ADMIN_ROW only: so many times what living processes can take over was to be read again
)
PREFORK_COLUMNS = 16

MASTER_ROW, ADMIN_ROW, FIRST_LEASE = 0, 2, 3  # RETIRED_ROW is 1

# The master's row uses columns for itself that only listening processes need.
MASTER_GENERATION = GENERATION
# 1 = new connections are steered by the shares of the slots table, 0 = the kernel's plain hash
MASTER_STEERED = ACCEPTING
MASTER_LIVE_ROWS = LOAD
MASTER_FORMER = WORKERS_REQUESTS  # pid of the master that an upgrade took over from, 0: none
MASTER_RESPAWNS = 12  # processes replaced since boot
MASTER_HANGS = 13  # processes killed because their heartbeat stood still
MASTER_RELOADS = 14  # reloads that have succeeded, those that changed nothing included
MASTER_UPCOMING = WANTED_WORKERS  # the generation that the next plan will be forked as
MASTER_SLOTS = 15  # slots that own sockets (rows of the slots table in use); never fewer than workers

FREE, STARTING, READY, DRAINING = range(4)  # values of STATE

# columns of the slots table
ADOPTER, SHARE, SLOT_PID, SLOT_STATE = range(4)
SLOT_COLUMNS = 8
# values of SLOT_STATE
SLOT_UNUSED, SLOT_SERVED, SLOT_STARTING, SLOT_PAUSED, SLOT_HUNG, SLOT_EMPTY, SLOT_SURPLUS = range(7)

MAX_SLOTS = 128
MAX_ROWS = 512  # 3 generations of as many workers, and helpers; old ones have workers with sessions only


@dataclass(frozen=True)
class Shared:
    """The memory that all processes share, made by the master before the first fork."""

    rows: Table
    slots: Table
    notice: Notice
    events: EventRing

    def keep_row(self, row: int) -> None:
        """Leave this process nothing but its own row. The rest reads as zeros from now on. Raises OSError."""
        self.rows.keep_row(row)
        for view in (self.slots.cells, self.notice.memory, self.events.heads, self.events.records):
            disown(view)


def make_shared(columns: int, rows: int = MAX_ROWS) -> Shared:
    """The shared memory of one master; `columns` is the number the service needs."""
    return Shared(
        rows=Table(rows, max(columns, PREFORK_COLUMNS), has_own_pages=True),
        slots=Table(MAX_SLOTS, SLOT_COLUMNS),
        notice=Notice(),
        events=EventRing(rows),
    )
