"""The HTTP server: reading only, bounded connections, idle ones make room."""

import os
import socket
from collections.abc import Iterator

import pytest

from balancer.console.answers import Answers, paths
from balancer.console.web import CLIENT_LIMIT, HTTP_LIMITS, WebServer
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
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
        answers = Answers(
            lambda: {"backends": [{"state": "up"}]}, paths(lambda status: "", lambda status: "")
        )
        self.server = WebServer(self.loop, self.socket, answers, Log("console", os.devnull))

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
        assert self.server.is_empty() and not self.server.idle
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


def test_the_idle_make_room_the_longest_idle_first(web: Fixture) -> None:
    idle = [web.say(REQUEST) for _ in range(CLIENT_LIMIT)]
    assert all(received(client).endswith(b"ok\n|open") for client in idle)
    idle[0].send(REQUEST)
    web.turn()
    assert received(web.say(REQUEST)).endswith(b"ok\n|open")
    assert received(idle[1]) == b"|end" and received(idle[0]).endswith(b"ok\n|open")


def test_those_under_way_keep_their_place(web: Fixture) -> None:
    under_way = [web.say(REQUEST[:10]) for _ in range(CLIENT_LIMIT)]
    assert received(web.say()) == b"|end"
    under_way[0].send(REQUEST[10:])
    web.turn()
    assert received(under_way[0]).endswith(b"ok\n|open")
    web.pass_time(HTTP_LIMITS.head_seconds)
    assert [received(client) for client in under_way[1:]] == [b"|end"] * (CLIENT_LIMIT - 1)


def test_stopped_it_closes_the_idle_and_answers_the_others(web: Fixture) -> None:
    idle, under_way = web.say(REQUEST), web.say(REQUEST[:10])
    received(idle)
    web.server.stop()
    web.turn()
    assert received(idle) == b"|end" and received(under_way) == b"|open"
    under_way.send(REQUEST[10:])
    web.turn()
    assert received(under_way).endswith(b"ok\n|end")
