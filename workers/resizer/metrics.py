"""GET /metrics: the document of GET /status as Prometheus reads it.

RULES: pure. Base units, `_total` on what only grows; counters are sums over all processes, the ended ones included, and
figures of a process have its role and slot as labels. No client address and no pid is a label: they would never end.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from balancer.eventloop.exposition import Family, Labels, Value, exposition_text
from workers.resizer.options import ResizerOptions

Document = Mapping[str, Any]
Samples = Iterable[tuple[str, Labels, Value]]
_PICTURE_STATUSES = ("413", "415", "422", "429", "503_draining", "503_died", "504")


def metrics_text(document: Document, options: ResizerOptions) -> str:
    """The text. `document`: as counters.status_document makes it."""
    return exposition_text((f"resizer_{name}", *rest) for name, *rest in _families(document, options))  # type: ignore[misc]


def _families(status: Document, options: ResizerOptions) -> Iterable[Family]:
    totals, seconds = status["totals"], status["seconds"]
    info = {"version": status["version"], "name": status["name"]}
    yield "build_info", "gauge", "Always 1; version and name are the labels.", [("", info, 1)]
    yield "clients", "gauge", "Connected now.", _one(status["clients"])
    yield "queued_pictures", "gauge", "Complete and not begun.", _one(status["queued"])
    yield "queue_limit", "gauge", "Pictures that may wait.", _one(options.queue * options.fronts)
    yield "working_pictures", "gauge", "Being worked on.", _one(status["working"])
    yield "slots_used", "gauge", "Places for pictures and answers in use.", _one(status["slots"])
    yield "slots", "gauge", "Places for pictures and answers.", _one(options.slots * options.fronts)
    yield "cpu_processes", "gauge", "CPU processes that take any picture.", _one(status["workers"])
    yield "process_resident_memory_bytes", "gauge", "Resident memory, shared pages included.", _memory(status)
    yield (
        "pictures_total",
        "counter",
        "Pictures answered, by format of the result and status.",
        _pictures(status),
    )
    for name, about in (("wait", "from its last byte to its work"), ("work", "in a CPU process")):
        yield f"picture_{name}_seconds", "histogram", f"Time of a picture {about}.", _histogram(seconds[name])
    about = "Time of a picture from the head of its request to its answer."
    yield "picture_seconds", "histogram", about, _histogram(seconds["whole"])
    for name, about in _TOTALS.items():
        yield name, "counter", about, _one(totals[name])
    about = "Time that CPU processes have worked on pictures."
    yield "picture_work_seconds_total", "counter", about, _one(totals["picture_us_total"] / 1e6)


_TOTALS = {
    "clients_total": "Connections accepted.",
    "requests_total": "Requests for a picture, or a dry run.",
    "dry_runs_total": "Dry runs.",
    "http_requests_total": "Requests over HTTP.",
    "abandoned_total": "Pictures whose client was gone before the answer.",
    "cut_total": "Connections cut because they were slow.",
    "bytes_in_total": "Bytes from clients.",
    "bytes_out_total": "Bytes to clients.",
}


def _one(value: Value) -> Samples:
    return [("", {}, value)]


def _memory(status: Document) -> Samples:
    """Summed over the processes of a slot: in a reload the old and the new one share it for a while."""
    sums: Counter[tuple[str, str]] = Counter()
    for one in status["processes"]:
        sums[one["role"], str(one["slot"])] += one["rss_bytes"] or 0
    return [("", {"role": role, "slot": slot}, value) for (role, slot), value in sums.items() if value]


def _pictures(status: Document) -> Samples:
    for name, count in status["pictures"].items():
        yield "", {"format": name, "status": "200", "reason": ""}, count
    for title in _PICTURE_STATUSES:
        number, _, reason = title.partition("_")
        yield "", {"format": "", "status": number, "reason": reason}, status["errors"][title]


def _histogram(found: Mapping[str, Any]) -> Samples:
    for bound, count in found["up_to"].items():
        yield "_bucket", {"le": bound}, count
    yield "_bucket", {"le": "+Inf"}, found["count"]
    yield "_sum", {}, found["sum"]
    yield "_count", {}, found["count"]
