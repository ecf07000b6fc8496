"""Pictures of many kinds for a long time, while processes are killed, stopped and replaced: every answer is right, and
memory stays as it is.

`make soak TESTS=tests/system/test_resizer_soak.py` runs 900 s, or $SOAK_SECONDS.
"""

import http.client
import io
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

import pytest
from PIL import Image

from scripts.lab.measure import memory_of
from tests.system.harness import Resizer
from tests.system.resizer_peer import picture

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "900"))
CLIENTS = 6
WORKS = [
    (size, kind, target)
    for size in ((160, 120), (640, 480), (1600, 1200))
    for kind in ("JPEG", "PNG", "WEBP")
    for target in ("w=40", "w=300&format=jpeg", "w=200&format=webp")
]
REFUSED = {429, 503, 504}  # full, its process has died, its process hung


@dataclass
class SoakOutcome:
    """Answers by status ("ended": the connection did), and what was wrong with any."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class SoakClient:
    """Asks for one picture after another on one connection, and compares the answers with the first ones."""

    def __init__(self, resizer: Resizer, seed: int, right: dict[int, bytes]) -> None:
        self.address = resizer.address
        self.chance = random.Random(seed)
        self.right = right
        self.outcome = SoakOutcome()
        self.conn = http.client.HTTPConnection(*self.address, timeout=60)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            number = self.chance.randrange(len(WORKS))
            try:
                status, body = self.ask(number)
            except (OSError, http.client.HTTPException):
                self.outcome.statuses["ended"] += 1
                self.conn.close()
                stop.wait(0.05)
                continue
            self.outcome.statuses[str(status)] += 1
            if status in REFUSED:
                stop.wait(0.05)
            elif status != 200:
                self.outcome.wrong.append(f"{WORKS[number]}: {status} {body[:200]!r}")
            elif body != self.right[number]:
                self.outcome.wrong.append(f"{WORKS[number]}: {len(body)} bytes of something else")
        self.conn.close()

    def ask(self, number: int) -> tuple[int, bytes]:
        size, kind, target = WORKS[number]
        self.conn.request("POST", f"/resize?{target}", picture(*size, kind, number))
        answer = self.conn.getresponse()
        return answer.status, answer.read()


def right_answers(resizer: Resizer) -> dict[int, bytes]:
    """The answers of a service that nobody disturbs. All differ, and have the size that was asked for."""
    client = SoakClient(resizer, 0, {})
    answers = {}
    for number, (_, _, target) in enumerate(WORKS):
        status, answers[number] = client.ask(number)
        assert status == 200, answers[number]
        with Image.open(io.BytesIO(answers[number])) as image:
            assert image.width == int(target.partition("&")[0][2:])
    client.conn.close()
    assert len({*answers.values()}) == len(WORKS)
    return answers


def disturb(resizer: Resizer, chance: random.Random) -> str:
    """Kill or stop a process, or reload; what was done."""
    role = chance.choice(["cpu", "cpu", "express", "front", "reload"])
    if role == "reload":
        resizer.change_file()
        resizer.signal(signal.SIGHUP)
        return role
    for pid in resizer.pids(role)[:1]:
        how = signal.SIGSTOP if role != "front" and chance.random() < 0.3 else signal.SIGKILL
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            return f"{role} gone"
        return f"{role} {how.name}"
    return f"{role} gone"


@pytest.mark.parametrize("seconds", [6.0, pytest.param(SOAK_SECONDS, marks=pytest.mark.soak)])
def test_every_answer_is_right_and_memory_stays_while_processes_are_killed(seconds: float) -> None:
    chance, stop = random.Random(3), threading.Event()
    resizer = Resizer(cpus=2, job_timeout="3s").with_file()
    with resizer:
        resizer.expect("reap|death|kill|died|told to stop")
        right = right_answers(resizer)
        clients = [SoakClient(resizer, seed, right) for seed in range(CLIENTS)]
        threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
        for thread in threads:
            thread.start()
        memory: list[int] = []
        done: Counter[str] = Counter()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(chance.uniform(0.3, 3.0))
                done[disturb(resizer, chance)] += 1
                memory.append(memory_of(resizer.pid))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        outcomes = [client.outcome for client in clients]
        statuses = sum((outcome.statuses for outcome in outcomes), Counter[str]())
        print(f"{seconds:g} s: {dict(done)}, answers {dict(statuses)}, MB {[one >> 20 for one in memory]}")
        assert not [line for outcome in outcomes for line in outcome.wrong][:5]
        assert statuses["200"] > 2 * seconds
        # A front that is killed takes the connections of all clients along, and a reload ends them.
        ends = CLIENTS * sum(count for what, count in done.items() if what.startswith(("front", "reload")))
        assert statuses["ended"] <= 3 * ends, statuses
        if seconds > 60:
            third = len(memory) // 3
            assert median(memory[-third:]) < median(memory[:third]) * 1.1 + (16 << 20)
