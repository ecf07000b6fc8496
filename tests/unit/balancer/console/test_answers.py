"""What is answered to whom: every path, every wrong method, and the moment an answer is good for."""

import json
from typing import Any

import pytest

from balancer.console import answers as room
from balancer.console.answers import FRESH, PATHS, Answers


class Console:
    """A status made by hand, counting how often it is asked."""

    def __init__(self, *states: str) -> None:
        self.asked = 0
        self.backends = [{"name": f"b{n}", "state": state} for n, state in enumerate(states)]

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        return {"backends": self.backends, "asked": self.asked, "name": "\udcff"}


@pytest.fixture(autouse=True)
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawings have tests of their own."""
    monkeypatch.setattr(room.page, "draw", lambda status: "<p>\udcff")
    monkeypatch.setattr(room.prometheus, "exposition", lambda status: "balancer_up 1\n")


@pytest.mark.parametrize(("states", "code"), [(("up", "down"), 200), (("down", "maint"), 503), ((), 503)])
def test_health_is_one_backend_up(states: tuple[str, ...], code: int) -> None:
    answer = Answers(Console(*states)).to("GET", "/health", 5.0)
    assert (answer.status, answer.body == b"ok\n") == (code, code == 200)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_says_what_it_is_and_how_long(path: str) -> None:
    answer = Answers(Console("up")).to("GET", path + "?x=1", 5.0)
    headers = dict(answer.headers)
    assert answer.status == 200 and answer.reason == "OK"
    assert int(headers["Content-Length"]) == len(answer.body)
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert ("Content-Security-Policy" in headers) == (path == "/")


def test_the_json_is_the_status() -> None:
    answer = Answers(Console("up")).to("GET", "/status.json", 5.0)
    assert json.loads(answer.body) == {
        "backends": [{"name": "b0", "state": "up"}],
        "asked": 1,
        "name": "\udcff",
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "PATCH"])
def test_nothing_but_reading(method: str) -> None:
    console = Console("up")
    answer = Answers(console).to(method, "/health", 5.0)
    assert (answer.status, dict(answer.headers)["Allow"], console.asked) == (405, "GET, HEAD", 0)


def test_elsewhere_is_nothing() -> None:
    answer = Answers(Console("up")).to("GET", "/../etc/passwd", 5.0)
    assert answer.status == 404 and b"/status.json" in answer.body


def test_a_crowd_costs_what_one_costs() -> None:
    console = Console("up")
    answers = Answers(console)
    first = answers.to("GET", "/status.json", 5.0)
    assert answers.to("HEAD", "/status.json?a", 5.0 + FRESH / 2) is first
    assert console.asked == 1
    assert answers.to("GET", "/status.json", 5.0 + FRESH).body != first.body
    assert answers.to("GET", "/health", 5.0 + FRESH).status == 200
    assert console.asked == 3
