"""A thousand pictures while balancer workers and resizers are killed and reloaded: every result is saved, unchanged."""

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

from scripts.lab.network import text_of
from tests.system.client_fixture import ClientFixture
from tests.system.harness import Balancer, Resizer
from tests.system.resizer_peer import picture

COUNT = 1000
DISTINCT = 25


@pytest.fixture
def client(tmp_path: Path) -> ClientFixture:
    made = ClientFixture(tmp_path)
    for number in range(DISTINCT):
        made.pictures.joinpath(f"{number:04}.jpg").write_bytes(picture(900, 700, seed=number + 1))
    for number in range(DISTINCT, COUNT):
        os.link(made.pictures / f"{number % DISTINCT:04}.jpg", made.pictures / f"{number:04}.jpg")
    return made


class FaultInjector:
    """Kills or reloads a process every `pause` seconds until the end of the `with`; `done` lists the faults."""

    def __init__(self, balancer: Balancer, resizers: list[Resizer], seed: int, pause: float) -> None:
        self._balancer, self._resizers = balancer, resizers
        self._random = random.Random(seed)
        self._pause = pause
        self._over = threading.Event()
        self.done: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "FaultInjector":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        faults: list[Callable[[], str]] = [
            lambda: self._kill(self._balancer, "worker"),
            lambda: self._reload(self._balancer, "balancer"),
            lambda: self._kill(self._random.choice(self._resizers), "cpu"),
            lambda: self._kill(self._random.choice(self._resizers), "front"),
            lambda: self._reload(self._random.choice(self._resizers), "resizer"),
        ]
        while not self._over.wait(self._pause):
            self.done.append(self._random.choice(faults)())

    def _kill(self, daemon: Balancer | Resizer, role: str) -> str:
        pids = [pid for pid, title in daemon.titles().items() if f": {role}" in title]
        if not pids:
            return "no process to kill"
        pid = self._random.choice(pids)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return "too late"
        return f"killed {role} {pid}"

    def _reload(self, daemon: Balancer | Resizer, name: str) -> str:
        daemon.change_file()
        daemon.signal(signal.SIGHUP)
        return f"reloaded {name} {daemon.pid}"


def test_a_thousand_pictures_while_processes_are_killed_and_reloaded(client: ClientFixture) -> None:
    with ExitStack() as stack:
        resizers = [stack.enter_context(Resizer(name=f"backend-{n}", cpus=1).with_file()) for n in (1, 2, 3)]
        upstreams = [resizer.address for resizer in resizers]
        balancer = stack.enter_context(Balancer(upstreams=upstreams, workers=2).with_file())
        for daemon in (*resizers, balancer):
            daemon.expect("")
            daemon.expected_exit = None  # cut sessions are expected here
        address = text_of(balancer.address)

        calm = client.run(address, "--minconns", "4", "--maxconns", "4")
        assert calm.code == 0, calm.err
        expected = client.saved()
        assert len(expected) == COUNT

        client.results = client.directory / "again"
        with FaultInjector(balancer, resizers, seed=5, pause=0.25) as injector:
            began = time.monotonic()
            wild = client.run(address, "--minconns", "4", "--maxconns", "4", timeout=80)
            took = time.monotonic() - began
        assert wild.code == 0, f"{wild.err}\n{wild.out}\n{injector.done}"
        assert client.saved() == expected
        assert not client.parts()
        assert sum(fault.startswith("killed") for fault in injector.done) >= min(4, took), injector.done
        assert all(psutil.pid_exists(daemon.pid) for daemon in (*resizers, balancer))
