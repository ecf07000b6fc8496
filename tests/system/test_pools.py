"""Several listeners and pools in one balancer: each has its own limit, counters, queue and policy."""

import socket
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import Load, receive, run_load
from scripts.lab.network import Address, free_port, held, text_of
from scripts.lab.waiting import best_of, readable, wait_for
from tests.system.churn import Churn, Counting
from tests.system.faults import REAPED, kill_at_random, report
from tests.system.harness import FileBalancer, ini_section
from tests.system.sampler import Sampler

WORKERS = 2
LIMITS = {"left": 5, "right": 7}  # maxconns of each listener
OVERFLOW = {"left": "drop", "right": "queue"}
LISTENER_TOTALS = ("accepted_total", "refused_total", "closed_total", "failed_total", "cut_total")


def local(port: int) -> Address:
    return ("127.0.0.1", port)


def named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["name"] == name)


def admitted(address: Address, tries: int) -> int:
    """Of `tries` clients that stay, the number that the listener serves at once."""
    with held(address, tries, timeout=20) as clients:
        served = 0
        for client in clients:
            try:
                served += receive(client, 5) == b"hello"
            except Exception:
                client.close()
        return served


def check_sums(status: dict[str, Any]) -> None:
    """What the listeners, the pools and their backends count adds up to the totals."""
    listeners, pools, totals = status["listeners"], status["pools"], status["totals"]
    for key in ("sessions", *LISTENER_TOTALS):
        assert sum(row[key] for row in listeners) == totals[key], (key, listeners, totals)
    assert sum(row["queued"] for row in pools) == totals["queued"]
    in_pools = [(pool["name"], row["name"]) for pool in pools for row in pool["backends"]]
    assert in_pools == [(row["pool"], row["name"]) for row in status["backends"]]
    for listener in listeners:
        served = sum(
            row["sessions_total"] for row in status["backends"] if row["pool"] == f"{listener['name']}-pool"
        )
        assert served <= listener["accepted_total"], (listener, status["backends"])


def limits_under_kills(kills: int, every: float, clients: int) -> None:
    with ExitStack() as stack:
        ports = {name: free_port() for name in LIMITS}
        counting = {name: stack.enter_context(Counting(2)) for name in LIMITS}
        text = ini_section("balancer", check="none")
        for name, limit in LIMITS.items():
            text += ini_section(
                f"listener {name}",
                bind=f"127.0.0.1:{ports[name]}",
                maxconns=limit,
                overflow=OVERFLOW[name],
                pool=f"{name}-pool",
            )
            upstreams = [text_of(address) for address in counting[name].addresses]
            text += ini_section(f"pool {name}-pool", upstream=upstreams)
        lb = stack.enter_context(FileBalancer(text, workers=WORKERS))
        lb.expect(REAPED)
        sampler = stack.enter_context(Sampler(lb))
        churns = {name: stack.enter_context(Churn(local(ports[name]), clients, hold=0.05)) for name in LIMITS}
        wait_for(lambda: named(lb.status()["listeners"], "left")["refused_total"] > 50, "clients turned away")
        kill_at_random(lb, WORKERS, kills, every, seed=5)
        crowds = {name: churn.figures() for name, churn in churns.items()}
        check_sums(lb.wait_idle())
        sampler.check()
        for name, limit in LIMITS.items():
            assert admitted(local(ports[name]), limit + 10) == limit
        lb.wait_idle()
        most = {name: backend.figures()["most"] for name, backend in counting.items()}
        figures = {name: (crowd["ever"], crowd["turned_away"]) for name, crowd in crowds.items()}
        report("limits of two listeners", kills=kills, most=most, served_and_turned_away=figures)
        assert most == LIMITS
        assert all(crowd["most"] <= LIMITS[name] and not crowd["refused"] for name, crowd in crowds.items())
        lost = crowds["right"][
            "turned_away"
        ]  # beyond this limit clients wait: only a killed worker loses one
        assert lost <= kills * LIMITS["right"], "clients of the listener with overflow = queue turned away"


def test_the_limits_of_two_listeners_are_exact_through_kills() -> None:
    """Fails where listeners share a limit, and where a limit is kept per worker."""
    limits_under_kills(6, 0.4, 60)


@pytest.mark.soak
def test_the_limits_of_two_listeners_are_exact_through_a_hundred_kills() -> None:
    limits_under_kills(100, 0.4, 120)


def test_counters_of_listeners_and_pools_add_up() -> None:
    """Every connection is counted at its listener and at a backend of its pool, exactly. Fails where a worker adds all
    that it counts to one listener's block."""
    requests = {"left": 120, "right": 210}
    with ExitStack() as stack:
        ports = {name: free_port() for name in requests}
        digests = [stack.enter_context(Digest(index)) for index in range(3)]
        pools = {"left": digests[:2], "right": digests[1:]}  # one backend's address is in both
        text = ""
        for name, members in pools.items():
            text += ini_section(f"listener {name}", bind=f"127.0.0.1:{ports[name]}", pool=f"{name}-pool")
            text += ini_section(f"pool {name}-pool", upstream=[text_of(one.address) for one in members])
        lb = stack.enter_context(FileBalancer(text, workers=WORKERS))
        for name, count in requests.items():
            run_load(local(ports[name]), requests=count, clients=6).check_nothing_lost(count)
        status = lb.check_at_rest()
        check_sums(status)
        for name, count in requests.items():
            listener = named(status["listeners"], name)
            assert [listener[key] for key in LISTENER_TOTALS] == [count, 0, count, 0, 0], listener
            backends = named(status["pools"], f"{name}-pool")["backends"]
            assert sum(row["sessions_total"] for row in backends) == count
            for way in ("bytes_in_total", "bytes_out_total"):
                assert sum(row[way] for row in backends) == listener[way] > 0


def queued(lb: FileBalancer, pool: str) -> int:
    return int(named(lb.status()["pools"], pool)["queued"])


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, 5)


def test_the_queues_of_two_pools_are_apart() -> None:
    """Both pools are full. A queue timeout ends the wait in its own pool, a freed place goes to its own queue. Fails
    where one queue serves both: its order of deadlines is that of arrival."""
    with ExitStack() as stack:
        echoes = {name: stack.enter_context(Echo(greeting=True)) for name in ("patient", "hasty")}
        ports = {name: free_port() for name in echoes}
        waits = {"patient": "20s", "hasty": "400ms"}
        text = ini_section("balancer", check="none")
        for name, echo in echoes.items():
            text += ini_section(f"listener {name}", bind=f"127.0.0.1:{ports[name]}", pool=name)
            text += ini_section(f"pool {name}", upstream=f"{echo.name} maxconn=1", queue_timeout=waits[name])
        lb = stack.enter_context(FileBalancer(text, workers=WORKERS))
        held_places = {name: stack.enter_context(connect(local(port))) for name, port in ports.items()}
        for name, client in held_places.items():
            assert receive(client, len(echoes[name].name) + 1)
        patient = [stack.enter_context(connect(local(ports["patient"]))) for _ in range(3)]
        wait_for(lambda: queued(lb, "patient") == 3, "three in the queue of the patient pool")
        began = time.monotonic()
        hasty = stack.enter_context(connect(local(ports["hasty"])))
        assert hasty.recv(1) == b"", "the hasty pool's queue timeout ends the wait"
        assert 0.3 < time.monotonic() - began < 15, "the patience of its own pool, not of the other"
        assert queued(lb, "patient") == 3
        next_hasty = stack.enter_context(connect(local(ports["hasty"])))
        wait_for(lambda: queued(lb, "hasty") == 1, "one in the queue of the hasty pool")
        held_places["hasty"].close()
        assert receive(next_hasty, 5), "the freed place of the hasty pool"
        assert queued(lb, "patient") == 3
        held_places["patient"].close()
        while patient:  # one at a time, from either worker's queue
            [served] = readable(patient, 5)
            assert receive(served, 5), "the freed place of the patient pool"
            patient.remove(served)
            served.close()
        next_hasty.close()
        check_sums(lb.check_at_rest())


def test_a_full_pool_does_not_delay_another() -> None:
    """Sixty sessions wait for the one place of a pool; requests to another pool are served meanwhile as ever. Fails where
    a worker with a full queue stops accepting."""
    with ExitStack() as stack:
        full, digest = stack.enter_context(Echo()), stack.enter_context(Digest())
        ports = {"full": free_port(), "free": free_port()}
        text = ini_section("balancer", check="none", queue_timeout="20s")
        text += ini_section("listener full", bind=f"127.0.0.1:{ports['full']}", pool="full")
        text += ini_section("listener free", bind=f"127.0.0.1:{ports['free']}", pool="free")
        text += ini_section("pool full", upstream=f"{full.name} maxconn=1")
        text += ini_section("pool free", upstream=text_of(digest.address))
        lb = stack.enter_context(FileBalancer(text, workers=WORKERS))
        load = stack.enter_context(Load(local(ports["free"]), clients=4))
        with held(local(ports["full"]), 61):
            wait_for(lambda: queued(lb, "full") == 60, "sixty in the queue")
            before = named(lb.status()["listeners"], "free")["closed_total"]
            wait_for(
                lambda: named(lb.status()["listeners"], "free")["closed_total"] > before + 500, "requests", 20
            )
            assert queued(lb, "full") == 60 and queued(lb, "free") == 0
        outcome = load.finish()
        outcome.check_nothing_lost(500)
        report("a full pool beside a free one", requests=outcome.attempts, p99_ms=outcome.p99 * 1000)
        assert outcome.p99 < 5, "less than the wait in the other pool's queue"
        check_sums(lb.check_at_rest(seconds=5))


def answers_from(address: Address, source: str) -> str:
    """The name of the backend that serves a client of this address; empty when the client is refused."""
    with socket.create_connection(address, 5, source_address=(source, 0)) as client:
        return greeting(client)


def test_three_pools_keep_their_policies() -> None:
    """leastconn, source and roundrobin over the same three addresses. Fails where pools share an elector or its state."""
    with ExitStack() as stack:
        echoes = [stack.enter_context(Echo(greeting=True)) for _ in range(3)]
        policies = ("leastconn", "source", "roundrobin")
        ports = {name: free_port() for name in policies}
        text = ""
        for name in policies:
            text += ini_section(f"listener {name}", bind=f"127.0.0.1:{ports[name]}", pool=name)
            text += ini_section(f"pool {name}", balance=name, upstream=[echo.name for echo in echoes])
        lb = stack.enter_context(FileBalancer(text, workers=WORKERS))
        held_open = stack.enter_context(held(local(ports["leastconn"]), 12))
        for client in held_open:
            receive(client, 1)
        chosen: dict[str, set[str]] = {}
        for turn in range(60):
            source = f"127.0.0.{2 + turn % 12}"
            chosen.setdefault(source, set()).add(answers_from(local(ports["source"]), source))
            answers_from(local(ports["roundrobin"]), "127.0.0.1")
        status = lb.status()
        by_pool = {pool["name"]: pool["backends"] for pool in status["pools"]}
        assert [row["sessions"] for row in by_pool["leastconn"]] == [4, 4, 4]
        assert all(len(backends) == 1 for backends in chosen.values()), chosen
        assert len(Counter(name for backends in chosen.values() for name in backends)) == 3
        turns = [row["sessions_total"] for row in by_pool["roundrobin"]]
        assert sum(turns) == 60 and max(turns) - min(turns) <= 2 * WORKERS, turns
        for client in held_open:
            client.close()
        check_sums(lb.check_at_rest())


def greeting(sock: socket.socket) -> str:
    """The name that a greeting Echo sends first."""
    return sock.makefile().readline().strip()


def test_clients_go_by_their_address_and_one_without_a_route_is_refused(tmp_path: Path) -> None:
    """The first route that matches counts. A client of a unix socket has no address: it matches the last line only."""
    with ExitStack() as stack:
        inside, outside = (stack.enter_context(Echo(greeting=True)) for _ in range(2))
        port, path = free_port(), tmp_path / "sock"
        binds = [f"127.0.0.1:{port}", f"unix:{path}"]
        routes = ["from 127.0.0.2/31 -> inside", "from 127.0.1.0/24 -> outside"]
        text = ini_section("listener net", bind=binds, route=routes)
        text += ini_section(
            "listener rest", bind=f"unix:{path}2", route=["from 127.0.0.0/8 -> inside", "-> outside"]
        )
        text += ini_section("pool inside", upstream=inside.name, check="none")
        text += ini_section("pool outside", upstream=outside.name, check="none")
        lb = stack.enter_context(FileBalancer(text, workers=WORKERS, loglevel=1))
        for source, echo in (("127.0.0.2", inside), ("127.0.0.3", inside), ("127.0.1.9", outside)):
            assert answers_from(local(port), source) == echo.name
        assert answers_from(local(port), "127.0.0.4") == ""
        lb.wait_line(r" refuse client=127\.0\.0\.4:\d+ listener=net reason=no-route then=close")
        for name, expected in ((path, ""), (f"{path}2", outside.name)):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(str(name))
                assert greeting(client) == expected
        lb.wait_line(r" session client=unix listener=rest pool=outside backend=\S+ end=-- ")
        net, rest = lb.check_at_rest()["listeners"]
        assert (net["accepted_total"], net["refused_total"], net["closed_total"]) == (5, 2, 5)
        assert (rest["accepted_total"], rest["refused_total"]) == (1, 0)


def test_a_freed_place_wakes_the_queue_of_its_own_pool() -> None:
    """One listener, two pools; the first is full for the whole test, and its queue is older. Fails where a freed place of
    the second wakes that queue: its clients are then served every 50 ms only."""
    with ExitStack() as stack:
        full, busy = stack.enter_context(Echo()), stack.enter_context(Counting())
        port = free_port()
        text = ini_section("balancer", check="none", queue_timeout="30s")
        routes = ["from 127.0.0.2 -> full", "-> busy"]
        text += ini_section("listener both", bind=f"127.0.0.1:{port}", route=routes)
        text += ini_section("pool full", upstream=f"{full.name} maxconn=1")
        text += ini_section("pool busy", upstream=f"{busy.name} maxconn=1")
        lb = stack.enter_context(FileBalancer(text, workers=WORKERS))
        for _ in range(6):
            stack.enter_context(socket.create_connection(local(port), 5, source_address=("127.0.0.2", 0)))
        wait_for(lambda: queued(lb, "full") == 5, "a queue for the full pool")
        churn = stack.enter_context(Churn(local(port), 4, hold=0.005))
        wait_for(lambda: named(lb.status()["pools"], "busy")["queued_total"] > 400, "clients that waited", 20)
        assert queued(lb, "full") == 5
        counts = churn.figures()
        assert counts["most"] == busy.figures()["most"] == 1
        assert counts["turned_away"] == counts["broken"] == 0


def many_backends(backends: int, pools: int) -> None:
    with ExitStack() as stack:
        echo = stack.enter_context(Echo(host="0.0.0.0"))
        port = free_port()
        text = ini_section("balancer", check_interval="10s")
        text += ini_section("listener web", bind=f"127.0.0.1:{port}", pool="pool0")
        per_pool = backends // pools
        for pool in range(pools):
            upstreams = [f"127.1.{pool}.{n + 1}:{echo.address[1]} name=b{n}" for n in range(per_pool)]
            text += ini_section(f"pool pool{pool}", upstream=upstreams)

        def boot() -> float:
            began = time.monotonic()
            with FileBalancer(text, workers=WORKERS):
                return time.monotonic() - began

        booted = best_of(boot, 3.0, "the boot", 3)  # 1.5 s on a quiet machine
        lb = stack.enter_context(FileBalancer(text, workers=WORKERS))
        with held(local(port), 50, timeout=20) as clients:
            for client in clients:
                client.sendall(b"x")
                assert receive(client, 1) == b"x"
            wait_for(lambda: {row["state"] for row in lb.status()["backends"]} == {"up"}, "all up", 20)
            memory = lb.memory()
        report("many backends", backends=backends, pools=pools, boot_s=booted, memory_mb=memory / 1e6)
        assert memory <= 60e6, f"{memory / 1e6:.1f} MB"
        status = lb.check_at_rest(seconds=5)
        assert len(status["backends"]) == backends and len(status["pools"]) == pools


def test_memory_of_a_thousand_backends_in_twenty_pools() -> None:
    """Fails where the table of counters is written when it is made (227 MB), or holds a copy per process."""
    many_backends(1000, 20)
