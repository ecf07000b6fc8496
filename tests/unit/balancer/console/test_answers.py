"""What the console answers: every path, every wrong method, and how long an answer is used again."""

import json
from typing import Any

import pytest

from balancer.console.answers import FRESH, PATHS, Answers, paths


class StatusSource:
    """A status made by hand that counts how often it is read."""

    def __init__(self, *states: str) -> None:
        self.asked = 0
        self.backends = [{"name": f"b{n}", "state": state} for n, state in enumerate(states)]

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        return {"backends": self.backends, "asked": self.asked, "name": "\udcff"}


# Page and metrics need a whole status, and have tests of their own.
PLAIN = paths(lambda status: "<p>\udcff", lambda status: "balancer_up 1\n")


def answers(*states: str) -> Answers:
    return Answers(StatusSource(*states), PLAIN)


@pytest.mark.parametrize(("states", "code"), [(("up", "down"), 200), (("down", "maint"), 503), ((), 503)])
def test_health_is_one_backend_up(states: tuple[str, ...], code: int) -> None:
    answer = answers(*states).to("GET", "/health", 5.0)
    assert (answer.status, answer.body == b"ok\n") == (code, code == 200)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_says_what_it_is_and_how_long(path: str) -> None:
    answer = answers("up").to("GET", path + "?x=1", 5.0)
    headers = dict(answer.headers)
    assert answer.status == 200 and answer.reason == "OK"
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert ("Content-Security-Policy" in headers) == (path == "/")


def test_the_json_is_the_status() -> None:
    answer = answers("up").to("GET", "/status.json", 5.0)
    assert json.loads(answer.body) == {
        "backends": [{"name": "b0", "state": "up"}],
        "asked": 1,
        "name": "\udcff",
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "PATCH"])
def test_nothing_but_reading(method: str) -> None:
    source = StatusSource("up")
    answer = Answers(source, PLAIN).to(method, "/health", 5.0)
    assert (answer.status, dict(answer.headers)["Allow"], source.asked) == (405, "GET, HEAD", 0)


def test_elsewhere_is_nothing() -> None:
    answer = answers("up").to("GET", "/../etc/passwd", 5.0)
    assert answer.status == 404 and b"/status.json" in answer.body


def test_many_requests_cost_one_answer() -> None:
    source = StatusSource("up")
    fresh = Answers(source, PLAIN)
    first = fresh.to("GET", "/status.json", 5.0)
    assert fresh.to("HEAD", "/status.json?a", 5.0 + FRESH / 2) is first
    assert source.asked == 1
    assert fresh.to("GET", "/status.json", 5.0 + FRESH).body != first.body
    assert fresh.to("GET", "/health", 5.0 + FRESH).status == 200
    assert source.asked == 3
