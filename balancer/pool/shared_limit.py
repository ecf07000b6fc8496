"""A limit over all workers that is never exceeded by even one, and never shrinks by a crash.

RULES
- An acquired unit is +1 in a gauge of the process's own row. The number held is the sum of that gauge over all rows,
  draining generations included.
- `acquire` has three answers: "acquired"; "full", all units are held; "busy", this cannot be told now, because another
  process has the lock and does not go on. "busy" refuses nobody: the caller asks again by a timer of its loop.
- Far below the limit there is no lock: a process adds 1, and keeps it when the sum, with one unit more for each other
  process, is within the limit. Else it takes the 1 back.
- Near the limit the sum and the +1 happen under a record lock (fcntl) on one byte of a file without a name: the kernel
  frees the lock when its holder dies, however it dies. There is one byte per limited thing, so different backends never
  wait for each other.
- Without a limit acquiring is one addition.

Why it is exact. Call truth(t) the number of sockets open for a limited thing, sum(t) the sum of its gauge, counting units
that are kept.
 1. sum >= truth at every moment. A process adds 1 before it opens the socket and subtracts 1 after close(2)
    returned. When it is killed anywhere between, the kernel closes its sockets first; only then can
    waitpid() return to the master, and only then is its row zeroed. So a cell leaves the sum after its
    socket is gone.
 2. sum <= limit at every moment. Others may lower it, so look at the additions. Under the lock: the holder has just
    seen sum < limit, and no other holder adds meanwhile. Without: let u be the last unit kept without the lock. Its
    process read the sum after it had added u, so it has seen every unit added before, but for one of each other
    process at most: the one that process was just adding (a store that is not visible yet, or a lock holder between
    its look and its +1; the units it adds later are judged by a sum with u in it). These are in the margin. So a
    stale look can make a process take its 1 back or lock in vain, never keep one too many. A row below the live mark
    is never missed: the master raises the mark before it forks the row's owner.
 3. Nothing leaks. A process killed before its +1 changed nothing; killed after it, the +1 goes with its row.
    The kernel frees the lock in both cases. So after any storm of kills the full capacity is there again.
Hence truth <= sum <= limit. Rejected: adding first and taking back at the limit itself (two processes at the last unit
both step back); looking first and adding later without a lock (a process that loses its core in between adds to a sum of
long ago); tokens spread over the workers (exact too, but a busy worker starves beside idle tokens).

The wait for the lock is bounded. A holder needs some 10 us, but it may lose its core or be stopped (SIGSTOP, a debugger)
in just that stretch, and an unbounded wait would hang every other worker too. After PATIENCE the answer is "busy", and
nobody waits for that lock again until it was free once. (With two answers, `--maxconns 3000` and 150 clients, 58 of
13,417 were refused on a busy machine, and every client while a process that was stopped had the lock.)

A process loses its record locks when it closes ANY descriptor of the file: only the board opens it, and no code closes
it.
"""

import fcntl
import os
import time
from collections.abc import Callable
from typing import Literal

from balancer.pool.board import Board
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW

PATIENCE = 0.005  # seconds; a holder that lost its core to others has it back after a slice or two of 3 ms

Acquired = Literal["acquired", "full", "busy"]


class SharedLimit:
    """The limits as one process sees them: it acquires and releases in its own row.

    `lockf`, `clock` and `give_way` are what the operating system offers; tests hand in others."""

    def __init__(
        self,
        board: Board,
        row: int,
        lockf: Callable[[int, int, int, int], object] = fcntl.lockf,
        clock: Callable[[], float] = time.monotonic,
        give_way: Callable[[], object] = os.sched_yield,
    ) -> None:
        self._cells = board.cells
        self._columns = board.columns
        self._own = row * board.columns
        self._live = MASTER_ROW * board.columns + MASTER_LIVE_ROWS
        self._fd = board.lock_fd
        self._lockf, self._clock, self._give_way = lockf, clock, give_way
        self.measured = 0  # the sum that the last "full" went by
        self._stuck: set[int] = set()  # bytes whose holder has outlasted PATIENCE

    def held(self, column: int) -> int:
        """Units held by all processes."""
        cells, columns = self._cells, self._columns
        return sum(cells[FIRST_LEASE * columns + column : cells[self._live] * columns : columns])

    def acquire(self, column: int, limit: int) -> Acquired:
        """Add 1 to the gauge in `column`, unless all `limit` (0 = no limit) units are held or that cannot be told now.

        The caller opens its socket after "acquired" and calls `release` after close(2), never before."""
        cells, own = self._cells, self._own + column
        if not limit:
            cells[own] += 1
            return "acquired"
        held = self.held(column)
        if held + self._others() < limit:
            cells[own] += 1
            if self.held(column) + self._others() <= limit:
                return "acquired"
            cells[own] -= 1
        elif held >= limit and self._is_full(column, limit):
            return "full"
        if not self._lock(column):
            return "busy"
        try:
            if self._is_full(column, limit):
                return "full"
            cells[own] += 1
            return "acquired"
        finally:
            self._lockf(self._fd, fcntl.LOCK_UN, 1, column)

    def _others(self) -> int:
        """Other processes, each of which may be adding one unit just now; rather too many."""
        return int(self._cells[self._live]) - FIRST_LEASE - 1

    def _is_full(self, column: int, limit: int) -> bool:
        """Whether all units are held; `measured` is the sum that says so."""
        self.measured = self.held(column)
        return self.measured >= limit

    def release(self, column: int) -> None:
        """Subtract 1 again. The socket it stood for is closed."""
        self._cells[self._own + column] -= 1

    def _lock(self, byte: int) -> bool:
        deadline = 0.0
        while True:
            try:
                self._lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: another process holds it
                # The only clock here: the loop's own time stands still during the wait.
                now = self._clock()
                deadline = deadline or now + PATIENCE
                if byte in self._stuck or now >= deadline:
                    self._stuck.add(byte)
                    return False
                self._give_way()
            else:
                self._stuck.discard(byte)
                return True
