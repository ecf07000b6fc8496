"""Seats: a limit over all workers that is never exceeded by even one, and never shrinks by a crash.

RULES
- A seat is +1 in a gauge of one's own row. Taken = the sum of that gauge over all rows, draining
  generations included.
- The sum and the +1 happen under a record lock (fcntl) on one byte of a nameless file: the kernel frees it
  when its holder dies, however it dies. One byte per limited thing, so different backends never wait for
  each other.
- No limit, no lock: then taking is one addition.

Why it is exact. Call truth(t) the number of sockets open for a limited thing, sum(t) the sum of its gauge.
 1. sum >= truth at every moment. A process adds 1 before it opens the socket and subtracts 1 after close(2)
    returned. When it is killed anywhere between, the kernel closes its sockets first; only then can
    waitpid() return to the master, and only then is its row zeroed. So a cell leaves the sum after its
    socket has left the world.
 2. sum <= limit at every moment. The sum grows only under the lock, by a holder that has just seen sum <
    limit. Others may lower it meanwhile, nobody can raise it: one writer per cell, and every writer who
    raises holds the lock. A row below the live mark is never missed: the master raises the mark before it
    forks the row's owner.
 3. Nothing leaks. A holder killed before its +1 changed nothing; killed after it, the +1 goes with its row.
    The lock is freed by the kernel in both cases. So after any storm the full capacity is there again.
Hence truth <= sum <= limit. Rejected: adding first and taking back on overshoot (two at the last seat both
step back); tokens spread over the workers (exact too, but a busy worker starves beside idle tokens).

The wait for the lock is bounded. A holder needs some 10 us, yet it may be stopped (SIGSTOP, a debugger) in just that
stretch; waiting for it without end would hang every other worker too. After PATIENCE the seat counts as not to be had,
and until that lock was free once there is no more waiting for it at all: refusing a session too many, for the seconds
until the stopped worker is replaced, is the safe side.

A process loses its locks when it closes ANY descriptor of the file: nobody may open or close it but the
board.
"""

import fcntl
import os
import time

from balancer.pool.board import Board
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW

PATIENCE = 0.02  # seconds; a holder that lost its core to others has it back after a slice or two of 3 ms


class Seats:
    """The seats of one process: takes and gives them in its own row."""

    def __init__(self, board: Board, row: int) -> None:
        self._cells = board.cells
        self._columns = board.columns
        self._own = row * board.columns
        self._live = MASTER_ROW * board.columns + MASTER_LIVE_ROWS
        self._fd = board.lock_fd
        self._stuck: set[int] = set()  # bytes whose holder outlasted our patience

    def taken(self, column: int) -> int:
        """Seats taken by all processes."""
        cells, columns = self._cells, self._columns
        return sum(cells[FIRST_LEASE * columns + column : cells[self._live] * columns : columns].tolist())

    def take(self, column: int, limit: int) -> bool:
        """Take a seat of the gauge in `column`; False when all `limit` (0 = endless) are taken.

        The caller opens its socket after this and gives the seat back after close(2), never before."""
        if not limit:
            self._cells[self._own + column] += 1
            return True
        if self.taken(column) >= limit or not self._lock(column):
            return False
        try:
            if self.taken(column) >= limit:
                return False
            self._cells[self._own + column] += 1
            return True
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, column)

    def give(self, column: int) -> None:
        """Give a seat back. The socket it stood for is closed."""
        self._cells[self._own + column] -= 1

    def _lock(self, byte: int) -> bool:
        deadline = 0.0
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: somebody holds it
                # The only clock here: the loop's own time stands still while we wait.
                now = time.monotonic()
                deadline = deadline or now + PATIENCE
                if byte in self._stuck or now >= deadline:
                    self._stuck.add(byte)
                    return False
                os.sched_yield()
            else:
                self._stuck.discard(byte)
                return True
