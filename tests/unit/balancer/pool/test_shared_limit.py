"""SharedLimit: never one too many, never one lost."""

import fcntl
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.pool.board import L_SESSIONS, Board
from balancer.pool.shared_limit import PATIENCE, SharedLimit
from balancer.shm.layout import FIRST_LEASE
from tests.unit.balancer.pool.boards import make_board

ROWS = 4
SESSIONS = Board.listener_at(0) + L_SESSIONS


@pytest.fixture
def board() -> Board:
    return make_board(live=ROWS)


def no_lock(*arguments: int) -> None:
    pytest.fail("locked")


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


def test_the_limit_holds_over_all_rows(board: Board) -> None:
    workers = [SharedLimit(board, row) for row in range(FIRST_LEASE, FIRST_LEASE + ROWS)]
    acquired = [workers[turn % ROWS].acquire(SESSIONS, 10) for turn in range(30)]
    assert acquired == [True] * 10 + [False] * 20
    assert board.gauge(SESSIONS) == 10
    workers[0].release(SESSIONS)
    assert [worker.acquire(SESSIONS, 10) for worker in workers] == [True, False, False, False]


def test_without_a_limit_acquiring_always_succeeds_and_takes_no_lock(board: Board) -> None:
    limit = SharedLimit(board, FIRST_LEASE, lockf=no_lock)
    assert all(limit.acquire(SESSIONS, 0) for _ in range(100))
    assert board.gauge(SESSIONS) == 100


def test_the_sum_that_decides_and_the_addition_happen_under_the_lock(board: Board) -> None:
    """Exactness rests on this: between that sum and the +1 no other process can add."""
    other = OtherProcess(board)
    seen: list[bool] = []

    class Watched(SharedLimit):
        def held(self, column: int) -> int:
            seen.append(other.sees_locked(SESSIONS))
            return super().held(column)

    assert Watched(board, FIRST_LEASE).acquire(SESSIONS, 1)
    assert seen[-1] is True
    assert other.sees_locked(SESSIONS) is False
    other.leave()


def test_the_lock_is_freed_after_a_refusal_under_it(board: Board) -> None:
    other = OtherProcess(board)

    class Late(SharedLimit):
        """Another process acquires the last unit between the first look and the lock."""

        looks = 0

        def held(self, column: int) -> int:
            self.looks += 1
            return self.looks - 1

    assert Late(board, FIRST_LEASE).acquire(SESSIONS, 1) is False
    assert board.gauge(SESSIONS) == 0
    assert other.sees_locked(SESSIONS) is False
    other.leave()


def test_a_lock_that_stays_held_is_a_refusal_and_no_hang(board: Board) -> None:
    times = iter(range(1000))
    yields: list[None] = []
    other = OtherProcess(board)
    other.lock(SESSIONS)
    limited = SharedLimit(
        board, FIRST_LEASE, clock=lambda: next(times) * PATIENCE / 10, give_way=lambda: yields.append(None)
    )
    assert limited.acquire(SESSIONS, 10) is False
    assert len(yields) == 10
    assert limited.acquire(SESSIONS, 10) is False
    assert len(yields) == 10  # the second time it does not wait
    assert limited.acquire(SESSIONS + 1, 10) is True  # another limit, another byte
    other.leave()
    assert limited.acquire(SESSIONS, 10) is True
    other = OtherProcess(board)
    other.lock(SESSIONS)
    assert limited.acquire(SESSIONS, 10) is False
    assert len(yields) == 20  # the lock was free in between: it waits again
    other.leave()


def test_an_exhausted_limit_refuses_without_the_lock(board: Board) -> None:
    assert SharedLimit(board, FIRST_LEASE).acquire(SESSIONS, 1)
    assert SharedLimit(board, FIRST_LEASE, lockf=no_lock).acquire(SESSIONS, 1) is False


EVENTS = st.lists(
    st.tuples(st.sampled_from(["acquire", "release", "kill"]), st.integers(0, ROWS - 1)), max_size=60
)


@given(EVENTS, st.integers(1, 6))
def test_any_history_with_deaths_keeps_the_limit_and_the_full_capacity(
    events: list[tuple[str, int]], limit: int
) -> None:
    """Kill = the sockets are gone, then the master zeroes the row, whatever it held."""
    board = make_board(live=ROWS)
    workers = [SharedLimit(board, row) for row in range(FIRST_LEASE, FIRST_LEASE + ROWS)]
    open_sockets = [0] * ROWS
    for event, place in events:
        if event == "acquire":
            may = sum(open_sockets) < limit
            assert workers[place].acquire(SESSIONS, limit) is may
            open_sockets[place] += may
        elif event == "release" and open_sockets[place]:
            open_sockets[place] -= 1
            workers[place].release(SESSIONS)
        elif event == "kill":
            open_sockets[place] = 0
            board.shared.rows.zero(FIRST_LEASE + place)
        assert sum(open_sockets) == board.gauge(SESSIONS) <= limit
    free = limit - sum(open_sockets)
    assert [workers[0].acquire(SESSIONS, limit) for _ in range(free + 1)] == [True] * free + [False]
    os.close(board.lock_fd)
