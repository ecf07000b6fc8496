"""Spare slots: which a pool has, and how long a request for one holds."""

import pytest

from balancer.options import Pool
from balancer.pool.backend import parse_upstream
from balancer.pool.board import W_ADDED_EPOCH
from balancer.pool.spares import SLOTS, Added, added_to, with_spares, write_added
from balancer.shm.layout import MASTER_RELOADS, MASTER_ROW
from tests.unit.balancer.pool.boards import make_board


@pytest.mark.parametrize(
    ("mode", "asked", "slots"),
    [("tcp", None, SLOTS), ("tcp", 0, 0), ("tcp", 3, 3), ("framed", None, 0), ("framed", 2, 2)],
)
def test_framed_mode_has_spare_slots_only_where_they_are_asked_for(
    mode: str, asked: int | None, slots: int
) -> None:
    pool = with_spares(Pool("main", (parse_upstream("10.0.0.1:80"),), mode=mode, spare_slots=asked))
    assert [one.is_spare for one in pool.backends] == [False] + [True] * slots


def test_the_names_of_slots_are_those_that_no_backend_has() -> None:
    given = tuple(parse_upstream(f"10.0.0.1:80 name={name}") for name in ("spare-1", "spare-3"))
    pool = with_spares(Pool("api", given, spare_slots=2))
    assert [one.identity for one in pool.backends[2:]] == ["api/spare-2", "api/spare-4"]


@pytest.mark.parametrize(
    "added", [Added("10.0.0.9", 65535, 256), Added("2001:db8::9", 1, 1), Added("ffff::ffff", 80)]
)
def test_a_request_holds_until_the_next_reload(added: Added) -> None:
    board = make_board()
    assert added_to(board, 3) is None
    write_added(board, 3, added)
    assert added_to(board, 3) == added and added_to(board, 2) is None
    board.shared.rows.row(MASTER_ROW)[MASTER_RELOADS] += 1
    assert added_to(board, 3) is None
    write_added(board, 3, added)
    assert added_to(board, 3) == added
    write_added(board, 3, None)
    assert added_to(board, 3) is None


def test_a_request_is_read_whole_or_not_at_all() -> None:
    board = make_board()
    at = board.backend_words_at(3)
    write_added(board, 3, Added("10.0.0.9", 80))
    cells, seen = board.words.cells, []

    class Watching:
        def __setitem__(self, cell: int, value: int) -> None:
            cells[cell] = value
            seen.append(added_to(board, 3))

        def __getitem__(self, cell: int) -> int:
            return cells[cell]

    board.words.cells = Watching()  # type: ignore[assignment]
    write_added(board, 3, Added("10.0.0.8", 81))
    assert set(seen) == {None, Added("10.0.0.8", 81)} and cells[at + W_ADDED_EPOCH]
