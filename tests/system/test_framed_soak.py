"""Framed mode over many requests: backends and workers that die at random, and what is left of memory and connections.

The long forms (`make soak`) have as many requests as Must-hold figures name, or as FRAMED_REQUESTS says.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from balancer.relay.framed.connection import RESTING
from scripts.lab.helpers import BackgroundThread, HelperProcess
from scripts.lab.kernel import dialled
from scripts.lab.measure import memory_of_process
from scripts.lab.network import accepts, free_port
from scripts.lab.process import LabProcess, freeze
from scripts.lab.waiting import wait_for
from tests.system.faults import REAPED, kill_counted, living, ready_pids, report, wait_whole
from tests.system.framed_peer import OwningClient, Visitors
from tests.system.harness import Balancer
from tests.system.test_backend_tls import Files
from tests.system.test_framed_edge import wrapping

CLIENTS, AT_ONCE, VISIT = 20, 4, 100  # requests of one connection
WORKERS = 2
CROWD = 32  # clients of the long load


def long_form(requests: int) -> Any:
    return pytest.param(int(os.environ.get("FRAMED_REQUESTS", requests)), marks=pytest.mark.soak)


def sums(clients: list[OwningClient], *names: str) -> dict[str, int]:
    return {name: sum(getattr(one, name) for one in clients) for name in names}


class OwnBackend:
    """A backend in a process of its own, on a port that it has again after a kill."""

    def __init__(self, *words: object) -> None:
        self.port = free_port()
        self.words = (self.port, *words)
        self.process: HelperProcess | None = None
        self.start()

    def start(self) -> None:
        self.process = HelperProcess("tests.system.framed_peer", *self.words)
        wait_for(lambda: accepts(("127.0.0.1", self.port)), "the backend", 20)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.process.pid


class Faults:
    """Acts on one backend or worker at a time, each undone before the next. `held` are the clients of killed workers."""

    def __init__(self, lb: Balancer, backends: list[OwnBackend], seed: int) -> None:
        self.lb = lb
        self.backends = backends
        self.rng = random.Random(seed)
        self.held = 0
        self.counts: Counter[str] = Counter()
        self.acts: list[Callable[[], None]] = [
            self.kill_worker,
            self.kill_backend,
            self.stop_backend,
            self.drain_backend,
            self.reload,
            self.kill_worker,
            self.kill_backend,
        ]

    def all_once(self) -> None:
        for act in self.rng.sample(self.acts, len(self.acts)):
            act()
            self.counts[act.__name__] += 1
            time.sleep(self.rng.uniform(0.0, 0.2))

    def kill_worker(self) -> None:
        victim = wait_for(lambda: living(self.lb, self.rng), "a worker")
        self.held += kill_counted(victim, self.lb.address[1])
        wait_whole(self.lb, WORKERS, {victim}, 20)

    def kill_backend(self) -> None:
        backend = self.rng.choice(self.backends)
        backend.kill()
        time.sleep(self.rng.uniform(0.0, 0.1))
        backend.start()

    def stop_backend(self) -> None:
        """Its connections stay, and nothing comes of them for a while."""
        backend = self.rng.choice(self.backends)
        freeze(backend.pid)
        time.sleep(self.rng.uniform(0.0, 0.4))
        os.kill(backend.pid, signal.SIGCONT)

    def drain_backend(self) -> None:
        name = f"r{self.rng.randrange(len(self.backends))}"
        assert self.lb.ctl("drain", name).returncode == 0
        assert self.lb.ctl("ready", name).returncode == 0

    def reload(self) -> None:
        wanted = self.lb.status()["generation"] + 1
        self.lb.change_file()
        self.lb.signal(signal.SIGHUP)
        wait_for(lambda: self.lb.status()["generation"] >= wanted, "the next generation", 20)
        wait_for(lambda: len(ready_pids(self.lb)) == WORKERS, "its workers", 20)


@contextmanager
def three_backends(
    manners: tuple[str, str, str], files: Files | None = None, **options: object
) -> Iterator[tuple[Balancer, list[OwnBackend]]]:
    with ExitStack() as stack:
        backends = []
        certificate = (files.backend,) if files else ()
        for number, manner in enumerate(manners):
            backends.append(OwnBackend(number, manner, *certificate))
            stack.callback(backends[-1].kill)
        upstreams = [f"127.0.0.1:{one.port} name=r{number}" for number, one in enumerate(backends)]
        lb = Balancer(upstreams=upstreams, mode="framed", frame="gowork", workers=WORKERS, **options)
        if files:
            lb.arguments += [f"--tls-cert={files.certificate}", "--tls", f"--tls-ca={files.backends_ca}"]
        lb.expect(REAPED)
        lb.expect("all-down")
        yield stack.enter_context(lb.with_file()), backends


def endure(scenario: str, clients: list[OwningClient], faults: Faults, requests: int) -> dict[str, int]:
    """So many requests answered while one fault follows the other, each reply its client's own; the sums of the clients'
    counts."""
    visitors, began = Visitors(clients, VISIT), time.monotonic()
    try:
        while visitors.answered() < requests and not any(client.wrong for client in clients):
            faults.all_once()
    finally:
        visitors.stop()
    figures = sums(clients, "answered", "lost", "breaks", "connections")
    seconds = round(time.monotonic() - began)
    report(scenario, seconds=seconds, held=faults.held, **figures, **faults.counts)
    assert not [one for client in clients for one in client.wrong]
    assert figures["answered"] >= requests
    return figures


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("requests", [2000, long_form(100_000)])
def test_faults_of_backends_and_workers_cost_what_killed_workers_held(
    requests: int, tls: bool, tmp_path: Path
) -> None:
    """Each client gets its own replies; what a worker held when it was killed is all that is lost; counts are exact."""
    manners = ("well", "well", "well")
    options = {"order": "any", "frame_retries": 5, "retries": 10, "check_interval": "200ms"}
    files = Files(tmp_path) if tls else None
    with three_backends(manners, files, **options) as (lb, backends):
        wrap = {"wrap": wrapping(files)} if files else {}
        clients = [OwningClient(lb.address, n, "any", AT_ONCE, **wrap) for n in range(CLIENTS)]
        faults = Faults(lb, backends, seed=requests)
        figures = endure(f"framed faults, {'TLS' if tls else 'plain'}", clients, faults, requests)
        assert figures["breaks"] <= faults.held
        assert figures["lost"] <= faults.held * AT_ONCE
        totals = lb.wait_idle(10)["totals"]
        # A kill may come between an accept and its count, or between the close of a client and the count of its end.
        accepted, kills = totals["accepted_total"], faults.counts["kill_worker"]
        assert abs(accepted - figures["connections"]) <= kills
        assert abs(accepted - totals["closed_total"] - faults.held) <= kills
        wait_for(
            lambda: len({one["generation"] for one in lb.status()["workers"]}) == 1,
            "old generations gone",
            20,
        )
        assert sum(one["sessions_total"] for one in lb.status()["backends"]) >= figures["answered"]
        lb.check_log(lb.log())


@pytest.mark.parametrize("requests", [1000, long_form(100_000)])
def test_no_reply_goes_astray_where_backends_misbehave_and_workers_are_killed(requests: int) -> None:
    manners = ("badly", "badly", "well")
    options = {"order": "any", "frame_retries": 5, "retries": 10, "check_interval": "200ms"}
    with three_backends(manners, **options) as (lb, backends):
        clients = [OwningClient(lb.address, n, "any", 1 + n % AT_ONCE) for n in range(CLIENTS)]
        faults = Faults(lb, backends, seed=requests)
        faults.acts = [faults.kill_worker, faults.kill_backend, faults.drain_backend, faults.reload]
        endure("framed misbehaviour", clients, faults, requests)
        assert " backend backend=" in lb.log()
        lb.wait_idle(10)


# -- memory and connections


class ConnectionSampler(BackgroundThread):
    """The most connections to backends that were idle, and that were in use, at one look at the status."""

    def __init__(self, lb: Balancer) -> None:
        super().__init__(self.sample)
        self.lb = lb
        self.idle = self.in_use = 0

    def sample(self) -> None:
        while not self.stopping.wait(0.3):
            framed = self.lb.status()["pools"][0]["framed"]
            self.idle = max(self.idle, framed["connections_idle"])
            self.in_use = max(self.in_use, framed["connections_in_use"])


@pytest.mark.parametrize("requests", [10_000, long_form(1_000_000)])
def test_memory_descriptors_and_connections_over_many_requests(requests: int) -> None:
    """Small ones and long replies, clients that stay and clients that come for one request."""
    port, hosts = free_port(), [f"127.0.0.{n}" for n in (1, 2, 3)]
    plan = {"host": "127.0.0.1", "connections": CROWD, "seconds": 1800.0, "path": "/"}
    loads: list[tuple[float, dict[str, object]]] = [
        (0.7, {"frame": (100, 100), "close": False}),
        (0.2, {"frame": (100, 102_400), "close": False}),
        (0.1, {"frame": (30_000, 100), "close": True}),
    ]
    options = {"order": "any", "check": "none", "workers": WORKERS, "idle_backend_timeout": "1s"}
    with (
        LabProcess([sys.executable, "-m", "scripts.benchlib.framed_backend", str(port)], Path(os.devnull)),
        Balancer(
            upstreams=[f"{host}:{port}" for host in hosts], mode="framed", frame="gowork", **options
        ) as lb,
        ConnectionSampler(lb) as sampler,
    ):
        wait_for(lambda: accepts(("127.0.0.1", port)), "the backend", 10)
        workers = lb.worker_pids()
        memory, descriptors, began = [], [], time.monotonic()
        for part in (0.1, 0.4, 0.5):  # up to 10, 50 and 100 %
            for share, load in loads:
                count = round(requests * part * share)
                words = json.dumps(plan | load | {"requests": count, "port": lb.address[1]})
                with HelperProcess("scripts.benchlib.load", words) as clients:
                    assert clients.figures(stop=False, seconds=1800)["errors"] == 0
            lb.wait_idle(10)
            wait_for(lambda: not dialled(port), "idle connections closed in their time", 20)
            memory.append(sum(map(memory_of_process, workers)))
            descriptors.append([lb.descriptors(pid) for pid in workers])
        counted = sum(one["sessions_total"] for one in lb.status()["backends"])
        report(
            "framed memory",
            seconds=round(time.monotonic() - began),
            requests=counted,
            kilobytes=[used >> 10 for used in memory],
            descriptors=descriptors,
            idle=sampler.idle,
            in_use=sampler.in_use,
        )
        assert counted >= requests
        assert lb.worker_pids() == workers
        assert max(memory[1:]) - memory[0] < 2 << 20, memory
        assert max(map(max, descriptors)) <= max(lb.baseline[f"worker {n}"] for n in range(WORKERS)), (
            descriptors
        )
        # A worker has as many to a backend as were busy there at once, and those that rest meanwhile.
        most = len(hosts) * (CROWD + WORKERS * RESTING)
        assert 0 < sampler.idle <= most
        assert sampler.in_use <= most
