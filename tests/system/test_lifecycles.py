"""Reloads, upgrades, growing, shrinking and reopened logs at random moments, so that each meets each in every state.

Each alone has its own tests; what one leaves behind for another shows only here. No process is killed, so nothing may be
lost: no request, no descriptor, and no process may be left over.
"""

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.backends import Digest
from scripts.lab.load import Load
from scripts.lab.waiting import wait_for
from tests.system.faults import report
from tests.system.upgradable import UpgradableBalancer, status_or_none, subreaper

ACTS = (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def orphans_are_ours() -> Iterator[None]:
    with subreaper():
        yield


@pytest.mark.parametrize("seed", [1, 2])
def test_acts_at_random_moments_lose_nothing(tmp_path: Path, seed: int) -> None:
    """Fails where a master remembers the number of a descriptor that it has closed: its next child closes it again."""
    act_at_random(tmp_path, seed, 25)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10, 16))
def test_many_acts_at_random_moments_lose_nothing(tmp_path: Path, seed: int) -> None:
    act_at_random(tmp_path, seed, 120)


def act_at_random(directory: Path, seed: int, acts: int) -> None:
    dice = random.Random(seed)
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        lb = UpgradableBalancer(directory, upstreams=[backend.address], drain_timeout="3s").with_file()
        lb.expect(r"reload error=.*told to stop")  # overtaken by a successor
        stack.enter_context(lb)
        load = stack.enter_context(Load(lb.address, clients=8, pause=0.005))
        told = []
        for _ in range(acts):
            act = dice.choice(ACTS)
            told.append(act.name)
            lb.change_file()
            with contextlib.suppress(ProcessLookupError):  # superseded a moment ago
                os.kill(lb.serving(), act)
            time.sleep(dice.random() * 0.3)
        wait_for(lambda: settled(lb), f"one master, at rest, after {told}", 20)
        outcome = load.finish()
        report("acts at random", seed=seed, acts=acts, requests=outcome.attempts, failed=outcome.failed)
        outcome.check_nothing_lost(acts * 10)
        slots = int(re.findall(r" slots=(\d+)", lb.log())[-1])
        workers = len(lb.status()["workers"])
        lb.check_at_rest(
            more_descriptors=max(0, slots - 2) + max(0, workers - 2)
        )  # it began with two of each


def settled(lb: UpgradableBalancer) -> bool:
    """The serving master answers, its workers are of one generation and ready, and no other process is left."""
    lb.follow()
    status = status_or_none(lb)
    if status is None or not len(lb.session()) == len(lb.processes()) == len(status["workers"]) + 3:
        return False
    states = {(worker["state"], worker["generation"]) for worker in status["workers"]}
    return states == {("ready", status["generation"])}
