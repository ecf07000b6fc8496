"""The shared table: what a reader may see of a row that is being folded."""

import pytest

from balancer.shm.layout import FIRST_LEASE, PREFORK_COLUMNS
from balancer.shm.table import FOLDS, RETIRED_ROW, Table

TOTAL, GAUGE = PREFORK_COLUMNS, PREFORK_COLUMNS + 1
TOTALS = [range(TOTAL, TOTAL + 1)]


@pytest.fixture
def table() -> Table:
    made = Table(FIRST_LEASE + 2, PREFORK_COLUMNS + 2)
    for row, total in ((FIRST_LEASE, 5), (FIRST_LEASE + 1, 7)):
        made.row(row)[TOTAL], made.row(row)[GAUGE] = total, 1
    return made


def test_a_fold_keeps_totals_and_drops_the_rest(table: Table) -> None:
    table.fold(FIRST_LEASE, RETIRED_ROW, TOTALS)
    assert table.total(TOTAL, 0, table.rows) == 12 and table.total(GAUGE, 0, table.rows) == 1
    assert not any(table.row(FIRST_LEASE))
    assert table.row(RETIRED_ROW)[FOLDS] == 2
    table.fold(FIRST_LEASE, RETIRED_ROW, TOTALS)
    assert table.total(TOTAL, 0, table.rows) == 12


def test_a_move_is_one_step_for_a_consistent_reader(table: Table) -> None:
    seen = []

    def read() -> int:
        first = table.row(RETIRED_ROW)[TOTAL]
        if not seen:
            table.move(RETIRED_ROW, [(TOTAL, GAUGE)])
        seen.append(first + table.row(RETIRED_ROW)[GAUGE])
        return seen[-1]

    table.fold(FIRST_LEASE, RETIRED_ROW, TOTALS)
    assert table.consistent_read(read) == 5
    assert seen == [10, 5] and table.row(RETIRED_ROW)[TOTAL] == 0


def test_a_reading_with_a_fold_in_its_middle_is_thrown_away(table: Table) -> None:
    readings = []

    def read() -> int:
        dead = table.row(RETIRED_ROW)[TOTAL]
        if not readings:
            table.fold(FIRST_LEASE, RETIRED_ROW, TOTALS)
        readings.append(dead + table.total(TOTAL, FIRST_LEASE, table.rows))
        return readings[-1]

    assert table.consistent_read(read) == 12
    assert readings == [7, 12]


class Halfway(Table):
    """A table whose fold is looked at just before the row is zeroed."""

    seen = 0

    def zero(self, row: int) -> None:
        cell = RETIRED_ROW * self.columns + FOLDS
        assert self.cells[cell] & 1
        assert self.total(TOTAL, 0, self.rows) == 17  # counted twice
        self.seen += 1
        super().zero(row)


def test_the_sequence_is_odd_while_a_total_is_there_twice() -> None:
    table = Halfway(FIRST_LEASE + 2, PREFORK_COLUMNS + 2)
    table.row(FIRST_LEASE)[TOTAL], table.row(FIRST_LEASE + 1)[TOTAL] = 5, 7
    table.fold(FIRST_LEASE, RETIRED_ROW, TOTALS)
    assert table.seen == 1 and table.total(TOTAL, 0, table.rows) == 12


def test_a_master_stopped_in_the_middle_does_not_stop_the_readers(table: Table) -> None:
    waits: list[float] = []
    table.row(RETIRED_ROW)[FOLDS] = 1
    assert table.consistent_read(lambda: "what there is", sleep=waits.append) == "what there is"
    assert 0 < sum(waits) <= 0.2
