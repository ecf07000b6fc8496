"""The console's HTTP server with clients on a unix socket, and a clock that the test turns."""

import os
import socket
from collections.abc import Callable

from balancer.console.acts import PageActs
from balancer.console.answers import MAKERS, Answers
from balancer.console.web import WebServer
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.balancer.console.sample_status import status


class HttpSimulation:
    """`reads` counts how often the status was asked for; `make_acts` gives what takes the acts of the page."""

    def __init__(
        self, log_path: str = os.devnull, make_acts: Callable[[Loop, Answers, Log], PageActs] | None = None
    ) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind("")
        self.socket.listen(64)
        self.clients: list[socket.socket] = []
        self.reads = 0
        log, answers = Log("console", log_path), Answers(self.loop, self._read, MAKERS)
        acts = None if make_acts is None else make_acts(self.loop, answers, log)
        self.server = WebServer(self.loop, lambda: [self.socket], answers, log, acts=acts)

    def _read(self) -> dict[str, object]:
        self.reads += 1
        return status()

    def say(self, data: bytes = b"") -> socket.socket:
        """A new client that has sent this."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.socket.getsockname())
        client.setblocking(False)
        self.clients.append(client)
        if data:
            client.send(data)
        self.turn()
        return client

    def turn(self, turns: int = 6) -> None:
        for _ in range(turns):
            self.loop.run_once(0)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.turn()
        assert self.server.is_empty()
        self.socket.close()
        self.loop.close()
