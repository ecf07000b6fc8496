"""The prober without a network: scripted answers in, verdicts and log lines out."""

import heapq
import itertools
import os
import random
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from balancer.checks.check import parse_check_line
from balancer.checks.own_listeners import OwnListeners
from balancer.config.units import parse_address
from balancer.discovery.servers import NameServers
from balancer.edge.proxy_protocol import SendProxy
from balancer.options import Pool
from balancer.pool.backend import MAIN_POOL, Backend, parse_upstream, with_indexes
from balancer.pool.board import (
    ADMIN_DRAIN,
    ADMIN_MAINT,
    ADMIN_READY,
    B_ADDRESS_FAILURES,
    B_BYTES_OUT,
    B_CHECKS,
    B_CONNECT_FAILURES,
    B_DOWNS,
    B_EARLY_ENDS,
    B_SESSIONS_TOTAL,
    BACKENDS,
    CHECK_NAMES,
    DOWN,
    NAME_ANSWERED,
    NAME_ASKED,
    NAME_FAILED,
    POOLS,
    UNKNOWN,
    UP,
    VERDICTS_VERSION,
    W_AGENT_MAXCONN,
    W_CHECK,
    W_NAME,
    W_RAMP,
    W_VERDICT,
    WORKER_ROLE,
    Board,
)
from balancer.pool.handover_state import export_state, restore_state
from balancer.pool.serving import availability, state_of
from balancer.pool.targets import Target, addresses_of, targets_of
from balancer.prober import MOST_BEGUN, Prober
from balancer.shm.layout import FIRST_LEASE, PID, ROLE, Shared
from tests.unit.balancer.pool.boards import make_board, target_of

PROBER, WORKER, SECOND = FIRST_LEASE, FIRST_LEASE + 1, FIRST_LEASE + 2
REFRESH = 10.0
MAIN = Pool("main", (), check_interval=2.0, check_rise=2, check_fall=3, connect_timeout=5.0, index=0)


class Timer:
    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act

    def cancel(self) -> None:
        self.act = None


class Loop:
    """A loop whose time moves in `advance` only."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.turns = 0
        self.is_stopped = False
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self.handlers: dict[int, Callable[[int], object]] = {}

    def stop(self) -> None:
        self.is_stopped = True

    def call_at(self, when: float, act: Callable[[], object]) -> Timer:
        timer = Timer(act)
        heapq.heappush(self._timers, (when, next(self._count), timer))
        return timer

    def watch_level(self, fd: int, handler: Callable[[int], object]) -> None:
        self.handlers[fd] = handler

    def advance(self, seconds: float, tick: Callable[[float], object]) -> None:
        end, beat = self.now + seconds, self.now + 0.25
        while self.now < end:
            self.turns += 1
            due = self._timers[0][0] if self._timers else float("inf")
            self.now = max(self.now, min(due, beat, end))
            if beat <= self.now:
                tick(self.now)
                beat += 0.25
            elif due <= self.now:
                timer = heapq.heappop(self._timers)[2]
                if timer.act is not None:
                    timer.act()

    def stand_still(self, seconds: float) -> Iterator[None]:
        """Nothing runs for so long; then what is due runs turn by turn, each yielded."""
        self.now += seconds
        while self._timers and self._timers[0][0] <= self.now:
            self.turns += 1
            due = []
            while self._timers and self._timers[0][0] <= self.now:
                due.append(heapq.heappop(self._timers)[2])
            for timer in due:
                if timer.act is not None:
                    timer.act()
            yield


class Log:
    """Lines without quotes and prefix."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level: str, verb: str, fields: dict[str, object]) -> tuple[str, int, int]:
        text = " ".join(f"{key}={value}" for key, value in fields.items())
        self.lines.append(f"{level} {verb} {text}")
        return text, 0, 0

    def debug(self, verb: str, **fields: object) -> None:
        pass


class ProberSimulation:
    """A board, a scripted network, and probers on it."""

    def __init__(self, *texts: str, pools: tuple[Pool, ...] = (MAIN,)) -> None:
        """One text per backend; "api: 10.0.0.1:80" is one of the pool api."""
        self.pools = pools
        named = []
        for text in texts:
            pool, _, upstream = text.rpartition(": ")
            named.append(replace(parse_upstream(upstream), pool=pool or MAIN_POOL))
        room = max(8, len(named))  # in blocks that are none of their places
        self.backends = with_indexes(named, {b.identity: (5 - place) % room for place, b in enumerate(named)})
        self.board = make_board(room, live=3, pools=len(pools))
        for pool in pools:
            self.board.assign_pool(pool.index, [b.index for b in self.backends if b.pool == pool.name])
        self.loop, self.log = Loop(), Log()
        self.network: dict[object, str] = {}  # sockaddr -> outcome; "" = no answer at all
        self.asked: list[tuple[float, object]] = []
        self.headers: list[SendProxy | None] = []  # of each check
        self.names: dict[str, list[str]] = {}
        self.lookups: list[tuple[float, str]] = []
        self.servers: Callable[[], NameServers] | None = None  # of sets; None: those of /etc/resolv.conf
        self.title = ""
        self.child: Any = None  # of the last prober
        self.agents: Any = None  # Agents, where some are asked
        self.settled: list[float] = []
        self.own = {"127.0.0.1"}  # the addresses of this machine; the balancer listens on port 8080 of all

    def probe(
        self,
        loop: Loop,
        target: Any,
        timeout: float,
        done: Callable[[str, float, str], object],
        send_proxy: SendProxy | None,
        dialogue: Any,
    ) -> object:
        self.asked.append((loop.now, target[1]))
        self.headers.append(send_proxy)
        outcome = self.network.get(target[1], "ok")
        if outcome in ("ok", "refused", "reply"):
            done(outcome, 0.001, "-LOADING" if outcome == "reply" else "")
            return SimpleNamespace(is_over=True)
        timer = loop.call_at(loop.now + timeout, lambda: done(outcome, timeout, ""))
        return SimpleNamespace(is_over=False, abandon=timer.cancel)

    def ask(self, query: Any, done: Callable[[Any], object], asked: Callable[[], object]) -> None:
        """A query of a set: no name server answers."""

    def resolver(self) -> object:
        asked: list[str] = []

        def collect() -> list[tuple[str, list[str], str]]:
            answers = [(name, self.names.get(name, []), "") for name in asked]
            asked.clear()
            return answers

        def ask(name: str) -> None:
            asked.append(name)
            self.lookups.append((self.loop.now, name))

        return SimpleNamespace(wake_fd=0, ask=ask, collect=collect)

    def prober(self, row: int = PROBER, pid: int = 0, **options: object) -> Prober:
        cells = self.board.shared.rows.row(row)
        cells[PID] = pid or os.getpid()
        child = self.child = SimpleNamespace(
            row=row, cells=cells, loop=self.loop, log=self.log, draining=False,
            title=SimpleNamespace(set=lambda text, now: setattr(self, "title", text)),
        )  # fmt: skip
        if isinstance(check := options.get("check"), str):
            options["check"] = parse_check_line(check)
        pools = [
            replace(pool, backends=tuple(b for b in self.backends if b.pool == pool.name), **options)  # type: ignore[arg-type]
            for pool in self.pools
        ]
        own = OwnListeners([parse_address("0.0.0.0:8080")], self.own.__contains__)
        prober = Prober(
            child,
            pools,
            self.board,
            REFRESH,
            own,
            self.resolver(),
            self.probe,
            servers=self.servers,
            ask=self.ask,
        )  # type: ignore[arg-type]
        prober.start(lambda: self.settled.append(self.loop.now))
        return prober

    def answer(self, prober: Prober, name: str, *addresses: str) -> None:
        """From now on the name server knows these; the prober asks when it is time to."""
        self.names[name] = list(addresses)
        self.loop.advance(REFRESH + 0.1, prober.tick)
        self.loop.handlers[0](1)

    def verbs(self, verb: str) -> list[str]:
        return [line for line in self.log.lines if line.split()[1] == verb]

    def verdict(self, backend: Backend) -> int:
        return self.board.word(backend.index, W_VERDICT)

    def fail_session(self, backend: Backend, count: int = 1) -> None:
        self.board.shared.rows.row(WORKER)[Board.backend_at(backend.index) + B_CONNECT_FAILURES] += count


@pytest.fixture
def sim() -> ProberSimulation:
    return ProberSimulation("10.0.0.1:80 name=a", "10.0.0.2:80 name=b")


@pytest.mark.parametrize("count", [1, 6, 7, 8, 9, 40])
def test_the_simulation_gives_each_backend_a_block_of_its_own(count: int) -> None:
    """Fails where the seventh has block -1, where the totals of removed backends are."""
    many = ProberSimulation(*(f"10.0.1.{number}:80" for number in range(count)))
    assert {backend.index for backend in many.backends} <= set(range(max(8, count)))
    assert len({backend.index for backend in many.backends}) == count
    prober = many.prober()
    many.network[("10.0.1.0", 80)] = "refused"
    many.loop.advance(12.0, prober.tick)
    assert [many.verdict(backend) for backend in many.backends] == [DOWN] + [UP] * (count - 1)


A, B, C = ("10.0.0.1", 80), ("10.0.0.2", 80), ("10.0.0.3", 80)


def test_all_well_is_known_within_half_an_interval_and_says_nothing(sim: ProberSimulation) -> None:
    prober = sim.prober()
    assert sim.verdict(sim.backends[0]) == UNKNOWN
    sim.loop.advance(1.0, prober.tick)
    assert [sim.verdict(backend) for backend in sim.backends] == [UP, UP]
    assert sim.title == "prober [2/2 up]"
    assert sim.log.lines == []


def test_checks_come_at_the_interval_and_not_in_step(sim: ProberSimulation) -> None:
    prober = sim.prober()
    sim.loop.advance(41.0, prober.tick)
    times = [when for when, target in sim.asked if target == A]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) in (20, 21, 22)
    assert all(1.9 <= gap <= 2.1 for gap in gaps) and len(set(gaps)) > 5
    assert not {when for when, target in sim.asked if target == A} & {
        when for when, target in sim.asked if target == B
    }


def test_a_death_is_told_once_and_the_return_too(sim: ProberSimulation) -> None:
    prober = sim.prober()
    sim.loop.advance(1.0, prober.tick)
    sim.network[A] = "refused"
    sim.loop.advance(6.0, prober.tick)
    assert [sim.verdict(backend) for backend in sim.backends] == [DOWN, UP]
    assert sim.title == "prober [1/2 up]"
    sim.loop.advance(20.0, prober.tick)
    sim.network[A] = "ok"
    sim.loop.advance(3.5, prober.tick)
    assert sim.verdict(sim.backends[0]) == UP
    assert sim.log.lines == [
        "warning down backend=a address=10.0.0.1:80 check=refused failures=3/3 up=1/2 then=next try in 2s",
        "info up backend=a address=10.0.0.1:80 passed=2/2 up=2/2",
    ]
    events = [f"{event.verb} {event.text}" for event in sim.board.shared.events.read()]
    assert events == [line.partition(" ")[2] for line in sim.log.lines]
    own = sim.board.shared.rows.row(PROBER)
    assert own[Board.backend_at(sim.backends[0].index) + B_DOWNS] == 1
    assert own[Board.backend_at(sim.backends[0].index) + B_CHECKS] == sum(
        target == A for _, target in sim.asked
    )


def test_a_silent_backend_fails_by_the_time_limit(sim: ProberSimulation) -> None:
    sim.network[A] = "timeout"
    prober = sim.prober(connect_timeout=0.5)
    sim.loop.advance(6.0, prober.tick)
    assert sim.verdict(sim.backends[0]) == DOWN
    assert CHECK_NAMES[sim.board.word(sim.backends[0].index, W_CHECK)] == "timeout"


def test_all_down_is_told_once_and_the_service_comes_back_by_itself(sim: ProberSimulation) -> None:
    prober = sim.prober()
    sim.network.update({A: "refused", B: "refused"})
    sim.loop.advance(30.0, prober.tick)
    assert sim.title == "prober [0/2 up]"
    sim.network.clear()
    sim.loop.advance(5.0, prober.tick)
    assert [line.split()[1] for line in sim.log.lines] == [
        "down", "down", "all-down", "up", "some-up", "up"
    ]  # fmt: skip
    assert (
        "error all-down up=0/2 reason=every backend is down then=clients are closed until a backend is back"
        in (sim.log.lines)
    )


Act = Callable[["ProberSimulation", int], object]


def refuse(sim: ProberSimulation, place: int) -> None:
    sim.network[(A, B)[place]] = "refused"


def accept_again(sim: ProberSimulation, place: int) -> None:
    del sim.network[(A, B)[place]]


def admin(state: int) -> Act:
    return lambda sim, place: sim.board.set_admin_state(sim.backends[place].index, state)


def weight(value: int | None) -> Act:
    return lambda sim, place: sim.board.set_weight(sim.backends[place].index, value)


CAUSES = {  # what takes a backend out, what brings it back, what is said of both, what of one
    "check": (refuse, accept_again, "every backend is down", "1 down"),
    "drain": (admin(ADMIN_DRAIN), admin(ADMIN_READY), "every backend is drained by an operator", "1 drained"),
    "maint": (
        admin(ADMIN_MAINT),
        admin(ADMIN_READY),
        "every backend is in maintenance by an operator",
        "1 in maintenance",
    ),
    "weight": (weight(0), weight(None), "every backend has weight 0", "1 with weight 0"),
}


@pytest.mark.parametrize("second", CAUSES)
@pytest.mark.parametrize("first", CAUSES)
def test_all_down_and_some_up_are_said_whatever_the_cause(
    sim: ProberSimulation, first: str, second: str
) -> None:
    prober = sim.prober()
    sim.loop.advance(1.0, prober.tick)
    CAUSES[first][0](sim, 0)
    sim.loop.advance(6.0, prober.tick)
    assert sim.verbs("all-down") == []
    CAUSES[second][0](sim, 1)
    sim.loop.advance(6.0, prober.tick)
    order = list(CAUSES)
    wording = [CAUSES[cause][3] for cause in sorted((first, second), key=["check", "weight", *order].index)]
    reason = CAUSES[first][2] if first == second else ", ".join(wording)
    (said,) = sim.verbs("all-down")
    assert said.startswith(f"error all-down up=0/2 reason={reason} then=")
    assert sim.title == "prober [0/2 up]"
    sim.loop.advance(20.0, prober.tick)
    assert len(sim.verbs("all-down")) == 1 and sim.verbs("some-up") == []
    CAUSES[first][1](sim, 0)
    sim.loop.advance(6.0, prober.tick)
    (back,) = sim.verbs("some-up")
    assert back.startswith("info some-up up=1/2 after=")
    CAUSES[second][1](sim, 1)
    sim.loop.advance(6.0, prober.tick)
    assert len(sim.verbs("all-down")) == len(sim.verbs("some-up")) == 1


def test_an_act_of_an_operator_is_said_within_a_tick(sim: ProberSimulation) -> None:
    prober = sim.prober()
    sim.loop.advance(1.0, prober.tick)
    for backend in sim.backends:
        sim.board.set_admin_state(backend.index, ADMIN_DRAIN)
    sim.loop.advance(0.25, prober.tick)
    assert len(sim.verbs("all-down")) == 1


@pytest.mark.parametrize("seen", ["never", "before"])
@pytest.mark.parametrize("cause", ["drain", "weight"])
def test_an_act_of_an_operator_is_said_though_a_check_ends_before_the_tick_does(
    sim: ProberSimulation, cause: str, seen: str
) -> None:
    prober = sim.prober()
    if seen == "before":
        sim.loop.advance(1.0, prober.tick)
    for place in (0, 1):
        CAUSES[cause][0](sim, place)
    sim.loop.advance(2.5, lambda now: None)
    assert sim.asked, "the first good check of a backend is published, and is no change of its verdict"
    sim.loop.advance(0.5, prober.tick)
    assert len(sim.verbs("all-down")) == 1
    assert sim.title == "prober [0/2 up]"


def test_a_reload_that_leaves_only_backends_that_are_down_is_said(sim: ProberSimulation) -> None:
    first = sim.prober()
    refuse(sim, 0)
    sim.loop.advance(6.0, first.tick)
    sim.backends = sim.backends[:1]  # the one that was up is not configured any more
    second = sim.prober(SECOND)
    assert len(sim.verbs("all-down")) == 1
    accept_again(sim, 0)
    sim.loop.advance(6.0, second.tick)
    assert len(sim.verbs("some-up")) == 1


def test_a_reload_that_brings_a_backend_that_is_up_is_said(sim: ProberSimulation) -> None:
    whole = sim.backends
    sim.backends = whole[:1]
    first = sim.prober()
    refuse(sim, 0)
    sim.loop.advance(6.0, first.tick)
    assert len(sim.verbs("all-down")) == 1
    sim.backends = whole
    sim.prober(SECOND)
    assert [line.split(" after")[0] for line in sim.verbs("some-up")] == ["info some-up up=1/2"]


def test_a_successor_does_not_say_again_what_was_said(sim: ProberSimulation) -> None:
    first = sim.prober()
    for place in (0, 1):
        refuse(sim, place)
    sim.loop.advance(6.0, first.tick)
    sim.board.shared.rows.zero(PROBER)  # killed and reaped
    second = sim.prober(SECOND)
    sim.loop.advance(6.0, second.tick)
    assert len(sim.verbs("all-down")) == 1


def test_a_name_not_answered_yet_is_no_outage_until_connect_timeout_has_passed() -> None:
    sim = ProberSimulation("web:80")
    prober = sim.prober(check="none")
    sim.loop.advance(4.5, prober.tick)
    assert sim.log.lines == []
    sim.loop.advance(1.0, prober.tick)
    (said,) = sim.log.lines
    assert said.startswith("error all-down up=0/1 reason=names not resolved yet then=")
    sim.answer(prober, "web", "10.0.0.1")
    sim.loop.advance(0.25, prober.tick)
    assert sim.verbs("some-up")


def test_a_name_that_has_failed_is_an_outage_at_once() -> None:
    sim = ProberSimulation("web:80")
    prober = sim.prober(check="none")
    sim.loop.handlers[0](1)  # no such name
    sim.loop.advance(0.25, prober.tick)
    assert len(sim.verbs("all-down")) == 1


def test_failed_sessions_bring_it_down_long_before_the_checks_would(sim: ProberSimulation) -> None:
    prober = sim.prober()
    sim.loop.advance(2.5, prober.tick)
    sim.network[A] = "refused"
    sim.fail_session(sim.backends[0], 40)
    sim.loop.advance(0.9, prober.tick)
    sim.fail_session(sim.backends[0], 40)
    sim.loop.advance(0.4, prober.tick)
    assert sim.verdict(sim.backends[0]) == DOWN


def test_failed_sessions_alone_do_not_bring_down_what_answers_its_checks(sim: ProberSimulation) -> None:
    prober = sim.prober()
    for _ in range(40):
        sim.fail_session(sim.backends[0])
        sim.loop.advance(0.5, prober.tick)
    assert sim.verdict(sim.backends[0]) == UP
    assert sim.log.lines == []


def test_sessions_that_failed_before_the_prober_came_are_history(sim: ProberSimulation) -> None:
    sim.fail_session(sim.backends[0], 99)
    prober = sim.prober(check="none", check_fall=1)
    sim.loop.advance(2.0, prober.tick)
    assert sim.log.lines == []


def test_without_checks_failed_sessions_take_it_down_for_an_interval(sim: ProberSimulation) -> None:
    prober = sim.prober(check="none")
    sim.loop.advance(1.0, prober.tick)
    for _ in range(3):
        sim.fail_session(sim.backends[0])
        sim.loop.advance(0.25, prober.tick)
    assert sim.verdict(sim.backends[0]) == DOWN
    sim.loop.advance(2.5, prober.tick)
    assert sim.verdict(sim.backends[0]) == UP
    assert sim.asked == []


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("way", ["reload", "killed", "upgrade"])
def test_without_checks_a_successor_goes_on_with_the_pause_and_the_trial(
    sim: ProberSimulation, times: int, way: str
) -> None:
    """The pause is `times` intervals long; in the middle of the last one, and after it, another prober comes."""
    pause, row = 10.0, PROBER

    def succeed() -> Prober:
        nonlocal row
        if way == "killed":
            sim.board.shared.rows.zero(row)
        row = SECOND if row == PROBER else PROBER
        if way == "upgrade":
            text = export_state(sim.board, sim.backends)
            sim.board = make_board(8, live=3)
            restore_state(sim.board, sim.backends, text)
        return sim.prober(row, check="none", check_interval=pause)

    def fail(prober: Prober, count: int) -> int:
        for _ in range(count):
            sim.fail_session(sim.backends[0])
            sim.loop.advance(0.25, prober.tick)
        return sim.verdict(sim.backends[0])

    prober = sim.prober(check="none", check_interval=pause)
    sim.loop.advance(1.0, prober.tick)
    for number in range(1, times + 1):
        assert fail(prober, 3 if number == 1 else 1) == DOWN
        if number < times:
            sim.loop.advance(number * pause + 0.3, prober.tick)
            assert sim.verdict(sim.backends[0]) == UP
    sim.loop.advance((times - 0.5) * pause, prober.tick)
    prober = succeed()
    sim.loop.advance(0.5 * pause - 1.0, prober.tick)
    assert sim.verdict(sim.backends[0]) == DOWN, "its pause is not over"
    sim.loop.advance(1.3, prober.tick)
    assert sim.verdict(sim.backends[0]) == UP
    assert fail(succeed(), 1) == DOWN, "it is on trial"


def test_maintenance_is_not_checked(sim: ProberSimulation) -> None:
    prober = sim.prober()
    sim.board.set_admin_state(sim.backends[0].index, ADMIN_MAINT)
    sim.loop.advance(10.0, prober.tick)
    assert {target for _, target in sim.asked} == {B}


def test_a_successor_begins_with_the_last_verdicts(sim: ProberSimulation) -> None:
    first = sim.prober()
    sim.network[A] = "refused"
    sim.loop.advance(6.0, first.tick)
    sim.board.shared.rows.zero(PROBER)  # killed and reaped
    assert sim.verdict(sim.backends[0]) == DOWN
    sim.log.lines.clear()
    second = sim.prober(SECOND)
    assert sim.title == "prober [1/2 up]"
    sim.loop.advance(6.0, second.tick)
    assert sim.verdict(sim.backends[0]) == DOWN
    assert sim.log.lines == []


def test_a_backend_whose_address_changed_is_unknown_again(sim: ProberSimulation) -> None:
    first = sim.prober()
    sim.network[A] = "refused"
    sim.loop.advance(6.0, first.tick)
    sim.backends = with_indexes(
        [parse_upstream("10.0.0.9:80 name=a"), parse_upstream("10.0.0.2:80 name=b")], {"a": 5, "b": 4}
    )
    sim.prober(SECOND)
    assert [sim.verdict(backend) for backend in sim.backends] == [UNKNOWN, UP]


def test_the_limits_of_the_newest_configuration_hold_until_its_reload_has_failed(
    sim: ProberSimulation,
) -> None:
    index = sim.backends[0].index
    old = sim.prober(max_queue=8)
    sim.backends = (replace(sim.backends[0], maxconn=7), *sim.backends[1:])
    sim.prober(SECOND, max_queue=9)
    assert (sim.board.maxconn_of(index, 0), sim.board.max_queue_of(0, 1)) == (7, 9)
    sim.board.counts.row(SECOND)[PID] = 0
    sim.loop.advance(0.5, old.tick)
    assert (sim.board.maxconn_of(index, 5), sim.board.max_queue_of(0, 1)) == (0, 8)


@pytest.mark.parametrize("on_down", ["keep", "close"])
@pytest.mark.parametrize("successor", [False, True])
def test_a_prober_that_drains_goes_on_while_only_it_can_have_sessions_of_workers_closed(
    sim: ProberSimulation, on_down: str, successor: bool
) -> None:
    """An upgrade's workers drain on a board of their own; after a reload the next prober writes for them."""
    rows = sim.board.shared.rows
    rows.row(WORKER)[PID] = 4711
    prober = sim.prober(check_fall=1, on_down=on_down)
    child = sim.child
    sim.loop.advance(1.0, prober.tick)
    if successor:
        sim.prober(SECOND)
    for row in (PROBER, SECOND):
        rows.row(row)[ROLE] = WORKER_ROLE + 1
    child.draining = True
    prober.leave_when_done()
    goes_on = on_down == "close" and not successor
    assert sim.loop.is_stopped is not goes_on
    if goes_on:
        sim.network[A] = "refused"
        sim.loop.advance(3.0, prober.tick)
        assert sim.verdict(sim.backends[0]) == DOWN
        assert not sim.loop.is_stopped
        rows.zero(WORKER)
        sim.loop.advance(0.3, prober.tick)
        assert sim.loop.is_stopped


def test_only_the_prober_that_holds_the_lease_checks_and_writes(sim: ProberSimulation) -> None:
    old = sim.prober()
    sim.loop.advance(1.0, old.tick)
    newer = sim.board.shared.rows.row(SECOND)
    newer[PID] = 4711
    sim.board.take_prober_lease(SECOND, 4711, [0])
    sim.network[A] = "refused"
    sim.asked.clear()
    sim.fail_session(sim.backends[0], 5)
    sim.loop.advance(20.0, old.tick)
    assert sim.asked == [] and sim.log.lines == []
    assert sim.verdict(sim.backends[0]) == UP
    newer[PID] = 0  # that reload failed: its prober is gone
    sim.loop.advance(6.0, old.tick)
    assert sim.verdict(sim.backends[0]) == DOWN


def test_names_are_resolved_kept_and_followed() -> None:
    sim = ProberSimulation("web:80")
    (web,) = sim.backends
    prober = sim.prober()
    sim.answer(prober, "web", "10.0.0.1")
    target = target_of(sim.board, web)
    assert target is not None and target[1] == A
    sim.answer(prober, "web")  # the server has nothing to say
    assert target_of(sim.board, web) == target
    sim.answer(prober, "web", "10.0.0.2", "10.0.0.1")  # rotated, ours is still there
    assert target_of(sim.board, web) == target
    sim.answer(prober, "web", "10.0.0.2")
    sim.loop.advance(0.3, prober.tick)
    assert sim.asked[-1][1] == B
    assert sim.verbs("resolve") == [
        "info resolve backend=web:80 old=- address=10.0.0.1",
        "warning resolve name=web error=no address to dial among  then=keeps 10.0.0.1",
        "info resolve backend=web:80 old=10.0.0.1 address=10.0.0.2",
    ]


def test_names_are_looked_up_by_resolver_refresh_and_not_by_the_checks() -> None:
    sim = ProberSimulation("web:80", "web:81", "api:80")
    prober = sim.prober(check_interval=0.5)
    sim.names |= {"web": ["10.0.0.1"], "api": ["10.0.0.2"]}
    sim.loop.handlers[0](1)
    for _ in range(45):
        sim.loop.advance(1.0, prober.tick)
        sim.loop.handlers[0](1)
    asked = [when - 1000.0 for when, name in sim.lookups if name == "web"]
    assert len(asked) == 5
    assert all(10.0 <= later - earlier <= 11.3 for earlier, later in itertools.pairwise(asked))
    assert len(sim.asked) > 100


def test_a_name_that_is_waited_for_has_no_verdict_until_the_wait_is_over() -> None:
    """Workers of the configuration before may know an address of the backend: a verdict would refuse their clients."""
    sim = ProberSimulation("web:80")
    prober = sim.prober(check_interval=0.2)
    sim.loop.advance(4.5, prober.tick)  # connect-timeout is 5 s
    assert sim.settled == [] and sim.verdict(sim.backends[0]) == UNKNOWN
    assert sim.log.lines == []
    sim.loop.advance(2.0, prober.tick)
    assert len(sim.settled) == 1 and sim.verdict(sim.backends[0]) == DOWN


FAILING: dict[str, tuple[dict[str, list[str]], dict[object, str], dict[str, object]]] = {
    "no address": ({}, {}, {}),
    "refused": ({"web": ["10.0.0.1"]}, {A: "refused"}, {}),
    "silent": ({"web": ["10.0.0.1"]}, {A: "timeout"}, {}),
    "both are refused": ({"web": ["10.0.0.1", "10.0.0.2"]}, {A: "refused", B: "refused"}, {}),
    "sessions": ({"web": ["10.0.0.1"]}, {}, {"check": "none"}),
}


@pytest.mark.parametrize("case", FAILING)
@pytest.mark.parametrize("check_interval", [0.2, 2.0])
def test_a_name_without_an_address_that_answers_is_looked_up_soon_and_then_as_any_other(
    case: str, check_interval: float
) -> None:
    sim = ProberSimulation("web:80", "10.0.0.9:80")
    names, network, options = FAILING[case]
    sim.names |= names
    prober = sim.prober(check_interval=check_interval, **options)

    def pass_time(seconds: float) -> list[float]:
        sim.lookups.clear()
        for _ in range(int(seconds * 4)):
            if case == "sessions" and network_is_bad:
                sim.fail_session(sim.backends[0])
            sim.loop.advance(0.25, prober.tick)
            sim.loop.handlers[0](1)
        return [when for when, _ in sim.lookups]

    network_is_bad = False
    sim.loop.handlers[0](1)
    pass_time(10.5)
    sim.network |= network
    network_is_bad, fell = True, sim.loop.now
    first = pass_time(40.0)
    if names:
        assert first[0] - fell < 5.0, "a check, long before the refresh"
    assert len(first) <= 9
    assert len(pass_time(60.0)) == pytest.approx(6, abs=1), "its refresh is 10 s"
    sim.names["web"] = ["10.0.0.3"]
    pass_time(11.0)
    target = target_of(sim.board, sim.backends[0])
    assert target is not None and target[1] == C


V6 = ("::1", 80, 0, 0)
V4 = ("127.0.0.1", 80)


@pytest.fixture
def dual() -> tuple[ProberSimulation, Prober]:
    """A name with two addresses, both answered."""
    sim = ProberSimulation("web:80")
    sim.names["web"] = ["::1", "127.0.0.1"]
    prober = sim.prober()
    sim.loop.handlers[0](1)
    return sim, prober


def in_use(sim: ProberSimulation) -> object:
    target = target_of(sim.board, sim.backends[0])
    return target and target[1]


@pytest.mark.parametrize("outcome", ["refused", "timeout"])
@pytest.mark.parametrize(("dead", "alive"), [(V6, V4), (V4, V6)])
def test_the_address_that_answers_is_used_whichever_it_is(
    dual: tuple[ProberSimulation, Prober], dead: object, alive: object, outcome: str
) -> None:
    sim, prober = dual
    sim.network[dead] = outcome
    sim.loop.advance(20.0, prober.tick)
    assert in_use(sim) == alive
    assert sim.verdict(sim.backends[0]) == UP
    assert not sim.verbs("down")
    moves = sim.verbs("resolve")[1:]
    expected = [] if alive == V6 else ["info resolve backend=web:80 old=::1 address=127.0.0.1 addresses=2"]
    assert moves == expected


def test_when_the_one_in_use_dies_later_and_the_other_has_come_up_it_changes(
    dual: tuple[ProberSimulation, Prober],
) -> None:
    sim, prober = dual
    sim.network[V6] = "refused"
    sim.loop.advance(10.0, prober.tick)
    del sim.network[V6]
    sim.loop.advance(10.0, prober.tick)
    assert in_use(sim) == V4  # it stays with what answers
    sim.network[V4] = "refused"
    sim.loop.advance(2.2, prober.tick)
    assert in_use(sim) == V6
    assert sim.verdict(sim.backends[0]) == UP and not sim.verbs("down")


def test_when_no_address_answers_it_is_down_and_the_name_is_asked_again_soon(
    dual: tuple[ProberSimulation, Prober],
) -> None:
    sim, prober = dual
    sim.network |= {V6: "refused", V4: "refused"}
    sim.loop.advance(6.0, prober.tick)
    assert sim.verdict(sim.backends[0]) == DOWN
    (line,) = sim.verbs("down")
    assert " address=web:80 at=[::1]:80 check=refused failures=3/3 " in line
    assert [name for _, name in sim.lookups] == ["web", "web"]  # the second long before the refresh
    sim.names["web"] = ["10.0.0.1"]  # it has moved
    sim.loop.handlers[0](1)
    sim.loop.advance(3.0, prober.tick)
    assert sim.verdict(sim.backends[0]) == UP
    assert " at=10.0.0.1:80 " in sim.verbs("up")[0]


def test_addresses_that_sessions_fail_at_are_checked_at_once(dual: tuple[ProberSimulation, Prober]) -> None:
    sim, prober = dual
    sim.loop.advance(1.0, prober.tick)
    sim.network[V6] = "refused"
    sim.board.shared.rows.row(WORKER)[Board.backend_at(sim.backends[0].index) + B_ADDRESS_FAILURES] += 1
    sim.loop.advance(0.5, prober.tick)
    assert in_use(sim) == V4
    assert sim.verdict(sim.backends[0]) == UP


def test_without_checks_the_addresses_are_asked_only_when_sessions_fail_at_one() -> None:
    sim = ProberSimulation("web:80")
    sim.names["web"] = ["::1", "127.0.0.1"]
    prober = sim.prober(check="none")
    sim.loop.handlers[0](1)
    sim.loop.advance(20.0, prober.tick)
    assert sim.asked == []
    sim.network[V6] = "refused"
    sim.board.shared.rows.row(WORKER)[Board.backend_at(sim.backends[0].index) + B_ADDRESS_FAILURES] += 1
    sim.loop.advance(0.5, prober.tick)
    assert in_use(sim) == V4 and len(sim.asked) == 2
    sim.loop.advance(20.0, prober.tick)
    assert len(sim.asked) == 2


def test_only_addresses_of_the_family_of_its_sources_are_used() -> None:
    sim = ProberSimulation(
        "web:80 source=10.0.0.9 name=a", "web:81 source=2001:db8::9 name=b", "web:82 name=c"
    )
    sim.names["web"] = ["2001:db8::1", "10.0.0.1"]
    sim.prober()
    sim.loop.handlers[0](1)
    hosts = [addresses_of(sim.board, backend).hosts for backend in sim.backends]
    assert hosts == [("10.0.0.1",), ("2001:db8::1",), ("2001:db8::1", "10.0.0.1")]


def test_it_is_ready_at_once_without_names_and_with_names_that_are_known(sim: ProberSimulation) -> None:
    sim.prober()
    assert sim.settled == [1000.0]
    web = ProberSimulation("web:80")
    web.names["web"] = ["10.0.0.1"]
    web.prober()
    assert web.settled == []
    web.loop.handlers[0](1)
    assert web.settled == [1000.0]
    web.board.shared.rows.zero(PROBER)
    web.prober(SECOND)  # a reload
    assert web.settled == [1000.0, 1000.0]


def test_it_is_ready_when_each_name_has_been_answered_or_has_failed() -> None:
    sim = ProberSimulation("web:80", "api:80", "10.0.0.1:80")
    prober = sim.prober()
    sim.names["web"] = ["10.0.0.2"]
    sim.loop.advance(1.0, prober.tick)
    assert sim.settled == []
    sim.loop.handlers[0](1)
    assert sim.settled == [sim.loop.now]
    assert [sim.board.word(backend.index, W_NAME) for backend in sim.backends[:2]] == [
        NAME_ANSWERED,
        NAME_FAILED,
    ]


@pytest.mark.parametrize(("connect_timeout", "waited"), [(5.0, 5.0), (1.0, 1.0), (60.0, 10.0)])
def test_a_silent_name_server_is_not_waited_for_longer_than_connect_timeout(
    connect_timeout: float, waited: float
) -> None:
    sim = ProberSimulation("web:80")
    prober = sim.prober(connect_timeout=connect_timeout)
    sim.loop.advance(waited - 0.3, prober.tick)
    assert sim.settled == [] and sim.board.word(sim.backends[0].index, W_NAME) == NAME_ASKED
    sim.loop.advance(0.6, prober.tick)
    assert len(sim.settled) == 1 and sim.board.word(sim.backends[0].index, W_NAME) == NAME_FAILED
    sim.names["web"] = ["10.0.0.1"]
    sim.loop.handlers[0](1)  # late
    assert in_use(sim) == A and len(sim.settled) == 1


def test_a_reload_that_gives_another_name_forgets_the_addresses_of_the_old_one() -> None:
    sim = ProberSimulation("web:80 name=a")
    sim.names["web"] = ["10.0.0.1"]
    sim.prober()
    sim.loop.handlers[0](1)
    sim.backends = with_indexes([parse_upstream("api:80 name=a")], {"a": 5})
    sim.prober(SECOND)
    assert in_use(sim) is None and len(sim.settled) == 1
    sim.names["api"] = ["10.0.0.2"]
    sim.loop.handlers[0](1)
    assert in_use(sim) == B and len(sim.settled) == 2


def test_a_name_that_never_resolved_goes_down_as_unresolved() -> None:
    sim = ProberSimulation("web:80", "10.0.0.2:80")
    prober = sim.prober()
    sim.loop.advance(10.0, prober.tick)
    assert sim.verdict(sim.backends[0]) == DOWN
    assert "check=unresolved" in sim.log.lines[0]


# -- a backend that is this balancer itself


class WatchedBoard(Board):
    """Keeps what workers see of one backend after each write: its verdict, and where they would dial."""

    def __init__(self, shared: Shared, backends: int, backend: Backend) -> None:
        super().__init__(shared, backends)
        self.give_out(BACKENDS, range(backends), ())
        self.give_out(POOLS, [0], ())
        self.assign_pool(0, [backend.index])
        self.seen: list[tuple[int, list[Target]]] = []
        self._watched = backend

    def write_verdict(self, index: int, words: Iterable[tuple[int, int]]) -> None:
        super().write_verdict(index, words)
        if index == self._watched.index:
            self.seen.append((self.word(index, W_VERDICT), targets_of(self, self._watched)))


@pytest.mark.parametrize("check", ["tcp", "none"])
def test_a_name_that_is_this_balancer_is_down_before_a_worker_knows_where_to_dial(check: str) -> None:
    sim = ProberSimulation("me:8080", "10.0.0.1:8080")
    sim.names["me"] = ["127.0.0.1"]
    me = sim.backends[0]
    sim.board = board = WatchedBoard(sim.board.shared, 8, me)
    prober = sim.prober(check=check)
    sim.loop.handlers[0](1)
    assert {verdict for verdict, targets in board.seen if targets} == {DOWN}
    assert sim.verbs("down") == [
        "warning down backend=me:8080 address=me:8080 at=127.0.0.1:8080 check=itself "
        "reason=this balancer itself listens there up=1/2 then=no session goes there"
    ]
    sim.loop.advance(30, prober.tick)
    assert sim.verdict(me) == DOWN and len(sim.verbs("down")) == 1 and not sim.verbs("up")
    assert ("127.0.0.1", 8080) not in [address for _, address in sim.asked]
    sim.answer(prober, "me", "10.0.0.2")
    sim.loop.advance(10, prober.tick)
    assert sim.verdict(me) == UP and len(sim.verbs("up")) == 1


def test_of_several_addresses_only_those_of_others_are_used() -> None:
    sim = ProberSimulation("me:8080")
    sim.names["me"] = ["127.0.0.1", "10.0.0.2"]
    prober = sim.prober()
    sim.loop.handlers[0](1)
    sim.loop.advance(10, prober.tick)
    assert targets_of(sim.board, sim.backends[0]) == [(socket.AF_INET, ("10.0.0.2", 8080))]
    assert sim.verdict(sim.backends[0]) == UP and not sim.verbs("down")


@pytest.mark.parametrize("check", ["tcp", "none"])
def test_an_address_that_moves_to_this_machine_is_noticed_and_left_again(check: str) -> None:
    sim = ProberSimulation("10.0.0.9:8080", "10.0.0.9:81")
    prober = sim.prober(check=check)
    sim.loop.advance(5, prober.tick)
    assert not sim.log.lines
    sim.own.add("10.0.0.9")
    sim.loop.advance(5, prober.tick)
    assert [line.split()[2] for line in sim.verbs("down")] == ["backend=10.0.0.9:8080"]
    itself = CHECK_NAMES.index("itself")
    assert [sim.board.word(each.index, W_CHECK) == itself for each in sim.backends] == [True, False]
    sim.own.clear()
    sim.loop.advance(10, prober.tick)
    assert [line.split()[2] for line in sim.verbs("up")] == ["backend=10.0.0.9:8080"]
    assert sim.board.word(sim.backends[0].index, W_CHECK) != itself
    assert DOWN not in [sim.verdict(backend) for backend in sim.backends]


def test_what_was_down_already_is_said_to_be_this_balancer() -> None:
    sim = ProberSimulation("10.0.0.9:8080")
    sim.network[("10.0.0.9", 8080)] = "refused"
    prober = sim.prober()
    sim.loop.advance(10, prober.tick)
    sim.own.add("10.0.0.9")
    sim.loop.advance(10, prober.tick)
    assert ["check=itself" in line for line in sim.verbs("down")] == [False, True]


def test_each_pool_has_its_own_checks_and_its_own_share() -> None:
    api = Pool("api", (), check_interval=0.5, check_rise=1, check_fall=1, index=1)
    sim = ProberSimulation(
        "10.0.0.1:80 name=a", "10.0.0.2:80 name=b", "api: 10.0.0.3:80 name=a", pools=(MAIN, api)
    )
    prober = sim.prober()
    sim.loop.advance(1.0, prober.tick)
    assert sim.title == "prober [3/3 up]"
    sim.network[C] = "refused"
    sim.loop.advance(0.6, prober.tick)
    assert [sim.verdict(backend) for backend in sim.backends] == [UP, UP, DOWN]
    assert sim.title == "prober [2/3 up]"
    sim.network[C] = "ok"
    sim.loop.advance(0.6, prober.tick)
    assert [line.partition(" after=")[0] for line in sim.log.lines] == [
        "warning down pool=api backend=a address=10.0.0.3:80 check=refused failures=1/1 up=0/1 then=next try in 500ms",
        "error all-down pool=api up=0/1 reason=every backend is down then=clients are closed until a backend is back",
        "info up pool=api backend=a address=10.0.0.3:80 passed=1/1 up=1/1",
        "info some-up pool=api up=1/1",
    ]
    asked = [target for when, target in sim.asked]
    assert asked.count(C) >= 2 * asked.count(A) >= 2


def test_a_verdict_in_one_pool_leaves_the_version_of_the_others() -> None:
    api = Pool("api", (), check_fall=1, index=1)
    sim = ProberSimulation("10.0.0.1:80", "api: 10.0.0.2:80", pools=(MAIN, api))
    prober = sim.prober()
    sim.loop.advance(3.0, prober.tick)
    before = sim.board.versions(0), sim.board.versions(1)
    sim.network[B] = "refused"
    sim.loop.advance(3.0, prober.tick)
    assert sim.verdict(sim.backends[1]) == DOWN
    assert sim.board.versions(0) == before[0] and sim.board.versions(1) != before[1]


def test_a_name_in_two_pools_is_followed_in_both() -> None:
    api = Pool("api", (), index=1)
    sim = ProberSimulation("web:80", "api: web:81", pools=(MAIN, api))
    prober = sim.prober()
    sim.answer(prober, "web", "10.0.0.7")
    targets = [target_of(sim.board, backend) for backend in sim.backends]
    assert [target and target[1] for target in targets] == [("10.0.0.7", 80), ("10.0.0.7", 81)]


def test_a_version_that_a_killed_prober_left_odd_is_made_even_by_its_successor(sim: ProberSimulation) -> None:
    """While it is odd, workers keep their lists: a drain would wait for the next change of a verdict."""
    sim.prober()
    sim.board.words.cells[Board.pool_words_at(0) + VERDICTS_VERSION] += 1
    sim.board.counts.zero(PROBER)
    sim.prober(SECOND)
    assert sim.board.versions(0)[0] % 2 == 0


def end_early(sim: ProberSimulation, backend: Backend, count: int = 3, sessions: int | None = None) -> None:
    """Sessions of this backend end before its first byte; another one of the pool has spoken to somebody."""
    row = sim.board.shared.rows.row(WORKER)
    at = Board.backend_at(backend.index)
    row[at + B_SESSIONS_TOTAL] += count if sessions is None else sessions
    row[at + B_EARLY_ENDS] += count
    row[Board.backend_at(sim.backends[-1].index) + B_BYTES_OUT] += 1


@pytest.mark.parametrize("check", ["tcp", "none"])
def test_early_ends_take_a_backend_out_for_a_growing_time_whatever_its_checks_say(
    sim: ProberSimulation, check: str
) -> None:
    prober = sim.prober(check=check)
    a = sim.backends[0]
    sim.loop.advance(1.0, prober.tick)
    for turn, seconds in enumerate((5.0, 10.0, 20.0)):
        end_early(sim, a, count=1 if turn else 3)
        sim.loop.advance(0.5, prober.tick)
        assert sim.verdict(a) == DOWN and sim.title == "prober [1/2 up]"
        assert CHECK_NAMES[sim.board.word(a.index, W_CHECK)] == "early-end"
        sim.loop.advance(seconds - 1.0, prober.tick)
        assert sim.verdict(a) == DOWN
        assert CHECK_NAMES[sim.board.word(a.index, W_CHECK)] == "early-end"
        sim.loop.advance(1.0, prober.tick)
        assert sim.verdict(a) == UP
    where = "backend=a address=10.0.0.1:80"
    down = f"warning down {where} check=early-end failures={{}} up=1/2 then=next try in {{}}s"
    assert sim.log.lines == [
        down.format("3/3", 5),
        f"info up {where} up=2/2",
        down.format("1/1", 10),
        f"info up {where} up=2/2",
        down.format("1/1", 20),
        f"info up {where} up=2/2",
    ]


def test_a_backend_that_also_fails_its_checks_is_up_when_both_are_over(sim: ProberSimulation) -> None:
    prober = sim.prober()
    a = sim.backends[0]
    end_early(sim, a)
    sim.network[A] = "refused"
    sim.loop.advance(6.0, prober.tick)
    assert sim.verdict(a) == DOWN and len(sim.verbs("down")) == 1
    del sim.network[A]
    sim.loop.advance(5.0, prober.tick)
    assert sim.verdict(a) == UP and len(sim.verbs("up")) == 1


@pytest.mark.parametrize("state", [ADMIN_DRAIN, ADMIN_MAINT])
def test_the_last_backend_that_is_up_gets_no_penalty_and_is_released_from_one(
    sim: ProberSimulation, state: int
) -> None:
    prober = sim.prober()
    a, b = sim.backends
    sim.loop.advance(1.0, prober.tick)
    end_early(sim, a)
    sim.loop.advance(0.5, prober.tick)
    assert sim.verdict(a) == DOWN
    sim.board.set_admin_state(b.index, state)
    sim.loop.advance(0.5, prober.tick)
    assert sim.verdict(a) == UP
    end_early(sim, a)
    sim.loop.advance(0.5, prober.tick)
    assert sim.verdict(a) == UP
    assert not sim.verbs("all-down")


def test_a_pool_whose_backends_never_say_a_word_gets_no_penalties(sim: ProberSimulation) -> None:
    prober = sim.prober()
    row = sim.board.shared.rows.row(WORKER)
    for backend in sim.backends:
        at = Board.backend_at(backend.index)
        row[at + B_SESSIONS_TOTAL] += 9
        row[at + B_EARLY_ENDS] += 9
    sim.loop.advance(1.0, prober.tick)
    assert [sim.verdict(backend) for backend in sim.backends] == [UP, UP]


def test_few_early_ends_among_many_sessions_are_no_penalty(sim: ProberSimulation) -> None:
    prober = sim.prober()
    for _ in range(8):
        end_early(sim, sim.backends[0], 1, sessions=4)
        sim.loop.advance(0.5, prober.tick)
    assert sim.verdict(sim.backends[0]) == UP


def test_an_operator_ends_a_penalty_by_maintenance(sim: ProberSimulation) -> None:
    prober = sim.prober()
    a = sim.backends[0]
    end_early(sim, a)
    sim.loop.advance(0.5, prober.tick)
    sim.board.set_admin_state(a.index, ADMIN_MAINT)
    sim.loop.advance(0.5, prober.tick)
    assert sim.verdict(a) == UP
    sim.board.set_admin_state(a.index, ADMIN_READY)
    assert availability(sim.board, replace(MAIN, backends=tuple(sim.backends))).up == 2


def test_a_penalty_outlives_its_prober_and_a_new_address_has_none(sim: ProberSimulation) -> None:
    first = sim.prober()
    a = sim.backends[0]
    end_early(sim, a)
    sim.loop.advance(1.0, first.tick)
    sim.board.shared.rows.zero(PROBER)
    second = sim.prober(SECOND)
    sim.loop.advance(3.0, second.tick)
    assert sim.verdict(a) == DOWN
    sim.loop.advance(2.0, second.tick)
    assert sim.verdict(a) == UP
    end_early(sim, a, 1)
    sim.loop.advance(1.0, second.tick)
    assert sim.verbs("down")[1].endswith("then=next try in 10s")
    sim.board.shared.rows.zero(SECOND)
    sim.backends = with_indexes(
        [parse_upstream("10.0.0.3:80 name=a"), parse_upstream("10.0.0.2:80 name=b")], {"a": 5, "b": 4}
    )
    third = sim.prober()
    sim.loop.advance(1.0, third.tick)
    assert sim.verdict(sim.backends[0]) == UP


@pytest.mark.parametrize("hosts", [["10.0.0.1"], ["10.0.0.1", "10.0.0.2"]])
@pytest.mark.parametrize(
    "check, send, wanted",
    [
        *(("tcp", send, send) for send in (None, SendProxy(1), SendProxy(2))),
        ("tcp proxy=no", SendProxy(1), None),
        ("tcp proxy=yes", SendProxy(1), SendProxy(1)),
        ("tcp proxy=yes", None, SendProxy(2)),
        ("tcp port=81", SendProxy(1), None),
        ("tcp address=10.0.0.9", SendProxy(1), None),
    ],
)
def test_checks_know_whether_the_backends_of_their_pool_expect_a_header(
    hosts: list[str], check: str, send: SendProxy | None, wanted: SendProxy | None
) -> None:
    sim = ProberSimulation("app.test:80")
    prober = sim.prober(send_proxy=send, check=check)
    sim.answer(prober, "app.test", *hosts)
    sim.loop.advance(6.0, prober.tick)
    assert len(sim.asked) >= 2 and set(sim.headers) == {wanted}


@pytest.mark.parametrize(
    "check, asked",
    [
        ("http GET / port=8008", {("10.0.0.1", 8008), ("::1", 8008, 0, 0)}),
        ("http GET / address=10.0.0.9", {("10.0.0.9", 80)}),
        ("http GET / address=10.0.0.9 port=1", {("10.0.0.9", 1)}),
    ],
)
def test_a_check_may_go_to_another_port_and_another_address(check: str, asked: set[object]) -> None:
    sim = ProberSimulation("app.test:80")
    sim.network = dict.fromkeys([("10.0.0.1", 8008)], "refused")
    prober = sim.prober(check=check)
    sim.answer(prober, "app.test", "10.0.0.1", "::1")
    sim.loop.advance(6.0, prober.tick)
    assert {target for _, target in sim.asked} == asked
    assert sim.verdict(sim.backends[0]) == UP


def test_the_log_says_what_came_instead(sim: ProberSimulation) -> None:
    sim.network[A] = "reply"
    prober = sim.prober(check="redis")
    sim.loop.advance(6.0, prober.tick)
    assert "check=reply failures=3/3 got=-LOADING up=1/2" in sim.verbs("down")[0]


def test_without_checks_no_more_than_a_tenth_and_never_the_last_is_taken_out() -> None:
    sim = ProberSimulation(*(f"10.0.0.{n}:80" for n in range(1, 7)))
    prober = sim.prober(check="none", check_interval=30.0)
    for _ in range(4):
        for backend in sim.backends:
            sim.fail_session(backend)
        sim.loop.advance(0.25, prober.tick)
    assert [sim.verdict(backend) for backend in sim.backends].count(DOWN) == 1
    alone = ProberSimulation("10.0.0.1:80")
    prober = alone.prober(check="none")
    for _ in range(4):
        alone.fail_session(alone.backends[0])
        alone.loop.advance(0.25, prober.tick)
    assert alone.verdict(alone.backends[0]) != DOWN


def test_a_slow_start_follows_a_real_recovery_and_outlives_the_prober(sim: ProberSimulation) -> None:
    prober = sim.prober(slow_start=20.0)
    index = sim.backends[0].index
    sim.loop.advance(2.0, prober.tick)
    assert sim.board.word(index, W_RAMP) == 0, "not at boot"
    sim.network[A] = "refused"
    sim.loop.advance(6.0, prober.tick)
    sim.network[A] = "ok"
    while sim.verdict(sim.backends[0]) == DOWN:
        sim.loop.advance(0.25, prober.tick)
    assert sim.board.word(index, W_RAMP) == 100
    sim.loop.advance(10.0, prober.tick)
    assert 400 <= sim.board.word(index, W_RAMP) <= 600
    successor = sim.prober(SECOND, os.getpid(), slow_start=20.0)
    sim.loop.advance(5.0, successor.tick)
    assert 600 < sim.board.word(index, W_RAMP) <= 850
    sim.loop.advance(6.0, successor.tick)
    assert sim.board.word(index, W_RAMP) == 0


def test_a_reload_without_slow_start_ends_one_that_goes_on(sim: ProberSimulation) -> None:
    sim.board.write_verdict(sim.backends[0].index, [(W_RAMP, 100)])
    sim.prober()
    successor = sim.prober(SECOND)
    sim.loop.advance(1.0, successor.tick)
    assert sim.board.word(sim.backends[0].index, W_RAMP) == 0


def test_a_panic_is_told_when_it_begins_and_ends() -> None:
    sim = ProberSimulation("10.0.0.1:80 name=a", "10.0.0.2:80 name=b", "10.0.0.3:80 name=c")
    prober = sim.prober(panic=50)
    sim.network.update({A: "refused", B: "refused"})
    sim.loop.advance(8.0, prober.tick)
    assert sim.verbs("panic") == [
        "warning panic up=1/3 limit=50% then=those that are down are elected as well"
    ]  # fmt: skip
    sim.network.clear()
    sim.loop.advance(8.0, prober.tick)
    assert sim.verbs("panic")[1:] == ["info panic up=2/3 limit=50% then=over"]


class Agents:
    """Answers the agents' questions of a simulation; checks are answered as before."""

    def __init__(self, sim: ProberSimulation) -> None:
        self.sim, self.says, self.asked = sim, {}, []  # type: ignore[var-annotated]
        self._checks = sim.probe
        sim.probe = self.probe  # type: ignore[method-assign, assignment]

    def probe(
        self, loop: Loop, target: Any, timeout: float, done: Any, send_proxy: Any, dialogue: Any
    ) -> object:
        if target[1][1] not in (81, 82):
            return self._checks(loop, target, timeout, done, send_proxy, dialogue)
        self.asked.append((loop.now, target[1]))
        if target[1] not in self.says:
            done("refused", 0.0, "")
        else:
            dialogue.advance()
            dialogue.advance(self.says[target[1]])
            dialogue.ended()
            done(dialogue.outcome, 0.001, dialogue.came())
        return SimpleNamespace(is_over=True)


def test_an_agent_sets_state_and_weight_and_its_silence_changes_nothing(sim: ProberSimulation) -> None:
    agents = Agents(sim)
    prober = sim.prober(agent_port=81)
    index, first = sim.backends[0].index, ("10.0.0.1", 81)
    agents.says[first] = b"up 50% maxconn:7\n"
    sim.loop.advance(2.2, prober.tick)
    assert (sim.board.share_of(index), sim.board.word(index, W_AGENT_MAXCONN)) == (0.5, 8)
    agents.says[first] = b"drain"  # the connection ends behind it
    sim.loop.advance(2.2, prober.tick)
    assert state_of(sim.board, sim.backends[0]) == "agent"
    del agents.says[first]
    sim.loop.advance(9.0, prober.tick)
    assert state_of(sim.board, sim.backends[0]) == "agent"
    successor = sim.prober(SECOND, os.getpid(), agent_port=81)
    agents.says[first] = b"up 60%\n"
    sim.loop.advance(2.2, successor.tick)
    assert state_of(sim.board, sim.backends[0]) == "agent", "only ready ends a drain"
    agents.says[first] = b"ready down #no memory\n"
    sim.loop.advance(2.2, successor.tick)
    assert state_of(sim.board, sim.backends[0]) == "down"
    agents.says[first] = b"up 100%\n"
    sim.loop.advance(2.2, successor.tick)
    assert state_of(sim.board, sim.backends[0]) == "up" and sim.board.share_of(index) == 1.0
    assert [line.partition("backend=")[2] for line in sim.verbs("agent")] == [
        "a state=up weight=50% maxconn=7".replace("state=up", "state=ready"),
        "a state=drain weight=50% maxconn=7",
        "a state=drain weight=60% maxconn=7",
        "a state=down weight=60% maxconn=7 reason=no memory",
        "a state=ready weight=100% maxconn=7",
    ]
    agents.says.clear()
    last = sim.prober()
    sim.loop.advance(1.0, last.tick)
    assert sim.board.word(index, W_AGENT_MAXCONN) == 0, "no agent is asked any longer"


@pytest.mark.parametrize("words", ["{}%", "maxconn:{}", "down #load {}"])
def test_an_agent_that_tells_its_load_does_not_fill_the_log_and_its_last_words_are_told(
    sim: ProberSimulation, words: str
) -> None:
    agents, first = Agents(sim), ("10.0.0.1", 81)
    prober = sim.prober(agent_port=81, agent_interval=0.5)
    for load in range(100):  # two new ones a second
        agents.says[first] = words.format(load + 1).encode() + b"\n"
        sim.loop.advance(0.55, prober.tick)
    assert 5 <= len(sim.verbs("agent")) <= 8
    agents.says.clear()
    sim.loop.advance(11.0, prober.tick)
    told = sim.verbs("agent")
    assert "100" in told[-1] and len(told) <= 9, "also of an agent that has fallen silent"
    sim.loop.advance(60.0, prober.tick)
    assert sim.verbs("agent") == told


def test_a_change_of_an_agents_state_is_told_at_once(sim: ProberSimulation) -> None:
    agents, first = Agents(sim), ("10.0.0.1", 81)
    prober = sim.prober(agent_port=81, agent_interval=0.5)
    states = ("50%", "40%", "drain", "ready 0%", "30%", "down #full", "up", "maint", "ready", "20%")
    for state in states:
        agents.says[first] = state.encode() + b"\n"
        sim.loop.advance(0.55, prober.tick)
    assert [line.partition("state=")[2] for line in sim.verbs("agent")] == [
        "ready weight=50%",
        "drain weight=40%",
        "ready weight=0%",
        "ready weight=30%",
        "down weight=30% reason=full",
        "ready weight=30%",
        "maint weight=30%",
        "ready weight=30%",
    ]
    assert sim.board.share_of(sim.backends[0].index) == 0.2, "the board has all at once"


def test_agents_are_asked_at_their_interval_and_not_in_step(sim: ProberSimulation) -> None:
    agents = Agents(sim)
    prober = sim.prober(agent_port=81, agent_interval=4.0)
    sim.loop.advance(81.0, prober.tick)
    times = [when for when, target in agents.asked if target == ("10.0.0.1", 81)]
    assert len(times) in (20, 21, 22) and not set(times) & {w for w, t in agents.asked if t[0] == "10.0.0.2"}


def looks_at_states(act: Callable[[], object]) -> int:
    """How many times `act` looks at what state a backend is in."""
    looks = 0

    def see(frame: Any, event: str, _: object) -> None:
        nonlocal looks
        looks += event == "call" and frame.f_code is state_of.__code__

    sys.setprofile(see)
    try:
        act()
    finally:
        sys.setprofile(None)
    return looks


def many_backends(count: int) -> ProberSimulation:
    return ProberSimulation(*(f"10.0.1.{number}:80 name=b{number}" for number in range(count)))


def refuse_all(sim: ProberSimulation) -> None:
    sim.network.update({target: "refused" for _, target in sim.asked})


def fail_all(sim: ProberSimulation) -> None:
    for backend in sim.backends:
        sim.fail_session(backend)


def end_all_early(sim: ProberSimulation) -> None:
    for backend in sim.backends:
        end_early(sim, backend, 1)


def end_all_early_and_mute(sim: ProberSimulation) -> None:
    end_all_early(sim)
    sim.board.shared.rows.row(WORKER)[Board.backend_at(sim.backends[-1].index) + B_BYTES_OUT] = 0


def drain_and_refuse_all(sim: ProberSimulation) -> None:
    refuse_all(sim)
    for backend in sim.backends:
        sim.board.set_admin_state(backend.index, ADMIN_DRAIN)


def refuse_all_while_agents_tell_their_load(sim: ProberSimulation) -> None:
    refuse_all(sim)
    all_agents_say(sim, b"up 37%\n")


def drain_all_by_agents_and_refuse_all(sim: ProberSimulation) -> None:
    refuse_all(sim)
    all_agents_say(sim, b"drain\n")


def all_agents_say(sim: ProberSimulation, line: bytes) -> None:
    sim.agents.says = {(str(backend.address.host), 81): line for backend in sim.backends}


MASSES: dict[str, tuple[Callable[[ProberSimulation], None], dict[str, object], int]] = {
    "checks": (refuse_all, {}, 100),
    "checks in panic": (refuse_all, {"panic": 30}, 100),
    "checks with slow start": (refuse_all, {"slow_start": 10.0}, 100),
    "checks of drained ones": (drain_and_refuse_all, {}, 100),
    "checks and loads of agents": (refuse_all_while_agents_tell_their_load, {"agent_port": 81}, 100),
    "checks and loads of agents in panic": (
        refuse_all_while_agents_tell_their_load,
        {"agent_port": 81, "panic": 30},
        100,
    ),
    "checks of those that agents take out": (drain_all_by_agents_and_refuse_all, {"agent_port": 81}, 100),
    "sessions": (fail_all, {}, 100),
    "sessions in panic": (fail_all, {"panic": 30}, 100),
    "sessions without checks": (fail_all, {"check": "none"}, 10),
    "early ends": (end_all_early, {}, 99),
    "early ends without checks": (end_all_early, {"check": "none"}, 99),
    "early ends of mute ones": (end_all_early_and_mute, {}, 0),
}


@pytest.mark.parametrize("mass", MASSES)
def test_a_hundred_that_fail_and_come_back_at_once_are_not_each_looked_at_for_each_of_them(mass: str) -> None:
    count = 100
    fail, options, down = MASSES[mass]
    sim = many_backends(count)
    sim.agents = Agents(sim)
    prober = sim.prober(check_fall=1, check_rise=1, **options)
    sim.loop.advance(1.0, prober.tick)

    def pass_time() -> None:
        """What was missed in a long turn, and two ticks."""
        for _ in sim.loop.stand_still(5.0):
            pass
        prober.tick(sim.loop.now)
        prober.tick(sim.loop.now)

    fail(sim)
    assert looks_at_states(pass_time) <= 12 * count
    assert sum(sim.verdict(backend) == DOWN for backend in sim.backends) == down
    sim.network.clear()
    sim.loop.now += 3600.0
    assert looks_at_states(pass_time) <= 12 * count
    assert not any(sim.verdict(backend) == DOWN for backend in sim.backends)


def test_a_hundred_that_start_slowly_and_end_sessions_early_are_not_each_looked_at_for_each_of_them() -> None:
    count = 100
    sim = many_backends(count)
    prober = sim.prober(check_fall=1, check_rise=1, slow_start=20.0)
    sim.loop.advance(1.0, prober.tick)
    refuse_all(sim)
    sim.loop.advance(3.0, prober.tick)
    sim.network.clear()
    sim.loop.advance(3.0, prober.tick)
    assert all(sim.board.word(backend.index, W_RAMP) for backend in sim.backends)
    end_all_early(sim)
    sim.loop.now += 5.0  # all reach another step
    assert looks_at_states(lambda: prober.tick(sim.loop.now)) <= 12 * count
    assert sum(sim.verdict(backend) == DOWN for backend in sim.backends) == count - 1


@pytest.mark.parametrize("seed", range(20))
def test_what_is_counted_verdict_by_verdict_is_what_is_so(seed: int) -> None:
    chance = random.Random(seed)
    sim = many_backends(5)
    agents = Agents(sim)
    panic, slow_start = chance.choice((0, 50)), chance.choice((0.0, 3.0))
    prober = sim.prober(check_fall=1, check_rise=1, panic=panic, slow_start=slow_start, agent_port=81)
    for _ in range(100):
        backend = chance.choice(sim.backends)
        target = (backend.address.host, backend.address.port)
        match chance.randrange(5):
            case 0:
                sim.network[target] = "refused"
            case 1:
                sim.network.pop(target, None)
            case 2:
                sim.board.set_admin_state(backend.index, chance.choice((ADMIN_READY, ADMIN_DRAIN)))
            case 3:
                sim.board.set_weight(backend.index, chance.choice((0, None)))
            case 4:
                agents.says[(target[0], 81)] = chance.choice(
                    (b"drain\n", b"ready up\n", b"down\n", b"up 0%\n", b"up 50%\n")
                )
        sim.loop.advance(chance.choice((0.1, 0.5, 2.0)), lambda now: None)
        prober.tick(sim.loop.now)
        found = availability(sim.board, replace(MAIN, backends=tuple(sim.backends), panic=panic))
        assert sim.title == f"prober [{found.up}/{found.all} up]"
        told = sim.verbs("all-down"), sim.verbs("some-up")
        assert len(told[0]) - len(told[1]) == (not found.is_serving)


def test_so_many_checks_begin_in_one_turn_and_the_others_in_the_next_ones() -> None:
    sim = many_backends(2 * MOST_BEGUN + 1)
    sim.prober()
    by_turn = [len(sim.asked) for _ in sim.loop.stand_still(1.0)]
    assert by_turn == [MOST_BEGUN, 2 * MOST_BEGUN, len(sim.backends)]
