"""The console's HTTP server: limits, and the router between eventloop/http.py and the answers.

RULES
- Knows connections and deadlines, not what is answered: `Answers` is handed in, `canonical`, the spelling of a query
  (pages.py), and `acts`, where any may be asked for (acts.py).
- A client costs little: 128 connections at once (eventloop/connections.py says which one makes room for a new one), a
  head of 8 KiB, no body but that of an act, 5 s for a head to arrive and for an answer to be taken, one answer per
  connection and turn. With 64 of them, 100 scrapers took places from each other, and a quarter of
  their requests had no whole answer.
"""

import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from balancer.console.answers import METRICS_OPEN, STATUS_JSON, Answers, refusal
from balancer.eventloop.acceptor import Acceptor, ShortageLog
from balancer.eventloop.connection import BufferedConnection, ConnectionLimits
from balancer.eventloop.connections import Connections
from balancer.eventloop.http import HttpAnswer, HttpConnection, HttpError, HttpExchange, HttpLimits
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop

if TYPE_CHECKING:
    from balancer.console.acts import PageActs

ACT_PATH = "/act"
CLIENT_LIMIT = 128
LIMITS = ConnectionLimits(linger_seconds=2.0, linger_bytes=256 * 1024)
# 75 s between two requests: longer than the usual interval of Prometheus
HTTP_LIMITS = HttpLimits(head_bytes=8192, head_seconds=5.0, send_seconds=5.0, idle_seconds=75.0)


class WebServer:
    """Serves the HTTP clients of listening sockets that the master owns; `sockets()`: those that there are by now. It is
    its connections' router."""

    def __init__(
        self,
        loop: Loop,
        sockets: Callable[[], Iterable[socket.socket]],
        answers: Answers,
        log: Log,
        canonical: Callable[[str], str] = lambda query: "",
        acts: "PageActs | None" = None,
    ) -> None:
        self.loop = loop
        self.sockets = sockets
        self.answers = answers
        self.canonical = canonical
        self.acts = acts
        self.is_stopped = False
        self.connections: Connections[HttpConnection] = Connections(CLIENT_LIMIT, self.connection_on)
        shortage = ShortageLog(loop, log, lambda: {"socket": "metrics"})
        self.acceptor = Acceptor(loop, self.connections.begin, shortage, room=self.connections.room)
        self.refresh()

    def refresh(self) -> None:
        """Accept from the sockets that there are by now."""
        self.acceptor.serve(() if self.is_stopped else self.sockets())

    def connection_on(self, sock: socket.socket) -> HttpConnection:
        connection = BufferedConnection(
            self.loop, sock, lambda closed, reason: self.connections.discard(http), LIMITS
        )
        http = HttpConnection(connection, self, HTTP_LIMITS)
        connection.start(http)
        return http

    def begin(self, exchange: HttpExchange) -> None:
        """HttpRouter: nothing but reading, and without a body, unless acts are taken. A query counts where it asks for
        changes."""
        path, _, query = exchange.target.partition("?")
        path = unquote(path)
        if path == ACT_PATH and self.acts is not None:
            self.acts.begin(exchange, query)
            return
        if path == "/metrics" and b"application/openmetrics-text" in exchange.headers.get(b"accept", b""):
            path = METRICS_OPEN
        if refused := self.answers.refuse(
            exchange.method, path if exchange.body_length == 0 else STATUS_JSON
        ):
            exchange.answer(refused)
        elif exchange.body_length != 0:
            exchange.answer(refusal(413, "a request here has no body"))
        elif path == STATUS_JSON and (changes := self.canonical(query)):
            self.answers.ask_changes(changes, exchange.answer)
        else:
            self.answers.ask(path, exchange.answer)

    def refusal(self, error: HttpError) -> HttpAnswer:
        """HttpRouter."""
        return refusal(error.status, error.sentence, *error.headers)

    def stop(self) -> None:
        """Accept no more clients. Answers under way end by their own deadlines."""
        self.is_stopped = True
        self.refresh()
        for http in self.connections:
            http.drain()

    def is_empty(self) -> bool:
        return not self.connections
