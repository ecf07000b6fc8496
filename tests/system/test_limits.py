"""Hard limits under kill -9, counted by clients and backends with a peek at every open connection."""

import time
from contextlib import ExitStack

import pytest

from scripts.lab.load import receive
from scripts.lab.network import held, text_of
from scripts.lab.waiting import wait_for
from tests.system.churn import Churn, Counting
from tests.system.faults import REAPED, kill_at_random, ready_pids, report
from tests.system.harness import Balancer

WORKERS = 4
MAXCONNS = 100
MAXCONN = 8


def usable(lb: Balancer, tries: int) -> int:
    """How many sessions can be had at once, of `tries` clients that stay."""
    with held(lb.address, tries, timeout=20) as clients:
        served = 0
        for client in clients:
            try:
                served += receive(client, 5) == b"hello"
            except Exception:
                client.close()
        return served


def sessions_at(lb: Balancer, name: str) -> int:
    return int(lb.backend(name)["sessions"])


def storm_at_both_limits(clients: int, kills: int, every: float) -> None:
    """One backend with 8 places and one without a limit, behind a limit of 100: both are always full."""
    with Counting() as small, Counting() as large, ExitStack() as stack:
        upstreams = [f"{text_of(small.address)} maxconn={MAXCONN}", text_of(large.address)]
        options = {"maxconns": MAXCONNS, "workers": WORKERS, "check": "none"}
        lb = stack.enter_context(Balancer(upstreams=upstreams, **options))
        lb.expect(REAPED)
        churn = stack.enter_context(Churn(lb.address, clients, hold=0.3))
        wait_for(lambda: lb.status()["totals"]["refused_total"] > 100, "clients turned away", 10)
        kill_at_random(lb, WORKERS, kills, every, seed=47)
        wait_for(lambda: sessions_at(lb, small.name) == MAXCONN, "a full backend", 5)
        crowd = churn.figures()
        lb.wait_idle()
        with held(lb.address, MAXCONNS) as first:
            assert all(receive(client, 5) == b"hello" for client in first)
            assert sessions_at(lb, small.name) == MAXCONN
            more = usable(lb, 20)
        lb.wait_idle()
        at_small, at_large = small.figures(), large.figures()
        report(
            "47+65",
            clients=clients,
            kills=kills,
            served=crowd["ever"],
            turned_away=crowd["turned_away"],
            broken=crowd["broken"],
            most_clients=crowd["most"],
            most_at_the_small_backend=at_small["most"],
            sessions_of_the_small_backend=at_small["ever"],
            most_at_the_large_backend=at_large["most"],
        )
        assert crowd["refused"] == 0
        assert crowd["most"] <= MAXCONNS
        assert crowd["most"] > 0.8 * MAXCONNS, "the limit was never near: nothing was proved"
        assert at_small["most"] == MAXCONN
        assert at_large["most"] <= MAXCONNS
        assert more == 0, f"{more} more than {MAXCONNS} were let in"


def test_limits_are_exact_through_kills() -> None:
    """Fails where a session is counted after its dial, or by looking first and adding a moment later."""
    storm_at_both_limits(400, 10, 0.4)


@pytest.mark.soak
def test_limits_are_exact_through_a_hundred_kills() -> None:
    storm_at_both_limits(400, 100, 0.5)


def queue_before_a_full_backend(clients: int, kills: int, every: float) -> None:
    with Counting() as backend, ExitStack() as stack:
        upstreams = [f"{text_of(backend.address)} maxconn={MAXCONN}"]
        options = {"workers": WORKERS, "check": "none", "queue_timeout": "20s"}
        lb = stack.enter_context(Balancer(upstreams=upstreams, **options))
        lb.expect(REAPED)
        churn = stack.enter_context(Churn(lb.address, clients, hold=0.01))
        wait_for(lambda: lb.status()["totals"]["queued"] > clients // 4, "a queue", 10)
        began, before = time.monotonic(), lb.status()["totals"]["closed_total"]
        kill_at_random(lb, WORKERS, kills, every, seed=48)
        rate = (lb.status()["totals"]["closed_total"] - before) / (time.monotonic() - began)
        crowd = churn.figures()
        lb.wait_idle()
        with held(lb.address, MAXCONN) as first:
            assert all(receive(client, 5) == b"hello" for client in first)
            with held(lb.address, 1) as ninth:
                wait_for(lambda: lb.status()["totals"]["queued"] == 1, "the ninth in the queue")
                first[0].close()
                assert receive(ninth[0], 5) == b"hello"
        counts = backend.figures()
        report(
            "47 queue",
            clients=clients,
            kills=kills,
            served=crowd["ever"],
            turned_away=crowd["turned_away"],
            broken=crowd["broken"],
            most=counts["most"],
            sessions_per_second=round(rate),
        )
        assert counts["most"] == MAXCONN
        assert crowd["refused"] == 0
        assert len(ready_pids(lb)) == WORKERS


def test_a_queue_before_a_full_backend_never_exceeds_its_limit() -> None:
    """Fails where a session is counted after its dial, or by looking first and adding a moment later."""
    queue_before_a_full_backend(100, 6, 0.4)


@pytest.mark.soak
def test_a_long_queue_before_a_full_backend() -> None:
    queue_before_a_full_backend(400, 50, 0.5)
