"""What the second window answers: a method and a path in, an answer out.

RULES: pure, no socket and no parser. Everything here is a question; nothing changes a state, so every method but GET and
HEAD is refused. An answer of one path serves everybody who asks within FRESH seconds: a crowd costs what one costs.

    /             the page for people        /metrics       for Prometheus
    /status.json  the same for programs      /health        200 while at least one backend is up, else 503
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from balancer.console import page, prometheus

FRESH = 0.2  # seconds
TEXT = "text/plain; charset=utf-8"
METHODS = ("GET", "HEAD")
ALWAYS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, not yet on its way. `headers` say nothing of the connection."""

    status: int
    headers: tuple[Header, ...]
    body: bytes

    @property
    def reason(self) -> str:
        return HTTPStatus(self.status).phrase


def answer_with(status: int, kind: str, text: str, *headers: Header) -> Answer:
    # A name may hold what came from an argument that was not UTF-8; the reader gets a question mark.
    body = text.encode("utf-8", "replace")
    return Answer(
        status, (("Content-Type", kind), ("Content-Length", str(len(body))), *ALWAYS, *headers), body
    )


def refusal(status: int, sentence: str, *headers: Header) -> Answer:
    """An answer that is one sentence."""
    return answer_with(status, TEXT, sentence + "\n", *headers)


def health(status: Mapping[str, Any]) -> Answer:
    if any(backend["state"] == "up" for backend in status["backends"]):
        return answer_with(200, TEXT, "ok\n")
    return refusal(503, "no backend is up")


PATHS: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
    "/": lambda status: answer_with(200, page.CONTENT_TYPE, page.draw(status), *page.HEADERS),
    "/status.json": lambda status: answer_with(200, "application/json", json.dumps(status, indent=1) + "\n"),
    "/metrics": lambda status: answer_with(200, prometheus.CONTENT_TYPE, prometheus.exposition(status)),
    "/health": health,
}


class Answers:
    """Answers by path, remembered for a moment."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status
        self._fresh: dict[str, tuple[float, Answer]] = {}

    def to(self, method: str, target: str, now: float) -> Answer:
        """The answer to a request line at monotonic time `now`; a query is ignored."""
        path = target.partition("?")[0]
        if path not in PATHS:
            return refusal(404, f"there is nothing here but {', '.join(PATHS)}")
        if method not in METHODS:
            return refusal(
                405,
                f"nothing can be changed here, only read: {' or '.join(METHODS)}",
                ("Allow", ", ".join(METHODS)),
            )
        made_at, answer = self._fresh.get(path, (0.0, None))
        if answer is None or now - made_at >= FRESH:
            answer = PATHS[path](self._status())
            self._fresh[path] = now, answer
        return answer
