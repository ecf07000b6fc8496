"""The balancer's cells in shared memory: what is counted, and what is known of every backend.

RULES
- This module names the columns, sums them and writes the few words that outlive a process. It decides nothing:
  verdicts come from the prober, admin states from the console, sessions from the workers.
- One writer per cell. A process counts in its own row only; a reader sums the rows.
- Both tables are sparse: capacity is free, a block that was never given out costs nothing. Reading allocates, so
  readers go over live rows and over blocks that were given out, never over all of them.

counts: one row per process. A dead process's totals are folded into RETIRED_ROW, its gauges are zeroed.

    row \\ column | 0..15 prefork | 16.. the process | listeners, 96 each | pools, 104 each | backends, 16 each
    -------------+---------------+------------------+--------------------+---------------+----------------------
    MASTER_ROW   | live rows     |                  |                    |               |
    RETIRED_ROW  | folds         | totals of the dead, written by the master; the block REMOVED of each kind has
                 |               | the totals of blocks that were given to another name
    ADMIN_ROW    | workers asked |                  |                    |               |
    FIRST_LEASE  | pid, state ...| a process's      | a worker's         | a worker's    | a worker's sessions,
       ...       |               | dropped lines    | clients            | queue         | a prober's checks

words: one row. What outlives its writer: a killed prober leaves its last verdicts, and its successor continues.

    0..15 the prober's lease, blocks given out | pools, 8 each: versions | backends, 56 each: verdict and addresses
    by the prober and the master               | and all-down or some-up | by the prober, admin state by the console

A verdict of 0 is "unknown" and counts as up: before the first check has ended a fresh board must serve.

The prober's lease: during a reload two probers live side by side. The newer one writes its row and pid into
PROBER_LEASE_ROW and PROBER_LEASE_PID when it starts. A prober that finds another one there writes nothing, and takes
the lease back when that one is dead (a reload that failed). So verdicts have one writer at a time without any lock.

Versions, per pool: VERDICTS_VERSION is odd while the prober writes and grows by 2 with every change; ADMIN_VERSION grows
by 1 with every change by an operator. Workers compare two cells per election and rebuild their lists only when one has
changed; a verdict in one pool costs the others nothing.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add

from balancer.edge.renewal import CertificateHandover
from balancer.options import MOST_LISTENERS, MOST_POOLS
from balancer.pool.election_log import ElectionLog
from balancer.pool.load_table import FEW_PROCESSES, LoadTable
from balancer.shm.events import EventRing
from balancer.shm.histogram import CELLS, USED, Distribution, distribution
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, PREFORK_COLUMNS, Shared
from balancer.shm.memory import shared_memory
from balancer.shm.source_table import SourceTable
from balancer.shm.table import RETIRED_ROW, Table
from balancer.web.history import BLOCK, History

LOG_DROPPED = PREFORK_COLUMNS  # lines this process could not write
_FIRST_BLOCK = PREFORK_COLUMNS + 8

# A listener's block: totals, then a gauge. What is counted once is not counted again: clients refused in all, failed and
# closed are sums of these (console/status.py).
L_ACCEPTED = 0
L_REFUSED = 1  # closed at the accept, without a session: by maxconns, or because no route is theirs
L_RETRIES = 2
L_BYTES_IN = 3  # client -> backend
L_BYTES_OUT = 4  # backend -> client
L_PAUSES = 5
L_RESUMES = 6
L_ENDS = 7  # .. 22: sessions that have ended, by their end (relay/ends.py); a clean end is the first
MOST_ENDS, MOST_DENIALS = 16, 8
L_TLS_HANDSHAKES = 23  # that have succeeded
L_TLS_RESUMED = 24  # ... with a ticket of an earlier one
L_TLS_TRUNCATED = 25  # clients that have ended their TCP connection without ending their TLS
L_TLS_FAILURES = 26  # .. 30: handshakes that have not succeeded, by TLS_FAILURES
L_SESSIONS = 31  # gauge: clients held; what maxconns limits
L_SESSION_TIMES = 32  # a histogram (shm/histogram.py) of totals: from a session's accept to its end
L_HANDSHAKE_TIMES = L_SESSION_TIMES + CELLS  # TLS, of the handshakes that succeed
L_DENIALS = L_HANDSHAKE_TIMES + CELLS  # totals: clients that a rule turns away, by it (relay/ends.py)

# A pool's block: a total, then gauges.
P_QUEUED_TOTAL = 0
P_REQUESTS_PER_S = 3  # gauge, framed mode: requests that began in the last second
P_CONNECTIONS_IDLE = 4  # gauge, framed mode: kept connections to backends that could carry a request now
P_CONNECTIONS_IN_USE = 5  # gauge, framed mode: those that carry one or rest behind one
P_QUEUED = 6  # gauge: clients waiting for a place at a backend
P_OLDEST_WAIT_MS = 7  # monotonic ms since when the oldest of them waits, 0 = none waits
# ... and histograms of totals
P_CONNECT_TIMES = 8  # of connects that succeed, from connect(2) on, if they are not done when it returns
# of those that leave the queue: with a place, or because they are closed
P_WAIT_TIMES = P_CONNECT_TIMES + CELLS
P_REPLY_TIMES = P_WAIT_TIMES + CELLS  # framed mode: from a request's first byte upstream to its reply's last

# A backend's block: a gauge, then totals; what workers write is in its first cache line.
B_SESSIONS = 0  # gauge, counted before the dial; what maxconn limits
B_SESSIONS_TOTAL = 1  # sessions given to it, counted before the dial
B_CONNECT_FAILURES = 2  # sessions that could reach none of its addresses
B_BYTES_IN = 3
B_BYTES_OUT = 4
B_ADDRESS_FAILURES = 5  # one of several addresses of its name could not be reached
B_EARLY_ENDS = 6  # sessions that it ended before its first byte
B_CHECKS = 7  # prober
B_CHECK_FAILURES = 8  # prober
B_DOWNS = 9  # prober: times it went down
B_SESSIONS_ODD = 10  # gauge: as B_SESSIONS, of a slot's tenants with an odd number
ODD = B_SESSIONS_ODD - B_SESSIONS

# words: the head
PROBER_LEASE_ROW, PROBER_LEASE_PID = 0, 1
_GIVEN_OUT = 8  # .. 10: blocks of each kind that were ever given out, by the master
_FIRST_WORDS = 16
# words: a pool's
VERDICTS_VERSION = 0
ADMIN_VERSION = 1
ANNOUNCED = 2  # by the prober: what the log has said last, 0 nothing, ALL_DOWN or SOME_UP
ANNOUNCED_MS = 3  # ... and when, monotonic ms
MAX_QUEUE = 4  # by the prober: 0 = as configured, else max-queue + 1
_POOL_WORDS = 8
# words: a backend's, by the prober
W_VERDICT = 0
W_SINCE_MS = 1  # monotonic ms of the last change of verdict, 0 = never
W_CHECK = 2  # outcome of the last check, index into CHECK_NAMES
W_STREAK = 3  # results in a row that speak against the verdict
W_CHECK_US = 4  # how long the last good check took
W_SUBJECT = 5  # checksum of the configured address that all this is about
W_ADDRESSES = 6  # addresses of its name that are known
W_IN_USE = 7  # ... which of them is tried first
W_NAME = 8  # whether the name server has answered: NAME_ASKED, NAME_ANSWERED, NAME_FAILED
W_MAXCONN = 9  # 0 = as configured, else maxconn + 1: of the newest configuration, for all generations
W_PENALTIES, W_EJECTIONS = 10, 58  # for early ends, for failed connects: that are not forgotten
W_PENALTY_MS = 11  # monotonic ms of the end of the penalty, 0 = it is not out
# ... by the console
W_ADMIN_STATE = 12
W_WEIGHT = 13  # 0 = as configured, else weight + 1
WEIGHT_ZERO = 1  # its value for weight 0
# ... by the master
W_POOL = 14  # the pool it belongs to
# ... by the console
W_ADMIN_SINCE_MS = 15  # monotonic ms of the last change of admin state or weight, 0 = never
# ... by the prober
W_ADDRESS = 16  # .. 31: the addresses, two words each
MOST_ADDRESSES = 8
W_AGENT = 32  # what its agent says: AGENT_READY, AGENT_OUT (drain, maint or weight 0), AGENT_DOWN
W_AGENT_WEIGHT = 33  # 0 = 100 %, else percent + 1
W_AGENT_MAXCONN, W_AGENT_MODE = 34, 57  # 0 = nothing, else maxconn + 1; its mode, as ADMIN_NAMES
W_RAMP = 35  # slow start: permille of its share, 0 = all of it
# ... of a slot of a set, by the prober
W_PORT = 36  # of the tenant, 0 = as configured
W_TENANT = 37  # tenants that the slot has had; its parity says which gauge counts
W_SRV_WEIGHT = 38  # 0 = as configured, else weight + 1
W_BACKUP = 39  # 1: the tenant has a priority that only serves while no other is up
TENANT_WORDS = (W_PORT, W_SRV_WEIGHT, W_BACKUP)
# ... and of the first slot: the last answer
W_DNS_AT_MS = 40  # monotonic ms, 0 = none yet
W_DNS_TTL_MS = 41  # its smallest TTL
W_DNS_SERVER = 42  # .. 43: the address that answered
W_DNS_QUERIES, W_DNS_FAILURES = 44, 45  # ... and lookups without an answer
W_DNS_LEFT_OUT = 46  # backends in the answer that found no slot
W_DNS_ERROR = 49  # of the last lookup, place in discovery.answers.ERRORS
# ... of a slot again, by the prober: checksum of the tenant's address and port, kept while it is empty; 0: it is no slot
W_TENANT_KEY = 47
# ... by the console: W_TENANT_KEY of the tenant that admin state, weight and maxconn are about, while it is there
W_ADMIN_KEY = 48
W_ADMIN_MAXCONN = 50  # 0 = none, else W_LIMITS_OF of then << 32, and maxconn + 1
# ... by the prober
W_LIMITS_OF = 51  # the generation whose configuration W_MAXCONN is of
# ... by the console, of a spare slot (pool/spares.py): the address added, port << 16 | weight, MASTER_RELOADS of then + 1
W_ADDED, W_ADDED_TERMS, W_ADDED_EPOCH = 52, 54, 55
W_DNS_NAME = 56  # ... by the prober, of each slot: checksum of the name that has answered last, 0 = none yet
_BACKEND_WORDS = 59

UNKNOWN, UP, DOWN = range(3)  # values of W_VERDICT
ALL_DOWN, SOME_UP = 1, 2  # values of ANNOUNCED
NAME_ASKED, NAME_ANSWERED, NAME_FAILED = range(3)  # values of W_NAME
ADMIN_READY, ADMIN_DRAIN, ADMIN_MAINT = range(3)  # values of W_ADMIN_STATE
AGENT_READY, AGENT_OUT, AGENT_DOWN = range(3)  # values of W_AGENT
VERDICT_NAMES = ("up", "up", "down")
ADMIN_NAMES = ("ready", "drain", "maint")
CHECK_NAMES = (
    "none", "ok", "refused", "timeout", "unreachable", "unresolved", "session-failed", "error", "itself", "closed",
    "early-end", "reply", "status", "tls",
)  # fmt: skip

# not-tls: other bytes; protocol: no version or cipher in common, a broken message; certificate: the client's is missing
# or refused; alert: the client refuses ours; incomplete: it has gone, or its time was over.
TLS_FAILURES = ("not-tls", "protocol", "certificate", "alert", "incomplete")

WORKER_ROLE = 0  # value of ROLE: the first role of the balancer's plan

LEAST_BACKENDS = 1024


@dataclass(frozen=True, slots=True)
class BlockKind:
    """Where the blocks of one kind are in a row of counts. `first` is the block REMOVED, block 0 follows it."""

    first: int
    size: int
    totals: tuple[int, ...]  # columns of a block that only grow
    given_out: int  # the word that says how many blocks were given out

    def at(self, index: int) -> int:
        """First column of a block."""
        return self.first + self.size * (index + 1)


def _cells_of(*histograms: int) -> tuple[int, ...]:
    return tuple(first + cell for first in histograms for cell in range(USED))


L_HISTOGRAMS = L_SESSION_TIMES, L_HANDSHAKE_TIMES
P_HISTOGRAMS = P_CONNECT_TIMES, P_WAIT_TIMES, P_REPLY_TIMES
_L_TOTALS = (*range(L_SESSIONS), *_cells_of(*L_HISTOGRAMS), *range(L_DENIALS, L_DENIALS + MOST_DENIALS))
_P_TOTALS = (P_QUEUED_TOTAL, *_cells_of(*P_HISTOGRAMS))
_B_TOTALS = tuple(range(B_SESSIONS_TOTAL, B_DOWNS + 1))
LISTENERS = BlockKind(_FIRST_BLOCK, L_DENIALS + MOST_DENIALS, _L_TOTALS, _GIVEN_OUT)
POOLS = BlockKind(LISTENERS.at(MOST_LISTENERS), P_HISTOGRAMS[-1] + CELLS, _P_TOTALS, _GIVEN_OUT + 1)
BACKENDS = BlockKind(POOLS.at(MOST_POOLS), 16, _B_TOTALS, _GIVEN_OUT + 2)
KINDS = (LISTENERS, POOLS, BACKENDS)
REMOVED = -1

_FIRST_BACKEND_WORDS = _FIRST_WORDS + _POOL_WORDS * MOST_POOLS


def capacity_for(configured: int) -> int:
    """Backend blocks to reserve at boot, for good: room for reloads that add backends."""
    return max(LEAST_BACKENDS, 4 * configured)


def columns_for(backends: int) -> int:
    """Columns that the counts need for so many backend blocks."""
    return BACKENDS.at(backends)


class Board:
    """The balancer's shared tables. Made in the master before the first fork, kept over reloads.

    `lock_fd` is a file without a name whose bytes stand for limited things, for record locks (see shared_limit). It is
    opened once here and never again: closing any descriptor of it in a process would drop that process's locks.
    `processes` is the number of workers at boot: above FEW_PROCESSES elections read a LoadTable.
    """

    def __init__(self, shared: Shared, backends: int, processes: int = 0) -> None:
        if shared.rows.columns < columns_for(backends):
            raise ValueError(f"{shared.rows.columns} columns do not hold {backends} backends")
        self.shared = shared
        self.counts = shared.rows
        self.source_tables: dict[str, SourceTable] = {}  # of the listeners with limits per source, by name
        self.certificates: dict[str, CertificateHandover] = {}  # of the listeners that end TLS, by name
        self.failures = EventRing(shared.rows.rows)
        self.elections = ElectionLog(shared.rows.rows)
        self.words = Table(1, _FIRST_BACKEND_WORDS + _BACKEND_WORDS * backends)
        # One hour of the whole, of listeners and of pools: here, for a reload replaces the console that writes it.
        self.history = memoryview(shared_memory(4 * BLOCK * (1 + MOST_LISTENERS + MOST_POOLS))).cast("f")
        self.columns = self.counts.columns
        self.cells = self.counts.cells
        self.lock_fd = os.memfd_create("balancer-seats", os.MFD_CLOEXEC)
        self.live_cell = MASTER_ROW * self.columns + MASTER_LIVE_ROWS
        self.loads = LoadTable(shared.rows, backends) if processes > FEW_PROCESSES else None
        self.counts.on_zero = self._row_zeroed

    # -- where a block is

    listener_at = staticmethod(LISTENERS.at)
    pool_at = staticmethod(POOLS.at)
    backend_at = staticmethod(BACKENDS.at)

    @staticmethod
    def pool_words_at(index: int) -> int:
        """First of a pool's words."""
        return _FIRST_WORDS + _POOL_WORDS * index

    @staticmethod
    def backend_words_at(index: int) -> int:
        """First of a backend's words."""
        return _FIRST_BACKEND_WORDS + _BACKEND_WORDS * index

    # -- reading

    def live_rows(self) -> int:
        """One past the highest row that can be in use."""
        return int(self.cells[self.live_cell])

    def gauge(self, column: int) -> int:
        """Sum of a gauge over all living processes, draining ones included."""
        columns = self.columns
        cells = self.cells
        return sum(cells[FIRST_LEASE * columns + column : cells[self.live_cell] * columns : columns])

    def total(self, column: int) -> int:
        """Sum of a total over the living and the dead; from one look to the next it never falls."""
        dead = RETIRED_ROW * self.columns + column
        return self.counts.consistent_read(lambda: int(self.cells[dead]) + self.gauge(column))

    def every_gauge(self, kind: BlockKind, column: int) -> list[int]:
        """A column of each block of a kind, by index, summed over the living processes."""
        cells, columns = self.cells, self.columns
        count = self.words.cells[kind.given_out]
        sums = [0] * count
        first, end = kind.at(0) + column, kind.at(count)
        for row in range(FIRST_LEASE, cells[self.live_cell]):
            at = row * columns
            if cells[at + PID]:
                sums = list(map(add, sums, cells[at + first : at + end : kind.size].tolist()))
        return sums

    def every_total(self, kind: BlockKind, column: int) -> list[int]:
        """As every_gauge, the dead included; from one look to the next none of them falls."""
        return self.counts.consistent_read(lambda: self._every_total(kind, column))

    def sum_total(self, kind: BlockKind, column: int) -> int:
        """A total over all blocks of a kind, removed ones included; from one look to the next it never falls."""
        removed = RETIRED_ROW * self.columns + kind.at(REMOVED) + column
        return self.counts.consistent_read(
            lambda: int(self.cells[removed]) + sum(self._every_total(kind, column))
        )

    def _every_total(self, kind: BlockKind, column: int) -> list[int]:
        at = RETIRED_ROW * self.columns
        living = self.every_gauge(kind, column)
        dead = self.cells[at + kind.at(0) + column : at + kind.at(len(living)) : kind.size].tolist()
        return list(map(add, dead, living))

    def histogram(self, kind: BlockKind, index: int, histogram: int) -> Distribution:
        """A histogram of a block over the living and the dead; none of its counts ever falls."""
        cells, columns = self.cells, self.columns
        first = kind.at(index) + histogram

        def read() -> list[int]:
            rows = (row for row in range(FIRST_LEASE, cells[self.live_cell]) if cells[row * columns + PID])
            starts = [row * columns + first for row in (RETIRED_ROW, *rows)]
            return [
                sum(each) for each in zip(*(cells[at : at + USED].tolist() for at in starts), strict=True)
            ]

        return distribution(self.counts.consistent_read(read))

    def sum_in_row(self, row: int, kind: BlockKind, column: int) -> int:
        """A column over all blocks of a kind, in the row of one process."""
        at = row * self.columns
        first, end = at + kind.at(0) + column, at + kind.at(self.words.cells[kind.given_out])
        return sum(self.cells[first : end : kind.size].tolist())

    def word(self, index: int, column: int) -> int:
        """One of a backend's words: verdict, since when, admin state, weight, address."""
        return int(self.words.cells[self.backend_words_at(index) + column])

    def sessions(self, index: int) -> int:
        """Sessions that all workers hold with a backend, dials included; with the tenants before, of a slot."""
        at = BACKENDS.at(index)
        return self.gauge(at + B_SESSIONS) + self.gauge(at + B_SESSIONS_ODD)

    def tenant_sessions(self, index: int, parity: int | None = None) -> int:
        """As `sessions`, of the present tenant of a slot alone, or of those of a parity."""
        parity = self.word(index, W_TENANT) & 1 if parity is None else parity
        return self.gauge(BACKENDS.at(index) + B_SESSIONS + ODD * parity)

    def longest_waiting_row(self, pool: int, but: int) -> int | None:
        """The row whose queue for a pool holds the oldest waiting client, `but` excepted: the one to wake when a place
        is free."""
        columns = self.columns
        at = FIRST_LEASE * columns + POOLS.at(pool) + P_OLDEST_WAIT_MS
        waits = self.cells[at : self.cells[self.live_cell] * columns : columns].tolist()
        rows = [(since, row) for row, since in enumerate(waits, FIRST_LEASE) if since and row != but]
        return min(rows)[1] if rows else None

    # -- the words that outlive a process

    def write_verdict(self, index: int, words: Iterable[tuple[int, int]]) -> None:
        """The prober with the lease: write (column, value) words of a backend as one change that readers see whole."""
        self.write_verdicts([(index, words)])

    def write_verdicts(self, changes: Sequence[tuple[int, Iterable[tuple[int, int]]]]) -> None:
        """As write_verdict, of several backends of one pool at once."""
        cells = self.words.cells
        version = self.pool_words_at(cells[self.backend_words_at(changes[0][0]) + W_POOL]) + VERDICTS_VERSION
        cells[version] |= 1
        for index, words in changes:
            at = self.backend_words_at(index)
            for column, value in words:
                cells[at + column] = value
        cells[version] += 1

    def note(self, index: int, column: int, value: int) -> None:
        """The prober with the lease: a word that only people read (last check, streak); no election depends on it."""
        self.words.cells[self.backend_words_at(index) + column] = value

    def set_admin_state(self, index: int, state: int, at_ms: int = 0) -> None:
        """Console: ADMIN_READY, ADMIN_DRAIN or ADMIN_MAINT, of the present tenant of a slot, from monotonic ms on."""
        self._write_admin(index, W_ADMIN_STATE, state, at_ms)

    def set_weight(self, index: int, weight: int | None, at_ms: int = 0) -> None:
        """Console: a weight for now (0 = no new sessions), None = as configured."""
        self._write_admin(index, W_WEIGHT, 0 if weight is None else weight + 1, at_ms)

    def set_maxconn(self, index: int, maxconn: int | None) -> None:
        """Console: a maxconn until a reload brings another configuration (0 = no limit), None = as configured."""
        value = 0 if maxconn is None else self.word(index, W_LIMITS_OF) << 32 | maxconn + 1
        self._write_admin(index, W_ADMIN_MAXCONN, value, self.admin_word(index, W_ADMIN_SINCE_MS))

    def _write_admin(self, index: int, column: int, value: int, at_ms: int) -> None:
        cells, at = self.words.cells, self.backend_words_at(index)
        if (tenant := cells[at + W_TENANT_KEY]) != cells[at + W_ADMIN_KEY]:  # they were about another
            for each in (W_ADMIN_STATE, W_WEIGHT, W_ADMIN_MAXCONN, W_ADMIN_SINCE_MS):
                cells[at + each] = 0
            cells[at + W_ADMIN_KEY] = tenant
        if cells[at + column] != value:
            cells[at + W_ADMIN_SINCE_MS] = at_ms
        cells[at + column] = value
        cells[self.pool_words_at(cells[at + W_POOL]) + ADMIN_VERSION] += 1

    def versions(self, pool: int) -> tuple[int, int]:
        """(of a pool's verdicts, odd while being written; of its admin states)."""
        at = self.pool_words_at(pool)
        return int(self.words.cells[at + VERDICTS_VERSION]), int(self.words.cells[at + ADMIN_VERSION])

    def admin_word(self, index: int, column: int) -> int:
        """W_ADMIN_STATE, W_WEIGHT, W_ADMIN_MAXCONN, W_ADMIN_SINCE_MS; of a slot, 0 when about a tenant before."""
        cells, at = self.words.cells, self.backend_words_at(index)
        return int(cells[at + column]) if cells[at + W_ADMIN_KEY] == cells[at + W_TENANT_KEY] else 0

    def weight_of(self, index: int, configured: int) -> int:
        """The weight in force: an operator's, that of a service's record, or the configured one."""
        said = self.admin_word(index, W_WEIGHT) or self.word(index, W_SRV_WEIGHT)
        return said - 1 if said else configured

    def share_of(self, index: int) -> float:
        """The part of its weight that a backend is given sessions by: what its agent says, while it slowly starts."""
        percent, ramp = self.word(index, W_AGENT_WEIGHT), self.word(index, W_RAMP)
        return ((percent - 1) / 100 if percent else 1.0) * (ramp / 1000 if ramp else 1.0)

    def admin_maxconn(self, index: int) -> int | None:
        """An operator's maxconn, while the configuration that it was set under is in force."""
        generation, said = divmod(self.admin_word(index, W_ADMIN_MAXCONN), 1 << 32)
        return said - 1 if said and generation == self.word(index, W_LIMITS_OF) else None

    def maxconn_of(self, index: int, configured: int) -> int:
        """The maxconn in force: an operator's; or the configured one, which a reload may have changed since the asking
        process was forked, and where there is one, the agent's in its place. A slow start allows a part of it."""
        newest, ramp = self.word(index, W_MAXCONN), self.word(index, W_RAMP)
        limit = newest - 1 if newest else configured
        if (by_operator := self.admin_maxconn(index)) is not None:
            limit = by_operator
        elif limit and (said := self.word(index, W_AGENT_MAXCONN)):
            limit = max(1, said - 1)
        return max(1, limit * ramp // 1000) if limit and ramp else limit

    def max_queue_of(self, pool: int, configured: int) -> int:
        """The max-queue in force."""
        newest = int(self.words.cells[self.pool_words_at(pool) + MAX_QUEUE])
        return newest - 1 if newest else configured

    # -- the prober's lease

    def take_prober_lease(self, row: int, pid: int, pools: Iterable[int]) -> None:
        """A starting prober: from now on it is the one that writes verdicts of these pools. A version that a killed
        predecessor has left odd is made even: while it is odd, workers do not look for changes."""
        words = self.words.cells
        words[PROBER_LEASE_ROW] = row
        words[PROBER_LEASE_PID] = pid
        for pool in pools:
            version = self.pool_words_at(pool) + VERDICTS_VERSION
            words[version] += words[version] & 1

    def prober_lease(self) -> tuple[int, int, bool]:
        """(row, pid, whether that process still has that row) of the prober with the lease."""
        row, pid = int(self.words.cells[PROBER_LEASE_ROW]), int(self.words.cells[PROBER_LEASE_PID])
        return row, pid, bool(pid) and self.cells[row * self.columns + PID] == pid

    # -- boot and reload

    def _row_zeroed(self, row: int) -> None:
        if self.loads is not None:
            self.loads.clear(row, self.words.cells[BACKENDS.given_out])

    def give_out(self, kind: BlockKind, indexes: Iterable[int], reused: Iterable[int]) -> None:
        """Master: these blocks are in use from now on. Those reused belonged to a name that no living generation uses:
        its totals go to the block REMOVED, its words are forgotten."""
        cells = self.words.cells
        cells[kind.given_out] = max([int(cells[kind.given_out]), *(index + 1 for index in indexes)])
        for index in reused:
            old, removed = kind.at(index), kind.at(REMOVED)
            totals = [(old + column, removed + column) for column in kind.totals]
            self.counts.move(RETIRED_ROW, totals)
            if kind is not BACKENDS:
                History(self.history).clear(1 + index + (MOST_LISTENERS if kind is POOLS else 0))
            if kind is not LISTENERS:
                at, size = self.pool_words_at(index), _POOL_WORDS
                if kind is BACKENDS:
                    at, size = self.backend_words_at(index), _BACKEND_WORDS
                cells[at : at + size] = memoryview(bytes(8 * size)).cast("q")

    def assign_pool(self, pool: int, backends: Iterable[int]) -> None:
        """Master: these backends, whose blocks have been given out, are of this pool."""
        for index in backends:
            self.words.cells[self.backend_words_at(index) + W_POOL] = pool

    def totals(self) -> tuple[range, ...]:
        """The columns that the master folds into RETIRED_ROW when a process ends."""
        spans = [range(LOG_DROPPED, LOG_DROPPED + 1)]
        for kind in KINDS:
            first, end = kind.at(0), kind.at(self.words.cells[kind.given_out])
            spans += [range(first + column, end, kind.size) for column in kind.totals]
        return tuple(spans)
