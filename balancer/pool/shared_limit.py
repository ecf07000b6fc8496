"""A limit over all workers that is never exceeded by even one, and never shrinks by a crash.

RULES
- An acquired unit is +1 in a gauge of the process's own row. The number held is the sum of that gauge over all rows,
  draining generations included.
- The sum and the +1 happen under a record lock (fcntl) on one byte of a file without a name: the kernel frees the lock
  when its holder dies, however it dies. There is one byte per limited thing, so different backends never wait for each
  other.
- Without a limit there is no lock: acquiring is one addition.

Why it is exact. Call truth(t) the number of sockets open for a limited thing, sum(t) the sum of its gauge.
 1. sum >= truth at every moment. A process adds 1 before it opens the socket and subtracts 1 after close(2)
    returned. When it is killed anywhere between, the kernel closes its sockets first; only then can
    waitpid() return to the master, and only then is its row zeroed. So a cell leaves the sum after its
    socket is gone.
 2. sum <= limit at every moment. The sum grows only under the lock, by a holder that has just seen sum <
    limit. Others may lower it meanwhile, and none can raise it: there is one writer per cell, and every writer that
    raises its cell holds the lock. A row below the live mark is never missed: the master raises the mark before it
    forks the row's owner.
 3. Nothing leaks. A holder killed before its +1 changed nothing; killed after it, the +1 goes with its row.
    The kernel frees the lock in both cases. So after any storm of kills the full capacity is there again.
Hence truth <= sum <= limit. Rejected: adding first and taking back on overshoot (two processes at the last unit both
step back); tokens spread over the workers (exact too, but a busy worker starves beside idle tokens).

The wait for the lock is bounded. A holder needs some 10 us, but it may be stopped (SIGSTOP, a debugger) in just that
stretch, and an unbounded wait would hang every other worker too. After PATIENCE `acquire` fails, and it does not wait
for that lock again until it was free once: refusing a session too many, for the seconds until the stopped worker is
replaced, is the safe side.

A process loses its record locks when it closes ANY descriptor of the file: only the board opens it, and no code closes
it.
"""

import fcntl
import os
import time
from collections.abc import Callable

from balancer.pool.board import Board
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW

PATIENCE = 0.02  # seconds; a holder that lost its core to others has it back after a slice or two of 3 ms


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
        self._stuck: set[int] = set()  # bytes whose holder has outlasted PATIENCE

    def held(self, column: int) -> int:
        """Units held by all processes."""
        cells, columns = self._cells, self._columns
        return sum(cells[FIRST_LEASE * columns + column : cells[self._live] * columns : columns].tolist())

    def acquire(self, column: int, limit: int) -> bool:
        """Add 1 to the gauge in `column`; False when all `limit` (0 = no limit) are held.

        The caller opens its socket after this and calls `release` after close(2), never before."""
        if not limit:
            self._cells[self._own + column] += 1
            return True
        if self.held(column) >= limit or not self._lock(column):
            return False
        try:
            if self.held(column) >= limit:
                return False
            self._cells[self._own + column] += 1
            return True
        finally:
            self._lockf(self._fd, fcntl.LOCK_UN, 1, column)

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
