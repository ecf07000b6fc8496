"""on-down = close: which sessions end when a verdict falls."""

from types import SimpleNamespace
from typing import Any

from balancer.pool.backend import parse_upstream, with_indexes
from balancer.pool.board import DOWN, UP, W_ADDRESS, W_ADDRESSES, W_TENANT, W_VERDICT
from balancer.pool.election import Elector
from balancer.pool.targets import pack_addresses
from balancer.pool.verdicts import VerdictWriter
from balancer.relay.downed import DownedBackends
from balancer.shm.layout import FIRST_LEASE
from tests.unit.balancer.pool.boards import make_board, pool_of


def session(elector: object, backend: object, connected_at: float = 1.0) -> SimpleNamespace:
    made = SimpleNamespace(
        backend=backend, lane=SimpleNamespace(elector=elector), connected_at=connected_at, closed=False
    )
    made.close = lambda end, reason: made.__dict__.update(closed=True, end=end)
    return made


def test_sessions_of_the_tenant_before_outlive_the_fall_of_the_present_one() -> None:
    board = make_board()
    slots = with_indexes(parse_upstream("dns:web.test:80 slots=1 name=web").expanded(), {"web-1": 0})
    pool = pool_of(board, slots)
    elector = Elector(board, pool, FIRST_LEASE)
    downed = DownedBackends(board, pool, elector)
    VerdictWriter(board, FIRST_LEASE).restore(slots[0], 0.0)
    sessions: list[Any] = []
    for tenant in (1, 2, 3):
        words = [(W_ADDRESSES, 1), (W_TENANT, tenant)]
        words += enumerate(pack_addresses([f"10.0.0.{tenant}"]), W_ADDRESS)
        board.write_verdict(0, [*words, (W_VERDICT, UP)])
        downed.look(sessions)
        board.write_verdict(0, [(W_VERDICT, DOWN)])
        downed.look(sessions)
        assert not any(one.closed for one in sessions[-1:]), "no election since: its successor is down"
        board.write_verdict(0, [(W_VERDICT, UP)])
        sessions.append(session(elector, elector.elect("", ())))
        downed.look(sessions)
    board.write_verdict(0, [(W_VERDICT, DOWN)])
    downed.look(sessions)
    assert sessions[-1].closed


def test_connected_sessions_of_a_backend_that_falls_end_once() -> None:
    board = make_board()
    a, b = with_indexes(
        [parse_upstream("10.0.0.1:80"), parse_upstream("10.0.0.2:80")], {"10.0.0.1:80": 0, "10.0.0.2:80": 1}
    )
    pool = pool_of(board, (a, b))
    elector, other = Elector(board, pool, FIRST_LEASE), Elector(board, pool, FIRST_LEASE)
    downed = DownedBackends(board, pool, elector)
    first = [
        session(elector, a),
        session(elector, b),
        session(other, a),
        session(elector, a, 0.0),
        session(elector, None),
    ]
    downed.look(first)  # type: ignore[arg-type]
    assert not any(one.closed for one in first)
    board.write_verdict(a.index, [(W_VERDICT, DOWN)])
    downed.look(first)  # type: ignore[arg-type]
    assert [one.closed for one in first] == [True, False, False, False, False] and first[0].end == "DD"
    late = session(elector, a)  # given to it in panic
    board.write_verdict(b.index, [(W_VERDICT, UP)])
    downed.look([late])  # type: ignore[list-item]
    assert not late.closed
    for verdict in (UP, DOWN):
        board.write_verdict(a.index, [(W_VERDICT, verdict)])
        downed.look([late])  # type: ignore[list-item]
    assert late.closed, "it has been up in between"
