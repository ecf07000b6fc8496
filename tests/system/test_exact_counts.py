"""Counts through kill -9: at rest exactly what the kernel says, never negative, never falling, in the end 0."""

import os
import random
import signal
import time
from contextlib import ExitStack

import pytest

from balancer.eventloop.acceptor import MAX_ACCEPTS
from scripts.lab.backends import Digest
from scripts.lab.kernel import accepted, dialled
from scripts.lab.load import Load
from scripts.lab.process import freeze
from scripts.lab.waiting import wait_for
from tests.system.faults import REAPED, living, report, wait_whole
from tests.system.harness import Balancer
from tests.system.sampler import SAMPLE_SECONDS, Sampler

WORKERS = 4
RATE = 500  # connections a second
CLIENTS = 48
PAUSE = 0.6 * CLIENTS / RATE  # seconds a client rests; the rest of its turn is the connection itself
BURST = 10  # kills between two rests
LOOKS = 6  # samples of each rest


def counted(lb: Balancer) -> tuple[int, int, int]:
    """Sessions by the three accounts of the status: in all, by worker, by backend."""
    status = lb.status()
    by_worker = sum(row["sessions"] for row in status["workers"])
    return status["totals"]["sessions"], by_worker, sum(row["sessions"] for row in status["backends"])


def held_by_kernel(lb: Balancer, backend: Digest) -> tuple[int, int, int]:
    clients = len(accepted(lb.address[1]))
    return clients, clients, len(dialled(backend.address[1]))


def look_at_rest(lb: Balancer, backend: Digest, load: Load) -> int:
    """Freeze the clients in the middle of whatever they do, and compare; the sessions that were open then."""
    freeze(load.process.pid)
    try:

        def settled() -> bool:
            return counted(lb) == held_by_kernel(lb, backend)

        wait_for(settled, "the status and the kernel of one mind", 10, every=0.01)
        for _ in range(LOOKS):
            time.sleep(SAMPLE_SECONDS)  # the rate of the samples
            ours, kernels = counted(lb), held_by_kernel(lb, backend)
            assert ours == kernels, (
                f"the status says {ours}, the kernel {kernels} (clients, clients, backends)"
            )
        return ours[0]
    finally:
        os.kill(load.process.pid, signal.SIGCONT)


def kill_at_random_instants(kills: int, seed: int = 31) -> None:
    rng = random.Random(seed)
    with Digest() as backend, ExitStack() as stack:
        lb = stack.enter_context(Balancer(upstreams=[backend.address], workers=WORKERS, check="none"))
        lb.expect(REAPED)
        load = stack.enter_context(Load(lb.address, clients=CLIENTS, payload=(64, 256), pause=PAUSE))
        wait_for(lambda: lb.status()["totals"]["accepted_total"] > 100, "load")
        sampler = stack.enter_context(Sampler(lb))
        began, at_rest = time.monotonic(), []
        for done in range(1, kills + 1):
            time.sleep(rng.expovariate(1 / 0.1))  # the random instant
            os.kill(wait_for(lambda: living(lb, rng), "a worker"), signal.SIGKILL)
            if done % BURST == 0:
                wait_whole(lb, WORKERS, set(), 10)
                at_rest.append(look_at_rest(lb, backend, load))
        seconds = time.monotonic() - began
        outcome = load.finish()
        final = lb.check_at_rest()
        sampler.check()
        report(
            "31",
            kills=kills,
            seconds=round(seconds, 1),
            connections_per_second=round(outcome.connections / outcome.seconds),
            samples=sampler.samples,
            longest_gap=round(sampler.longest_gap, 3),
            sessions_at_rest=at_rest,
            faults=len(sampler.faults),
            final=final["totals"]["sessions"],
        )
        assert outcome.refused == outcome.timeout == outcome.corrupt == 0, outcome
        assert any(at_rest), "every rest found no session: nothing was compared"
        assert final["totals"]["accepted_total"] >= outcome.ok
        assert counted(lb) == (0, 0, 0)
        [listener] = final["listeners"]
        ended = sum(listener["ends"].values())  # a worker may be killed between the two counts of a batch
        assert ended <= listener["times"]["session"]["count"] <= ended + kills * MAX_ACCEPTS


def test_counts_stay_true_through_kills() -> None:
    """Fails where the row of a dead worker is not zeroed, and where it is zeroed before its totals are kept."""
    kill_at_random_instants(20)


@pytest.mark.soak
def test_counts_stay_true_through_two_hundred_kills() -> None:
    kill_at_random_instants(200)
