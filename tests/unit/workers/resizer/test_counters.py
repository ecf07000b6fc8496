"""Totals over the living and the dead, gauges over the living."""

from balancer.shm.layout import (
    FIRST_LEASE,
    LOAD,
    MASTER_LIVE_ROWS,
    MASTER_ROW,
    PID,
    READY,
    ROLE,
    STATE,
    make_shared,
)
from balancer.shm.table import RETIRED_ROW
from workers.resizer import counters


def test_the_columns_have_one_meaning_each() -> None:
    columns = [*counters.NAMES, *counters.ERRORS, counters.QUEUED, counters.WORKING]
    columns += [counters.WORKERS, counters.SANDBOX]
    assert len(set(columns)) == len(columns)
    assert max(columns) < counters.COLUMNS
    shown = {*counters.NAMES, *counters.ERRORS}
    assert shown == {*counters.TOTALS[0]}, "a total that is not shown, or not folded"


def test_status_sums_rows() -> None:
    shared = make_shared(counters.COLUMNS)
    rows = shared.rows
    rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 3
    for index, role in enumerate((0, 0, 1)):
        row = rows.row(FIRST_LEASE + index)
        row[PID], row[ROLE], row[LOAD] = 100 + index, role, 5
        row[counters.ANSWERS], row[counters.QUEUED], row[counters.BUSY] = 10, 2, 1
    rows.row(RETIRED_ROW)[counters.ANSWERS] = 7
    rows.row(FIRST_LEASE + 3)[counters.ANSWERS] = 1000  # beyond the live rows
    status = counters.status_document(shared, "backend-1", "9")
    assert (status["clients"], status["queued"]) == (10, 6), "a CPU process's load is no client"
    assert status["totals"]["answers_total"] == 37  # type: ignore[index]
    assert status["errors"]["429"] == 3  # type: ignore[index]
    assert [process["role"] for process in status["processes"]] == ["front", "front", "cpu"]  # type: ignore[attr-defined]


def test_the_sandbox_of_a_resizer_is_what_all_its_cpu_processes_have() -> None:
    shared = make_shared(counters.COLUMNS)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 4
    assert counters.sandbox_of(shared) is None
    for index, (role, state, bits) in enumerate(
        [("front", READY, 0), ("cpu", READY, 7), ("express", READY, 5), ("cpu", READY - 1, 0)]
    ):
        row = shared.rows.row(FIRST_LEASE + index)
        row[PID], row[STATE], row[counters.SANDBOX] = 100 + index, state, bits
        row[ROLE] = counters.ROLES.index(role)
    assert counters.sandbox_of(shared) == 5
    status = counters.status_document(shared, "backend-1", "9")
    assert status["sandbox"] == [counters.LAYERS[0], counters.LAYERS[2]]
    shown = [one.get("sandbox") for one in status["processes"]]  # type: ignore[attr-defined]
    assert shown == [None, [*counters.LAYERS[:3]], [counters.LAYERS[0], counters.LAYERS[2]], []]
