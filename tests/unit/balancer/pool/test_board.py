"""The board: columns do not overlap, sums see the right rows and blocks, words outlive their writers."""

import os
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.pool import board as columns
from balancer.pool.board import (
    ADMIN_DRAIN,
    B_CONNECT_FAILURES,
    B_SESSIONS,
    B_SESSIONS_TOTAL,
    BACKENDS,
    DOWN,
    KINDS,
    L_ACCEPTED,
    L_DENIALS,
    L_ENDS,
    L_HISTOGRAMS,
    L_SESSION_TIMES,
    L_SESSIONS,
    L_TLS_FAILURES,
    LISTENERS,
    LOG_DROPPED,
    MOST_ADDRESSES,
    MOST_DENIALS,
    MOST_ENDS,
    MOST_LISTENERS,
    MOST_POOLS,
    P_HISTOGRAMS,
    P_OLDEST_WAIT_MS,
    P_QUEUED,
    POOLS,
    TLS_FAILURES,
    W_ADDRESS,
    W_ADMIN_STATE,
    W_SINCE_MS,
    W_VERDICT,
    Board,
    capacity_for,
    columns_for,
)
from balancer.pool.loads import load_reader, loads_reader
from balancer.shm.histogram import CELLS, Histogram, bucket_of
from balancer.shm.layout import FIRST_LEASE, PID, PREFORK_COLUMNS, make_shared
from balancer.shm.table import RETIRED_ROW
from tests.unit.balancer.pool.boards import make_board

CAPACITY = 6


def values(prefix: str) -> list[int]:
    return [
        number
        for name, number in vars(columns).items()
        if name.startswith(prefix) and isinstance(number, int)
    ]


def test_no_two_names_share_a_column_of_a_block() -> None:
    ends = range(L_ENDS + 1, L_ENDS + MOST_ENDS)  # one name for all of them
    failures = range(L_TLS_FAILURES + 1, L_TLS_FAILURES + len(TLS_FAILURES))
    denials = range(L_DENIALS + 1, L_DENIALS + MOST_DENIALS)
    times = [
        [first + cell for first in each for cell in range(1, CELLS)] for each in (L_HISTOGRAMS, P_HISTOGRAMS)
    ]
    for prefix, kind, more in (
        ("L_", LISTENERS, [*ends, *failures, *denials, *times[0]]),
        ("P_", POOLS, times[1]),
        ("B_", BACKENDS, []),
    ):
        block = [*values(prefix), *more]
        assert len(block) == len(set(block)) >= 3
        assert min(block) >= 0 and max(block) < kind.size
        assert set(kind.totals) < set(block)


def test_no_two_blocks_share_a_cell() -> None:
    counts = [LOG_DROPPED]
    for kind, most in zip(KINDS, (MOST_LISTENERS, MOST_POOLS, CAPACITY), strict=True):
        counts += [kind.at(index) + column for index in range(-1, most) for column in range(kind.size)]
    assert len(counts) == len(set(counts))
    assert min(counts) == PREFORK_COLUMNS and max(counts) == columns_for(CAPACITY) - 1
    backend_words = [*values("W_")]
    assert len(backend_words) == len(set(backend_words))
    words = [*range(16)]
    words += [Board.pool_words_at(index) + column for index in range(MOST_POOLS) for column in range(8)]
    words += [Board.backend_words_at(index) + column for index in range(CAPACITY) for column in range(59)]
    assert len(words) == len(set(words))
    addresses = range(W_ADDRESS, W_ADDRESS + 2 * MOST_ADDRESSES)
    assert set(backend_words) & set(addresses) == {W_ADDRESS} and max(backend_words) < 59


def test_blocks_are_whole_cache_lines() -> None:
    assert all(kind.at(index) % 8 == 0 for kind, index in product(KINDS, range(-1, 3)))


def test_totals_are_folded_and_gauges_are_not() -> None:
    board = make_board(3, listeners=2, pools=2)
    folded = {column for span in board.totals() for column in span}
    assert LOG_DROPPED in folded
    for kind, count in ((LISTENERS, 2), (POOLS, 2), (BACKENDS, 3)):
        for index in range(count):
            assert {kind.at(index) + column for column in kind.totals} <= folded
    gauges = {
        Board.listener_at(1) + L_SESSIONS,
        Board.pool_at(1) + P_QUEUED,
        Board.pool_at(1) + P_OLDEST_WAIT_MS,
    }
    assert not (gauges | {Board.backend_at(index) + B_SESSIONS for index in range(3)}) & folded
    assert len(folded) == 1 + 2 * len(LISTENERS.totals) + 2 * len(POOLS.totals) + 3 * len(BACKENDS.totals)


def test_capacity_leaves_room_for_reloads() -> None:
    assert capacity_for(3) == 1024
    assert capacity_for(500) == 2000


def test_a_table_too_narrow_is_refused() -> None:
    with pytest.raises(ValueError, match="do not hold 2000"):
        Board(make_shared(columns_for(64), rows=4), 2000)


def test_a_gauge_is_the_sum_over_living_rows_only() -> None:
    board, column = make_board(live=3), Board.listener_at(0) + L_SESSIONS
    for row in range(board.counts.rows):
        board.counts.row(row)[column] = 10**row
    assert board.gauge(column) == 10**3 + 10**4 + 10**5


def test_a_histogram_counts_the_dead_and_every_living_process_once() -> None:
    board = make_board(listeners=2, live=3)
    for row, seconds in ((FIRST_LEASE, 0.002), (FIRST_LEASE, 7.0), (FIRST_LEASE + 2, 0.002)):
        board.counts.row(row)[PID] = 100 + row
        Histogram(board.counts.row(row)[Board.listener_at(1) + L_SESSION_TIMES :]).observe(seconds)
    for dead in (FIRST_LEASE + 2, FIRST_LEASE):
        found = board.histogram(LISTENERS, 1, L_SESSION_TIMES)
        assert (found.count, found.seconds) == (3, 7.004)
        assert found.counts[bucket_of(0.002)] == 2
        board.counts.fold(dead, RETIRED_ROW, board.totals())
    assert board.histogram(LISTENERS, 1, L_SESSION_TIMES) == found
    assert board.histogram(LISTENERS, 0, L_SESSION_TIMES).count == 0


def test_a_total_counts_the_dead_too() -> None:
    board, column = make_board(), Board.listener_at(0) + L_ACCEPTED
    board.counts.row(FIRST_LEASE)[column] = 5
    board.counts.row(RETIRED_ROW)[column] = 100
    assert board.total(column) == 105


@given(st.integers(1, 12), st.sampled_from([1, 2, 9, 64]), st.data())
def test_loads_are_those_of_the_backends(count: int, live: int, data: st.DataObject) -> None:
    board = make_board(count + 3, live=live)
    indexes = data.draw(st.permutations(range(count + 3)))[:count]
    expected = []
    for index in indexes:
        parts = data.draw(st.lists(st.integers(0, 1000), min_size=live, max_size=live))
        for row, part in enumerate(parts, FIRST_LEASE):
            board.counts.row(row)[Board.backend_at(index) + B_SESSIONS] = part
        expected.append(sum(parts))
    assert loads_reader(board, indexes)() == expected
    assert [board.sessions(index) for index in indexes] == expected
    assert list(map(load_reader(board), indexes)) == expected
    os.close(board.lock_fd)


def test_every_total_counts_the_dead_and_every_gauge_does_not() -> None:
    board = make_board(live=4)
    for row, amount in ((RETIRED_ROW, 7), (FIRST_LEASE, 1), (FIRST_LEASE + 3, 2)):
        board.counts.row(row)[Board.backend_at(5) + B_CONNECT_FAILURES] = amount
    assert board.every_gauge(BACKENDS, B_CONNECT_FAILURES) == [0, 0, 0, 0, 0, 3, 0, 0]
    assert board.every_total(BACKENDS, B_CONNECT_FAILURES) == [0, 0, 0, 0, 0, 10, 0, 0]


def test_sums_go_over_the_blocks_of_one_kind() -> None:
    board = make_board(listeners=3)
    for index, amount in enumerate((1, 20, 300)):
        board.counts.row(FIRST_LEASE + index % 2)[Board.listener_at(index) + L_ACCEPTED] = amount
    assert board.every_gauge(LISTENERS, L_ACCEPTED) == [1, 20, 300]
    assert board.sum_in_row(FIRST_LEASE, LISTENERS, L_ACCEPTED) == 301
    assert board.sum_total(LISTENERS, L_ACCEPTED) == 321


def test_a_block_given_to_another_name_is_empty_and_its_totals_stay_in_the_sum() -> None:
    board = make_board(listeners=2)
    dead = board.counts.row(RETIRED_ROW)
    dead[Board.listener_at(0) + L_ACCEPTED], dead[Board.listener_at(1) + L_ACCEPTED] = 10, 5
    for _ in range(2):
        board.give_out(LISTENERS, [0, 1], reused=[1])
        assert board.every_total(LISTENERS, L_ACCEPTED) == [10, 0]
        assert board.sum_total(LISTENERS, L_ACCEPTED) == 15


def test_a_reused_backend_block_forgets_the_words_of_that_backend_only() -> None:
    board = make_board()
    for index in (4, 5):
        board.counts.row(RETIRED_ROW)[Board.backend_at(index) + B_SESSIONS_TOTAL] = 9
        board.set_admin_state(index, ADMIN_DRAIN)
    board.give_out(BACKENDS, [4], reused=[4])
    assert board.total(Board.backend_at(4) + B_SESSIONS_TOTAL) == 0 and board.word(4, W_ADMIN_STATE) == 0
    assert board.total(Board.backend_at(5) + B_SESSIONS_TOTAL) == 9
    assert board.word(5, W_ADMIN_STATE) == ADMIN_DRAIN


def test_blocks_stay_given_out_when_a_later_generation_has_fewer() -> None:
    board = make_board(backends=8)
    board.give_out(BACKENDS, [2], ())
    assert len(board.every_gauge(BACKENDS, B_SESSIONS)) == 8


def test_verdict_version_is_odd_while_written_and_even_after_also_after_a_death_in_between() -> None:
    board = make_board(pools=2)
    board.assign_pool(1, [3])
    assert board.versions(1) == (0, 0)
    seen = []

    def words() -> Iterator[tuple[int, int]]:
        seen.append(board.versions(1)[0])
        yield (W_VERDICT, DOWN)
        yield (W_SINCE_MS, 42)

    board.write_verdict(3, words())
    assert seen == [1]
    assert board.versions(1) == (2, 0) and board.versions(0) == (0, 0)
    assert board.word(3, W_VERDICT) == DOWN and board.word(3, W_SINCE_MS) == 42

    def killed() -> Iterator[tuple[int, int]]:
        yield (W_VERDICT, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        board.write_verdict(3, killed())
    assert board.versions(1)[0] == 3
    board.write_verdict(3, [])
    assert board.versions(1)[0] == 4


def test_an_operators_change_raises_the_version_of_its_pool_and_a_weight_of_zero_differs_from_none() -> None:
    board = make_board(pools=2)
    board.assign_pool(1, [2])
    board.set_admin_state(2, ADMIN_DRAIN)
    assert board.word(2, W_ADMIN_STATE) == ADMIN_DRAIN
    assert board.weight_of(2, 7) == 7
    board.set_weight(2, 0)
    assert board.weight_of(2, 7) == 0
    board.set_weight(2, None)
    assert board.weight_of(2, 7) == 7
    assert (board.versions(0), board.versions(1)) == ((0, 0), (0, 3))


def test_the_prober_lease_is_vacant_when_its_holder_has_left_its_row() -> None:
    board = make_board()
    assert board.prober_lease() == (0, 0, False)
    board.take_prober_lease(FIRST_LEASE + 1, 1000 + FIRST_LEASE + 1, [0])
    assert board.prober_lease() == (FIRST_LEASE + 1, 1000 + FIRST_LEASE + 1, True)
    board.counts.row(FIRST_LEASE + 1)[PID] = 77  # the row was given to another process
    assert board.prober_lease()[2] is False


def test_longest_waiting_row_is_the_oldest_of_that_pool_but_not_oneself() -> None:
    board = make_board(live=4, pools=2)
    assert board.longest_waiting_row(1, but=0) is None
    for row, since in ((FIRST_LEASE, 300), (FIRST_LEASE + 1, 200), (FIRST_LEASE + 2, 250)):
        board.counts.row(row)[Board.pool_at(1) + P_OLDEST_WAIT_MS] = since
    board.counts.row(FIRST_LEASE)[Board.pool_at(0) + P_OLDEST_WAIT_MS] = 1
    assert board.longest_waiting_row(1, but=FIRST_LEASE) == FIRST_LEASE + 1
    assert board.longest_waiting_row(1, but=FIRST_LEASE + 1) == FIRST_LEASE + 2
    assert board.longest_waiting_row(0, but=FIRST_LEASE + 1) == FIRST_LEASE
