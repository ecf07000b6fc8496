"""A thousand backends, twenty thousand sessions, a hundred scrapers: the console delays no worker, and not itself.

    python -m pytest -m soak -s tests/system/test_scale.py      prints the figures of docs/SCALING.md

RULES: what is asserted is CPU time of a turn. The wall clock is printed beside it: on two cores that the load has as
well, a process waits far longer than it works. The promises are the long form's; the short one allows SLACK times as
much, for a slow machine, and still fails where a worker lists its sessions in one turn.
"""

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.network import Address, free_port
from scripts.lab.waiting import wait_for
from tests.system.crowd import Holding, Scraping, Serving
from tests.system.harness import Balancer, ini_section
from tests.system.turns import MODULE, Turns, take_turns

BACKENDS, POOLS = 1000, 20
HELPERS = 4  # processes that hold clients, and as many that are backends
VERSION = "/status.json?since=VERSION"  # what the page asks for
SCRAPERS = {"/metrics": 40, "/status.json": 20, VERSION: 20, "/": 20}
SCRAPE_EVERY = (
    2.0  # seconds between an answer and the next question: as often as a page, seven times Prometheus
)
COMMANDS = (
    ["sessions", "--json"],
    ["sessions"],
    ["status"],
    ["explain"],
    ["explain", "--source", "127.0.1.5"],
    ["top"],
)
MOST_IN_WORKER = 0.005  # seconds of CPU in one turn
MOST_IN_CONSOLE = 0.25  # of the 0.5 s by which a heartbeat may be late
SLACK = 4
MOST_IN_PROBER = 0.1
MOST_MEMORY = 64 << 20  # bytes of the console


@dataclass
class Longest:
    """The longest turn of the workers and that of the console, in one part of the test."""

    worker: Turns
    console: Turns


class TimedBalancer(Balancer):
    """Its processes note their turns in `directory`, where its file is as well."""

    def __init__(self, directory: Path, **options: Any) -> None:
        environment = {"TURNS": str(directory)}
        super().__init__(
            f"--config={directory / 'balancer.ini'}", port=None, environment=environment, **options
        )
        self.module, self.noted = MODULE, directory

    @property
    def http(self) -> Address:
        line = self.wait_line(r"bind address=127\.0\.0\.1:(\d+) slots=1 role=console")
        return "127.0.0.1", int(line[1])

    def pids_of(self, role: str) -> list[int]:
        return [pid for pid, title in self.titles().items() if title.startswith(f"balancer: {role}")]

    def take_longest(self, what: str) -> Longest:
        """The longest turns since the last call, printed."""
        workers = [take_turns(self.noted, pid) for pid in self.pids_of("worker")]
        [console] = [take_turns(self.noted, pid) for pid in self.pids_of("console")]
        found = Longest(max(workers, key=lambda one: one.cpu), console)
        for role, one in (("worker", found.worker), ("console", console)):
            cpu, wall, late = (f"{seconds * 1000:.1f} ms" for seconds in (one.cpu, one.wall, one.late))
            print(f"{what}: {role}: {cpu} of CPU, {wall}, timers {late} late; {one.called[:120]}")
        return found


def write_file(directory: Path, port: int) -> None:
    """Twenty pools of fifty backends; each source address of the clients has one of its own."""
    routes = [f"from 127.0.1.{last}/32 -> p{last - 1}" for last in range(1, 9)]
    routes += [f"from 10.0.{pool}.0/24 -> p{pool}" for pool in range(8, POOLS)]
    sections = [ini_section("listener main", bind="127.0.0.1:0", route=[*routes, "-> p0"])]
    for pool in range(POOLS):
        numbers = range(1, 1 + BACKENDS // POOLS)
        upstream = [f"127.1.{pool}.{number}:{port} name=b{number}" for number in numbers]
        sections.append(ini_section(f"pool p{pool}", check="none", upstream=upstream))
    (directory / "balancer.ini").write_text("\n".join(sections))


def check_commands(lb: TimedBalancer, sessions: int, what: str, slack: int) -> None:
    """Each question of an operator, and what it costs workers and console."""
    for words in COMMANDS:
        began = time.monotonic()
        run = lb.ctl(*words)
        took = time.monotonic() - began
        assert run.returncode == 0, run.stderr
        if words == ["sessions", "--json"]:
            assert run.stdout.count('"client"') == sessions
        name = f"{what}: {' '.join(words)}"
        print(f"{name}: {took:.2f} s, {len(run.stdout):,} characters")
        check(lb.take_longest(name), slack)


def check(found: Longest, slack: int) -> None:
    assert found.worker.cpu <= MOST_IN_WORKER * slack, found.worker
    assert found.console.cpu <= MOST_IN_CONSOLE * slack, found.console


@pytest.mark.parametrize(
    ("sessions", "workers", "seconds", "slack"),
    [(8000, 2, 5.0, SLACK), pytest.param(20_000, 4, 15.0, 1, marks=pytest.mark.soak)],
)
def test_the_console_delays_no_worker_and_not_itself(
    sessions: int, workers: int, seconds: float, slack: int, tmp_path: Path
) -> None:
    port = free_port()
    write_file(tmp_path, port)
    with ExitStack() as stack:
        for _ in range(HELPERS):
            stack.enter_context(Serving(port))
        lb = stack.enter_context(TimedBalancer(tmp_path, workers=workers, metrics="localhost:0", maxconns=0))
        crowds = [stack.enter_context(Holding(lb.address, sessions // HELPERS)) for _ in range(HELPERS)]
        for crowd in crowds:
            assert crowd.read_line() == "ready"
        time.sleep(2)  # each session has lasted, and has its keepalive options
        lb.take_longest("boot")
        check_commands(lb, sessions, "alone", slack)
        with Scraping(lb.http, SCRAPERS, SCRAPE_EVERY) as scraping:
            time.sleep(seconds)
            check(lb.take_longest("scraped"), slack)
            check_commands(lb, sessions, "scraped", slack)
            [console] = lb.pids_of("console")
            used = lb.memory([console])
            print(f"console: {used / 2**20:.1f} MB; all: {lb.memory() / 2**20:.1f} MB")
            assert used <= MOST_MEMORY
            found = scraping.figures()
        for path, one in found.items():
            print(f"{path}: {one}")
            assert one["answers"] and not one["without"] and not one["failures"], one
        assert not re.search(r" (hang|reap) ", lb.log())
        assert lb.status()["totals"]["sessions"] == sessions
        assert [crowd.figures()["lost"] for crowd in crowds] == [0] * HELPERS
        lb.check_at_rest(seconds=20)


def test_a_thousand_backends_that_go_down_and_come_back_at_once_leave_the_prober_its_heartbeat(
    tmp_path: Path,
) -> None:
    """The turn in which they went down had 0.85 s of CPU, a look at all of them for each, and the prober was replaced."""
    port = free_port()
    upstream = [
        f"127.1.{number // 250}.{number % 250 + 1}:{port} name=b{number}" for number in range(BACKENDS)
    ]
    options = {"panic": 30, "check_interval": "1s", "check_fall": 2, "check_rise": 1}
    sections = [
        ini_section("listener main", bind="127.0.0.1:0", pool="p"),
        ini_section("pool p", upstream=upstream, **options),
    ]
    (tmp_path / "balancer.ini").write_text("\n".join(sections))
    with ExitStack() as stack:
        serving = stack.enter_context(Serving(port))
        lb = stack.enter_context(TimedBalancer(tmp_path))
        [prober] = lb.pids_of("prober")

        def wait_states(state: str) -> None:
            def are_so() -> bool:
                return {one["state"] for one in lb.status()["backends"]} == {state}

            wait_for(are_so, f"every backend {state}", 30, every=0.2)
            turns = take_turns(lb.noted, prober)
            print(
                f"{state}: {turns.cpu * 1000:.1f} ms of CPU, {turns.wall * 1000:.1f} ms; {turns.called[:120]}"
            )
            assert turns.cpu <= MOST_IN_PROBER, turns

        wait_states("up")
        serving.kill()
        wait_states("down")
        assert " panic pool=p " in lb.log()
        stack.enter_context(Serving(port))
        wait_states("up")
        assert lb.pids_of("prober") == [prober]
        lb.check_at_rest(seconds=20)
