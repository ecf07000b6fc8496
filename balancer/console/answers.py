"""What the console answers over HTTP: a method and a path in, an answer out.

RULES: pure, no socket and no parser. No request changes a state, so every method but GET and HEAD is refused. An
answer is used again for FRESH seconds, so that many clients cost as much as one.

    /             the status page            /metrics       for Prometheus
    /status.json  the status as JSON         /health        200 while at least one backend is up, else 503
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from balancer.console import page, prometheus
from balancer.eventloop.http import Header, HttpAnswer

FRESH = 0.2  # seconds
TEXT = "text/plain; charset=utf-8"
METHODS = ("GET", "HEAD")
ALWAYS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))


def answer_with(status: int, kind: str, text: str, *headers: Header) -> HttpAnswer:
    # A name may come from an argument that was not UTF-8; such a byte becomes a question mark.
    body = text.encode("utf-8", "replace")
    return HttpAnswer(status, (("Content-Type", kind), *ALWAYS, *headers), body)


def refusal(status: int, sentence: str, *headers: Header) -> HttpAnswer:
    """An answer that is one sentence."""
    return answer_with(status, TEXT, sentence + "\n", *headers)


def health(status: Mapping[str, Any]) -> HttpAnswer:
    """200 while at least one backend is up, for load balancers and scripts."""
    if any(backend["state"] == "up" for backend in status["backends"]):
        return answer_with(200, TEXT, "ok\n")
    return refusal(503, "no backend is up")


Status = Mapping[str, Any]
Paths = Mapping[str, Callable[[Status], HttpAnswer]]


def paths(
    render: Callable[[Status], str] = page.render, exposition: Callable[[Status], str] = prometheus.exposition
) -> Paths:
    """The answer of each path."""
    return {
        "/": lambda status: answer_with(200, page.CONTENT_TYPE, render(status), *page.HEADERS),
        "/status.json": lambda status: answer_with(
            200, "application/json", json.dumps(status, indent=1) + "\n"
        ),
        "/metrics": lambda status: answer_with(200, prometheus.CONTENT_TYPE, exposition(status)),
        "/health": health,
    }


PATHS = paths()


class Answers:
    """Answers by path, used again for FRESH seconds."""

    def __init__(self, status: Callable[[], Mapping[str, Any]], paths: Paths = PATHS) -> None:
        self._status = status
        self._paths = paths
        self._fresh: dict[str, tuple[float, HttpAnswer]] = {}

    def to(self, method: str, target: str, now: float) -> HttpAnswer:
        """The answer to a request line at monotonic time `now`; a query is ignored."""
        path = target.partition("?")[0]
        if path not in self._paths:
            return refusal(404, f"no such path; there are {', '.join(self._paths)}")
        if method not in METHODS:
            return refusal(
                405,
                f"this server changes nothing; it takes {' or '.join(METHODS)}",
                ("Allow", ", ".join(METHODS)),
            )
        made_at, answer = self._fresh.get(path, (0.0, None))
        if answer is None or now - made_at >= FRESH:
            answer = self._paths[path](self._status())
            self._fresh[path] = now, answer
        return answer
