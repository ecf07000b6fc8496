"""Faults of the long tests: workers killed or frozen at random, counted by the kernel's own account.

RULES: a count is the kernel's (its socket table), not what the test remembers of its own acts. The only sleeps are the
faults' schedule. `report` prints one JSON line per scenario and appends it to $CAMPAIGN_REPORT where that is set.
"""

import json
import os
import random
import signal
import time

from scripts.lab.kernel import accepted, inodes_of
from scripts.lab.process import freeze, is_running
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer

REAPED = r"\breap\b|signal|\bhang\b|\bsteer\b"


def report(scenario: str, **figures: object) -> None:
    """One line of figures per scenario."""
    line = json.dumps({"scenario": scenario} | figures)
    print(line)
    if path := os.environ.get("CAMPAIGN_REPORT"):
        with open(path, "a") as out:
            out.write(line + "\n")


def kill_counted(pid: int, port: int) -> int:
    """kill -9 at whatever instant it is; the number of clients it held then. Frozen first, so that this is exact."""
    freeze(pid)
    held = len(inodes_of(pid) & accepted(port))
    os.kill(pid, signal.SIGKILL)
    return held


def ready_pids(lb: Balancer) -> dict[int, int]:
    """slot -> pid of the workers that serve."""
    workers = lb.status()["workers"]
    return {worker["slot"]: worker["pid"] for worker in workers if worker["state"] == "ready"}


def living(lb: Balancer, rng: random.Random) -> int:
    """A random worker that has not died since the status was written; 0 when there is none."""
    pids = [pid for pid in sorted(ready_pids(lb).values()) if is_running(pid)]
    return rng.choice(pids) if pids else 0


def wait_whole(lb: Balancer, workers: int, but: set[int], seconds: float = 5.0) -> None:
    """Until `workers` slots are served, none of them by a process of `but`."""

    def whole() -> bool:
        pids = ready_pids(lb)
        return len(pids) == workers and not but & set(pids.values())

    wait_for(whole, f"{workers} workers ready, none of {but}", seconds, every=0.002)


def kill_at_random(
    lb: Balancer, workers: int, kills: int, every: float, seed: int, counted: bool = False
) -> tuple[int, list[float]]:
    """kill -9 a random worker `kills` times, one each `every` seconds.

    Returns (clients the killed held in all, if they are to be `counted`; seconds until each replacement was ready)."""
    rng = random.Random(seed)
    port = lb.address[1]
    held, respawns = 0, []
    due = time.monotonic()
    for _ in range(kills):
        victim = wait_for(lambda: living(lb, rng), "a worker")
        if counted:
            held += kill_counted(victim, port)
        else:
            os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        wait_whole(lb, workers, {victim})
        respawns.append(time.monotonic() - killed)
        due = max(due + every, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    return held, respawns
