"""The status page of the balancer, in the page that the daemons share.

RULES: pure; the dictionary of `status.py` in, text out. Everything that comes from outside passes `text()`.
"""

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from balancer.config.units import counted
from balancer.console.table import (
    address_text,
    check_text,
    expiring,
    framed_text,
    identity,
    listening,
    unclean_ends,
)
from balancer.web.figures import human_age, human_bytes, human_number, of_limit
from balancer.web.page import (
    BAD,
    GOOD,
    WARN,
    bar_cell,
    cell,
    figure,
    filled,
    page,
    pill,
    rate_of,
    row,
    text,
    tile,
)

CONTENT = files(__package__).joinpath("content.html").read_text("utf-8")
LINKS = ("status.json", "events.json", "metrics", "ready", "live")
STATE_LEVELS = {
    "up": GOOD,
    "ready": GOOD,
    "down": BAD,
    "unresolved": BAD,
    "hung": BAD,
}  # every other one is WARN
EVENT_LEVELS = {"up": GOOD, "some-up": GOOD, "down": WARN, "limit": WARN, "all-down": BAD, "hang": BAD}

Status = Mapping[str, Any]


def render(status: Status) -> str:
    """The whole page."""
    level, problems = assess(status)
    parts = {
        "listeners": "\n".join(listener_rows(status)),
        "pools": "\n".join(pool_rows(status)),
        "backends": "\n".join(backend_rows(status)),
        "workers": "\n".join(worker_rows(status)),
        "events": "\n".join(event_rows(status)),
        "totals": "\n".join(totals(status)),
    }
    content = filled(CONTENT, parts)
    return page(
        level, headline(status), facts(status), problems, tiles(status), content, LINKS, status["host"]
    )


# -- what needs attention


def headline(status: Status) -> str:
    backends = status["backends"]
    up = sum(backend["state"] == "up" for backend in backends)
    sessions = counted(status["totals"]["sessions"], "session")
    figures = f"{up} of {counted(len(backends), 'backend')} up, {sessions}"
    return figures if status["serving"] else f"No client can be served: {status['reason']}"


def assess(status: Status) -> tuple[str, list[tuple[str, str]]]:
    """The level of the page, and (level, sentence) for everything that needs attention, the worst first."""
    found: list[tuple[str, str]] = []
    if not status["serving"]:
        found.append((BAD, f"No client can be served: {status['reason']}."))
    for pool in status["pools"]:
        found += pool_problems(pool, status["serving"])
    for backend in status["backends"]:
        found += backend_problems(backend)
    for worker in status["workers"]:
        if worker["state"] == "hung":
            then = "a sibling serves its queue until it is replaced"
            found.append((WARN, f"Worker {worker['slot']} (pid {worker['pid']}) is hung; {then}."))
    found += [(WARN, f"The {sentence}.") for sentence in expiring(status)]
    reload = status.get("reload")
    if reload and not reload.get("ok", True):
        found.append((WARN, f"The last reload failed, the old configuration stays: {reload.get('text', '')}"))
    found.sort(key=lambda problem: (BAD, WARN, "note").index(problem[0]))
    levels = {level for level, _ in found}
    return BAD if BAD in levels else WARN if WARN in levels else GOOD, found


def pool_problems(pool: Mapping[str, Any], others_serve: bool) -> Iterable[tuple[str, str]]:
    """`others_serve`: the first sentence does not say it already."""
    if not pool["serving"] and others_serve:
        yield BAD, f"No client of pool {pool['name']} can be served: {pool['reason']}."
    if waiting := pool["queued"]:
        verb = "waits" if waiting == 1 else "wait"
        place = f"a place in pool {pool['name']}, whose backends are at their maxconn"
        yield WARN, f"{counted(waiting, 'session')} {verb} for {place}."


def backend_problems(backend: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    name, state, since = identity(backend), backend["state"], backend["since_s"]
    ago = "" if since is None else f" for {human_age(since)}"
    if state == "down":
        why = f" ({backend['check']})" if backend["check"] else ""
        yield WARN, f"{name} at {address_text(backend)} has been down{ago}{why}."
    elif state == "unresolved":
        yield WARN, f"{name}: no address of {backend['address']} is known."
    elif state != "up":
        held = counted(backend["sessions"], "session")
        condition = {"drain": "is drained", "maint": "is in maintenance"}.get(state, "has weight 0")
        # no warning: an operator wants it so; the note keeps it from being forgotten
        yield "note", f"{name} {condition} by an operator{ago}; {held} left there."


def facts(status: Status) -> str:
    """Which balancer this is, and since when."""
    reload = status.get("reload")
    parts = [
        f"balancer {status['version']} on {status['host']}",
        f"listening on {listening(status)}",
        f"configuration {status['config'] or 'without a file'}",
        f"up {human_age(status['uptime_s'])}",
        f"generation {status['generation']}",
        f"steering {status['steering']}",
    ]
    if reload is None:
        parts.append("never reloaded")
    else:
        age = reload.get("age_s")
        ago = "" if age is None else f" {human_age(age)} ago"
        parts.append(f"last reload{ago}: {reload.get('text', '') if reload.get('ok') else 'failed'}")
    return " · ".join(parts)


def tiles(status: Status) -> Iterable[str]:
    """The most important figures; the script adds their rates over time."""
    sums = status["totals"]
    lost = sums["refused_total"] + sums["failed_total"]
    for key, label, value, kind in (
        ("sessions", "sessions", sums["sessions"], "gauge"),
        ("accepted", "new sessions", sums["accepted_total"], "count"),
        ("in", "from clients", sums["bytes_in_total"], "bytes"),
        ("out", "to clients", sums["bytes_out_total"], "bytes"),
        ("lost", "refused or failed", lost, "count"),
    ):
        yield tile(key, label, value, kind)


def listener_rows(status: Status) -> Iterable[str]:
    for listener in status["listeners"]:
        key, sessions, limit = f"listener {listener['name']}", listener["sessions"], listener["maxconns"]
        refused, failed = listener["refused_total"], listener["failed_total"]
        yield row(
            f"<th scope=row>{text(listener['name'])}<small>{text(', '.join(listener['addresses']))}</small></th>",
            f"<td>{text(', '.join(listener['pools']))}</td>",
            bar_cell(of_limit(sessions, limit), sessions, limit),
            figure(key + "/accepted", listener["accepted_total"], "count"),
            cell(human_number(refused), "some" if refused else ""),
            cell(human_number(failed), "some" if failed else ""),
            cell(unclean_ends(listener["ends"]) or "none"),
            figure(key + "/in", listener["bytes_in_total"], "bytes"),
            figure(key + "/out", listener["bytes_out_total"], "bytes"),
        )


def pool_rows(status: Status) -> Iterable[str]:
    for pool in status["pools"]:
        backends, queued = pool["backends"], pool["queued"]
        sessions = sum(one["sessions"] for one in backends)
        limits = [one["maxconn"] for one in backends]
        limit = sum(limits) if all(limits) else 0
        requests = "".join(f"<small>{text(line)}</small>" for line in framed_text(pool))
        yield row(
            f"<th scope=row>{text(pool['name'])}<small>{text(pool['balance'])}</small>{requests}</th>",
            f"<td>{pill('serves', GOOD) if pool['serving'] else pill('out', BAD)}"
            f"<small>{pool['up']} of {len(backends)} up</small></td>",
            bar_cell(of_limit(sessions, limit), sessions, limit),
            bar_cell(of_limit(queued, pool["max_queue"]), queued, pool["max_queue"]),
            figure(f"pool {pool['name']}/queued", pool["queued_total"], "count"),
        )


def backend_rows(status: Status) -> Iterable[str]:
    for backend in status["backends"]:
        key, name = f"backend {identity(backend)}", text(identity(backend))
        address = text(address_text(backend))
        small = "" if address == name else f"<small>{address}</small>"
        backup = ' <span class="tag">backup</span>' if backend["backup"] else ""
        sessions, limit = backend["sessions"], backend["maxconn"]
        failed = backend["connect_failures_total"]
        yield row(
            f"<th scope=row>{name}{backup}{small}</th>",
            f"<td>{state_pill(backend['state'], backend['since_s'])}</td>",
            bar_cell(of_limit(sessions, limit), sessions, limit),
            cell(human_number(backend["weight"])),
            figure(key + "/total", backend["sessions_total"], "count"),
            cell(human_number(failed), "some" if failed else ""),
            figure(key + "/in", backend["bytes_in_total"], "bytes"),
            figure(key + "/out", backend["bytes_out_total"], "bytes"),
            f"<td>{text(check_text(backend))}{down_count(backend['downs_total'])}</td>",
        )


def worker_rows(status: Status) -> Iterable[str]:
    for worker in status["workers"]:
        cpu, share = worker["cpu_percent"], worker["share_percent"]
        yield row(
            f"<th scope=row>worker {worker['slot']}<small>pid {worker['pid']}, generation "
            f"{worker['generation']}</small></th>",
            f"<td>{state_pill(worker['state'], left=worker['drain_left_s'])}</td>",
            cell(human_number(worker["sessions"])),
            figure(f"worker {worker['pid']}", worker["accepted_total"], "count"),
            bar_cell("-" if cpu is None else f"{cpu:.0f} %", cpu or 0, 100),
            cell(human_bytes(worker["rss_bytes"])),
            cell(human_number(worker["fds"])),
            cell("-" if share is None else f"{share:.0f} %"),
        )


def event_rows(status: Status) -> Iterable[str]:
    """The last events, the newest first."""
    for event in reversed(status["events"]):
        level = EVENT_LEVELS.get(event["verb"], "note")
        yield row(
            f"<td>{text(human_age(event['age_s']))} ago<small>{text(event['at'])}</small></td>",
            f"<td>{pill(event['verb'], level)}</td>",
            f'<td class="wide">{text(event["text"])}</td>',
        )
    if not status["events"]:
        yield row('<td colspan="3">None yet.</td>')


def totals(status: Status) -> Iterable[str]:
    for key, value in status["totals"].items():
        if key.endswith("_total"):
            label = key.removesuffix("_total").replace("_", " ")
            kind = "bytes" if label.startswith("bytes") else "count"
            shown = human_bytes(value) if kind == "bytes" else human_number(value)
            yield f"<div><dt>{text(label)}</dt><dd>{shown}{rate_of(f'total {label}', value, kind)}</dd></div>"


# -- pieces


def down_count(count: int) -> str:
    return f"<small>fell {counted(count, 'time')}</small>" if count else ""


def state_pill(state: str, since: float | None = None, left: float | None = None) -> str:
    age = "" if since is None else f"<small>for {human_age(since)}</small>"
    age += "" if left is None else f"<small>{human_age(left)} left</small>"
    return pill(state, STATE_LEVELS.get(state, WARN)) + age
