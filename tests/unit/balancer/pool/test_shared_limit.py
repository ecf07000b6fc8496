"""Seats: never one too many, never one lost."""

import fcntl
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.pool import shared_limit as limits
from balancer.pool.board import SESSIONS, Board, columns_for
from balancer.pool.shared_limit import Seats
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, make_shared

ROWS = 4


@pytest.fixture
def board() -> Board:
    return make_board()


def make_board() -> Board:
    shared = make_shared(columns_for(1), rows=FIRST_LEASE + ROWS)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + ROWS
    return Board(shared, 1)


class Stranger:
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


def test_the_last_seat_is_the_last_over_all_rows(board: Board) -> None:
    workers = [Seats(board, row) for row in range(FIRST_LEASE, FIRST_LEASE + ROWS)]
    taken = [workers[turn % ROWS].take(SESSIONS, 10) for turn in range(30)]
    assert taken == [True] * 10 + [False] * 20
    assert board.gauge(SESSIONS) == 10
    workers[0].give(SESSIONS)
    assert [worker.take(SESSIONS, 10) for worker in workers] == [True, False, False, False]


def test_without_a_limit_there_is_always_a_seat_and_no_lock(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.fcntl, "lockf", lambda *_: pytest.fail("locked"))
    seats = Seats(board, FIRST_LEASE)
    assert all(seats.take(SESSIONS, 0) for _ in range(100))
    assert board.gauge(SESSIONS) == 100


def test_the_sum_that_decides_and_the_addition_happen_under_the_lock(board: Board) -> None:
    """What exactness rests on: between that sum and the +1 nobody else can add."""
    stranger = Stranger(board)
    seen: list[bool] = []

    class Watched(Seats):
        def taken(self, column: int) -> int:
            seen.append(stranger.sees_locked(SESSIONS))
            return super().taken(column)

    assert Watched(board, FIRST_LEASE).take(SESSIONS, 1)
    assert seen[-1] is True
    assert stranger.sees_locked(SESSIONS) is False
    stranger.leave()


def test_the_lock_is_freed_after_a_refusal_under_it(board: Board) -> None:
    stranger = Stranger(board)

    class Late(Seats):
        """Somebody takes the last seat between the first look and the lock."""

        looks = 0

        def taken(self, column: int) -> int:
            self.looks += 1
            return self.looks - 1

    assert Late(board, FIRST_LEASE).take(SESSIONS, 1) is False
    assert board.gauge(SESSIONS) == 0
    assert stranger.sees_locked(SESSIONS) is False
    stranger.leave()


def test_a_lock_that_stays_held_means_no_seat_and_no_hang(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    yields: list[None] = []
    monkeypatch.setattr(limits.time, "monotonic", lambda: next(clock) * limits.PATIENCE / 10)
    monkeypatch.setattr(limits.os, "sched_yield", lambda: yields.append(None))
    stranger = Stranger(board)
    stranger.lock(SESSIONS)
    seats = Seats(board, FIRST_LEASE)
    assert seats.take(SESSIONS, 10) is False
    assert len(yields) == 10
    assert seats.take(SESSIONS, 10) is False
    assert len(yields) == 10  # the second time nobody waits
    assert seats.take(SESSIONS + 1, 10) is True  # another thing, another byte
    stranger.leave()
    assert seats.take(SESSIONS, 10) is True
    stranger = Stranger(board)
    stranger.lock(SESSIONS)
    assert seats.take(SESSIONS, 10) is False
    assert len(yields) == 20  # it was free in between: patient again
    stranger.leave()


def test_a_full_house_is_refused_without_the_lock(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    seats = Seats(board, FIRST_LEASE)
    assert seats.take(SESSIONS, 1)
    monkeypatch.setattr(limits.fcntl, "lockf", lambda *_: pytest.fail("locked"))
    assert seats.take(SESSIONS, 1) is False


EVENTS = st.lists(st.tuples(st.sampled_from(["take", "give", "kill"]), st.integers(0, ROWS - 1)), max_size=60)


@given(EVENTS, st.integers(1, 6))
def test_any_history_with_deaths_keeps_the_limit_and_the_full_capacity(
    events: list[tuple[str, int]], limit: int
) -> None:
    """Kill = the sockets are gone, then the master zeroes the row, whatever it held."""
    board = make_board()
    workers = [Seats(board, row) for row in range(FIRST_LEASE, FIRST_LEASE + ROWS)]
    open_sockets = [0] * ROWS
    for event, who in events:
        if event == "take":
            may = sum(open_sockets) < limit
            assert workers[who].take(SESSIONS, limit) is may
            open_sockets[who] += may
        elif event == "give" and open_sockets[who]:
            open_sockets[who] -= 1
            workers[who].give(SESSIONS)
        elif event == "kill":
            open_sockets[who] = 0
            board.shared.rows.zero(FIRST_LEASE + who)
        assert sum(open_sockets) == board.gauge(SESSIONS) <= limit
    free = limit - sum(open_sockets)
    assert [workers[0].take(SESSIONS, limit) for _ in range(free + 1)] == [True] * free + [False]
    os.close(board.lock_fd)
