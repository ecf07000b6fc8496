"""Memory of a connection that is idle."""

import contextlib
import socket

import pytest

from scripts.lab.backends import Digest
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer

KB = 1024


@pytest.mark.parametrize("count", [1000, pytest.param(5000, marks=pytest.mark.soak)])
def test_an_idle_connection_costs_eight_kilobytes_at_most(count: int) -> None:
    """Of the workers' memory (PSS). Naive: a buffer of 64 KiB for each direction of each session from its beginning."""
    with Digest() as backend, Balancer(upstreams=[backend.address], check="none") as lb:
        workers = lb.worker_pids()
        before = lb.memory(workers)
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(lb.address, 10))
            wait_for(lambda: lb.status()["totals"]["sessions"] == count, "every session", 10)
            each = (lb.memory(workers) - before) / count / KB
            print(f"{count} idle connections: {each:.2f} KB of the workers' memory each")
            assert each <= 8
        lb.check_at_rest(seconds=10)
