"""What the page shows over time: rates, the last minute, and one hour in charts.

RULES: reads statuses, never the board. Sampled every 10 s by the console's loop. The hour is in the memory of the board,
so that a reload, which replaces the console, does not begin it anew; what the last minute needs is this process's.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import nan
from operator import sub
from typing import Any, NamedTuple

from balancer.shm.histogram import BOUNDS, Distribution
from balancer.web.history import STEP, History

Status = Mapping[str, Any]
MINUTE = 6  # samples
SESSIONS, NEW, IN, OUT, LOST, QUEUED = range(6)  # figures
TIMES = ("session", "connect", "wait")
P99 = dict(zip(TIMES, range(6, 9), strict=True))


class TotalsSample(NamedTuple):
    """Totals by key, and counts of histograms by (key, name)."""

    at: float
    totals: dict[str, int]
    times: dict[tuple[str, str], Sequence[int]]


def totals_of(status: Status) -> dict[str, int]:
    """The totals whose growth is shown."""
    found: dict[str, int] = {}
    sums = status["totals"]
    for key, one in (("", sums), *((f"listener {one['name']}", one) for one in status["listeners"])):
        found[f"{key}/new"] = one["accepted_total"]
        found[f"{key}/in"], found[f"{key}/out"] = one["bytes_in_total"], one["bytes_out_total"]
        found[f"{key}/lost"] = one["refused_total"] + one["failed_total"]
    for one in status["listeners"]:
        # A client that does not accept the certificate says so in an alert, and is neither refused nor failed.
        found[f"listener {one['name']}/alerts"] = one["tls"]["failures"]["alert"] if one["tls"] else 0
    for pool in status["pools"]:
        key = f"pool {pool['name']}"
        parts = {
            "new": "sessions_total",
            "in": "bytes_in_total",
            "out": "bytes_out_total",
            "lost": "connect_failures_total",
        }
        found |= {
            f"{key}/{name}": sum(one[column] for one in pool["backends"]) for name, column in parts.items()
        }
        found[f"{key}/queued"] = pool["queued_total"]
    for one in status["backends"]:
        key = f"backend {one['pool']}/{one['name']}"
        found[f"{key}/new"], found[f"{key}/lost"] = one["sessions_total"], one["connect_failures_total"]
        found[f"{key}/in"], found[f"{key}/out"] = one["bytes_in_total"], one["bytes_out_total"]
    for worker in status["workers"]:
        found[f"worker {worker['pid']}/new"] = worker["accepted_total"]
    return found


def times_of(status: Status) -> dict[tuple[str, str], Sequence[int]]:
    """The counts of every histogram that is not empty; of the whole, the sums."""
    found: dict[tuple[str, str], Sequence[int]] = {}
    for kind in ("listener", "pool"):
        for one in status[f"{kind}s"]:
            for name, times in one["times"].items():
                if counts := times["counts"]:
                    found[f"{kind} {one['name']}", name] = counts
                    so_far = found.get(("", name), [0] * len(counts))
                    found["", name] = [a + b for a, b in zip(so_far, counts, strict=True)]
    return found


class Sampler:
    """The samples of the last minute, and the writer of the hour."""

    def __init__(self, history: History, things: Mapping[str, int]) -> None:
        self.history = history
        self.things = things
        self._samples: deque[TotalsSample] = deque(maxlen=MINUTE + 1)

    def sample(self, status: Status, now: float) -> None:
        """Every STEP seconds."""
        found = TotalsSample(now, totals_of(status), times_of(status))
        gauges = {"": (status["totals"]["sessions"], status["totals"]["queued"])}
        gauges |= {f"listener {one['name']}": (one["sessions"], nan) for one in status["listeners"]}
        gauges |= {
            f"pool {one['name']}": (sum(each["sessions"] for each in one["backends"]), one["queued"])
            for one in status["pools"]
        }
        for key, (sessions, queued) in gauges.items():
            if key in self.things:
                rates = [
                    self._rate(f"{key}/{name}", found.totals, now) for name in ("new", "in", "out", "lost")
                ]
                known = [nan if rate is None else rate for rate in rates]
                p99 = [
                    nan if (one := self._minute(key, name, found)) is None else one.quantile(0.99) or nan
                    for name in TIMES
                ]
                self.history.write(self.things[key], now, [sessions, *known, queued, *p99])
        self._samples.append(found)

    def rate(self, key: str, totals: Mapping[str, int], now: float) -> float | None:
        """Per second, of a total of `totals_of`, since the newest sample that is old enough to tell."""
        return self._rate(key, totals, now)

    def _rate(self, key: str, totals: Mapping[str, int], now: float) -> float | None:
        for sample in reversed(self._samples):
            if now - sample.at >= STEP / 5 and key in sample.totals:
                grown = totals[key] - sample.totals[key]
                return grown / (now - sample.at) if grown >= 0 else None
        return None

    def grown(self, key: str, totals: Mapping[str, int]) -> int:
        """By how much a total has grown in the last minute, or since it has been watched."""
        first = next((one.totals[key] for one in self._samples if key in one.totals), None)
        return 0 if first is None else max(0, totals[key] - first)

    def minute(self, key: str, name: str, status: Status, now: float) -> Distribution | None:
        """The durations of the last minute, or since they have been watched; None without any."""
        return self._minute(key, name, TotalsSample(now, {}, times_of(status)))

    def _minute(self, key: str, name: str, last: TotalsSample) -> Distribution | None:
        counts = last.times.get((key, name))
        if not counts or not self._samples:
            return None
        before = self._samples[0].times.get((key, name))
        grown = tuple(map(sub, counts, before)) if before else tuple(counts)
        return Distribution(grown, 0.0) if any(grown) else None

    def chart(self, key: str, figure: int, now: float) -> str:
        return self.history.chart(self.things[key], figure, now) if key in self.things else ""


def quantile_text(counts: Sequence[int], share: float) -> str:
    """The bound that `share` of the durations are at most, as a person reads it."""
    up_to = list(accumulate(counts))
    if not up_to or not up_to[-1]:
        return "-"
    seconds = Distribution(tuple(counts), 0.0).quantile(share) or 0.0
    is_above = bisect_left(up_to, share * up_to[-1]) >= len(BOUNDS)
    return f"> {duration(BOUNDS[-1])}" if is_above else duration(seconds)


def duration(seconds: float) -> str:
    """0.00123 -> "1.2 ms"."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
