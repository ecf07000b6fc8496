"""SharedLimit: never one too many, never one lost, nobody refused while that cannot be told."""

import fcntl
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.pool.board import L_SESSIONS, Board
from balancer.pool.shared_limit import PATIENCE, SharedLimit
from balancer.shm.layout import FIRST_LEASE
from tests.unit.balancer.pool.boards import OtherProcess, make_board

ROWS = 4
SESSIONS = Board.listener_at(0) + L_SESSIONS
NEAR = ROWS - 1  # a limit for which each acquisition locks


@pytest.fixture
def board() -> Board:
    return make_board(live=ROWS)


def no_lock(*arguments: int) -> None:
    pytest.fail("locked")


def is_locked(fd: int, command: int, length: int, start: int) -> None:
    raise BlockingIOError


def test_the_limit_holds_over_all_rows(board: Board) -> None:
    workers = [SharedLimit(board, row) for row in range(FIRST_LEASE, FIRST_LEASE + ROWS)]
    acquired = [workers[turn % ROWS].acquire(SESSIONS, 10) for turn in range(30)]
    assert acquired == ["acquired"] * 10 + ["full"] * 20
    assert board.gauge(SESSIONS) == 10
    workers[0].release(SESSIONS)
    assert [worker.acquire(SESSIONS, 10) for worker in workers] == ["acquired", "full", "full", "full"]


def test_without_a_limit_acquiring_always_succeeds_and_takes_no_lock(board: Board) -> None:
    limit = SharedLimit(board, FIRST_LEASE, lockf=no_lock)
    assert {limit.acquire(SESSIONS, 0) for _ in range(100)} == {"acquired"}
    assert board.gauge(SESSIONS) == 100


def test_the_sum_that_decides_and_the_addition_happen_under_the_lock(board: Board) -> None:
    """Exactness rests on this: between that sum and the +1 no other process can add."""
    other = OtherProcess(board)
    seen: list[bool] = []

    class Watched(SharedLimit):
        def held(self, column: int) -> int:
            seen.append(other.sees_locked(SESSIONS))
            return super().held(column)

    assert Watched(board, FIRST_LEASE).acquire(SESSIONS, 1) == "acquired"
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

    assert Late(board, FIRST_LEASE).acquire(SESSIONS, 1) == "full"
    assert board.gauge(SESSIONS) == 0
    assert other.sees_locked(SESSIONS) is False
    other.leave()


def test_a_lock_that_stays_held_is_no_answer_and_no_hang(board: Board) -> None:
    times = iter(range(1000))
    yields: list[None] = []
    other = OtherProcess(board)
    other.lock(SESSIONS)
    limited = SharedLimit(
        board, FIRST_LEASE, clock=lambda: next(times) * PATIENCE / 10, give_way=lambda: yields.append(None)
    )
    assert limited.acquire(SESSIONS, NEAR) == "busy"
    assert len(yields) == 10
    assert limited.acquire(SESSIONS, NEAR) == "busy"
    assert len(yields) == 10  # the second time it does not wait
    assert limited.acquire(SESSIONS + 1, NEAR) == "acquired"  # another limit, another byte
    other.leave()
    assert limited.acquire(SESSIONS, NEAR) == "acquired"
    other = OtherProcess(board)
    other.lock(SESSIONS)
    assert limited.acquire(SESSIONS, NEAR) == "busy"
    assert len(yields) == 20  # the lock was free in between: it waits again
    other.leave()


def test_an_exhausted_limit_refuses_without_the_lock(board: Board) -> None:
    assert SharedLimit(board, FIRST_LEASE).acquire(SESSIONS, 1) == "acquired"
    second = SharedLimit(board, FIRST_LEASE, lockf=no_lock)
    assert second.acquire(SESSIONS, 1) == "full"
    assert second.measured == 1


@pytest.mark.parametrize("limit", [ROWS, 10, 3000])
def test_far_below_the_limit_there_is_no_lock(board: Board, limit: int) -> None:
    """A process that is stopped while it holds the lock refuses nobody there, and keeps nobody waiting."""
    limited = SharedLimit(board, FIRST_LEASE, lockf=no_lock)
    for _ in range(limit - ROWS + 1):
        assert limited.acquire(SESSIONS, limit) == "acquired"
    with pytest.raises(pytest.fail.Exception, match="locked"):
        limited.acquire(SESSIONS, limit)


def test_a_sum_that_has_grown_meanwhile_takes_the_unit_back(board: Board) -> None:
    """This process lost its core between its look and its +1."""
    neighbour = SharedLimit(board, FIRST_LEASE + 1)

    class Slow(SharedLimit):
        looks = 0

        def held(self, column: int) -> int:
            seen = super().held(column)
            self.looks += 1
            while self.looks == 1 and neighbour.acquire(SESSIONS, 8) == "acquired":
                pass
            return seen

    assert Slow(board, FIRST_LEASE).acquire(SESSIONS, 8) == "full"
    assert board.gauge(SESSIONS) == 8


class Stale(SharedLimit):
    """A process whose first look was long ago, when nothing was held."""

    looks = 0

    def held(self, column: int) -> int:
        self.looks += 1
        return 0 if self.looks == 1 else super().held(column)


def test_a_unit_that_the_holder_of_the_lock_is_just_adding_is_left_room_for(board: Board) -> None:
    """The holder has looked and not added yet: a sum within the limit is not enough for the other to keep its unit."""
    board.counts.row(FIRST_LEASE)[SESSIONS] = 7
    times = iter(range(1000))
    stale = Stale(board, FIRST_LEASE + 1, is_locked, lambda: next(times), lambda: None)
    other = OtherProcess(board)
    answers: list[str] = []

    class Holder(SharedLimit):
        def held(self, column: int) -> int:
            seen = super().held(column)
            if other.sees_locked(SESSIONS):
                answers.append(stale.acquire(SESSIONS, 8))
            return seen

    assert Holder(board, FIRST_LEASE).acquire(SESSIONS, 8) == "acquired"
    assert answers == ["busy"]
    assert board.gauge(SESSIONS) == 8
    other.leave()


def test_a_free_unit_is_never_called_full_while_another_process_looks_for_it(board: Board) -> None:
    """Near the limit a unit that is added and taken back would be the last one for a moment, and refuse a client."""
    board.counts.row(FIRST_LEASE)[SESSIONS] = 7
    times = iter(range(1000))
    neighbour = SharedLimit(board, FIRST_LEASE + 1, is_locked, lambda: next(times), lambda: None)
    answers: list[str] = []

    class Watched(SharedLimit):
        def held(self, column: int) -> int:
            answers.append(neighbour.acquire(SESSIONS, 8))
            return super().held(column)

    assert Watched(board, FIRST_LEASE + 2).acquire(SESSIONS, 8) == "acquired"
    assert set(answers) == {"busy"}
    assert neighbour.acquire(SESSIONS, 8) == "full"


class Interleaved(SharedLimit):
    """A process that runs others in the middle of its own steps: before it looks, and between a look and what follows."""

    def __init__(self, board: Board, row: int, schedule: "Schedule") -> None:
        self.schedule = schedule
        super().__init__(board, row, lockf=schedule.lockf, clock=schedule.clock, give_way=lambda: None)

    def held(self, column: int) -> int:
        self.schedule.run_others(self)
        seen = super().held(column)
        self.schedule.run_others(self)
        return seen


class Schedule:
    """Processes that acquire without end, in a given order; each is in one place at a time."""

    def __init__(self, board: Board, order: list[int], limit: int) -> None:
        self.board, self.order, self.limit = board, order, limit
        self.processes = [Interleaved(board, FIRST_LEASE + place, self) for place in range(ROWS)]
        self.under_way: list[Interleaved] = []
        self.lock_is_held = False
        self.time = 0.0
        self.acquired = 0

    def lockf(self, fd: int, command: int, length: int, start: int) -> None:
        if command == fcntl.LOCK_UN:
            self.lock_is_held = False
        elif self.lock_is_held:
            raise BlockingIOError
        else:
            self.lock_is_held = True

    def clock(self) -> float:
        self.time += PATIENCE / 2
        return self.time

    def run_others(self, but: Interleaved | None = None) -> None:
        while self.order:
            chosen = self.order.pop()
            if chosen >= ROWS or self.processes[chosen] in self.under_way:
                return
            process = self.processes[chosen]
            self.under_way.append(process)
            answer = process.acquire(SESSIONS, self.limit)
            self.acquired += answer == "acquired"
            self.under_way.remove(process)
            assert self.acquired <= self.limit


@pytest.mark.parametrize("limit", range(1, 10))
def test_no_interleaving_of_looks_and_additions_lets_one_too_many_in(limit: int) -> None:
    dice = random.Random(limit)
    for _ in range(100):
        board = make_board(live=ROWS)
        order = dice.choices(range(ROWS + 1), weights=[3] * ROWS + [1], k=60)
        schedule = Schedule(board, order, limit)
        while schedule.order:
            schedule.run_others()
        assert schedule.acquired == board.gauge(SESSIONS) <= limit
        os.close(board.lock_fd)


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
            assert workers[place].acquire(SESSIONS, limit) == ("acquired" if may else "full")
            open_sockets[place] += may
        elif event == "release" and open_sockets[place]:
            open_sockets[place] -= 1
            workers[place].release(SESSIONS)
        elif event == "kill":
            open_sockets[place] = 0
            board.shared.rows.zero(FIRST_LEASE + place)
        assert sum(open_sockets) == board.gauge(SESSIONS) <= limit
    free = limit - sum(open_sockets)
    answers = [workers[0].acquire(SESSIONS, limit) for _ in range(free + 1)]
    assert answers == ["acquired"] * free + ["full"]
    os.close(board.lock_fd)
