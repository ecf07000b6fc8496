"""The counters of a resizer's processes, and the JSON document of GET /status.

RULES: a column has one meaning and a cell has one writer: fronts count clients and answers, CPU processes count their own
work. Totals only grow (the master folds them when a process ends); a gauge is the current value and vanishes with its
process.
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import reduce
from itertools import accumulate
from mmap import PAGESIZE
from operator import and_

from balancer.shm.layout import (
    FIRST_LEASE,
    GENERATION,
    LOAD,
    MASTER_LIVE_ROWS,
    MASTER_ROW,
    PID,
    PREFORK_COLUMNS,
    READY,
    ROLE,
    SLOT,
    STATE,
    Shared,
)
from balancer.shm.table import RETIRED_ROW

(
    CLIENTS_TOTAL,
    REQUESTS,
    DRY_RUNS,
    HTTP_REQUESTS,
    ANSWERS,
    BYTES_IN,
    BYTES_OUT,
    BUSY,
    DRAINED,
    BAD_REQUEST,
    TOO_LARGE,
    UNSUPPORTED,
    UNPROCESSABLE,
    DIED,
    TIMED_OUT,
    OTHER_ERROR,
    ABANDONED,
    CUT,
    PICTURES,
    PICTURE_US,
) = range(PREFORK_COLUMNS, PREFORK_COLUMNS + 20)
QUEUED, WORKING, WORKERS, SANDBOX, SLOTS_USED = range(PREFORK_COLUMNS + 20, PREFORK_COLUMNS + 25)

# Pictures answered, by the format of the result.
PICTURES_AS = {
    name: PREFORK_COLUMNS + 25 + number for number, name in enumerate(("jpeg", "png", "gif", "webp", "avif"))
}
# Histograms of seconds: a column for each bound, one for what is above, and the sum in microseconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WIDTH = len(BOUNDS) + 2
WAIT, WORK, WHOLE = range(PREFORK_COLUMNS + 30, PREFORK_COLUMNS + 30 + 3 * _WIDTH, _WIDTH)
COLUMNS = PREFORK_COLUMNS + 30 + 3 * _WIDTH
TOTALS = (range(CLIENTS_TOTAL, PICTURE_US + 1), range(PREFORK_COLUMNS + 25, COLUMNS))

# Bits of the SANDBOX cell of a CPU process: the layers that it has entered (sandbox.py), in their order.
LAYERS = (
    "own_row",
    "net_namespace",
    "rlimits",
    "capabilities",
    "not_dumpable",
    "no_new_privs",
    "landlock",
    "seccomp",
)
ROLES = ("front", "cpu", "express")  # indexed by the ROLE cell: the order of the plan

NAMES = {
    CLIENTS_TOTAL: "clients_total",
    REQUESTS: "requests_total",
    DRY_RUNS: "dry_runs_total",
    HTTP_REQUESTS: "http_requests_total",
    ANSWERS: "answers_total",
    BYTES_IN: "bytes_in_total",
    BYTES_OUT: "bytes_out_total",
    ABANDONED: "abandoned_total",
    CUT: "cut_total",
    PICTURES: "pictures_total",
    PICTURE_US: "picture_us_total",
}
ERRORS = {
    BAD_REQUEST: "400",
    TOO_LARGE: "413",
    UNSUPPORTED: "415",
    UNPROCESSABLE: "422",
    BUSY: "429",
    DRAINED: "503_draining",
    DIED: "503_died",
    TIMED_OUT: "504",
    OTHER_ERROR: "other",
}
OF_STATUS = {
    400: BAD_REQUEST,
    413: TOO_LARGE,
    415: UNSUPPORTED,
    422: UNPROCESSABLE,
    429: BUSY,
    504: TIMED_OUT,
}


HISTOGRAMS = {WAIT: "wait", WORK: "work", WHOLE: "whole"}


def observe(cells: memoryview, histogram: int, seconds: float) -> None:
    """Count a duration in a histogram of a row, whose only writer the caller is."""
    cells[histogram + bisect_left(BOUNDS, seconds)] += 1
    cells[histogram + len(BOUNDS) + 1] += int(seconds * 1e6)


def total(shared: Shared, column: int) -> int:
    """A total over all processes, ended ones included. Several are read within one `consistent_read`, so that none
    falls."""
    rows = shared.rows
    live = rows.row(MASTER_ROW)[MASTER_LIVE_ROWS]
    return rows.total(column, FIRST_LEASE, live) + rows.row(RETIRED_ROW)[column]


def gauge(shared: Shared, column: int) -> int:
    """A gauge over the running processes."""
    return shared.rows.total(column, FIRST_LEASE, shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS])


def bits_of(layers: Iterable[str]) -> int:
    """The SANDBOX cell of a process that has entered `layers`."""
    return sum(1 << LAYERS.index(name) for name in layers)


def role_of(row: memoryview) -> str:
    """The role of a process. A process in a stranger's hands may write anything to its row."""
    role = row[ROLE]
    return ROLES[role] if 0 <= role < len(ROLES) else "unknown"


def layers_of(bits: int) -> list[str]:
    """The names of the layers in a SANDBOX cell."""
    return [name for number, name in enumerate(LAYERS) if bits >> number & 1]


def sandbox_of(shared: Shared) -> int | None:
    """The SANDBOX bits that all CPU processes have which are ready; None when there is none."""
    rows = shared.rows
    found = [
        row[SANDBOX]
        for row in map(rows.row, range(FIRST_LEASE, rows.row(MASTER_ROW)[MASTER_LIVE_ROWS]))
        if row[PID] and row[STATE] == READY and role_of(row) in ("cpu", "express")
    ]
    return reduce(and_, found) if found else None


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process, shared pages included; None when it has ended."""
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * PAGESIZE
    except (OSError, IndexError):
        return None


def status_document(shared: Shared, name: str, version: str) -> dict[str, object]:
    """The document of GET /status; its keys are stable."""
    rows = shared.rows
    live = rows.row(MASTER_ROW)[MASTER_LIVE_ROWS]
    processes: list[dict[str, object]] = []
    clients = 0
    for index in range(FIRST_LEASE, live):
        row = rows.row(index)
        if not row[PID]:
            continue
        role = role_of(row)
        if role == "front":
            clients += row[LOAD]
        processes.append(
            {
                "role": role,
                "slot": row[SLOT],
                "pid": row[PID],
                "generation": row[GENERATION],
                "load": row[LOAD],
                "rss_bytes": resident_bytes(row[PID]),
            }
        )
        if role != "front":
            processes[-1]["sandbox"] = layers_of(row[SANDBOX])
            processes[-1]["pictures"] = row[PICTURES]
    return {
        "name": name,
        "version": version,
        "clients": clients,
        "queued": gauge(shared, QUEUED),
        "working": gauge(shared, WORKING),
        "workers": gauge(shared, WORKERS),
        "sandbox": layers_of(sandbox_of(shared) or 0),
        "totals": {title: total(shared, column) for column, title in NAMES.items()},
        "errors": {title: total(shared, column) for column, title in ERRORS.items()},
        "pictures": {title: total(shared, column) for title, column in PICTURES_AS.items()},
        "seconds": {title: histogram_of(shared, first) for first, title in HISTOGRAMS.items()},
        "slots": gauge(shared, SLOTS_USED),
        "processes": processes,
    }


def histogram_of(shared: Shared, first: int) -> dict[str, object]:
    """Durations: how many up to each bound, how many in all, their sum in seconds."""
    counts = [total(shared, first + number) for number in range(len(BOUNDS) + 1)]
    up_to = list(accumulate(counts))
    return {
        "up_to": {f"{bound:g}": count for bound, count in zip(BOUNDS, up_to, strict=False)},
        "count": up_to[-1],
        "sum": total(shared, first + len(BOUNDS) + 1) / 1e6,
    }
