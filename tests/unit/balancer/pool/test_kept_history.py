"""The hour goes to the successor of an upgrade by name, whatever places it gives; nonsense changes nothing."""

import json
from base64 import b64encode
from math import isnan
from zlib import compress

import pytest

from balancer.options import Listener, Pool
from balancer.pool.board import Board
from balancer.pool.kept_history import export_history, restore_history, things_of
from balancer.web.history import BLOCK, FIGURES, STEP, History
from tests.unit.balancer.pool.boards import make_board

NOW = 50_000.0


def board() -> Board:
    return make_board(1)


def listeners(*names: str) -> tuple[Listener, ...]:
    return tuple(Listener(name, index=index) for index, name in enumerate(names))


def pools(*names: str) -> tuple[Pool, ...]:
    return tuple(Pool(name, (), index=index) for index, name in enumerate(names))


def test_what_has_been_watched_goes_on_under_its_name() -> None:
    old, new = board(), board()
    before, after = (listeners("a", "b"), pools("x", "y")), (listeners("b", "c"), pools("y", "x", "z"))
    for number, (_, thing) in enumerate(things_of(*before).items()):
        for ago in (0, 100, 359):
            History(old.history).write(
                thing, NOW - ago * STEP, [float(100 * number + each) for each in range(FIGURES)]
            )
    restore_history(new, *after, export_history(old, *before))
    places = things_of(*after)
    for number, name in enumerate(things_of(*before)):
        if name in places:
            for figure in range(FIGURES):
                values = History(new.history).read(places[name], figure, NOW)
                assert [values[-1], values[-101], values[0]] == [100 * number + figure] * 3
                assert sum(not isnan(each) for each in values) == 3
    for name in ("listener c", "pool z"):
        assert not History(new.history).is_known(places[name])


def test_without_a_page_nothing_is_handed_over() -> None:
    assert export_history(board(), listeners("a"), pools("x")) == ""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", '{"pool x": 7}', '{"pool x": "?"}', '{"pool x": "AAAA"}',
     *(json.dumps({"pool x": b64encode(compress(bytes(size))).decode()}) for size in (0, 4 * BLOCK - 4, 4 * BLOCK + 4))],
)  # fmt: skip
def test_what_is_no_history_changes_nothing(text: str) -> None:
    new = board()
    restore_history(new, listeners("a"), pools("x"), text)
    assert not any(new.history[: 3 * BLOCK])
