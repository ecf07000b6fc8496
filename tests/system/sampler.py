"""Samples of a balancer's status: no gauge is ever negative, no total of what stays ever falls."""

import time
from typing import Any

from scripts.lab.helpers import BackgroundThread
from tests.system.harness import Balancer

SAMPLE_SECONDS = 0.05


class Sampler(BackgroundThread):
    """Asks the status 20 times a second and keeps every sample that breaks the rule."""

    def __init__(self, lb: Balancer) -> None:
        super().__init__(self.run)
        self.lb = lb
        self.samples = 0
        self.longest_gap = 0.0
        self.faults: list[str] = []
        self.totals: dict[str, int] = {}

    def run(self) -> None:
        last = time.monotonic()
        while not self.stopping.wait(SAMPLE_SECONDS):
            try:
                self.look(self.lb.status())
            except (OSError, ValueError, AssertionError) as error:
                self.faults.append(f"no status: {error!r}")
                continue
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now

    def look(self, status: dict[str, Any]) -> None:
        self.samples += 1
        for name, value in gauges(status).items():
            if value < 0:
                self.faults.append(f"sample {self.samples}: {name} is {value}")
        now = totals(status)
        for name, value in now.items():
            before = self.totals.get(name, 0)
            if value < before:
                self.faults.append(f"sample {self.samples}: {name} fell from {before} to {value}")
        self.totals = now  # what a reload has removed begins anew when it comes back

    def check(self) -> None:
        assert not self.faults, "\n".join(self.faults[:20])
        assert self.samples, "not one sample was taken"


def gauges(status: dict[str, Any]) -> dict[str, int]:
    """Every gauge of a status under a name."""
    found = {"sessions": status["totals"]["sessions"], "queued": status["totals"]["queued"]}
    found |= {f"worker {row['pid']}": row["sessions"] for row in status["workers"]}
    found |= {f"listener {row['name']}": row["sessions"] for row in status["listeners"]}
    found |= {f"pool {row['name']}": row["queued"] for row in status["pools"]}
    return found | {f"backend {row['pool']}/{row['name']}": row["sessions"] for row in status["backends"]}


def totals(status: dict[str, Any]) -> dict[str, int]:
    """Every total of a status under a name."""
    rows = {"all": status["totals"]}
    rows |= {f"listener {row['name']}": row for row in status["listeners"]}
    rows |= {f"backend {row['pool']}/{row['name']}": row for row in status["backends"]}
    return {
        f"{name} {key}": value
        for name, row in rows.items()
        for key, value in row.items()
        if key.endswith("_total")
    }
