"""How many CPUs this process may use: the value of `--workers auto` and `--cpus auto`.

RULES: reads /proc and /sys, never raises. os.cpu_count() would count the machine's CPUs: a container limited to 1.5 of 64
would get 64 workers and spend its quota on switching between them."""

import math
import os
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """CPUs of the affinity mask, at most the cgroup's quota rounded up (v2 and v1, every level above ours);
    at least 1."""
    cores = float(len(os.sched_getaffinity(0)))
    for quota in _quotas(root):
        cores = min(cores, math.ceil(quota))
    return max(1, int(cores))


def _quotas(root: Path) -> list[float]:
    """Quotas in CPUs, one for each level that sets one."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[float] = []
    for line in memberships:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        # Inside a container the path is often the host's and does not exist: then only the mount's root counts.
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            quota = read(base.joinpath(*parts[:depth]))
            if quota is not None:
                found.append(quota)
    return found


def _quota_v2(directory: Path) -> float | None:
    try:
        limit, period = (directory / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(directory: Path) -> float | None:
    try:
        limit = int((directory / "cpu.cfs_quota_us").read_text())
        return None if limit <= 0 else limit / int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
