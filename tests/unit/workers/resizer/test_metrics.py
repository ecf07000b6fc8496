"""GET /metrics out of the shared table: every sample readable, histograms whole, counters as in the status."""

import os
import re

from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, ROLE, make_shared
from workers.resizer import counters
from workers.resizer.counters import status_document
from workers.resizer.metrics import metrics_text
from workers.resizer.options import ResizerOptions

LINE = re.compile(r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[a-z]+="[^"\\\n]*",?)+)\})? (?P<value>\S+)')
OPTIONS = ResizerOptions(name="here", queue=10)


def samples(text: str) -> dict[str, float]:
    """Samples as `name{labels}`; none may be there twice, and each must have a TYPE before it."""
    found: dict[str, float] = {}
    types: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types
            types[name] = kind
        elif not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, line
            assert re.sub("_(bucket|sum|count)$", "", match["name"]) in types or match["name"] in types, line
            key, _, value = line.rpartition(" ")
            assert key not in found, line
            found[key] = float(value)
    return found


def test_figures_of_all_processes() -> None:
    shared = make_shared(counters.COLUMNS)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 3
    front, cpu, old = (shared.rows.row(FIRST_LEASE + number) for number in range(3))
    for row, role in ((front, 0), (cpu, 1), (old, 1)):
        row[PID], row[ROLE] = os.getpid(), role
    front[counters.QUEUED], front[counters.SLOTS_USED], front[counters.UNSUPPORTED] = 4, 7, 3
    front[counters.PICTURES_AS["webp"]] = 5
    cpu[counters.PICTURE_US] = 2_500_000
    for seconds in (0.0005, 0.004, 0.004, 0.3, 99.0):
        counters.observe(front, counters.WAIT, seconds)
    counters.observe(front, counters.WHOLE, 0.001)
    document = status_document(shared, "here", "1.2")
    found = samples(metrics_text(document, OPTIONS))
    assert found['resizer_build_info{version="1.2",name="here"}'] == 1
    assert (found["resizer_queued_pictures"], found["resizer_queue_limit"]) == (4, 10)
    assert (found["resizer_slots_used"], found["resizer_slots"]) == (7, OPTIONS.slots)
    assert found['resizer_pictures_total{format="webp",status="200",reason=""}'] == 5
    assert found['resizer_pictures_total{format="",status="415",reason=""}'] == 3
    assert found["resizer_picture_work_seconds_total"] == 2.5
    assert found['resizer_process_resident_memory_bytes{role="cpu",slot="0"}'] > 1 << 20
    buckets = [value for key, value in found.items() if key.startswith("resizer_picture_wait_seconds_bucket")]
    assert buckets == sorted(buckets) and len(buckets) == len(counters.BOUNDS) + 1
    assert found['resizer_picture_wait_seconds_bucket{le="0.005"}'] == 3
    assert found['resizer_picture_wait_seconds_bucket{le="10"}'] == 4
    assert (
        found['resizer_picture_wait_seconds_bucket{le="+Inf"}']
        == found["resizer_picture_wait_seconds_count"]
        == 5
    )
    assert abs(found["resizer_picture_wait_seconds_sum"] - 99.3085) < 1e-6
    assert found['resizer_picture_seconds_bucket{le="0.001"}'] == 1, "a bound is within its bucket"


def test_no_two_figures_share_a_column() -> None:
    columns = [
        *counters.NAMES,
        *counters.ERRORS,
        *counters.PICTURES_AS.values(),
        counters.QUEUED,
        counters.WORKING,
        counters.WORKERS,
        counters.SANDBOX,
        counters.SLOTS_USED,
    ]
    for first in counters.HISTOGRAMS:
        columns += range(first, first + len(counters.BOUNDS) + 2)
    assert len(columns) == len(set(columns)) and max(columns) == counters.COLUMNS - 1
    gauges = {counters.QUEUED, counters.WORKING, counters.WORKERS, counters.SANDBOX, counters.SLOTS_USED}
    kept = {column for span in counters.TOTALS for column in span}
    assert kept == set(columns) - gauges, "totals outlive their process, gauges do not"
