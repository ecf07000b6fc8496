"""The copy of the sessions by which elections go on a balancer with many workers."""

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.board import B_SESSIONS, BACKENDS, ODD, W_TENANT, Board, columns_for
from balancer.pool.election import Elector
from balancer.pool.load_table import FEW_PROCESSES, ROW_ITSELF, LoadTable
from balancer.pool.loads import load_reader, loads_reader
from balancer.pool.policies import FEW
from balancer.pool.request_election import RequestElector
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, make_shared
from balancer.shm.table import RETIRED_ROW, Table
from tests.unit.balancer.pool.boards import pool_of

WORKERS = FEW_PROCESSES + 2
ROWS = range(FIRST_LEASE, FIRST_LEASE + WORKERS)


def board_of(backends: int, processes: int = WORKERS) -> Board:
    shared = make_shared(columns_for(backends), rows=FIRST_LEASE + WORKERS)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + WORKERS
    board = Board(shared, backends, processes)
    board.give_out(BACKENDS, range(backends), ())
    return board


def backends_of(count: int, text: str = "") -> tuple[Backend, ...]:
    parsed = [parse_upstream(f"10.0.0.1:{1000 + place} name=b{place} {text}") for place in range(count)]
    return with_indexes(parsed, {backend.name: place for place, backend in enumerate(parsed)})


def assert_true(board: Board, count: int, odd: tuple[int, ...] = ()) -> None:
    """Every look is the sum of the gauges."""
    gauges = [
        board.gauge(Board.backend_at(index) + B_SESSIONS + ODD * (index in odd)) for index in range(count)
    ]
    assert list(map(load_reader(board, odd), range(count))) == gauges
    assert loads_reader(board, range(count), odd)() == gauges


def test_a_balancer_of_few_workers_has_no_copy() -> None:
    for processes, has_copy in ((FEW_PROCESSES, False), (FEW_PROCESSES + 1, True)):
        board = board_of(4, processes)
        assert (board.loads is not None) is has_copy
        os.close(board.lock_fd)


@given(
    st.sampled_from(["", "maxconn=3"]),
    st.sampled_from(["leastconn", "p2c"]),
    st.sampled_from([3, FEW + 1]),
    st.sampled_from([Elector, RequestElector]),
    st.data(),
)
def test_a_look_is_the_sum_of_the_gauges_whatever_electors_do(
    limit: str, policy: str, count: int, kind: type[Elector], data: st.DataObject
) -> None:
    board = board_of(count)
    pool = pool_of(board, backends_of(count, limit), policy)
    electors = {row: kind(board, pool, row) for row in ROWS[:3]}
    held: list[tuple[int, Backend]] = []
    requests: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(5, 40))):
        row = data.draw(st.sampled_from(ROWS[:3]))
        act = data.draw(st.sampled_from(["elect", "elect", "request", "release", "release-request", "kill"]))
        elector = electors[row]
        if act == "elect" and (backend := elector.elect("", ())) is not None:
            held.append((row, backend))
        elif act == "release" and held:
            owner, backend = held.pop(data.draw(st.integers(0, len(held) - 1)))
            electors[owner].release(backend)
        elif act == "request" and isinstance(elector, RequestElector):
            if (place := elector.elect_request("", 1.0)) >= 0:
                requests.append((row, place))
        elif act == "release-request" and requests:
            owner, place = requests.pop(data.draw(st.integers(0, len(requests) - 1)))
            framed = electors[owner]
            assert isinstance(framed, RequestElector)
            framed.release_request(place)
        elif act == "kill":
            board.counts.fold(row, RETIRED_ROW, ())
            held, requests = (
                [one for one in held if one[0] != row],
                [one for one in requests if one[0] != row],
            )
            assert_true(board, count)
            electors[row] = kind(board, pool, row)
        assert_true(board, count)
    os.close(board.lock_fd)


def test_the_tenants_of_a_slot_are_counted_apart() -> None:
    board = board_of(2)
    backends = backends_of(2)
    elector = Elector(board, pool_of(board, backends), FIRST_LEASE)
    assert board.loads is not None
    held = [elector.elect("", ()) for _ in range(4)]
    board.write_verdict(0, [(W_TENANT, 1)])
    write = board.loads.writer(FIRST_LEASE + 1)
    board.counts.row(FIRST_LEASE + 1)[Board.backend_at(0) + B_SESSIONS + ODD] = 7
    write(0, 1, 7)
    assert_true(board, 2)
    assert_true(board, 2, odd=(0,))
    odd = replace(backends[0], parity=1)
    board.counts.row(FIRST_LEASE)[Board.backend_at(0) + B_SESSIONS + ODD] = 2
    elector.release(odd)
    assert load_reader(board, (0,))(0) == 8 and len(held) == 4
    board.counts.zero(FIRST_LEASE + 1)
    assert_true(board, 2, odd=(0,))


@given(st.lists(st.integers(0, 3 * ROW_ITSELF), min_size=WORKERS, max_size=WORKERS))
def test_more_sessions_than_the_copy_holds_are_read_from_the_rows(sessions: list[int]) -> None:
    board = board_of(2)
    assert board.loads is not None
    for row, count in zip(ROWS, sessions, strict=True):
        board.counts.row(row)[Board.backend_at(1) + B_SESSIONS] = count
        board.loads.writer(row)(1, 0, count)
    assert_true(board, 2)
    os.close(board.lock_fd)


def test_rows_beyond_the_live_ones_are_not_read() -> None:
    board = board_of(2)
    assert board.loads is not None
    board.counts.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 1
    board.loads.writer(FIRST_LEASE + 1)(0, 0, 5)
    assert load_reader(board)(0) == 0


def test_more_rows_than_whose_sum_fits_are_refused() -> None:
    LoadTable(Table(512, 16), 1)
    with pytest.raises(ValueError, match="513 rows"):
        LoadTable(Table(513, 16), 1)
