"""The HTTP server: reading only, bounded connections, idle ones make room."""

import os
import socket
from collections.abc import Iterator

import pytest

from balancer.console.answers import MAKERS, Answers
from balancer.console.web import CLIENT_LIMIT, HTTP_LIMITS, WebServer
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.balancer.console.sample_status import status
from tests.unit.balancer.eventloop.sockets import received

REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class Fixture:
    """A server and clients, with a clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind("")
        self.socket.listen(64)
        self.clients: list[socket.socket] = []
        answers = Answers(self.loop, status, MAKERS)
        self.server = WebServer(self.loop, lambda: [self.socket], answers, Log("console", os.devnull))

    def say(self, data: bytes = b"") -> socket.socket:
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


@pytest.fixture
def web() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.close()


@pytest.mark.parametrize(("method", "status"), [("GET", 413), ("HEAD", 413), ("POST", 405), ("DELETE", 405)])
@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_a_request_has_no_body(web: Fixture, method: str, status: int, framing: str) -> None:
    client = web.say(f"{method} /health HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\nhello".encode())
    answer = received(client)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and answer.endswith(b"|end")
    assert (b"allow: get, head" in answer.lower()) == (status == 405)


@pytest.mark.parametrize(
    ("accept", "kind"), [("", "text/plain"), ("application/openmetrics-text", "application/op")]
)
def test_metrics_come_in_the_format_that_was_asked_for(web: Fixture, accept: str, kind: str) -> None:
    wanted = f"Accept: {accept};version=1.0.0,*/*;q=0.1\r\n" if accept else ""
    answer = received(web.say(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{wanted}\r\n".encode()))
    assert f"Content-Type: {kind}".encode() in answer
    assert answer.endswith(b"# EOF\n|open") == bool(accept)


@pytest.mark.parametrize("said", [b"", REQUEST[:10], REQUEST])
def test_health_is_answered_whatever_the_other_clients_do(web: Fixture, said: bytes) -> None:
    others = [web.say(said) for _ in range(2 * CLIENT_LIMIT)]
    assert received(web.say(REQUEST)).endswith(b"ok\n|open")
    assert [received(client).endswith(b"|end") for client in others].count(True) == CLIENT_LIMIT + 1
    assert len(web.server.connections) == CLIENT_LIMIT


def test_a_slow_head_is_cut(web: Fixture) -> None:
    slow, whole = web.say(REQUEST[:10]), web.say(REQUEST[:10])
    whole.send(REQUEST[10:])
    web.turn()
    web.pass_time(HTTP_LIMITS.head_seconds)
    assert received(whole).endswith(b"ok\n|open") and received(slow) == b"|end"


def test_stopped_it_closes_the_idle_and_answers_the_others(web: Fixture) -> None:
    idle, under_way = web.say(REQUEST), web.say(REQUEST[:10])
    received(idle)
    web.server.stop()
    web.turn()
    assert received(idle) == b"|end" and received(under_way) == b"|open"
    under_way.send(REQUEST[10:])
    web.turn()
    assert received(under_way).endswith(b"ok\n|end")
