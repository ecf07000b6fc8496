"""What `balancerctl top` shows and what its keys do: statuses and keys in, lines out.

RULES: pure: no terminal, no socket, no clock. Rates come from the totals of two statuses; an unknown one is `-`.
An act is asked for first: `press` answers with the words for the console only after `y`.

    1..5, Tab   backends, listeners, pools, workers, events     up, down, k, j   select a row
    s, S        sort by the next column, the other way round    d, r             drain, ready (with a question)
    /           filter by a part of the name, Esc ends it       q                quit
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from balancer.console.table import identity
from balancer.pool.backend import MAIN_POOL
from balancer.web.figures import human_age, human_bytes, human_number, of_limit

Status = Mapping[str, Any]
VIEWS = ("backends", "listeners", "pools", "workers", "events")
VIEW_KEYS = {str(place): view for place, view in enumerate(VIEWS, 1)}
KEPT = 60  # samples of a rate
BARS = " ▁▂▃▄▅▆▇█"
SPARK = 10  # columns of a sparkline in a table
TOTAL = "total"  # the name that the rates of the whole have
ACTS = {"d": "drain", "r": "ready"}
KEYS = "1-5 view  j/k select  s sort  / filter  d drain  r ready  q quit"


class TopRow(NamedTuple):
    """`cells` as shown, `order` to sort by, `name` for filter and acts, `style`: good, bad, held or nothing."""

    cells: tuple[str, ...]
    order: tuple[Any, ...]
    name: str
    style: str = ""


class Screen(NamedTuple):
    """All that is shown. `selected` is a place in `rows`; `sorted_by` one in `head`."""

    title: tuple[str, ...]
    head: tuple[str, ...]
    rows: tuple[TopRow, ...]
    selected: int
    sorted_by: int
    foot: str


class Quit(Exception):
    """The key to leave was pressed."""


HEADS: dict[str, tuple[str, ...]] = {
    "backends": ("BACKEND", "STATE", "SESS", "NEW/S", "TREND", "FAILED", "IN/S", "OUT/S"),
    "listeners": ("LISTENER", "SESS", "NEW/S", "TREND", "REFUSED", "FAILED", "IN/S", "OUT/S"),
    "pools": ("POOL", "SERVES", "UP", "SESS", "QUEUED", "NEW/S", "TREND"),
    "workers": ("WORKER", "PID", "STATE", "SESS", "NEW/S", "TREND", "CPU", "RSS"),
    "events": ("AGE", "EVENT", "WHAT"),
}
STYLES = {"up": "good", "ready": "good", "down": "bad", "unresolved": "bad", "hung": "bad"}
EVENT_STYLES = {
    "up": "good",
    "some-up": "good",
    "down": "bad",
    "all-down": "bad",
    "hang": "bad",
    "respawn": "bad",
}


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as bars of eighths, the highest of them full."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return BARS[1] * len(shown)
    return "".join(BARS[max(1, round(value / top * (len(BARS) - 1)))] for value in shown)


@dataclass
class TopRates:
    """The changes of totals per second, by what they are of: ("backend web-1", "in")."""

    totals: dict[tuple[str, str], int] = field(default_factory=dict)
    at: float = 0.0
    history: dict[tuple[str, str], deque[float]] = field(default_factory=dict)

    def feed(self, totals: dict[tuple[str, str], int], now: float) -> None:
        """Totals at monotonic `now`. One that has fallen is that of another master."""
        seconds = now - self.at
        if self.totals and seconds > 0:
            self.history = {
                key: self._longer(key, max(0, total - self.totals[key]) / seconds)
                for key, total in totals.items()
                if key in self.totals
            }
        self.totals, self.at = totals, now

    def _longer(self, key: tuple[str, str], rate: float) -> deque[float]:
        found = self.history.get(key) or deque(maxlen=KEPT)
        found.append(rate)
        return found

    def of(self, thing: str, what: str = "new") -> Sequence[float]:
        return self.history.get((thing, what), ())

    def last(self, thing: str, what: str = "new") -> float:
        """-1 while it is not known."""
        found = self.of(thing, what)
        return found[-1] if found else -1.0


def totals_of(status: Status) -> dict[tuple[str, str], int]:
    """Everything whose rate is shown."""
    found: dict[tuple[str, str], int] = {}
    for name, one in [
        (TOTAL, status["totals"]),
        *((f"listener {one['name']}", one) for one in status["listeners"]),
    ]:
        found |= {(name, "new"): one["accepted_total"], (name, "in"): one["bytes_in_total"]}
        found |= {
            (name, "out"): one["bytes_out_total"],
            (name, "failed"): one["failed_total"] + one["refused_total"],
        }
    for one in status["backends"]:
        name = f"backend {identity(one)}"
        found |= {(name, "new"): one["sessions_total"], (name, "in"): one["bytes_in_total"]}
        found |= {(name, "out"): one["bytes_out_total"]}
    for pool in status["pools"]:
        found[f"pool {pool['name']}", "new"] = sum(one["sessions_total"] for one in pool["backends"])
    for one in status["workers"]:
        found[f"worker {one['pid']}", "new"] = one["accepted_total"]
    return found


def rate(value: float) -> str:
    return "-" if value < 0 else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def byte_rate(value: float) -> str:
    return "-" if value < 0 else human_bytes(int(value))


class Top:
    """What is shown, and what the keys have made of it."""

    def __init__(self, hint: str = "") -> None:
        self.view = VIEWS[0]
        self.rates = TopRates()
        self.status: Status | None = None
        self.filter = ""
        self.typing = False  # keys go into the filter
        self.question: tuple[str, str] | None = None  # act and backend
        self.message = hint
        self.selected = ""  # name of the row
        self._sorts: dict[str, tuple[int, bool]] = {}  # column, and whether the greatest comes first

    # -- what comes in

    def feed(self, status: Status, now: float) -> None:
        """A status, at monotonic seconds."""
        self.rates.feed(totals_of(status), now)
        self.status = status

    def press(self, key: str) -> list[str] | None:
        """The words for the console, if the key calls for some. Raises Quit."""
        if self.typing:
            self._type(key)
            return None
        if self.question is not None:
            (act, name), self.question = self.question, None
            self.message = "" if key in ("y", "Y") else "left as it is"
            return [act, self._whole_name(name), "--reason", "top"] if key in ("y", "Y") else None
        self.message = ""
        if key == "q":
            raise Quit
        if key in ACTS:
            self._ask(ACTS[key])
        elif key == "/":
            self.typing = True
        elif key == "escape":
            self.filter = ""
        elif key in ("s", "S"):
            self._sort(key == "S")
        elif key in ("up", "k", "down", "j"):
            self._move(-1 if key in ("up", "k") else 1)
        elif key == "tab":
            self._show(VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)])
        elif key in VIEW_KEYS:
            self._show(VIEW_KEYS[key])
        return None

    def answered(self, reply: Mapping[str, Any]) -> None:
        """What the console has said to an act."""
        self.message = str(reply.get("error") or reply.get("text") or "done").replace("\n", "; ")

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.typing, self.filter = False, self.filter if key == "enter" else ""
        elif key == "backspace":
            self.filter = self.filter[:-1]
        elif len(key) == 1:
            self.filter += key

    def _ask(self, act: str) -> None:
        name = self._selected_name()
        if self.view != "backends" or not name:
            self.message = f"{act} is for a backend: press 1 and select one"
        else:
            self.question = act, name

    def _sort(self, is_reversed: bool) -> None:
        column, down = self._sorts.get(self.view, (-1, True))
        if is_reversed and column >= 0:
            self._sorts[self.view] = column, not down
        else:
            column = (column + 1) % len(HEADS[self.view])
            self._sorts[self.view] = column, column > 0  # names from a to z, figures from the greatest on

    def _show(self, view: str) -> None:
        self.view, self.selected = view, ""

    def _move(self, by: int) -> None:
        names = [row.name for row in self.rows()]
        if names:
            at = names.index(self._selected_name()) if self._selected_name() in names else 0
            self.selected = names[min(max(0, at + by), len(names) - 1)]

    def _selected_name(self) -> str:
        names = [row.name for row in self.rows()]
        return self.selected if self.selected in names else next(iter(names), "")

    def _whole_name(self, name: str) -> str:
        """POOL/NAME where backends of several pools have the name, that of one in the pool main."""
        backends = self.status["backends"] if self.status else ()
        is_common = sum(one["name"] == name for one in backends) > 1
        return f"{MAIN_POOL}/{name}" if is_common else name

    # -- what is shown

    def rows(self) -> list[TopRow]:
        """The rows of the view, filtered and sorted."""
        if self.status is None:
            return []
        make = ROWS[self.view]
        found = [make(one, self.rates) for one in self.status[self.view]]
        if self.view == "events":
            found.reverse()
        found = [row for row in found if self.filter.lower() in row.name.lower()]
        if self.view in self._sorts:
            column, down = self._sorts[self.view]
            found.sort(key=lambda row: row.order[column], reverse=down)
        return found

    def screen(self, width: int) -> Screen:
        """Everything, for a terminal of so many columns."""
        rows = self.rows()
        names = [row.name for row in rows]
        name = self._selected_name()
        selected = names.index(name) if name in names else 0
        sorted_by = self._sorts.get(self.view, (-1, False))[0]
        return Screen(self._title(width), HEADS[self.view], tuple(rows), selected, sorted_by, self._foot())

    def _title(self, width: int) -> tuple[str, ...]:
        if self.status is None:
            return ("balancer: no status yet",)
        one, rates, totals = self.status, self.rates, self.status["totals"]
        served = f"clients are served, but {one['reason']}" if one["reason"] else "clients are served"
        serves = served if one["serving"] else f"NO CLIENT CAN BE SERVED: {one['reason']}"
        spark = sparkline(rates.of(TOTAL), max(5, min(KEPT, width - 62)))
        tabs = "  ".join(
            f"[{place} {view}]" if view == self.view else f" {place} {view} "
            for place, view in enumerate(VIEWS, 1)
        )
        return (
            f"balancer {one['version']} on {one['host']}  generation {one['generation']}  "
            f"up {human_age(one['uptime_s'])}  {serves}",
            f"sessions {human_number(totals['sessions']):>8}  queued {human_number(totals['queued']):>5}  "
            f"new/s {rate(rates.last(TOTAL)):>7} {spark}",
            f"in/s {byte_rate(rates.last(TOTAL, 'in')):>10}  out/s {byte_rate(rates.last(TOTAL, 'out')):>10}  "
            f"refused and failed/s {rate(rates.last(TOTAL, 'failed'))}",
            tabs,
        )

    def _foot(self) -> str:
        if self.question is not None:
            act, name = self.question
            return f"{act} {name}? y/n"
        if self.typing:
            return f"filter: {self.filter}_  (Enter keeps it, Esc ends it)"
        if self.message:
            return self.message
        return f"filter: {self.filter}  (Esc ends it)  q quit" if self.filter else KEYS


def visible(screen: Screen, lines: int) -> list[tuple[int, TopRow]]:
    """The rows that a terminal of so many lines has room for, with their places; the selected one is among them."""
    room = max(1, lines - len(screen.title) - 2)
    first = max(0, min(screen.selected - room // 2, len(screen.rows) - room))
    return list(enumerate(screen.rows))[first : first + room]


def backend_row(one: Mapping[str, Any], rates: TopRates) -> TopRow:
    name = identity(one)
    thing = f"backend {name}"
    cells = (
        name, one["state"], of_limit(one["sessions"], one["maxconn"]), rate(rates.last(thing)),
        sparkline(rates.of(thing), SPARK), human_number(one["connect_failures_total"]),
        byte_rate(rates.last(thing, "in")), byte_rate(rates.last(thing, "out")),
    )  # fmt: skip
    order = (
        name, one["state"], one["sessions"], rates.last(thing), rates.last(thing), one["connect_failures_total"],
        rates.last(thing, "in"), rates.last(thing, "out"),
    )  # fmt: skip
    return TopRow(cells, order, name, STYLES.get(one["state"], "held"))


def listener_row(one: Mapping[str, Any], rates: TopRates) -> TopRow:
    thing = f"listener {one['name']}"
    figures = one["refused_total"], one["failed_total"]
    flow = rates.last(thing, "in"), rates.last(thing, "out")
    cells = (
        one["name"], of_limit(one["sessions"], one["maxconns"]), rate(rates.last(thing)),
        sparkline(rates.of(thing), SPARK), *map(human_number, figures), *map(byte_rate, flow),
    )  # fmt: skip
    order = (one["name"], one["sessions"], rates.last(thing), rates.last(thing), *figures, *flow)
    return TopRow(cells, order, one["name"])


def pool_row(one: Mapping[str, Any], rates: TopRates) -> TopRow:
    thing, name = f"pool {one['name']}", one["name"]
    sessions = sum(backend["sessions"] for backend in one["backends"])
    cells = (
        name, "yes" if one["serving"] else "NO", f"{one['up']}/{len(one['backends'])}", human_number(sessions),
        of_limit(one["queued"], one["max_queue"]), rate(rates.last(thing)), sparkline(rates.of(thing), SPARK),
    )  # fmt: skip
    order = (name, one["serving"], one["up"], sessions, one["queued"], rates.last(thing), rates.last(thing))
    return TopRow(cells, order, name, "good" if one["serving"] else "bad")


def worker_row(one: Mapping[str, Any], rates: TopRates) -> TopRow:
    thing, cpu = f"worker {one['pid']}", one["cpu_percent"]
    cells = (
        str(one["slot"]), str(one["pid"]), one["state"], human_number(one["sessions"]), rate(rates.last(thing)),
        sparkline(rates.of(thing), SPARK), "-" if cpu is None else f"{cpu:.0f} %", human_bytes(one["rss_bytes"]),
    )  # fmt: skip
    order = (
        one["slot"], one["pid"], one["state"], one["sessions"], rates.last(thing), rates.last(thing), cpu or 0.0,
        one["rss_bytes"] or 0,
    )  # fmt: skip
    return TopRow(cells, order, str(one["pid"]), STYLES.get(one["state"], "held"))


def event_row(one: Mapping[str, Any], rates: TopRates) -> TopRow:
    cells = (human_age(one["age_s"]), one["verb"], one["text"])
    order = (one["age_s"], one["verb"], one["text"])
    return TopRow(
        cells, order, f"{one['serial']} {one['verb']} {one['text']}", EVENT_STYLES.get(one["verb"], "")
    )


ROWS: dict[str, Callable[[Mapping[str, Any], TopRates], TopRow]] = {
    "backends": backend_row,
    "listeners": listener_row,
    "pools": pool_row,
    "workers": worker_row,
    "events": event_row,
}
