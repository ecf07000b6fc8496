"""A parent that has blocked signals: the mask is inherited over fork and exec, and every process of ours empties it."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.lab.backends import Echo
from scripts.lab.process import children_of, is_running
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, Daemon, Resizer

BLOCKED = {
    "all": "signal.valid_signals()",
    "stops": "{signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}",
    "deaths": "{signal.SIGCHLD, signal.SIGABRT, signal.SIGURG}",
}


def blocked_in(pid: int) -> int:
    """The mask of blocked signals, as the kernel tells it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1], 16)


def family(pid: int) -> list[int]:
    return [pid, *(one for child in children_of(pid) for one in family(child))]


def masks(daemon: Daemon) -> dict[str, int]:
    """Masks that are not empty, once each process has been looked at."""
    found = {pid: blocked_in(pid) for pid in family(daemon.pid) if is_running(pid)}
    return {str(pid): mask for pid, mask in found.items() if mask}


@pytest.mark.parametrize("blocked", BLOCKED.values(), ids=BLOCKED.keys())
@pytest.mark.parametrize("make", [Balancer, lambda **_: Resizer(cpus=1)], ids=["balancer", "resizer"])
def test_no_process_keeps_a_mask_that_a_parent_has_left(make: Callable[..., Daemon], blocked: str) -> None:
    """Fails where the mask is kept: dead workers stay zombies, and TERM, HUP and USR2 are never seen."""
    with Echo() as backend:
        daemon = make(upstreams=[backend.address])
        code = f"import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {blocked})"
        daemon.wrapper = [sys.executable, "-c", f"{code}; os.execv(sys.argv[1], sys.argv[1:])"]
        with daemon:
            assert masks(daemon) == {}
            victim = children_of(daemon.pid)[0]
            daemon.expect("reap|lost|down|upgrade successor")
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: not is_running(victim) and victim not in children_of(daemon.pid), "the reap", 5)
            daemon.signal(signal.SIGUSR2)
            found = daemon.wait_line(r"upgrade successor=(\d+) then=it serves", 20)
            assert masks(daemon) == {}
            os.kill(int(found[1]), signal.SIGTERM)
            assert daemon.wait_exit() == 0
