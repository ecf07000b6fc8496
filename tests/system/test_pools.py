"""Several listeners and pools at work: limits and queues of their own, routes by address, a policy for each pool.

RULES: what is counted is counted by the other side: clients and backends peek at every open connection (churn.py)."""

import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.backends import Echo
from scripts.lab.load import receive
from scripts.lab.network import Address, held
from scripts.lab.waiting import wait_for
from tests.system.churn import Churn, Counting
from tests.system.faults import REAPED, kill_at_random, report
from tests.system.harness import Balancer

WORKERS = 2


def configured(stack: ExitStack, tmp_path: Path, text: str, **options: object) -> Balancer:
    path = tmp_path / "balancer.ini"
    path.write_text(text)
    options = {"workers": WORKERS, "check": "none"} | options
    return stack.enter_context(Balancer("-c", path, port=None, **options))


def place_of(lb: Balancer, listener: str) -> Address:
    """The address that a listener has on the network."""
    match = lb.wait_line(rf"\bbind address=([^\s\]]+):(\d+) .*\blistener={listener}\b")
    return match[1], int(match[2])


def figures_of(lb: Balancer, kind: str, name: str) -> dict[str, int]:
    [found] = [one for one in lb.status()[kind] if one["name"] == name]
    return found


def storm_at_two_listeners(tmp_path: Path, clients: int, kills: int, every: float) -> None:
    """Limits of 5 and 7, one that drops and one that queues, over two pools of two backends."""
    with ExitStack() as stack:
        backends = [stack.enter_context(Counting()) for _ in range(4)]
        text = f"""
[listener five]
bind = 127.0.0.1:0
maxconns = 5
pool = a
[listener seven]
bind = 127.0.0.2:0
maxconns = 7
overflow = queue
pool = b
[pool a]
upstream = {backends[0].name}, {backends[1].name}
[pool b]
upstream = {backends[2].name}, {backends[3].name}
"""
        lb = configured(stack, tmp_path, text)
        lb.expect(REAPED)
        limits = {"five": 5, "seven": 7}
        crowds = {name: Churn(place_of(lb, name), clients, hold=0.1) for name in limits}
        for crowd in crowds.values():
            stack.enter_context(crowd)
        wait_for(lambda: figures_of(lb, "listeners", "five")["refused_total"] > 20, "clients turned away", 10)
        kill_at_random(lb, WORKERS, kills, every, seed=5)
        counts = {name: crowd.figures() for name, crowd in crowds.items()}
        before = counters(lb.wait_idle())
        for name, limit in limits.items():
            with held(place_of(lb, name), limit) as first:
                assert all(receive(client, 5) == b"hello" for client in first)
        after = counters(lb.wait_idle())
        report(
            "two listeners", clients=clients, kills=kills, **{name: counts[name]["most"] for name in limits}
        )
        for name, limit in limits.items():
            assert counts[name]["most"] == limit, f"{name}: {counts[name]}"
        assert counts["five"]["refused"] == counts["seven"]["refused"] == counts["seven"]["turned_away"] == 0
        for name, limit in limits.items():
            assert [now - then for then, now in zip(before[name], after[name], strict=True)] == [limit] * 3
            accepted, closed, dialled = after[name]
            assert 0 <= accepted - closed <= kills * limit  # sessions of killed workers
            assert (
                0 <= accepted - figures_of(lb, "listeners", name)["refused_total"] - dialled <= kills * limit
            )


def counters(status: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """By listener, each with a pool of its own: clients accepted, closed, and given to a backend."""
    return {
        listener["name"]: (
            listener["accepted_total"],
            listener["closed_total"],
            sum(backend["sessions_total"] for backend in pool["backends"]),
        )
        for listener, pool in zip(status["listeners"], status["pools"], strict=True)
    }


def test_limits_of_two_listeners_are_exact_through_kills(tmp_path: Path) -> None:
    """Fails where listeners share a gauge, or where one waits for the other's place."""
    storm_at_two_listeners(tmp_path, 40, 6, 0.3)


@pytest.mark.soak
def test_limits_of_two_listeners_are_exact_through_fifty_kills(tmp_path: Path) -> None:
    storm_at_two_listeners(tmp_path, 200, 50, 0.3)


def test_clients_queued_for_one_pool_do_not_wait_for_another(tmp_path: Path) -> None:
    """Pool a is full for the whole test, and its queue is older. Fails where a freed place of pool b wakes that queue:
    b's clients are then served every 50 ms only."""
    with ExitStack() as stack:
        a, b = stack.enter_context(Echo()), stack.enter_context(Counting())
        text = f"""
[listener both]
bind = 127.0.0.1:0
route =
    from 127.0.0.2 -> a
    -> b
[pool a]
upstream = {a.name} maxconn=1
queue-timeout = 30s
[pool b]
upstream = {b.name} maxconn=1
queue-timeout = 30s
"""
        lb = configured(stack, tmp_path, text)
        place = place_of(lb, "both")
        for _ in range(6):
            stack.enter_context(socket.create_connection(place, 5, source_address=("127.0.0.2", 0)))
        wait_for(lambda: figures_of(lb, "pools", "a")["queued"] == 5, "a queue for pool a")
        churn = stack.enter_context(Churn(place, 4, hold=0.005))
        wait_for(
            lambda: figures_of(lb, "pools", "b")["queued_total"] > 400, "clients that waited for pool b", 4
        )
        assert figures_of(lb, "pools", "a")["queued"] == 5
        counts = churn.figures()
        assert counts["most"] == b.figures()["most"] == 1
        assert counts["turned_away"] == counts["broken"] == 0


def greeting(sock: socket.socket) -> str:
    """The name that a greeting Echo sends first."""
    name = b""
    while not name.endswith(b"\n"):
        name += receive(sock, 1)
    return name.decode().strip()


def test_three_pools_keep_the_promise_of_their_policy(tmp_path: Path) -> None:
    """leastconn, source and roundrobin in one process, each with two backends of its own."""
    with ExitStack() as stack:
        policies = ("leastconn", "source", "roundrobin")
        echoes = {name: [stack.enter_context(Echo(greeting=True)) for _ in range(2)] for name in policies}
        text = "".join(
            f"""
[listener {name}]
bind = 127.0.0.{number}:0
pool = {name}
[pool {name}]
balance = {name}
upstream = {", ".join(echo.name for echo in echoes[name])}
"""
            for number, name in enumerate(policies, 1)
        )
        lb = configured(stack, tmp_path, text)
        places = {name: place_of(lb, name) for name in policies}
        busy = stack.enter_context(held(places["leastconn"], 40))
        assert sorted(Counter(map(greeting, busy)).values()) == [20, 20]
        homes: dict[str, set[str]] = {}
        for last in range(2, 22):
            for _ in range(3):
                source = f"127.0.0.{last}"
                with socket.create_connection(places["source"], 5, source_address=(source, 0)) as client:
                    homes.setdefault(source, set()).add(greeting(client))
        assert all(len(names) == 1 for names in homes.values()), homes
        assert len(set.union(*homes.values())) == 2
        turns: Counter[str] = Counter()
        for _ in range(100):
            with socket.create_connection(places["roundrobin"], 5) as client:
                turns[greeting(client)] += 1
        assert abs(turns[echoes["roundrobin"][0].name] - 50) <= WORKERS
        for name in policies:
            own = {echo.name for echo in echoes[name]}
            [pool] = [one for one in lb.status()["pools"] if one["name"] == name]
            assert {backend["name"] for backend in pool["backends"]} == own
            assert all(backend["sessions_total"] > 0 for backend in pool["backends"])


def test_clients_go_by_their_address_and_a_stranger_is_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        inside, outside = (stack.enter_context(Echo(greeting=True)) for _ in range(2))
        path = tmp_path / "sock"
        text = f"""
[listener net]
bind =
    127.0.0.1:0
    unix:{path}
route =
    from 127.0.0.2/31 -> inside
    from 127.0.1.0/24 -> outside
[listener rest]
bind = unix:{path}2
route =
    from 127.0.0.0/8 -> inside
    -> outside
[pool inside]
upstream = {inside.name}
[pool outside]
upstream = {outside.name}
"""
        lb = configured(stack, tmp_path, text, loglevel=1)
        place = place_of(lb, "net")
        for source, echo in (("127.0.0.2", inside), ("127.0.0.3", inside), ("127.0.1.9", outside)):
            with socket.create_connection(place, 5, source_address=(source, 0)) as client:
                assert greeting(client) == echo.name
        with socket.create_connection(place, 5, source_address=("127.0.0.4", 0)) as client:
            assert client.recv(1) == b""
        lb.wait_line(r" refuse client=127\.0\.0\.4:\d+ listener=net reason=no-route then=close")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            assert client.recv(1) == b""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(f"{path}2")
            assert greeting(client) == outside.name
        lb.wait_line(r" session client=unix listener=rest pool=outside backend=\S+ end=-- ")
        status = lb.check_at_rest()
        net, rest = status["listeners"]
        assert (net["accepted_total"], net["refused_total"], net["closed_total"]) == (5, 2, 5)
        assert (rest["accepted_total"], rest["refused_total"]) == (1, 0)
