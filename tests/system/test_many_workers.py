"""More than eight workers: an election still goes by what all of them hold, also after some were killed."""

import os
import signal
import socket
from contextlib import ExitStack

from scripts.lab.backends import Digest
from scripts.lab.waiting import wait_for
from tests.system.faults import REAPED, wait_whole
from tests.system.harness import Balancer

WORKERS, SESSIONS, KILLED = 10, 45, 4


def held(lb: Balancer) -> list[int]:
    return [row["sessions"] for row in lb.status()["backends"]]


def fill(lb: Balancer, stack: ExitStack) -> list[int]:
    """Connect until SESSIONS are held; how many each backend has then."""
    for _ in range(SESSIONS - sum(held(lb))):
        before = sum(held(lb))
        stack.enter_context(socket.create_connection(lb.address, 10))
        wait_for(lambda before=before: sum(held(lb)) > before, "one more session")  # type: ignore[misc]
    return held(lb)


def test_backends_stay_even_though_workers_are_killed() -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest()) for _ in range(3)]
        lb = stack.enter_context(
            Balancer(upstreams=[one.address for one in backends], workers=WORKERS, check="none")
        )
        lb.expect(REAPED)
        found = fill(lb, stack)
        assert max(found) - min(found) <= 1, found
        rows = [row for row in lb.status()["workers"] if row["sessions"]]
        assert len(rows) > 3, "the sessions are spread over workers"
        killed = {row["pid"] for row in rows[:KILLED]}
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_whole(lb, WORKERS, killed, 10)
        found = fill(lb, stack)
        assert max(found) - min(found) <= 1, found
