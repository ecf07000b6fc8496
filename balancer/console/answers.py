"""What the console answers over HTTP, and how many clients share the making of an answer.

RULES: no socket, no parser. No request for a path here changes a state, so every method but GET and HEAD is refused
(acts.py has the one path that does).
- An answer is made once for all clients that wait for it. 32 scrapes at once with 1,000 backends made 32 bodies, during
  which no heartbeat was written, and the console was killed as hung.
- One step a turn of the loop: the status is read, or one answer is made from it and given to MOST_TOLD clients. The
  heartbeat, signals and other clients have their turn in between. Of 1,000 backends an answer of 1.4 MB costs 1 ms for
  each client: 100 clients at once were a turn of 0.1 s.
- An answer is used again for FRESH seconds, or for longer where the making takes long: at most a fifth of the time is
  spent on it.

    /             the status page              /metrics   for Prometheus
    /pool/NAME, /listener/NAME  pages of one; /status.json?since=VERSION: what has changed of a page (pages.py)
    /status.json  the status as JSON           /live      200: the console answers
    /events.json  the last 500 events           /ready     200 while a client can be served, else 503 and the reason
    /metrics/open  the same in OpenMetrics      /health    as /ready; /ready/POOL for the clients of one pool
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from balancer.console import prometheus
from balancer.eventloop.exposition import CONTENT_TYPE, OPEN_METRICS
from balancer.eventloop.http import Header, HttpAnswer
from balancer.eventloop.loop import Loop

FRESH = 0.2  # seconds
MOST_TOLD = 16  # clients a turn
REUSE_FACTOR = 4  # an answer is used again for so many times the time that its making took,
LONGEST_REUSE = 5.0  # and never for longer: a machine that was suspended meanwhile has made for hours
TEXT = "text/plain; charset=utf-8"
METHODS = ("GET", "HEAD")
ALWAYS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))

Status = Mapping[str, Any]
Maker = Callable[[Status], HttpAnswer]
Then = Callable[[HttpAnswer], object]


def answer_with(status: int, kind: str, text: str, *headers: Header) -> HttpAnswer:
    # A name may come from an argument that was not UTF-8; such a byte becomes a question mark.
    body = text.encode("utf-8", "replace")
    return HttpAnswer(status, (("Content-Type", kind), *ALWAYS, *headers), body)


def refusal(status: int, sentence: str, *headers: Header) -> HttpAnswer:
    """An answer that is one sentence."""
    return answer_with(status, TEXT, sentence + "\n", *headers)


def ready(found: Status) -> HttpAnswer:
    """200 while a client can be served, of the whole or of one pool; of the whole, the reason may say which pools are
    out. For load balancers, containers and scripts."""
    reason = found["reason"]
    if not found["serving"]:
        return refusal(503, reason)
    return answer_with(200, TEXT, f"ok, but {reason}\n" if reason else "ok\n")


def ready_pool(name: str) -> Maker:
    return lambda status: ready(next(pool for pool in status["pools"] if pool["name"] == name))


def json_answer(found: Mapping[str, Any]) -> HttpAnswer:
    """Written a row at a time into one buffer: the encoder holds a string for each value until the last one, and a text
    that is joined or encoded is one more of the whole, which of 1,000 backends are megabytes."""
    body = bytearray()
    for name, value in found.items():
        body += b"%b%b:" % (b"," if body else b"{", _json(name).encode())
        if isinstance(value, list):
            _add_rows(body, value)
        else:
            body += _json(value).encode()
    body += b"}\n" if body else b"{}\n"
    return HttpAnswer(200, (("Content-Type", "application/json"), *ALWAYS), bytes(body))


def _add_rows(body: bytearray, rows: list[Any]) -> None:
    body += b"["
    for place, row in enumerate(rows):
        if place:
            body += b","
        body += _json(row).encode()
    body += b"]"


_json = json.JSONEncoder(separators=(",", ":")).encode


METRICS_OPEN = "/metrics/open"  # what /metrics answers to a client that asks for OpenMetrics
CHANGES = "since "  # before the query of an answer that tells changes
MOST_MADE = 400  # answers kept of one status: one per path, and per version that a browser has
STATUS_JSON = "/status.json"  # the answer to `balancerctl status` too
ALIVE = {"/live": answer_with(200, TEXT, "ok\n")}
MAKERS: Mapping[str, Maker] = {
    STATUS_JSON: json_answer,
    "/metrics": lambda status: answer_with(200, CONTENT_TYPE, prometheus.exposition(status)),
    METRICS_OPEN: lambda status: answer_with(
        200, OPEN_METRICS, prometheus.exposition(status, is_open_metrics=True)
    ),
    "/ready": ready,
    "/health": ready,
}


def makers_for(
    pools: Iterable[str], events: Callable[[], Mapping[str, Any]], pages: Mapping[str, Maker] | None = None
) -> dict[str, Maker]:
    """How each answer is made, for a configuration with these pools."""
    of_pools = {f"/ready/{name}": ready_pool(name) for name in pools}
    return {**(pages or {}), **MAKERS, "/events.json": lambda status: json_answer(events()), **of_pools}


class Answers:
    """Answers by path, shared by all clients of the console."""

    def __init__(
        self,
        loop: Loop,
        status: Callable[[], Status],
        makers: Mapping[str, Maker],
        changes: Callable[[Status, str], HttpAnswer] | None = None,
    ) -> None:
        """`changes`: how the answers of `ask_changes` are made."""
        self._changes = changes
        self._loop = loop
        self._read_status = status
        self._makers = makers
        self._status: Status = {}
        self._read_at = float("-inf")
        self._made: dict[str, HttpAnswer] = {}  # from the status last read
        self._waiting: dict[
            str, list[tuple[float, Then]]
        ] = {}  # path -> (oldest status that will do, client)
        self._reuse = FRESH
        self._is_stepping = False
        self._has_read = False  # since the steps began

    def refuse(self, method: str, path: str) -> HttpAnswer | None:
        """The answer to a request that cannot be served."""
        if path not in self._makers and path not in ALIVE:
            paths = [path for path in (*self._makers, *ALIVE) if path.count("/") == 1]
            return refusal(404, f"no such path; there are {', '.join(paths)}, /ready/POOL")
        if method not in METHODS:
            sentence = f"a request here changes nothing; it takes {' or '.join(METHODS)}"
            return refusal(405, sentence, ("Allow", ", ".join(METHODS)))
        return None

    def ask(self, path: str, then: Then, is_shared: bool = True) -> None:
        """Call `then` with the answer of a path, now or in one of the next turns. Without `is_shared` it is made from a
        status that is read after this call: an operator sees what his last command did."""
        if path in ALIVE:
            then(ALIVE[path])
        else:
            self._ask(path, then, is_shared)

    def ask_changes(self, query: str, then: Then) -> None:
        """As `ask`, of what has changed of a page; equal queries share an answer."""
        if len(self._made) > MOST_MADE:
            self._made.clear()
        self._ask(f"{CHANGES}{query}", then, True)

    def outdate(self) -> None:
        """Something was changed: whoever asks from now on gets a status that is read after it."""
        self._read_at, self._has_read = float("-inf"), False

    def _ask(self, path: str, then: Then, is_shared: bool) -> None:
        not_before = self._loop.now - (self._reuse if is_shared else 0.0)
        if path in self._made and self._read_at >= not_before:
            then(self._made[path])
            return
        self._waiting.setdefault(path, []).append((not_before, then))
        if not self._is_stepping:
            self._is_stepping, self._has_read = True, False
            self._loop.call_next_turn(self._step)

    def _step(self) -> None:
        """Make an answer from the status last read, or read the status if that one is too old for all that wait."""
        now = self._loop.now
        if self._has_read:
            self._reuse = min(LONGEST_REUSE, max(FRESH, REUSE_FACTOR * (now - self._read_at)))
        path = next((path for path, waiting in self._waiting.items() if self._satisfied(waiting)), None)
        if path is not None:
            self._answer(path)
        elif self._waiting:
            self._made.clear()
            self._status = {}  # not beside the next one: of 1,000 backends each has megabytes
            self._status, self._read_at, self._has_read = self._read_status(), now, True
        else:
            self._is_stepping = False
            return
        self._loop.call_next_turn(self._step)

    def _satisfied(self, waiting: list[tuple[float, Then]]) -> list[tuple[float, Then]]:
        """Those for whom the status last read will do."""
        return [one for one in waiting if one[0] <= self._read_at]

    def _answer(self, path: str) -> None:
        answer = self._made.get(path)
        if answer is None:
            if path.startswith(CHANGES) and self._changes is not None:
                answer = self._changes(self._status, path.removeprefix(CHANGES))
            else:
                answer = self._makers[path](self._status)
            self._made[path] = answer
        waiting = self._waiting.pop(path)
        ready = self._satisfied(waiting)
        if rest := [one for one in waiting if one[0] > self._read_at] + ready[MOST_TOLD:]:
            self._waiting[path] = rest
        for _, then in ready[:MOST_TOLD]:
            then(answer)
