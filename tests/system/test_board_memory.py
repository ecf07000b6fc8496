"""What a board for a thousand backends costs, and that it does not live in /dev/shm."""

import os
import re
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from scripts.lab.backends import Digest
from scripts.lab.load import run_load
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer

MOST_MB = 60
BACKENDS, POOLS = 1000, 20


def memory_of(lb: Balancer) -> dict[str, float]:
    """Proportional memory of each process in MB, by title."""
    used = {}
    for process in (psutil.Process(lb.pid), *psutil.Process(lb.pid).children()):
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        pss = re.search(r"Pss:\s+(\d+)", rollup)
        assert pss is not None
        used[f"{process.pid} {' '.join(process.cmdline()).strip()}"] = int(pss[1]) / 1024
    return used


def test_a_thousand_backends_over_twenty_pools_cost_what_is_used_of_the_board(tmp_path: Path) -> None:
    path = tmp_path / "balancer.ini"
    sections = ["[listener main]", "port = 0", "route =", "    from 10.9.0.0/16 -> p1", "    -> p0"]
    for pool in range(POOLS):
        backends = (f"    10.1.{pool}.{number}:80 name=b{number}" for number in range(BACKENDS // POOLS))
        sections += [f"[pool p{pool}]", "balance = p2c", "upstream =", *backends]
    path.write_text("\n".join(sections))
    began = time.monotonic()
    with Balancer(f"--config={path}", port=None, workers=2, check="none") as lb:
        booted = time.monotonic() - began
        assert len(lb.status()["backends"]) == BACKENDS
        used = memory_of(lb)
        print(f"\n{BACKENDS} backends: {sum(used.values()):.1f} MB, booted in {booted:.2f} s")
        print(*(f"{size:.1f} MB {title}" for title, size in used.items()), sep="\n")
        assert sum(used.values()) <= MOST_MB


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1)")
def test_a_full_dev_shm_ends_nothing() -> None:
    """A sparse file in /dev/shm would end in SIGBUS as soon as its pages are used."""
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && head -c 64k /dev/zero >/dev/shm/full; exec "$@"'
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(3)]
        upstreams = [f"{backend.address[0]}:{backend.address[1]}" for backend in backends]
        upstreams += [f"10.0.{number >> 8}.{number & 255}:80 backup name=b{number}" for number in range(500)]
        lb = Balancer(upstreams=upstreams, workers=2, check="none")
        lb.wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"]
        stack.enter_context(lb)
        assert os.statvfs(f"/proc/{lb.pid}/root/dev/shm").f_blocks * 4096 <= 64 * 1024
        lb.expect(r"reap role=\"worker")
        for _ in range(2):
            run_load(lb.address, requests=100, clients=4).check_nothing_lost(100)
            before = set(lb.worker_pids())
            os.kill(min(before), signal.SIGKILL)
            wait_for(lambda b=before: len(set(lb.worker_pids()) - b) == 1, "another worker")
        lb.check_at_rest()
