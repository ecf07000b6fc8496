"""The prober without a network: scripted answers in, verdicts and log lines out."""

import heapq
import itertools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from balancer import prober as module
from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.board import (
    ADMIN_MAINT,
    B_CHECK,
    B_CHECKS,
    B_CONNECT_FAILURES,
    B_DOWNS,
    B_VERDICT,
    CHECK_NAMES,
    DOWN,
    UNKNOWN,
    UP,
    Board,
    base,
    columns_for,
)
from balancer.pool.targets import target_of
from balancer.prober import Prober
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, make_shared

PROBER, WORKER, SECOND = FIRST_LEASE, FIRST_LEASE + 1, FIRST_LEASE + 2
OPTIONS = SimpleNamespace(check="tcp", check_interval=2.0, check_rise=2, check_fall=3, connect_timeout=5.0)


class Timer:
    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act

    def cancel(self) -> None:
        self.act = None


class Loop:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self.handlers: dict[int, Callable[[int], object]] = {}

    def call_at(self, when: float, act: Callable[[], object]) -> Timer:
        timer = Timer(act)
        heapq.heappush(self._timers, (when, next(self._count), timer))
        return timer

    def watch_level(self, fd: int, handler: Callable[[int], object]) -> None:
        self.handlers[fd] = handler

    def advance(self, seconds: float, tick: Callable[[float], object]) -> None:
        end, beat = self.now + seconds, self.now + 0.25
        while self.now < end:
            due = self._timers[0][0] if self._timers else end
            self.now = max(self.now, min(due, beat, end))
            if beat <= self.now:
                tick(self.now)
                beat += 0.25
            elif due <= self.now:
                timer = heapq.heappop(self._timers)[2]
                if timer.act is not None:
                    timer.act()


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        def say(verb: str, **fields: object) -> None:
            if level != "debug":
                self.lines.append(
                    " ".join([level, verb, *(f"{key}={value}" for key, value in fields.items())])
                )

        return say


class House:
    """A board, a network that answers as told, and probers on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
        named = [parse_upstream(text) for text in texts]
        self.backends = with_indexes(named, {b.name: 5 - place for place, b in enumerate(named)})
        shared = make_shared(columns_for(8), rows=FIRST_LEASE + 3)
        shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 3
        shared.rows.row(WORKER)[PID] = 12345
        self.board = Board(shared, 8)
        self.loop, self.log = Loop(), Log()
        self.network: dict[object, str] = {}  # sockaddr -> outcome; "" = no answer at all
        self.asked: list[tuple[float, object]] = []
        self.names: dict[str, list[str]] = {}
        self.title = ""
        monkeypatch.setattr(module, "Probe", self.probe)
        monkeypatch.setattr(module, "Resolver", self.resolver)

    def probe(self, loop: Loop, target: Any, timeout: float, done: Callable[[str, float], object]) -> object:
        self.asked.append((loop.now, target[1]))
        outcome = self.network.get(target[1], "ok")
        if outcome in ("ok", "refused"):
            done(outcome, 0.001)
            return SimpleNamespace(is_over=True)
        loop.call_at(loop.now + timeout, lambda: done(outcome, timeout))
        return SimpleNamespace(is_over=False)

    def resolver(self, lookup: object) -> object:
        asked: list[str] = []

        def collect() -> list[tuple[str, list[str], str]]:
            answers = [(name, self.names.get(name, []), "") for name in asked]
            asked.clear()
            return answers

        return SimpleNamespace(wake_fd=0, ask=asked.append, collect=collect)

    def prober(self, row: int = PROBER, pid: int = 0, **options: object) -> Prober:
        cells = self.board.shared.rows.row(row)
        cells[PID] = pid or os.getpid()
        child = SimpleNamespace(
            row=row, cells=cells, loop=self.loop, log=self.log, draining=False,
            title=SimpleNamespace(set=lambda text, now: setattr(self, "title", text)),
        )  # fmt: skip
        settings = SimpleNamespace(**{**vars(OPTIONS), **options})
        prober = Prober(child, settings, self.board, self.backends)  # type: ignore[arg-type]
        prober.start()
        return prober

    def verdict(self, backend: Backend) -> int:
        return self.board.word(backend.index, B_VERDICT)

    def fail_session(self, backend: Backend, count: int = 1) -> None:
        self.board.shared.rows.row(WORKER)[base(backend.index) + B_CONNECT_FAILURES] += count


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch, "10.0.0.1:80 name=a", "10.0.0.2:80 name=b")


A, B = ("10.0.0.1", 80), ("10.0.0.2", 80)


def test_all_well_is_known_within_half_an_interval_and_says_nothing(house: House) -> None:
    prober = house.prober()
    assert house.verdict(house.backends[0]) == UNKNOWN
    house.loop.advance(1.0, prober.tick)
    assert [house.verdict(backend) for backend in house.backends] == [UP, UP]
    assert house.title == "prober [2/2 up]"
    assert house.log.lines == []


def test_checks_come_at_the_interval_and_not_in_step(house: House) -> None:
    prober = house.prober()
    house.loop.advance(41.0, prober.tick)
    times = [when for when, target in house.asked if target == A]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) in (20, 21, 22)
    assert all(1.9 <= gap <= 2.1 for gap in gaps) and len(set(gaps)) > 5
    assert not {when for when, target in house.asked if target == A} & {
        when for when, target in house.asked if target == B
    }


def test_a_death_is_told_once_and_the_return_too(house: House) -> None:
    prober = house.prober()
    house.loop.advance(1.0, prober.tick)
    house.network[A] = "refused"
    house.loop.advance(6.0, prober.tick)
    assert [house.verdict(backend) for backend in house.backends] == [DOWN, UP]
    assert house.title == "prober [1/2 up]"
    house.loop.advance(20.0, prober.tick)
    house.network[A] = "ok"
    house.loop.advance(3.5, prober.tick)
    assert house.verdict(house.backends[0]) == UP
    assert house.log.lines == [
        "warning down backend=a address=10.0.0.1:80 check=refused failures=3/3 up=1/2 then=next try in 2s",
        "info up backend=a address=10.0.0.1:80 passed=2/2 up=2/2",
    ]
    own = house.board.shared.rows.row(PROBER)
    assert own[base(house.backends[0].index) + B_DOWNS] == 1
    assert own[base(house.backends[0].index) + B_CHECKS] == sum(target == A for _, target in house.asked)


def test_a_silent_backend_fails_by_the_time_limit(house: House) -> None:
    house.network[A] = "timeout"
    prober = house.prober(connect_timeout=0.5)
    house.loop.advance(6.0, prober.tick)
    assert house.verdict(house.backends[0]) == DOWN
    assert CHECK_NAMES[house.board.word(house.backends[0].index, B_CHECK)] == "timeout"


def test_all_down_is_told_once_and_the_service_comes_back_by_itself(house: House) -> None:
    prober = house.prober()
    house.network.update({A: "refused", B: "refused"})
    house.loop.advance(30.0, prober.tick)
    assert house.title == "prober [0/2 up]"
    house.network.clear()
    house.loop.advance(5.0, prober.tick)
    assert [line.split()[1] for line in house.log.lines] == ["down", "down", "all-down", "up", "up"]


def test_failed_sessions_bring_it_down_long_before_the_checks_would(house: House) -> None:
    prober = house.prober()
    house.loop.advance(2.5, prober.tick)
    house.network[A] = "refused"
    house.fail_session(house.backends[0], 40)
    house.loop.advance(0.9, prober.tick)
    house.fail_session(house.backends[0], 40)
    house.loop.advance(0.4, prober.tick)
    assert house.verdict(house.backends[0]) == DOWN


def test_failed_sessions_alone_do_not_bring_down_what_answers_its_checks(house: House) -> None:
    prober = house.prober()
    for _ in range(40):
        house.fail_session(house.backends[0])
        house.loop.advance(0.5, prober.tick)
    assert house.verdict(house.backends[0]) == UP
    assert house.log.lines == []


def test_sessions_that_failed_before_the_prober_came_are_history(house: House) -> None:
    house.fail_session(house.backends[0], 99)
    prober = house.prober(check="none", check_fall=1)
    house.loop.advance(2.0, prober.tick)
    assert house.log.lines == []


def test_without_checks_failed_sessions_close_the_door_for_an_interval(house: House) -> None:
    prober = house.prober(check="none")
    house.loop.advance(1.0, prober.tick)
    for _ in range(3):
        house.fail_session(house.backends[0])
        house.loop.advance(0.25, prober.tick)
    assert house.verdict(house.backends[0]) == DOWN
    house.loop.advance(2.5, prober.tick)
    assert house.verdict(house.backends[0]) == UP
    assert house.asked == []


def test_maintenance_is_not_checked(house: House) -> None:
    prober = house.prober()
    house.board.set_admin(house.backends[0].index, ADMIN_MAINT)
    house.loop.advance(10.0, prober.tick)
    assert {target for _, target in house.asked} == {B}


def test_a_successor_begins_with_the_last_verdicts(house: House) -> None:
    first = house.prober()
    house.network[A] = "refused"
    house.loop.advance(6.0, first.tick)
    house.board.shared.rows.zero(PROBER)  # killed and reaped
    assert house.verdict(house.backends[0]) == DOWN
    house.log.lines.clear()
    second = house.prober(SECOND)
    assert house.title == "prober [1/2 up]"
    house.loop.advance(6.0, second.tick)
    assert house.verdict(house.backends[0]) == DOWN
    assert house.log.lines == []


def test_a_backend_whose_address_changed_is_unknown_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = house.prober()
    house.network[A] = "refused"
    house.loop.advance(6.0, first.tick)
    house.backends = with_indexes(
        [parse_upstream("10.0.0.9:80 name=a"), parse_upstream("10.0.0.2:80 name=b")], {"a": 5, "b": 4}
    )
    house.prober(SECOND)
    assert [house.verdict(backend) for backend in house.backends] == [UNKNOWN, UP]


def test_only_the_prober_in_the_chair_asks_and_writes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    old = house.prober()
    house.loop.advance(1.0, old.tick)
    newer = house.board.shared.rows.row(SECOND)
    newer[PID] = 4711
    house.board.take_chair(SECOND, 4711)
    house.network[A] = "refused"
    house.asked.clear()
    house.fail_session(house.backends[0], 5)
    house.loop.advance(20.0, old.tick)
    assert house.asked == [] and house.log.lines == []
    assert house.verdict(house.backends[0]) == UP
    newer[PID] = 0  # that reload failed: its prober is gone
    house.loop.advance(6.0, old.tick)
    assert house.verdict(house.backends[0]) == DOWN


def test_names_are_resolved_kept_and_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, "web:80")
    (web,) = house.backends
    prober = house.prober()

    def answer(*addresses: str) -> None:
        house.names["web"] = list(addresses)
        house.loop.advance(2.1, prober.tick)
        house.loop.handlers[0](1)

    answer("10.0.0.1")
    target = target_of(house.board, web)
    assert target is not None and target[1] == A
    answer()  # the server has nothing to say
    assert target_of(house.board, web) == target
    answer("10.0.0.2", "10.0.0.1")  # rotated, ours is still there
    assert target_of(house.board, web) == target
    answer("10.0.0.2")
    house.loop.advance(0.3, prober.tick)
    assert house.asked[-1][1] == B
    assert [line for line in house.log.lines if line.split()[1] == "resolve"] == [
        "info resolve backend=web:80 old=- address=10.0.0.1",
        "info resolve backend=web:80 old=10.0.0.1 address=10.0.0.2",
    ]


def test_a_name_that_never_resolved_goes_down_as_unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, "web:80", "10.0.0.2:80")
    prober = house.prober()
    house.loop.advance(10.0, prober.tick)
    assert house.verdict(house.backends[0]) == DOWN
    assert "check=unresolved" in house.log.lines[0]
