"""The check of several addresses: the first answer wins, each address is asked once, it ends once and in time."""

from collections.abc import Callable
from itertools import product
from socket import AF_INET, AF_INET6

import pytest

from balancer.checks.race import STAGGER, AddressRace
from balancer.eventloop.timers import Timer, Timers
from balancer.pool.targets import Target

A: Target = (AF_INET6, ("::1", 80, 0, 0))
B: Target = (AF_INET, ("127.0.0.1", 80))
C: Target = (AF_INET, ("10.0.0.1", 80))
TIMEOUT = 2.0

# What a network says: (seconds after it was asked, outcome); None at all until the limit in time.
Network = dict[Target, tuple[float, str] | None]


class FakeLoop:
    def __init__(self) -> None:
        self.now = 100.0
        self.timers = Timers()

    def call_at(self, when: float, act: Callable[[], object]) -> Timer:
        return self.timers.add(Timer(when, act))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers.due_at <= end:
            self.now = max(self.now, self.timers.due_at)
            self.timers.fire_due(self.now)
        self.now = end


class FakeProbe:
    def __init__(
        self,
        loop: FakeLoop,
        answer: tuple[float, str] | None,
        timeout: float,
        done: Callable,
        name: object = "",
    ) -> None:  # type: ignore[type-arg]
        self._name = name
        self.is_over = False
        self.abandoned = False
        self._loop, self._done, self._begun = loop, done, loop.now
        after, outcome = answer or (timeout, "timeout")
        if after == 0:
            self._end(outcome)
        else:
            self._timer = loop.call_at(loop.now + min(after, timeout), lambda: self._end(outcome))

    def _end(self, outcome: str) -> None:
        self.is_over = True
        self._done(outcome, self._loop.now - self._begun, f"said by {self._name}")

    def abandon(self) -> None:
        self.abandoned = True
        self._timer.cancel()


class RaceSimulation:
    def __init__(self, network: Network) -> None:
        self.loop = FakeLoop()
        self.asked: list[tuple[float, Target]] = []
        self.probes: list[FakeProbe] = []
        self.ends: list[tuple[float, str, Target | None]] = []

        def probe(loop: FakeLoop, target: Target, timeout: float, done: Callable) -> FakeProbe:  # type: ignore[type-arg]
            self.asked.append((loop.now - 100.0, target))
            self.probes.append(FakeProbe(loop, network[target], timeout, done, target[1]))
            return self.probes[-1]

        self.race = AddressRace(self.loop, list(network), TIMEOUT, self.on_end, probe)  # type: ignore[arg-type]
        self.loop.advance(10.0)

    def on_end(self, outcome: str, seconds: float, came: str, target: Target | None) -> None:
        self.came = came
        self.ends.append((self.loop.now - 100.0, outcome, target))


ANSWERS = [
    (0.0, "ok"),
    (0.0, "refused"),
    (0.1, "ok"),
    (0.1, "refused"),
    (0.6, "ok"),
    (0.6, "unreachable"),
    None,
]


@pytest.mark.parametrize("answers", list(product(ANSWERS, repeat=3)))
def test_it_ends_once_in_time_with_the_first_good_answer(
    answers: tuple[tuple[float, str] | None, ...],
) -> None:
    network: Network = dict(zip((A, B, C), answers, strict=True))
    race = RaceSimulation(network)
    ((when, outcome, target),) = race.ends
    assert race.race.is_over and when <= TIMEOUT + 0.001
    good = [each for each in network if (answer := network[each]) is not None and answer[1] == "ok"]
    assert (outcome == "ok") == bool(good)
    if target is not None:
        assert target in good
    asked = [each for _, each in race.asked]
    assert asked == [A, B, C][: len(asked)]
    if not good:
        assert len(asked) == 3
    assert all(probe.is_over or probe.abandoned for probe in race.probes)


def test_the_next_address_is_asked_as_soon_as_one_has_failed() -> None:
    race = RaceSimulation({A: (0.1, "refused"), B: (0.0, "refused"), C: (0.1, "ok")})
    assert [(round(when, 3), target) for when, target in race.asked] == [(0.0, A), (0.1, B), (0.1, C)]
    assert race.ends == [(pytest.approx(0.2), "ok", C)]


def test_a_silent_address_is_not_waited_for_to_the_end() -> None:
    race = RaceSimulation({A: None, B: (0.1, "ok")})
    assert race.asked == [(0.0, A), (STAGGER, B)]
    assert race.ends == [(pytest.approx(STAGGER + 0.1), "ok", B)]
    assert race.probes[0].abandoned


def test_an_address_that_answers_late_still_counts() -> None:
    race = RaceSimulation({A: (0.6, "ok"), B: (0.1, "refused")})
    assert race.ends == [(pytest.approx(0.6), "ok", A)]


def test_when_none_answers_the_outcome_is_that_of_the_first_failure() -> None:
    assert [end[1] for end in RaceSimulation({A: (0.0, ""), B: (0.1, "refused"), C: None}).ends] == [
        "refused"
    ]
    assert [end[1] for end in RaceSimulation({A: None, B: None}).ends] == ["timeout"]
    assert [end[1] for end in RaceSimulation({A: (0.0, ""), B: (0.0, "")}).ends] == [""]


def test_what_came_instead_is_that_of_the_first_failure() -> None:
    assert RaceSimulation({A: (0.0, ""), B: (0.1, "reply"), C: (0.1, "reply")}).came == f"said by {B[1]}"
    assert RaceSimulation({A: (0.0, "reply"), B: (0.1, "ok")}).came == ""


def test_abandoned_it_ends_without_a_word() -> None:
    race = RaceSimulation({A: None})
    race.ends.clear()
    again = AddressRace(
        race.loop, [A, B], TIMEOUT, race.on_end,  # type: ignore[arg-type]
        lambda loop, target, timeout, done: FakeProbe(loop, None, timeout, done),  # type: ignore[arg-type]
    )  # fmt: skip
    again.abandon()
    race.loop.advance(10.0)
    assert race.ends == [] and again.is_over
