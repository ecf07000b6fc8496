"""GET / of the resizer: the document of GET /status as a page for a browser.

RULES: pure. The page itself is the one that the daemons share (balancer/web).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from balancer.config.units import counted
from balancer.web.figures import human_bytes, human_number, of_limit
from balancer.web.page import (
    BAD,
    GOOD,
    WARN,
    bar_cell,
    cell,
    figure,
    page,
    pill,
    rate_of,
    row,
    table,
    text,
    tile,
)
from workers.resizer.options import ResizerOptions

Document = Mapping[str, Any]
LINKS = ("status", "metrics", "ready", "live")
QUANTILES = (0.5, 0.9, 0.99)


def render_status(document: Document, options: ResizerOptions, reason: str) -> str:
    """The page. `document`: as counters.status_document makes it; `reason`: why no picture could be taken, or ""."""
    problems = list(_problems(document, options, reason))
    levels = {level for level, _ in problems}
    level = BAD if BAD in levels else WARN if WARN in levels else GOOD
    content = "\n".join(_content(document, options))
    tiles = _tiles(document)
    return page(
        level,
        _headline(document, reason),
        _facts(document, options),
        problems,
        tiles,
        content,
        LINKS,
        document["name"],
    )


def _headline(status: Document, reason: str) -> str:
    if reason:
        return f"No picture can be taken: {reason}"
    processes = counted(status["workers"], "CPU process", "CPU processes")
    return f"{processes}, {counted(status['working'], 'picture')} at work, {status['queued']} waiting"


def _facts(status: Document, options: ResizerOptions) -> str:
    listening = ", ".join(str(address) for address in options.addresses)
    sandbox = " ".join(status["sandbox"]) or "none"
    return f"resizer {status['name']} {status['version']} · listening on {listening} · sandbox: {sandbox}"


def _problems(status: Document, options: ResizerOptions, reason: str) -> Iterable[tuple[str, str]]:
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


def _tiles(status: Document) -> Iterable[str]:
    sums, errors = status["totals"], status["errors"]
    yield tile("pictures", "pictures", sum(status["pictures"].values()), "count")
    yield tile("clients", "clients", status["clients"], "gauge")
    yield tile("in", "from clients", sums["bytes_in_total"], "bytes")
    yield tile("out", "to clients", sums["bytes_out_total"], "bytes")
    yield tile("refused", "refused or failed", sum(errors.values()), "count")


def _content(status: Document, options: ResizerOptions) -> Iterable[str]:
    yield "<h2>Work</h2>"
    room, slots = options.queue * options.fronts, options.slots * options.fronts
    rows = [
        row("<th scope=row>queue</th>", bar_cell(of_limit(status["queued"], room), status["queued"], room)),
        row("<th scope=row>places</th>", bar_cell(of_limit(status["slots"], slots), status["slots"], slots)),
    ]
    yield table(("", "in use"), rows)
    yield "<h2>Times of a picture</h2>"
    heads = (f"#{quantile:.0%} within" for quantile in QUANTILES)
    yield table(
        ("", "#pictures", *heads), (_time_row(name, found) for name, found in status["seconds"].items())
    )
    yield "<h2>Processes</h2>"
    yield table(
        ("process", "state", "#pid", "#generation", "#memory"), map(_process_row, status["processes"])
    )
    yield "<h2>Since the start</h2>"
    yield f"<dl>{''.join(_totals(status))}</dl>"


_TIMES = {"wait": "waiting", "work": "in a CPU process", "whole": "from head to answer"}


def _time_row(name: str, found: Mapping[str, Any]) -> str:
    cells = [cell(_quantile(found, quantile)) for quantile in QUANTILES]
    return row(f"<th scope=row>{_TIMES[name]}</th>", figure(f"time {name}", found["count"], "count"), *cells)


def _quantile(found: Mapping[str, Any], quantile: float) -> str:
    """The bound of the bucket in which a quantile lies."""
    if not found["count"]:
        return "-"
    for bound, count in found["up_to"].items():
        if count >= quantile * found["count"]:
            return f"{float(bound) * 1000:g} ms"
    return "longer"


def _process_row(process: Mapping[str, Any]) -> str:
    is_front, load = process["role"] == "front", process["load"]
    state = counted(load, "client") if is_front else "busy" if load else "idle"
    return row(
        f"<th scope=row>{text(process['role'])} {process['slot']}</th>",
        f"<td>{pill(state, 'note' if load else GOOD)}</td>",
        cell(str(process["pid"])),
        cell(str(process["generation"])),
        cell(human_bytes(process["rss_bytes"])),
    )


def _totals(status: Document) -> Iterable[str]:
    found = {
        **{f"pictures as {name}": count for name, count in status["pictures"].items()},
        **{f"answered {name.replace('_', ' ')}": count for name, count in status["errors"].items()},
        **{
            name.removesuffix("_total").replace("_", " "): value
            for name, value in status["totals"].items()
            if name not in ("picture_us_total", "bytes_in_total", "bytes_out_total")
        },
    }
    for label, value in found.items():
        rate = rate_of(f"total {label}", value, "count")
        yield f"<div><dt>{text(label)}</dt><dd>{human_number(value)}{rate}</dd></div>"
