"""Processes that are stopped: a stopped worker delays no client for long, a stopped master delays none."""

import itertools
import os
import signal
import time
from collections.abc import Sequence

import pytest

from scripts.lab.arrivals import Arrival, Arrivals
from scripts.lab.backends import Echo
from scripts.lab.process import freeze, state_of
from scripts.lab.waiting import best_of, wait_for
from tests.system.faults import REAPED, ready_pids, report
from tests.system.harness import Balancer

DELAY = 1.5  # seconds that a new connection may wait because of a hung worker
REPLACED = 4.0  # seconds from the stop to a ready replacement


def longest_delay(row: str, arrivals: Sequence[Arrival], **figures: object) -> float:
    """No client failed; the longest delay."""
    failed = [arrival.error for arrival in arrivals if arrival.error]
    longest = max(arrival.delay for arrival in arrivals)
    delayed = sum(arrival.delay > 0.1 for arrival in arrivals)
    report(
        row, arrivals=len(arrivals), failed=len(failed), longest=round(longest, 3), delayed=delayed, **figures
    )
    assert not failed, failed[:10]
    return longest


def stop_a_worker(rounds: int, seconds: float) -> None:
    """`seconds` of arrivals from the stop on, whatever becomes of the stopped one meanwhile."""
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb:
        lb.expect(REAPED)
        turns = itertools.count()

        def stop_one() -> float:
            """How far the two times were over their bounds, in seconds."""
            victim = ready_pids(lb)[next(turns) % 2]
            with Arrivals(lb.address) as arrivals:
                wait_for(lambda a=arrivals: len(a.all) > 10, "arrivals")
                freeze(victim)
                stopped = time.monotonic()

                def whole() -> bool:
                    pids = ready_pids(lb)
                    return len(pids) == 2 and victim not in pids.values()

                wait_for(whole, "another worker", REPLACED + 2)
                replaced = time.monotonic() - stopped
                wait_for(lambda: time.monotonic() - stopped > seconds, "the end of the window", seconds)
                arrivals.stop()
            longest = longest_delay("27", arrivals.since(stopped), replaced=round(replaced, 2))
            lb.wait_line(r" hang role=\"?worker")
            return max(longest - DELAY, replaced - REPLACED)

        for _ in range(rounds):
            best_of(stop_one, 0.0, "a stopped worker: beyond what a client and its replacement may wait", 3)
        lb.check_at_rest()


def test_a_stopped_worker_delays_no_client_for_long_and_is_replaced() -> None:
    """Fails without adoption of its queue: about half of what comes before the steering waits for its death."""
    stop_a_worker(1, 4.0)


@pytest.mark.soak
def test_stopped_workers_ten_seconds_of_arrivals_each() -> None:
    stop_a_worker(4, 10.0)


def stop_the_master(seconds: float) -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb, Arrivals(lb.address) as arrivals:
        before = ready_pids(lb)
        wait_for(lambda: len(arrivals.all) > 10, "arrivals")
        freeze(lb.pid)
        time.sleep(seconds)  # the fault
        meanwhile = ready_pids(lb)
        os.kill(lb.pid, signal.SIGCONT)
        assert meanwhile == before
        woken = time.monotonic()
        lb.wait_line(r"info master pid=\d+ .*jump")
        wait_for(lambda: time.monotonic() - woken > 1.0, "four looks of the woken master")
        arrivals.stop()
        longest_delay("28", arrivals.all, stopped=seconds)
        assert ready_pids(lb) == before
        lb.check_at_rest()


def test_a_stopped_master_delays_no_client() -> None:
    """Fails where workers take a master that is silent for a dead one and leave."""
    stop_the_master(4.0)


@pytest.mark.soak
def test_a_master_stopped_for_ten_seconds() -> None:
    stop_the_master(10.0)


def freeze_the_tree(seconds: float) -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb:
        before = ready_pids(lb)
        pids = [process.pid for process in lb.processes()]
        with Arrivals(lb.address, rate=20) as arrivals:
            wait_for(lambda: len(arrivals.all) > 5, "arrivals")
            for pid in pids:
                freeze(pid)
            time.sleep(seconds)  # the fault
            for pid in pids:  # the master first: it wakes to old heartbeats
                os.kill(pid, signal.SIGCONT)
                wait_for(lambda p=pid: state_of(p) != "T", "awake", every=0.001)
            woken = time.monotonic()
            wait_for(lambda: time.monotonic() - woken > 1.0, "four looks of the woken master")
            arrivals.stop()
        longest_delay("29", arrivals.all, frozen=seconds)
        assert ready_pids(lb) == before
        lb.check_at_rest()


def test_a_suspended_machine_loses_no_worker() -> None:
    """Fails with a watchdog that takes the time of its own suspension for a worker's silence."""
    freeze_the_tree(4.0)


@pytest.mark.soak
def test_a_suspended_machine_ten_seconds() -> None:
    freeze_the_tree(10.0)
