"""Two balancers in framed mode in front of the same resizers: each hears of the queues that the other one fills."""

import signal
from collections.abc import Container
from contextlib import ExitStack
from typing import Any

from scripts.lab.network import held, text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, Resizer
from tests.system.resizer_peer import SLOW, framed, picture

QUEUE = 64  # a resizer's
REQUESTS = 30  # of one client at once, of which a third belongs to each of three; less than `pipeline`
SECONDS = 40.0


def column(lb: Balancer, key: str) -> dict[str, Any]:
    """One figure of each backend, by name."""
    return {each["name"]: each[key] for each in lb.status()["backends"]}


def wait_column(lb: Balancer, key: str, name: str, wanted: Container[object]) -> None:
    wait_for(lambda: column(lb, key)[name] in wanted, f"{key} of {name}", SECONDS)


def share_of_full(lb: Balancer, request: bytes) -> float:
    """The part of new requests that go to the resizer "full"."""
    before = column(lb, "sessions_total")
    with held(lb.address, 1, SECONDS) as [client]:
        client.sendall(request * REQUESTS)

        def elected() -> dict[str, int] | None:
            new = {name: total - before[name] for name, total in column(lb, "sessions_total").items()}
            return new if sum(new.values()) >= REQUESTS else None

        new = wait_for(elected, f"{REQUESTS} requests", SECONDS)
        return float(new["full"] / sum(new.values()))


def test_a_queue_that_one_balancer_fills_moves_the_requests_of_both() -> None:
    """roundrobin looks at no load: it shows the agent alone. leastconn knows of its own requests only."""
    quick, slow = framed(data=picture(60, 40), target_width=20), framed(data=picture(60, 40), **SLOW)
    with ExitStack() as stack:
        names = ("full", "b", "c")
        resizers = {name: stack.enter_context(Resizer(cpus=1, name=name)) for name in names}
        upstreams = tuple(f"{text_of(each.address)} name={name}" for name, each in resizers.items())
        options: dict[str, Any] = {
            "mode": "framed",
            "frame": "gowork",
            "order": "any",
            "agent_path": "/agent",
            "workers": 1,
        }
        filling, other = (
            stack.enter_context(Balancer(upstreams=upstreams, balance=policy, **options))
            for policy in ("roundrobin", "leastconn")
        )
        for lb in (filling, other):
            wait_column(lb, "agent", "full", ("ready",))
            assert share_of_full(lb, quick) > 0.2
        for name in ("b", "c"):
            assert filling.ctl("drain", name).returncode == 0
        with held(filling.address, 4, SECONDS) as clients:
            for client in clients:
                client.sendall(slow * REQUESTS)
            wait_for(lambda: resizers["full"].status()["queued"] >= QUEUE - 1, "a full queue", SECONDS)
            for name in ("b", "c"):
                assert filling.ctl("ready", name).returncode == 0
            for lb in (filling, other):
                wait_column(lb, "share_percent", "full", range(10))
            shares = [share_of_full(lb, quick) for lb in (other, filling)]
            assert max(shares) <= 0.1, shares
            for lb in (filling, other):  # a close is a half-close: they would be answered, for minutes
                lb.signal(signal.SIGQUIT)
        resizers["full"].expected_exit = None  # its queue is cut
        for lb in (filling, other):
            lb.expected_exit = None
            lb.wait_exit(SECONDS)
