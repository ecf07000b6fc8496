"""Boards for tests: made as the master makes them, with their blocks given out."""

import fcntl
import os
import struct

from balancer.options import Pool
from balancer.pool.backend import Backend
from balancer.pool.board import BACKENDS, LISTENERS, POOLS, Board, columns_for
from balancer.pool.targets import Target, targets_of
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, make_shared


def make_board(backends: int = 8, live: int = 2, listeners: int = 1, pools: int = 1) -> Board:
    """A board with `live` leased rows, whose processes have the pids 1000 + row."""
    shared = make_shared(columns_for(backends), rows=FIRST_LEASE + live + 2)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + live
    for row in range(FIRST_LEASE, FIRST_LEASE + live):
        shared.rows.row(row)[PID] = 1000 + row
    board = Board(shared, backends)
    for kind, count in ((LISTENERS, listeners), (POOLS, pools), (BACKENDS, backends)):
        board.give_out(kind, range(count), ())
    return board


def pool_of(board: Board, backends: tuple[Backend, ...], balance: str = "leastconn", index: int = 0) -> Pool:
    """A pool of these backends, known to the board."""
    board.assign_pool(index, [backend.index for backend in backends])
    return Pool("main", backends, balance=balance, index=index)


class OtherProcess:
    """Locks as another process would: an open file description of its own conflicts with record locks."""

    def __init__(self, board: Board) -> None:
        self.fd = os.open(f"/proc/self/fd/{board.lock_fd}", os.O_RDWR)

    def lock(self, byte: int) -> None:
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, self._flock(fcntl.F_WRLCK, byte))

    def sees_locked(self, byte: int) -> bool:
        answer = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, self._flock(fcntl.F_WRLCK, byte))
        return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)

    @staticmethod
    def _flock(kind: int, byte: int) -> bytes:
        return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)

    def leave(self) -> None:
        os.close(self.fd)


def target_of(board: Board, backend: Backend) -> Target | None:
    """What new sessions dial first; None for a name of which no address is known."""
    return next(iter(targets_of(board, backend)), None)
