"""What the console answers: every path, every wrong method, how long an answer is used again, how many share one."""

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.console.answers import (
    FRESH,
    LONGEST_REUSE,
    MAKERS,
    MOST_TOLD,
    REUSE_FACTOR,
    STATUS_JSON,
    Answers,
    Maker,
    answer_with,
    makers_for,
)
from balancer.eventloop.http import HttpAnswer
from balancer.eventloop.loop import Loop
from tests.unit.balancer.console.sample_status import backend, status

READ_COST, MAKE_COST = 0.2, 0.3  # seconds, where a test lets them cost something


class Fixture:
    """Answers over a status made by hand, with a clock that the test turns, or that reading and making turn."""

    def __init__(self, costs: float = 0.0, makers: Mapping[str, Maker] = MAKERS) -> None:
        self.now = 100.0
        self.costs = costs
        self.loop = Loop(clock=lambda: self.now)
        self.status = status()
        self.read_at: list[float] = []
        self.made: list[str] = []
        self.answers = Answers(
            self.loop, self.read, {path: self.counted(path, make) for path, make in makers.items()}
        )

    @property
    def reads(self) -> int:
        return len(self.read_at)

    def read(self) -> dict[str, Any]:
        self.read_at.append(self.loop.now)
        self.now += self.costs * READ_COST
        return {**self.status, "uptime_s": float(self.reads)}

    def counted(self, path: str, make: Maker) -> Maker:
        def counting(status: Mapping[str, Any]) -> HttpAnswer:
            self.made.append(path)
            self.now += self.costs * MAKE_COST
            return make(status)

        return counting

    def turn(self, turns: int = 12) -> None:
        for _ in range(turns):
            self.loop.run_once(0)

    def ask(self, path: str, is_shared: bool = True) -> HttpAnswer:
        found: list[HttpAnswer] = []
        self.answers.ask(path, found.append, is_shared)
        self.turn()
        [answer] = found
        return answer


@pytest.fixture
def console() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.loop.close()


@pytest.mark.parametrize("path", ["/health", "/ready"])
@pytest.mark.parametrize(
    ("serving", "reason", "code", "body"),
    [
        (True, "", 200, b"ok\n"),
        (True, "pool api: every backend is down", 200, b"ok, but pool api: every backend is down\n"),
        (False, "every backend has weight 0", 503, b"every backend has weight 0\n"),
        (False, "no worker is ready", 503, b"no worker is ready\n"),
    ],
)
def test_health_says_whether_a_client_can_be_served(
    console: Fixture, path: str, serving: bool, reason: str, code: int, body: bytes
) -> None:
    console.status |= {"serving": serving, "reason": reason}
    answer = console.ask(path)
    assert (answer.status, answer.body) == (code, body)
    assert console.ask("/live").status == 200


def test_a_pool_is_ready_by_itself() -> None:
    backends = [backend("a", pool="web"), backend("a", pool="api", state="drain")]
    console = Fixture(makers=makers_for(("web", "api"), dict))
    console.status = status(backends=backends)
    assert [console.ask(f"/ready/{name}").status for name in ("web", "api")] == [200, 503]
    assert console.answers.refuse("GET", "/ready/none") is not None
    console.loop.close()


def test_that_the_console_lives_takes_no_status(console: Fixture) -> None:
    found: list[HttpAnswer] = []
    console.answers.ask("/live", found.append)
    assert [answer.body for answer in found] == [b"ok\n"] and console.reads == 0
    assert console.answers.refuse("GET", "/live") is None


def test_events_have_a_path() -> None:
    console = Fixture(makers=makers_for((), lambda: {"last": 7, "events": []}))
    assert json.loads(console.ask("/events.json").body) == {"last": 7, "events": []}
    console.loop.close()


@pytest.mark.parametrize("path", MAKERS)
def test_every_path_says_what_it_is_and_how_long(console: Fixture, path: str) -> None:
    answer = console.ask(path)
    headers = dict(answer.headers)
    assert answer.status == 200 and answer.reason == "OK"
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert ("Content-Security-Policy" in headers) == (path == "/")


def test_the_json_is_the_status(console: Fixture) -> None:
    console.status["version"] = "\udcff"  # from an argument that was not UTF-8
    assert json.loads(console.ask(STATUS_JSON).body) == {**console.status, "uptime_s": 1.0}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "PATCH"])
def test_nothing_but_reading(console: Fixture, method: str) -> None:
    refused = console.answers.refuse(method, "/health")
    assert refused is not None and (refused.status, dict(refused.headers)["Allow"]) == (405, "GET, HEAD")


def test_elsewhere_is_nothing(console: Fixture) -> None:
    refused = console.answers.refuse("GET", "/../etc/passwd")
    assert refused is not None and refused.status == 404 and b"/status.json" in refused.body


def test_an_answer_is_used_again_while_it_is_fresh(console: Fixture) -> None:
    first = console.ask(STATUS_JSON)
    console.now += FRESH
    console.turn()
    assert console.ask(STATUS_JSON) is first
    assert console.ask("/health").status == 200 and console.reads == 1
    console.now += FRESH
    console.turn()
    assert console.ask(STATUS_JSON).body != first.body and console.reads == 2


def test_an_operator_sees_what_his_last_command_did(console: Fixture) -> None:
    before = console.ask(STATUS_JSON, is_shared=False)
    console.now += 0.001
    console.turn()
    assert console.ask(STATUS_JSON, is_shared=False).body != before.body


def test_what_takes_long_is_used_again_for_longer() -> None:
    console = Fixture(costs=1.0)
    took = READ_COST + MAKE_COST
    first, began = console.ask("/metrics"), console.read_at[0]
    console.now = began + REUSE_FACTOR * took - 0.1
    console.turn()
    assert console.ask("/metrics") is first
    console.now += 0.2
    console.turn()
    assert console.ask("/metrics") is not first
    console.loop.close()


def test_a_machine_that_was_suspended_meanwhile_does_not_answer_with_yesterday() -> None:
    console = Fixture(costs=1e6)
    first = console.ask("/metrics")
    console.now += LONGEST_REUSE + 0.1
    console.turn()
    assert console.ask("/metrics") is not first
    console.loop.close()


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("clients", [32, 500])
def test_many_at_once_share_one_answer_and_the_heart_beats_in_between(clients: int, is_shared: bool) -> None:
    console = Fixture(costs=1.0)
    beats: list[float] = []
    told: list[int] = []
    console.loop.at_turn_end(lambda: beats.append(console.now))
    console.loop.at_turn_end(lambda: told.append(len(found)))
    found: list[HttpAnswer] = []
    for n in range(clients):
        console.answers.ask(list(MAKERS)[n % len(MAKERS)], found.append, is_shared)
    console.turn(12 + clients // MOST_TOLD)
    assert len(found) == clients and console.reads == 1
    assert sorted(console.made) == sorted(MAKERS)
    assert max(later - earlier for earlier, later in pairwise([0, *told])) <= MOST_TOLD
    assert max(later - earlier for earlier, later in pairwise(beats)) <= MAKE_COST + 1e-9
    console.loop.close()


PLAIN: Mapping[str, Maker] = {
    "/a": lambda status: answer_with(200, "text/plain", f"a{status['uptime_s']}"),
    "/b": lambda status: answer_with(200, "text/plain", f"b{status['uptime_s']}"),
}
MOVES = st.tuples(st.sampled_from(sorted(PLAIN)), st.booleans(), st.integers(0, 3), st.floats(0, 1))


@given(st.lists(MOVES, max_size=30), st.floats(0, 1))
def test_everyone_is_answered_once_and_never_with_what_is_too_old(
    moves: list[tuple[str, bool, int, float]], costs: float
) -> None:
    console = Fixture(costs, PLAIN)
    answered: list[int] = []

    def ask(number: int, path: str, is_shared: bool) -> None:
        oldest = console.loop.now - (LONGEST_REUSE if is_shared else 0.0)

        def then(answer: HttpAnswer) -> None:
            text = bytes(answer.body).decode()
            assert text[0] == path[1] and console.read_at[int(float(text[1:])) - 1] >= oldest
            answered.append(number)

        console.answers.ask(path, then, is_shared)

    for number, (path, is_shared, turns, seconds) in enumerate(moves):
        console.turn(turns)
        console.now += seconds
        console.turn(1)
        ask(number, path, is_shared)
    console.turn(20)
    assert sorted(answered) == list(range(len(moves)))
    console.loop.close()
