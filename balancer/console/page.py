"""The status page of the balancer, and those of one listener or pool, as views for the page that the daemons share.

RULES: pure; the dictionary of `status.py` and the samples of `history.py` in, a View out.

    /                 everything          /listener/NAME    its figures and pools
    /pool/NAME        its figures, the listeners that lead to it, its backends, its events
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from balancer.config.units import counted
from balancer.console.entrance import is_full, refusal
from balancer.console.history import (
    IN,
    LOST,
    NEW,
    OUT,
    P99,
    QUEUED,
    SESSIONS,
    TIMES,
    Sampler,
    quantile_text,
    times_of,
    totals_of,
)  # fmt: skip
from balancer.console.problems import assess, facts, headline, rough_age
from balancer.console.table import address_text, check_text, framed_text, identity, sets_of, unclean_ends
from balancer.web.figures import human_bytes, human_number
from balancer.web.view import (
    BAD,
    GOOD,
    NOTE,
    RANKS,
    WARN,
    ActForm,
    Cell,
    PageRow,
    PageTable,
    Tile,
    View,
    bar,
    number,
    per_second,
    pill,
    size,
    total,
    trouble,
    words,
)  # fmt: skip

DOCUMENTS = ("status.json", "events.json", "metrics", "ready", "live")
STATE_LEVELS = {
    **dict.fromkeys(("up", "ready"), GOOD),
    **dict.fromkeys(("down", "unresolved", "hung"), BAD),
    **dict.fromkeys(("drain", "maint", "weight-0"), NOTE),
}  # every other one is WARN
EVENT_LEVELS = {"up": GOOD, "some-up": GOOD, "down": WARN, "limit": WARN, "all-down": BAD, "hang": BAD}
WHOLE = ""  # the name of the view of everything; others are `pool/NAME` and `listener/NAME`
DURATIONS = {
    "session": "sessions",
    "handshake": "TLS handshakes",
    "connect": "connects",
    "wait": "waits for a place",
    "reply": "replies",
}

LISTENER_HEAD = (
    "name", "pools", "sessions", "#accepted", "#refused", "#failed", "unclean ends", "#from clients", "#to clients",
)  # fmt: skip
POOL_HEAD = ("name", "state", "sessions", "waiting", "#had to wait")
BACKEND_HEAD = (
    "name", "state", "sessions", "#weight", "#sessions in all", "#connects failed", "#to it", "#from it", "last check",
)  # fmt: skip
SET_HEAD = (
    "set",
    "backends",
    "server",
    "#last answer, s ago",
    "#TTL, s",
    "last error",
    "#failed lookups",
    "#queries",
)
TIME_HEAD = (
    "of", "#in the last minute", "#50% within", "#90% within", "#99% within", "#99%, last hour",
    "#since the start, 50%", "#99%",
)  # fmt: skip
WORKER_HEAD = ("worker", "state", "#sessions", "#accepted", "CPU", "#memory", "#files", "#share of the new")

NONE_YET = PageRow("none", (words("None yet."),))

Status = Mapping[str, Any]


def narrowed(status: Status, view: str) -> Status:
    """The part of a status that a view shows: a status, too."""
    kind, _, name = view.partition("/")
    if not kind:
        return status
    if kind == "listener":
        listeners = [one for one in status["listeners"] if one["name"] == name]
        wanted = {pool for one in listeners for pool in one["pools"]}
    else:
        wanted = {name}
        listeners = [one for one in status["listeners"] if name in one["pools"]]
    pools = [one for one in status["pools"] if one["name"] in wanted]
    backends = [one for one in status["backends"] if one["pool"] in wanted]
    meant = {f"{kind}={name}", *(f"pool={one}" for one in wanted), *(f"backend={identity(one)}" for one in backends),
             *(f"backend={one['pool']}/{one['name']}" for one in backends)}  # fmt: skip
    events = [one for one in status["events"] if meant & set(one["text"].split())]
    return {**status, "listeners": listeners, "pools": pools, "backends": backends, "events": events}


class BalancerPage:
    """Makes the views of one status."""

    def __init__(
        self, status: Status, sampler: Sampler, now: float, view: str = WHOLE, has_acts: bool = False
    ) -> None:
        self.status = narrowed(status, view)
        self.sampler = sampler
        self.now = now
        self.view = view
        self.has_acts = has_acts
        self.base = "" if view == WHOLE else "../"
        self.sums = totals_of(status)

    def render(self) -> View:
        status, view = self.status, self.view
        query = f"view={quote(view, safe='')}&" if view else ""
        backends = [self.backend(index, one) for index, one in enumerate(status["backends"])]
        sets = [self.set(index, one) for index, one in enumerate(sets_of(status))]
        tables = [
            PageTable("listeners", "Listeners", LISTENER_HEAD, list(map(self.listener, status["listeners"]))),
            PageTable("pools", "Pools", POOL_HEAD, list(map(self.pool, status["pools"]))),
            PageTable("backends", "Backends", BACKEND_HEAD, backends),
            *([PageTable("sets", "Sets of backends", SET_HEAD, sets)] if sets else []),
            PageTable("times", "Times", TIME_HEAD, list(self.times())),
        ]
        if view == WHOLE:
            tables.append(
                PageTable("workers", "Workers", WORKER_HEAD, list(map(self.worker, status["workers"])))
            )
        tables.append(PageTable("events", "Events", ("when", "what", "details"), list(self.events())))
        if view == WHOLE:
            tables.append(PageTable("totals", "Since the start", ("what", "#in all"), list(self.totals())))
        return View(
            host=status["host"],
            headline=self.headline(),
            facts=facts(status),
            problems=assess(status, self.sampler),
            tiles=list(self.tiles()),
            tables=tables,
            documents=DOCUMENTS,
            source=f"{self.base}status.json?{query}",
            base=self.base,
            links=() if view == WHOLE else ((self.base, "Everything"),),
            acts=ActForm(f"{self.base}act", view) if self.has_acts else None,
        )

    def headline(self) -> str:
        """Of one listener or pool: its name, and what can be said of it."""
        kind, _, name = self.view.partition("/")
        if kind == "listener":
            why = refusal(self.status["listeners"][0]) if self.status["serving"] else ""
            return f"Listener {name}: {'no client can be served: ' + why if why else headline(self.status)}"
        if not kind:
            return headline(self.status)
        pool = self.status["pools"][0]
        sessions = counted(sum(one["sessions"] for one in pool["backends"]), "session")
        up = f"{pool['up']:,} of {counted(len(pool['backends']), 'backend')} up, {sessions}"
        return f"Pool {name}: {up if pool['serving'] else 'no client can be served: ' + pool['reason']}"

    def rate(self, key: str) -> float | None:
        return self.sampler.rate(key, self.sums, self.now)

    def tiles(self) -> Iterable[Tile]:
        """The most important figures, with their last hour."""
        kind, _, name = self.view.partition("/")
        key = f"{kind} {name}" if kind else ""
        whole = self.view == WHOLE
        sessions = self.status["totals"]["sessions"] if whole else sum(
            one["sessions"] for one in (self.status["listeners"] if kind == "listener" else self.status["backends"])
        )  # fmt: skip
        yield Tile("sessions", "sessions", human_number(sessions), "now", self.chart(key, SESSIONS))
        for title, part, figure, unit in (
            ("new sessions", "new", NEW, ""), ("from clients", "in", IN, "bytes"), ("to clients", "out", OUT, "bytes"),
            ("connects failed" if kind == "pool" else "refused or failed", "lost", LOST, ""),
        ):  # fmt: skip
            value, rate = self.sums[f"{key}/{part}"], self.rate(f"{key}/{part}")
            is_bytes = unit == "bytes"
            shown = "-" if rate is None else f"{per_second(rate, is_bytes)} / s"
            yield Tile(part, title, shown, f"{human_bytes(value) if is_bytes else human_number(value)} in all",
                       self.chart(key, figure))  # fmt: skip
        if kind != "listener":
            queued = sum(one["queued"] for one in self.status["pools"])
            yield Tile("queued", "waiting for a place", human_number(queued), "now", self.chart(key, QUEUED))

    def chart(self, key: str, figure: int) -> str:
        return self.sampler.chart(key, figure, self.now)

    def listener(self, one: Mapping[str, Any]) -> PageRow:
        key, limit = f"listener {one['name']}", one["maxconns"]
        is_lossy = self.sampler.grown(f"{key}/lost", self.sums) > 0
        link = f"{self.base}listener/{quote(one['name'], safe='')}"
        cells = (
            Cell(one["name"], ", ".join(one["addresses"]), link=link),
            words(", ".join(one["pools"])),
            bar(one["sessions"], limit),
            total(one["accepted_total"], self.rate(f"{key}/new")),
            trouble(one["refused_total"]),
            trouble(one["failed_total"]),
            words(unclean_ends(one["ends"]) or "none"),
            size(one["bytes_in_total"], self.rate(f"{key}/in")),
            size(one["bytes_out_total"], self.rate(f"{key}/out")),
        )
        return PageRow(one["name"], cells, RANKS[WARN if is_lossy or is_full(one) else GOOD])

    def pool(self, one: Mapping[str, Any]) -> PageRow:
        backends = one["backends"]
        limits = [each["maxconn"] for each in backends]
        level = (
            BAD
            if not one["serving"]
            else WARN
            if one["queued"]
            else NOTE
            if one["up"] < len(backends)
            else GOOD
        )
        small = " · ".join((one["balance"], *framed_text(one)))
        cells = (
            Cell(one["name"], small, link=f"{self.base}pool/{quote(one['name'], safe='')}"),
            pill(
                "serves" if one["serving"] else "out",
                GOOD if one["serving"] else BAD,
                f"{one['up']:,} of {len(backends):,} up",
            ),
            bar(sum(each["sessions"] for each in backends), sum(limits) if all(limits) else 0),
            bar(one["queued"], one["max_queue"]),
            total(one["queued_total"], self.rate(f"pool {one['name']}/queued")),
        )
        return PageRow(one["name"], cells, RANKS[level])

    def backend(self, index: int, one: Mapping[str, Any]) -> PageRow:
        name, address = identity(one), address_text(one)
        key = f"backend {one['pool']}/{one['name']}"
        level = STATE_LEVELS.get(one["state"], WARN)
        fails = self.sampler.grown(f"{key}/lost", self.sums) > 0
        since = "" if one["since_s"] is None else f"for {rough_age(one['since_s'])}"
        small = " · ".join(
            part for part in ("" if address == name else address, "backup" if one["backup"] else "") if part
        )
        downs = one["downs_total"]
        cells = (
            Cell(name, small, act=f"{one['pool']}/{one['name']}" if self.has_acts else ""),
            pill(one["state"], level, since),
            bar(one["sessions"], one["maxconn"]),
            number(one["weight"]),
            total(one["sessions_total"], self.rate(f"{key}/new")),
            trouble(one["connect_failures_total"]),
            size(one["bytes_in_total"], self.rate(f"{key}/in")),
            size(one["bytes_out_total"], self.rate(f"{key}/out")),
            words(check_text(one), f"fell {counted(downs, 'time')}" if downs else ""),
        )
        return PageRow(
            f"{one['pool']}/{one['name']}",
            cells,
            min(RANKS[level], RANKS[WARN] if fails else RANKS[GOOD]),
            index,
        )

    def set(self, index: int, one: Mapping[str, Any]) -> PageRow:
        """What a name server has said last of a set of backends."""
        level, left = WARN if one["error"] or one["left_out"] else GOOD, one["ttl_left_s"]
        cells = (
            words(one["name"], f"pool {one['pool']}"),
            bar(one["backends"], one["slots"]),
            words(one["server"] or "none yet", f"{one['left_out']} found no slot" if one["left_out"] else ""),
            number(one["age_s"]),
            Cell(
                human_number(one["ttl_s"]),
                "" if left is None else f"{left:.0f} s left",
                "n",
                order=one["ttl_s"] or -1,
            ),
            pill(one["error"], WARN) if one["error"] else words("none"),
            trouble(one["failures_total"]),
            total(one["queries_total"]),
        )
        return PageRow(f"{one['pool']} {index} {one['name']}", cells, RANKS[level], index)

    def times(self) -> Iterable[PageRow]:
        """Durations of the last minute and since the start, of each listener and pool that has any."""
        every = times_of(self.status)
        if not every:
            yield NONE_YET
        for kind in ("listener", "pool"):
            for one in self.status[f"{kind}s"]:
                for name, word in DURATIONS.items():
                    key = f"{kind} {one['name']}"
                    if (key, name) in every:
                        yield self.durations(key, name, word, every[key, name])

    def durations(self, key: str, name: str, word: str, counts: Sequence[int]) -> PageRow:
        minute = self.sampler.minute(key, name, self.status, self.now)
        recent = () if minute is None else minute.counts
        points = self.chart(key, P99[name]) if name in TIMES else ""
        cells = (
            words(f"{word} of {key}"),
            number(0 if minute is None else minute.count),
            *(Cell(quantile_text(recent, share), look="n") for share in (0.5, 0.9, 0.99)),
            Cell("" if points else "-", look="n", points=points),
            *(Cell(quantile_text(counts, share), look="n") for share in (0.5, 0.99)),
        )
        return PageRow(f"{key} {name}", cells)

    def worker(self, one: Mapping[str, Any]) -> PageRow:
        cpu, share, left = one["cpu_percent"], one["share_percent"], one["drain_left_s"]
        level = STATE_LEVELS.get(one["state"], WARN)
        cells = (
            words(f"worker {one['slot']}", f"pid {one['pid']}, generation {one['generation']}"),
            pill(one["state"], level, "" if left is None else f"{rough_age(left)} left"),
            number(one["sessions"]),
            total(one["accepted_total"], self.rate(f"worker {one['pid']}/new")),
            bar(cpu or 0, 100, "-" if cpu is None else f"{cpu:.0f} %"),
            Cell(human_bytes(one["rss_bytes"]), look="n", order=one["rss_bytes"] or -1),
            number(one["fds"]),
            Cell("-" if share is None else f"{share:.0f} %", look="n", order=-1 if share is None else share),
        )
        return PageRow(str(one["pid"]), cells, RANKS[level], one["slot"])

    def events(self) -> Iterable[PageRow]:
        """The last events, the newest first."""
        for event in self.status["events"]:
            level = EVENT_LEVELS.get(event["verb"], NOTE)
            cells = (
                Cell(f"{rough_age(event['age_s'])} ago", event["at"], order=event["serial"]),
                pill(event["verb"], level),
                Cell(event["text"], look="wide"),
            )
            yield PageRow(str(event["serial"]), cells, number=-event["serial"])
        if not self.status["events"]:
            yield NONE_YET

    def totals(self) -> Iterable[PageRow]:
        for index, (key, value) in enumerate(self.status["totals"].items()):
            if key.endswith("_total"):
                label = key.removesuffix("_total").replace("_", " ")
                yield PageRow(
                    key, (words(label), size(value) if "bytes" in key else total(value)), number=index
                )
