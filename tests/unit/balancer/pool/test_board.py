"""The table's meaning: columns do not overlap, sums see the right rows, words outlive their writers."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.pool import board as columns
from balancer.pool.board import (
    ACCEPTED,
    ADMIN_DRAIN,
    B_ADMIN,
    B_CONNECT_FAILURES,
    B_SESSIONS,
    B_SESSIONS_TOTAL,
    B_SINCE_MS,
    B_VERDICT,
    BLOCK,
    DOWN,
    FEW,
    FIRST_BLOCK,
    OLDEST_WAIT_MS,
    QUEUED,
    SESSIONS,
    Board,
    base,
    capacity_for,
    columns_for,
    totals_for,
)
from balancer.shm.layout import (
    FIRST_LEASE,
    MASTER_LIVE_ROWS,
    MASTER_ROW,
    PID,
    PREFORK_COLUMNS,
    make_shared,
)
from balancer.shm.table import RETIRED_ROW


def make_board(capacity: int = 64, live: int = 4) -> Board:
    """A board with `live` leased rows, as the master would have made it."""
    shared = make_shared(columns_for(capacity), rows=FIRST_LEASE + live + 2)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + live
    for row in range(FIRST_LEASE, FIRST_LEASE + live):
        shared.rows.row(row)[PID] = 1000 + row
    return Board(shared, capacity)


PROCESS = (
    "ACCEPTED REFUSED FAILED SESSIONS_CLOSED CUT RETRIES BYTES_IN BYTES_OUT PAUSES RESUMES QUEUED_TOTAL SESSIONS "
    "QUEUED OLDEST_WAIT_MS VERDICTS_VERSION PROBER_LEASE_ROW PROBER_LEASE_PID ADMIN_VERSION"
)


def test_no_two_names_share_a_column() -> None:
    process = [getattr(columns, name) for name in PROCESS.split()] + list(columns.SPARE_TOTALS)
    assert len(process) == len(set(process))
    assert min(process) >= PREFORK_COLUMNS and max(process) < FIRST_BLOCK
    block = [
        value for name, value in vars(columns).items() if name.startswith("B_") and isinstance(value, int)
    ]
    assert len(block) == len(set(block)) >= 15
    assert min(block) >= 0 and max(block) < BLOCK


def test_totals_are_folded_and_gauges_are_not() -> None:
    totals = totals_for(3)
    assert {ACCEPTED} <= totals
    assert {base(index) + B_SESSIONS_TOTAL for index in range(3)} <= totals
    gauges = {SESSIONS, QUEUED, OLDEST_WAIT_MS} | {base(index) + B_SESSIONS for index in range(3)}
    assert not gauges & totals
    assert max(totals) < columns_for(3)


def test_capacity_leaves_room_for_reloads() -> None:
    assert capacity_for(3) == 64
    assert capacity_for(500) == 1000


def test_a_table_too_narrow_is_refused() -> None:
    with pytest.raises(ValueError, match="do not hold 65"):
        Board(make_shared(columns_for(64), rows=4), 65)


def test_a_gauge_is_the_sum_over_living_rows_only() -> None:
    board = make_board(live=3)
    for row in range(board.shared.rows.rows):
        board.shared.rows.row(row)[SESSIONS] = 10**row
    assert board.gauge(SESSIONS) == 10**3 + 10**4 + 10**5


def test_a_total_counts_the_dead_too() -> None:
    board = make_board()
    board.shared.rows.row(FIRST_LEASE)[ACCEPTED] = 5
    board.shared.rows.row(RETIRED_ROW)[ACCEPTED] = 100
    assert board.total(ACCEPTED) == 105


@given(st.integers(1, FEW + 8), st.integers(1, 9), st.data())
def test_loads_are_the_same_read_by_column_and_by_row(count: int, live: int, data: st.DataObject) -> None:
    board = make_board(capacity=count + 3, live=live)
    indexes = data.draw(st.permutations(range(count + 3)))[:count]
    expected = []
    for index in indexes:
        parts = data.draw(st.lists(st.integers(0, 1000), min_size=live, max_size=live))
        for row, part in enumerate(parts, FIRST_LEASE):
            board.shared.rows.row(row)[base(index) + B_SESSIONS] = part
        expected.append(sum(parts))
    assert board.loads_reader(indexes)() == expected
    assert [board.sessions(index) for index in indexes] == expected
    assert board._read_rows(indexes)() == expected
    os.close(board.lock_fd)


def test_every_total_counts_the_dead_and_every_gauge_does_not() -> None:
    board = make_board()
    for row, amount in ((RETIRED_ROW, 7), (FIRST_LEASE, 1), (FIRST_LEASE + 3, 2)):
        board.shared.rows.row(row)[base(5) + B_CONNECT_FAILURES] = amount
    assert board.every_gauge(B_CONNECT_FAILURES)[5] == 3
    assert board.every_total(B_CONNECT_FAILURES)[5] == 10
    assert sum(board.every_total(B_CONNECT_FAILURES)) == 10


def test_verdict_version_is_odd_while_written_and_even_after_also_after_a_death_in_between() -> None:
    board = make_board()
    assert board.versions() == (0, 0)
    seen = []

    def words() -> object:
        seen.append(board.versions()[0])
        yield (3, B_VERDICT, DOWN)
        yield (3, B_SINCE_MS, 42)

    board.write_verdicts(words())  # type: ignore[arg-type]
    assert seen == [1]
    assert board.versions() == (2, 0)
    assert board.word(3, B_VERDICT) == DOWN and board.word(3, B_SINCE_MS) == 42

    def killed() -> object:
        yield (3, B_VERDICT, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        board.write_verdicts(killed())  # type: ignore[arg-type]
    assert board.versions()[0] == 3
    board.write_verdicts([])
    assert board.versions()[0] == 4


def test_wishes_bump_their_version_and_a_weight_of_zero_differs_from_none() -> None:
    board = make_board()
    board.set_admin_state(2, ADMIN_DRAIN)
    assert board.word(2, B_ADMIN) == ADMIN_DRAIN
    assert board.weight_of(2, 7) == 7
    board.set_weight(2, 0)
    assert board.weight_of(2, 7) == 0
    board.set_weight(2, None)
    assert board.weight_of(2, 7) == 7
    assert board.versions() == (0, 3)


def test_the_chair_is_vacant_when_its_owner_has_left_its_row() -> None:
    board = make_board()
    assert board.prober_lease() == (0, 0, False)
    board.take_prober_lease(FIRST_LEASE + 1, 1000 + FIRST_LEASE + 1)
    assert board.prober_lease() == (FIRST_LEASE + 1, 1000 + FIRST_LEASE + 1, True)
    board.shared.rows.row(FIRST_LEASE + 1)[PID] = 77  # the row was given to another process
    assert board.prober_lease()[2] is False


def test_wipe_forgets_the_dead_and_the_words_of_one_block_only() -> None:
    board = make_board()
    for index in (4, 5):
        board.shared.rows.row(RETIRED_ROW)[base(index) + B_SESSIONS_TOTAL] = 9
        board.set_admin_state(index, ADMIN_DRAIN)
    board.wipe(4)
    assert board.total(base(4) + B_SESSIONS_TOTAL) == 0 and board.word(4, B_ADMIN) == 0
    assert board.total(base(5) + B_SESSIONS_TOTAL) == 9 and board.word(5, B_ADMIN) == ADMIN_DRAIN


def test_longest_waiting_row_is_the_oldest_but_not_oneself() -> None:
    board = make_board()
    assert board.longest_waiting_row(but=0) is None
    for row, since in ((FIRST_LEASE, 300), (FIRST_LEASE + 1, 200), (FIRST_LEASE + 2, 250)):
        board.shared.rows.row(row)[OLDEST_WAIT_MS] = since
    assert board.longest_waiting_row(but=FIRST_LEASE) == FIRST_LEASE + 1
    assert board.longest_waiting_row(but=FIRST_LEASE + 1) == FIRST_LEASE + 2
