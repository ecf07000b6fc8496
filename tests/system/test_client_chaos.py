"""A thousand pictures while balancer workers and resizers are killed and reloaded: all arrive, identical, once."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.system.client_bench import Bench
from tests.system.harness import Balancer, Resizer, text_of
from tests.system.resizing import picture

COUNT = 1000
DISTINCT = 25


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    for number in range(DISTINCT):
        made.pictures.joinpath(f"{number:04}.jpg").write_bytes(picture(900, 700, seed=number + 1))
    for number in range(DISTINCT, COUNT):
        os.link(made.pictures / f"{number % DISTINCT:04}.jpg", made.pictures / f"{number:04}.jpg")
    return made


class Chaos:
    """Does one harm every `pause` seconds until it is told to stop; `done` lists them."""

    def __init__(self, balancer: Balancer, resizers: list[Resizer], seed: int, pause: float) -> None:
        self._balancer, self._resizers = balancer, resizers
        self._dice = random.Random(seed)
        self._pause = pause
        self._over = threading.Event()
        self.done: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Chaos":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        harms: list[Callable[[], str]] = [
            lambda: self._kill(self._balancer, "worker"),
            lambda: self._reload(self._balancer, "balancer"),
            lambda: self._kill(self._dice.choice(self._resizers), "cpu"),
            lambda: self._kill(self._dice.choice(self._resizers), "front"),
            lambda: self._reload(self._dice.choice(self._resizers), "resizer"),
        ]
        while not self._over.wait(self._pause):
            self.done.append(self._dice.choice(harms)())

    def _kill(self, daemon: Balancer | Resizer, role: str) -> str:
        pids = [pid for pid, title in daemon.titles().items() if f": {role}" in title]
        if not pids:
            return "nobody to kill"
        pid = self._dice.choice(pids)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return "too late"
        return f"killed {role} {pid}"

    def _reload(self, daemon: Balancer | Resizer, name: str) -> str:
        daemon.signal(signal.SIGHUP)
        return f"reloaded {name} {daemon.pid}"


def test_a_thousand_pictures_through_a_storm(bench: Bench) -> None:
    with ExitStack() as stack:
        resizers = [stack.enter_context(Resizer(name=f"backend-{n}", cpus=1)) for n in (1, 2, 3)]
        upstreams = [resizer.address for resizer in resizers]
        balancer = stack.enter_context(Balancer(upstreams=upstreams, workers=2))
        for daemon in (*resizers, balancer):
            daemon.expect("")
            daemon.expected_exit = None  # sessions that a storm cuts are not what this test is about
        address = text_of(balancer.address)

        calm = bench.run(address, "--minconns", "4", "--maxconns", "4")
        assert calm.code == 0, calm.err
        expected = bench.saved()
        assert len(expected) == COUNT

        bench.results = bench.room / "again"
        with Chaos(balancer, resizers, seed=5, pause=0.25) as chaos:
            began = time.monotonic()
            wild = bench.run(address, "--minconns", "4", "--maxconns", "4", timeout=80)
            took = time.monotonic() - began
        assert wild.code == 0, f"{wild.err}\n{wild.out}\n{chaos.done}"
        assert bench.saved() == expected
        assert not bench.parts()
        assert sum(harm.startswith("killed") for harm in chaos.done) >= min(4, took), chaos.done
        assert all(psutil.pid_exists(daemon.pid) for daemon in (*resizers, balancer))
