"""A full server: which client yields its place, and that a client which asks is always answered."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.eventloop.acceptor import REST_SECONDS, Acceptor, ShortageLog
from balancer.eventloop.connection import BufferedConnection, Claim, ConnectionLimits
from balancer.eventloop.connections import Connections, claim_of
from balancer.eventloop.http import HttpAnswer, HttpConnection, HttpError, HttpExchange, HttpLimits
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.balancer.eventloop.sockets import received

LIMIT = 4
REQUEST = b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
LONG = b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n"
LATER = b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe"

# What a client has sent that does not wait for an answer, and the claim it then has.
YIELDING = {
    "silent": (b"", Claim.SILENT),
    "half a request line": (REQUEST[:9], Claim.SILENT),
    "half a head": (REQUEST[:-2], Claim.SILENT),
    "half a body": (BODY, Claim.SILENT),
    "idle after an answer": (REQUEST, Claim.IDLE),
    "does not close after its answer": (LAST, Claim.ANSWERED),
    "does not read": (LONG, Claim.UNREAD),
}


class Fixture:
    """A small HTTP server on a unix socket; a request for /later is answered by `answer`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind("")
        self.socket.listen(64)
        self.clients: list[socket.socket] = []
        self.waiting: list[HttpExchange] = []
        self.connections: Connections[HttpConnection] = Connections(LIMIT, self.make)
        shortage = ShortageLog(self.loop, Log("test", os.devnull), dict)
        begin, room = self.connections.begin, self.connections.room
        self.acceptor = Acceptor(self.loop, begin, shortage, room=room)
        self.acceptor.serve([self.socket])

    def make(self, sock: socket.socket) -> HttpConnection | None:
        connection = BufferedConnection(
            self.loop, sock, lambda _, reason: self.connections.discard(http), ConnectionLimits()
        )
        http = HttpConnection(connection, self, HttpLimits())
        connection.start(http)
        return http

    def begin(self, exchange: HttpExchange) -> None:
        if exchange.target == "/later":
            self.waiting.append(exchange)
        elif exchange.target == "/body":
            exchange.receive(BodyPlace())
        else:
            exchange.answer(HttpAnswer(200, (), b"x" * (8 << 20 if exchange.target == "/long" else 2)))

    def refusal(self, error: HttpError) -> HttpAnswer:
        return HttpAnswer(error.status, (), b"")

    def connect(self, data: bytes = b"") -> socket.socket:
        self.now += 0.01
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.socket.getsockname())
        client.setblocking(False)
        self.clients.append(client)
        if data:
            client.send(data)
        return client

    def say(self, data: bytes = b"") -> socket.socket:
        client = self.connect(data)
        self.turn()
        return client

    def turn(self, turns: int = 6) -> None:
        for _ in range(turns):
            self.loop.run_once(0)

    def claims(self) -> list[Claim]:
        return [claim_of(each) for each in self.connections]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for each in self.connections:
            each.connection.close("the test is over")
        self.turn()
        assert not self.connections
        self.socket.close()
        self.loop.close()


class BodyPlace:
    """HttpBody."""

    def place(self, count: int) -> memoryview:
        return memoryview(bytearray(count))

    def filled(self, count: int) -> None: ...

    def complete(self) -> None: ...


@pytest.fixture
def server() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.close()


def is_answered(client: socket.socket) -> bool:
    return received(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", YIELDING)
def test_who_does_not_wait_for_an_answer_makes_room_the_oldest_first(server: Fixture, kind: str) -> None:
    data, claim = YIELDING[kind]
    clients = [server.say(data) for _ in range(LIMIT)]
    assert server.claims() == [claim] * LIMIT
    assert is_answered(server.say(REQUEST))
    assert len(server.connections) == LIMIT
    assert received(clients[0]).endswith(b"|end") and not received(clients[1]).endswith(b"reset")


def test_a_byte_now_and_then_buys_no_place(server: Fixture) -> None:
    dripping, *others = [server.say(REQUEST[:5]) for _ in range(LIMIT)]
    dripping.send(REQUEST[5:6])
    server.now += 1.0
    server.turn()
    server.say(REQUEST)
    assert received(dripping) == b"|end" and received(others[0]) == b"|open"


def test_a_request_that_has_arrived_counts_before_it_is_read(server: Fixture) -> None:
    """A batch of new clients must not close what the same batch has brought."""
    clients = [server.connect(LATER) for _ in range(LIMIT)]
    server.loop.run_once(0)
    silent = [server.connect() for _ in range(3 * LIMIT)]
    server.turn(20)
    assert len(server.waiting) == LIMIT
    for exchange in server.waiting:
        exchange.answer(HttpAnswer(200, (), b"ok"))
    server.turn()
    assert all(is_answered(client) for client in clients)
    assert received(silent[-1]) == b"|open"


def test_no_client_of_a_batch_is_closed_that_may_have_asked(server: Fixture) -> None:
    """All of the first are silent when the batch is accepted, and turn out to have asked when one is to yield."""
    first = [server.say() for _ in range(LIMIT)]
    batch = [server.connect(LATER) for _ in range(LIMIT)]  # the listening socket comes first in the next turn
    for client in first:
        client.send(LATER)
    server.turn()
    assert len(server.waiting) == LIMIT + 1
    while server.waiting:
        server.waiting.pop().answer(HttpAnswer(200, (), b"ok"))
        server.now += REST_SECONDS
        server.turn()
    assert all(is_answered(client) for client in (*first, *batch))


def test_those_that_wait_for_an_answer_keep_their_place_and_new_ones_the_queue(server: Fixture) -> None:
    clients = [server.say(LATER) for _ in range(LIMIT)]
    late = server.say(REQUEST)
    assert server.claims() == [Claim.ASKED] * LIMIT and received(late) == b"|open"
    server.waiting[0].answer(HttpAnswer(200, (), b"ok"))
    server.now += REST_SECONDS
    server.turn()
    assert is_answered(late)
    assert [received(client)[:12] for client in clients[1:]] == [b"|open"] * (LIMIT - 1)


def test_a_pipelined_request_waits_for_its_turn_as_one_that_has_asked(server: Fixture) -> None:
    for _ in range(LIMIT):
        server.say(LATER + REQUEST)
    server.waiting[0].answer(HttpAnswer(200, (), b"ok"))
    assert server.claims() == [Claim.ASKED] * LIMIT


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*YIELDING, "asked"]), min_size=LIMIT, max_size=3 * LIMIT))
def test_a_client_that_asks_is_answered_whatever_the_others_do(kinds: list[str]) -> None:
    server = Fixture()
    asked = [server.say(LATER) for _ in range(min(kinds.count("asked"), LIMIT - 1))]
    for kind in kinds:
        if kind != "asked":
            server.say(YIELDING[kind][0])
    assert is_answered(server.say(REQUEST))
    for exchange in server.waiting:
        exchange.answer(HttpAnswer(200, (), b"ok"))
    server.turn()
    assert all(is_answered(client) for client in asked)
    server.close()


def test_a_refused_client_has_no_place() -> None:
    refused: list[socket.socket] = []

    def refuse(sock: socket.socket) -> None:
        refused.append(sock)

    connections: Connections[HttpConnection] = Connections(1, refuse)
    near, far = socket.socketpair()
    connections.begin([(near.detach(), "")])
    assert len(connections) == 0 and not refused[0].getblocking()
    refused[0].close()
    far.close()
