"""GET / of the resizer: the document of GET /status as a page for a browser.

RULES: pure. The page itself is the one that the daemons share (balancer/web).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from balancer.config.units import counted
from balancer.web.changes import Changes
from balancer.web.figures import human_bytes, human_number
from balancer.web.view import (
    BAD,
    GOOD,
    NOTE,
    WARN,
    Cell,
    PageRow,
    PageTable,
    Problem,
    Tile,
    View,
    bar,
    per_second,
    pill,
    total,
    words,
)
from workers.resizer.options import ResizerOptions
from workers.resizer.rates import Rates

Document = Mapping[str, Any]
LINKS = ("status", "metrics", "ready", "live")
QUANTILES = (0.5, 0.9, 0.99)


def sums_of(document: Document) -> dict[str, int]:
    """The totals whose rates the page shows. `document`: as counters.status_document makes it."""
    totals = document["totals"]
    return {
        "pictures": sum(document["pictures"].values()),
        "in": totals["bytes_in_total"],
        "out": totals["bytes_out_total"],
        "refused": sum(document["errors"].values()),
    }


def status_changes(view: View) -> dict[str, Any]:
    """What the script of the page asks for: everything, for it is little, and the next front knows no version of it."""
    changes = Changes("")
    changes.update(view)
    return changes.since("")


def status_view(document: Document, options: ResizerOptions, reason: str, rates: Rates) -> View:
    """The page. `reason`: why no picture could be taken, or ""; `rates` have noted `sums_of` this document."""
    return View(
        host=document["name"],
        headline=_headline(document, reason),
        facts=_facts(document, options),
        problems=list(_problems(document, options, reason)),
        tiles=list(_tiles(document, rates)),
        tables=list(_tables(document, options)),
        documents=LINKS,
        source="status?",
    )


def _headline(status: Document, reason: str) -> str:
    if reason:
        return f"No picture can be taken: {reason}"
    processes = counted(status["workers"], "CPU process", "CPU processes")
    return f"{processes}, {counted(status['working'], 'picture')} at work, {status['queued']} waiting"


def _facts(status: Document, options: ResizerOptions) -> list[str]:
    listening = ", ".join(str(address) for address in options.addresses)
    sandbox = " ".join(status["sandbox"]) or "none"
    return [
        f"resizer {status['name']} {status['version']}",
        f"listening on {listening}",
        f"sandbox: {sandbox}",
    ]


def _problems(status: Document, options: ResizerOptions, reason: str) -> Iterable[Problem]:
    if reason:
        yield BAD, f"No picture can be taken: {reason}."
    room = options.queue * options.fronts
    if status["queued"] >= room:
        yield (
            WARN,
            f"The queue is full ({status['queued']} of {room}): further requests are told to come again.",
        )
    slots = options.slots * options.fronts
    if status["slots"] >= slots:
        yield WARN, f"All {slots} places for pictures are in use: slow clients have to yield theirs."


_TILES = {"pictures": "pictures", "in": "from clients", "out": "to clients", "refused": "refused or failed"}


def _tiles(status: Document, rates: Rates) -> Iterable[Tile]:
    yield Tile("clients", "clients", human_number(status["clients"]), "now", "")
    for name, count in sums_of(status).items():
        is_bytes, rate = name in ("in", "out"), rates.per_second(name)
        counted_in_all = human_bytes(count) if is_bytes else human_number(count)
        if rate is None:
            yield Tile(name, _TILES[name], counted_in_all, "in all", "")
        else:
            shown = f"{per_second(rate, is_bytes)} / s"
            yield Tile(name, _TILES[name], shown, f"{counted_in_all} in all", rates.chart(name))


def _tables(status: Document, options: ResizerOptions) -> Iterable[PageTable]:
    room, slots = options.queue * options.fronts, options.slots * options.fronts
    work = [
        PageRow("queue", (words("queue"), bar(status["queued"], room))),
        PageRow("places", (words("places"), bar(status["slots"], slots))),
    ]
    yield PageTable("work", "Work", ("of", "in use"), work)
    heads = (f"#{quantile:.0%} within" for quantile in QUANTILES)
    times = [_time_row(name, found) for name, found in status["seconds"].items()]
    yield PageTable("times", "Times of a picture", ("of", "#pictures", *heads), times)
    processes = [_process_row(number, one) for number, one in enumerate(status["processes"])]
    yield PageTable(
        "processes", "Processes", ("process", "state", "#pid", "#generation", "#memory"), processes
    )
    yield PageTable("totals", "Since the start", ("what", "#in all"), list(_totals(status)))


_TIMES = {"wait": "waiting", "work": "in a CPU process", "whole": "from head to answer"}


def _time_row(name: str, found: Mapping[str, Any]) -> PageRow:
    cells = [Cell(_quantile(found, quantile), look="n") for quantile in QUANTILES]
    return PageRow(name, (words(_TIMES[name]), total(found["count"]), *cells))


def _quantile(found: Mapping[str, Any], quantile: float) -> str:
    """The bound of the bucket in which a quantile lies."""
    if not found["count"]:
        return "-"
    for bound, count in found["up_to"].items():
        if count >= quantile * found["count"]:
            return f"{float(bound) * 1000:g} ms"
    return "longer"


def _process_row(number: int, process: Mapping[str, Any]) -> PageRow:
    is_front, load = process["role"] == "front", process["load"]
    state = counted(load, "client") if is_front else "busy" if load else "idle"
    cells = (
        words(f"{process['role']} {process['slot']}"),
        pill(state, NOTE if load else GOOD),
        Cell(str(process["pid"]), look="n"),
        Cell(str(process["generation"]), look="n"),
        Cell(human_bytes(process["rss_bytes"]), look="n", order=process["rss_bytes"] or -1),
    )
    return PageRow(str(process["pid"]), cells, number=number)


def _totals(status: Document) -> Iterable[PageRow]:
    found = {
        **{f"pictures as {name}": count for name, count in status["pictures"].items()},
        **{f"answered {name.replace('_', ' ')}": count for name, count in status["errors"].items()},
        **{
            name.removesuffix("_total").replace("_", " "): value
            for name, value in status["totals"].items()
            if name not in ("picture_us_total", "bytes_in_total", "bytes_out_total")
        },
    }
    for number, (label, value) in enumerate(found.items()):
        yield PageRow(label, (words(label), total(value)), number=number)
