"""The status page for a browser: one HTML page, complete in itself.

RULES
- Pure: the dictionary of `status.py` in, text out. Everything that comes from outside passes `text()`.
- What needs attention comes first, as sentences. No meaning is in a colour alone.
- The page is rendered here only: the script in page.html fetches it again and replaces the content, so that it shows the
  same with and without script. The script adds rates, which need two samples: an element with `data-key` has the figure
  in `data-value` and the format of its rate in `data-as`.
- The page loads nothing, and its Content-Security-Policy allows this script and this style only.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from balancer.console.table import check_text, human_age, human_bytes, human_number, identity, of_limit

CONTENT_TYPE = "text/html; charset=utf-8"
TEMPLATE = files(__package__).joinpath("page.html").read_text("utf-8")
GOOD, WARN, BAD = "good", "warn", "bad"
STATE_LEVELS = {"up": GOOD, "ready": GOOD, "down": BAD, "hung": BAD}  # every other one is WARN

Status = Mapping[str, Any]


def _policy() -> str:
    """Content-Security-Policy of the page: its own script and style by their hashes."""
    allowed = []
    for name in ("script", "style"):
        found = re.search(rf"<{name}>(.*?)</{name}>", TEMPLATE, re.DOTALL)
        assert found is not None
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        allowed.append(f"{name}-src 'sha256-{digest}'")
    return "; ".join(
        ("default-src 'none'", *allowed, "img-src data:", "connect-src 'self'", "frame-ancestors 'none'")
    )


HEADERS = (("Content-Security-Policy", _policy()), ("Referrer-Policy", "no-referrer"))


def text(value: object) -> str:
    """Anything as it may stand in HTML, also between the quotes of an attribute."""
    return escape(str(value), quote=True)


def render(status: Status) -> str:
    """The whole page."""
    level, problems = assess(status)
    parts = {
        "level": level,
        "title": text(headline(status)),
        "headline": text(headline(status)),
        "facts": text(facts(status)),
        "problems": problem_items(problems),
        "tiles": "\n".join(tiles(status)),
        "listeners": "\n".join(listener_rows(status)),
        "pools": "\n".join(pool_rows(status)),
        "backends": "\n".join(backend_rows(status)),
        "workers": "\n".join(worker_rows(status)),
        "totals": "\n".join(totals(status)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE)


# -- what needs attention


def headline(status: Status) -> str:
    backends = status["backends"]
    up = sum(backend["state"] == "up" for backend in backends)
    sessions = status["totals"]["sessions"]
    return f"{up} of {counted(len(backends), 'backend')} up, {counted(sessions, 'session')}"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def assess(status: Status) -> tuple[str, list[tuple[str, str]]]:
    """The level of the page, and (level, sentence) for everything that needs attention."""
    found: list[tuple[str, str]] = []
    if not any(backend["state"] == "up" for backend in status["backends"]):
        found.append((BAD, "No backend is up: every new session fails."))
    if not any(worker["state"] == "ready" for worker in status["workers"]):
        found.append((BAD, "No worker is ready: no client is accepted."))
    found += [problem for backend in status["backends"] for problem in backend_problems(backend)]
    for worker in status["workers"]:
        if worker["state"] == "hung":
            then = "a sibling serves its queue until it is replaced"
            found.append((WARN, f"Worker {worker['slot']} (pid {worker['pid']}) is hung; {then}."))
    reload = status.get("reload")
    if reload and not reload.get("ok", True):
        found.append((WARN, f"The last reload failed, the old configuration stays: {reload.get('text', '')}"))
    if queued := status["totals"]["queued"]:
        found.append((WARN, f"{counted(queued, 'session')} waiting: the backends are at their maxconn."))
    levels = {level for level, _ in found}
    return BAD if BAD in levels else WARN if WARN in levels else GOOD, found


def backend_problems(backend: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    name, state, since = identity(backend), backend["state"], backend["since_s"]
    if state == "down":
        ago = "" if since is None else f" for {human_age(since)}"
        why = f" ({backend['check']})" if backend["check"] else ""
        yield WARN, f"{name} at {backend['address']} has been down{ago}{why}."
    elif state != "up":
        held = counted(backend["sessions"], "session")
        # no warning: an operator wants it so; the note keeps it from being forgotten
        yield "note", f"{name} is in {state} by an operator's command; {held} left there."


def facts(status: Status) -> str:
    reload = status.get("reload")
    parts = [
        f"balancer {status['version']}",
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


def problem_items(problems: Iterable[tuple[str, str]]) -> str:
    words = {BAD: "alarm", WARN: "warning", "note": "note"}
    items = [
        f'<li class="{level}"><b>{words[level]}</b> {text(sentence)}</li>' for level, sentence in problems
    ]
    return "\n".join(items) or '<li class="calm">Nothing needs attention.</li>'


# -- the figures


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
        shown = human_bytes(value) if kind == "bytes" else human_number(value)
        total = "" if kind == "gauge" else " in all"
        yield (
            f'<div class="tile {kind}"><h3>{label}</h3>'
            f'<p class="rate" data-key="{key}" data-value="{value}" data-as="{kind}"></p>'
            f'<p class="sum"><b>{shown}</b>{total}</p>'
            f'<svg data-history="{key}" viewBox="0 0 120 28" preserveAspectRatio="none" aria-hidden="true">'
            "<polyline></polyline></svg></div>"
        )


def listener_rows(status: Status) -> Iterable[str]:
    for listener in status["listeners"]:
        key, sessions, limit = f"listener {listener['name']}", listener["sessions"], listener["maxconns"]
        refused, failed = listener["refused_total"], listener["failed_total"]
        yield row(
            f"<th scope=row>{text(listener['name'])}<small>{text(', '.join(listener['addresses']))}</small></th>",
            f"<td>{text(', '.join(listener['pools']))}</td>",
            bar_cell(of_limit(sessions, limit), sessions, limit or status["totals"]["sessions"]),
            figure(key + "/accepted", listener["accepted_total"], "count"),
            cell(human_number(refused), "some" if refused else ""),
            cell(human_number(failed), "some" if failed else ""),
            figure(key + "/in", listener["bytes_in_total"], "bytes"),
            figure(key + "/out", listener["bytes_out_total"], "bytes"),
        )


def pool_rows(status: Status) -> Iterable[str]:
    every = sum(backend["sessions"] for backend in status["backends"])
    for pool in status["pools"]:
        backends, queued = pool["backends"], pool["queued"]
        up, sessions = (
            sum(one["state"] == "up" for one in backends),
            sum(one["sessions"] for one in backends),
        )
        yield row(
            f"<th scope=row>{text(pool['name'])}<small>{text(pool['balance'])}</small></th>",
            f"<td>{up} of {len(backends)} up</td>",
            bar_cell(human_number(sessions), sessions, every),
            cell(of_limit(queued, pool["max_queue"]), "some" if queued else ""),
            figure(f"pool {pool['name']}/queued", pool["queued_total"], "count"),
        )


def backend_rows(status: Status) -> Iterable[str]:
    every = sum(backend["sessions"] for backend in status["backends"])
    for backend in status["backends"]:
        key, name = f"backend {identity(backend)}", text(identity(backend))
        address = text(backend["address"])
        small = "" if address == name else f"<small>{address}</small>"
        backup = ' <span class="tag">backup</span>' if backend["backup"] else ""
        sessions, limit = backend["sessions"], backend["maxconn"]
        failed = backend["connect_failures_total"]
        yield row(
            f"<th scope=row>{name}{backup}{small}</th>",
            f"<td>{pill(backend['state'], backend['since_s'])}</td>",
            bar_cell(of_limit(sessions, limit), sessions, limit or every),
            cell(human_number(backend["weight"])),
            figure(key + "/total", backend["sessions_total"], "count"),
            cell(human_number(failed), "some" if failed else ""),
            figure(key + "/in", backend["bytes_in_total"], "bytes"),
            figure(key + "/out", backend["bytes_out_total"], "bytes"),
            f"<td>{text(check_text(backend))}{down_count(backend['downs_total'])}</td>",
        )


def worker_rows(status: Status) -> Iterable[str]:
    every = sum(worker["sessions"] for worker in status["workers"])
    for worker in status["workers"]:
        cpu, share = worker["cpu_percent"], worker["share_percent"]
        yield row(
            f"<th scope=row>worker {worker['slot']}<small>pid {worker['pid']}, generation "
            f"{worker['generation']}</small></th>",
            f"<td>{pill(worker['state'], left=worker['drain_left_s'])}</td>",
            bar_cell(human_number(worker["sessions"]), worker["sessions"], every),
            figure(f"worker {worker['pid']}", worker["accepted_total"], "count"),
            bar_cell("-" if cpu is None else f"{cpu:.0f} %", cpu or 0, 100),
            cell(human_bytes(worker["rss_bytes"])),
            cell(human_number(worker["fds"])),
            cell("-" if share is None else f"{share:.0f} %"),
        )


def totals(status: Status) -> Iterable[str]:
    for key, value in status["totals"].items():
        label = key.removesuffix("_total").replace("_", " ")
        kind = "bytes" if label.startswith("bytes") else "count" if key.endswith("_total") else "gauge"
        shown = human_bytes(value) if kind == "bytes" else human_number(value)
        rate = "" if kind == "gauge" else rate_of(f"total {label}", value, kind)
        yield f"<div><dt>{text(label)}</dt><dd>{shown}{rate}</dd></div>"


# -- pieces


def row(*cells: str) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def cell(shown: str, kind: str = "") -> str:
    return f'<td class="n {kind}">{text(shown)}</td>'


def figure(key: str, value: int, kind: str) -> str:
    """A cell with a total, and an element for its rate below."""
    shown = human_bytes(value) if kind == "bytes" else human_number(value)
    return f'<td class="n">{shown}{rate_of(key, value, kind)}</td>'


def rate_of(key: str, value: int, kind: str) -> str:
    return f'<small data-key="{text(key)}" data-value="{value}" data-as="{kind}"></small>'


def down_count(count: int) -> str:
    return f"<small>fell {counted(count, 'time')}</small>" if count else ""


def pill(state: str, since: float | None = None, left: float | None = None) -> str:
    age = "" if since is None else f"<small>{human_age(since)}</small>"
    age += "" if left is None else f"<small>{human_age(left)} left</small>"
    return f'<span class="pill {STATE_LEVELS.get(state, WARN)}">{text(state)}</span>{age}'


def bar_cell(shown: str, part: float, whole: float) -> str:
    """A figure over a bar of its share; drawn as SVG, since the policy forbids styles on elements."""
    width = round(100 * min(part / whole, 1.0), 1) if whole else 0
    rects = f'<rect class="of" width="100%"></rect><rect width="{width}%"></rect>'
    return f'<td class="bar">{text(shown)}<svg aria-hidden="true">{rects}</svg></td>'
