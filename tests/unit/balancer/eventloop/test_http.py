"""HTTP over socket pairs: every request is answered once, every body lies where it belongs, every limit holds."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.eventloop.connection import BufferedConnection, Claim
from balancer.eventloop.http import (
    HttpAnswer,
    HttpConnection,
    HttpError,
    HttpExchange,
    HttpLimits,
)
from balancer.eventloop.loop import Loop
from tests.unit.balancer.eventloop.sockets import received, reset, tcp_pair

LIMITS = HttpLimits(head_bytes=512, head_seconds=5.0, send_seconds=6.0, idle_seconds=75.0)
ROOM = 1000  # bytes that a body may have


class Body:
    """A body in memory; what the router does with it is told by the target."""

    def __init__(self, router: "Router", exchange: HttpExchange) -> None:
        self.router = router
        self.exchange = exchange
        self.memory = memoryview(bytearray(ROOM))
        self.length = 0
        self.is_complete = self.is_answered = False

    def place(self, count: int) -> memoryview:
        assert not self.is_answered, "the memory may be another one's by now"
        if self.length == ROOM:
            raise HttpError(413, "too long")
        return self.memory[self.length : self.length + 3 if self.exchange.target == "/early" else None]

    def filled(self, count: int) -> None:
        assert not self.is_answered
        self.length += count
        if self.exchange.target == "/early" and self.length > 2:
            self.is_answered = True
            self.exchange.answer(HttpAnswer(409, (), b"seen enough"))

    def complete(self) -> None:
        assert not self.is_answered
        self.is_complete = True
        if self.exchange.target == "/full":
            raise HttpError(429, "full", (("Retry-After", "1"),))
        if self.exchange.target != "/later":
            self.echo()

    def echo(self) -> None:
        answer = HttpAnswer(200, (("X-Method", self.exchange.method),), self.memory[: self.length])
        self.exchange.answer(answer, lambda: self.router.released.append(self.exchange.target))


class Router:
    """GET is answered with its target, POST with its body; `held` are those that wait."""

    def __init__(self) -> None:
        self.begun: list[HttpExchange] = []
        self.bodies: list[Body] = []
        self.abandoned: list[str] = []
        self.released: list[str] = []

    def begin(self, exchange: HttpExchange) -> None:
        self.begun.append(exchange)
        exchange.on_abandoned = lambda: self.abandoned.append(exchange.target)
        if exchange.target == "/wrong":
            raise HttpError(404, "nothing here")
        if exchange.target == "/wait":
            return
        if exchange.body_length == 0:
            exchange.answer(HttpAnswer(200, (), exchange.target.encode()))
        elif exchange.body_length is not None and exchange.body_length > ROOM:
            exchange.answer(HttpAnswer(413, (), b"too long"))
        else:
            self.receive(exchange)

    def receive(self, exchange: HttpExchange) -> None:
        self.bodies.append(Body(self, exchange))
        exchange.receive(self.bodies[-1])

    def refusal(self, error: HttpError) -> HttpAnswer:
        return HttpAnswer(error.status, error.headers, error.sentence.encode())


class Fixture:
    """One connection; `far` is the client's end."""

    def __init__(self, limits: HttpLimits = LIMITS) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        near, self.far = tcp_pair()
        self.router = Router()
        self.reasons: list[str] = []
        self.connection = BufferedConnection(self.loop, near, lambda _, reason: self.reasons.append(reason))
        self.http = HttpConnection(self.connection, self.router, limits)
        self.connection.start(self.http)

    def turn(self, turns: int = 6) -> None:
        for _ in range(turns):
            self.loop.run_once(0)

    def say(self, *data: bytes) -> None:
        for each in data:
            assert self.far.send(each) == len(each)
            self.turn()

    def post(self, target: str, body: bytes, *headers: str) -> None:
        self.say(post(target, body, *headers))

    def answers(self, *methods: str) -> list[tuple[int, bytes]]:
        """(status, body) of what has come, one for each method asked (GET by itself); the last must be whole."""
        data, found = received(self.far), []
        self.raw, _, self.state = data.rpartition(b"|")
        left, asked = self.raw, list(methods)
        while left:
            parser = h11.Connection(h11.CLIENT)
            parser.send(
                h11.Request(method=asked.pop(0) if asked else "GET", target="/", headers=[("Host", "x")])
            )
            parser.send(h11.EndOfMessage())
            parser.receive_data(left)
            status, body = 0, b""
            while not isinstance(event := parser.next_event(), h11.EndOfMessage):
                assert event is not h11.NEED_DATA, f"cut short: {left!r}"
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
            found.append((status, body))
            left = parser.trailing_data[0]
        return found

    def close(self) -> None:
        self.connection.close("the test is over")
        self.turn()
        self.far.close()
        self.loop.close()


def get(target: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(target: str, body: bytes, *headers: str) -> bytes:
    return get(target, f"Content-Length: {len(body)}", *headers, method="POST") + body


@pytest.fixture
def http() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.close()


# -- requests and answers


def test_one_connection_for_many_requests(http: Fixture) -> None:
    for target in ("/a", "/b"):
        http.say(get(target))
        assert http.answers() == [(200, target.encode())] and http.state == b"open"
        assert http.http.claim() is Claim.IDLE
    http.say(get("/c", method="HEAD"))
    assert http.answers("HEAD") == [(200, b"")] and b"Content-Length: 2\r\n" in http.raw.title()
    http.say(get("/d", "Connection: close"))
    assert http.answers() == [(200, b"/d")] and http.state == b"end"


@pytest.mark.parametrize(("head", "state"), [(b"", b"end"), (b"Connection: keep-alive\r\n", b"end")])
def test_http_1_0_is_answered_and_closed(http: Fixture, head: bytes, state: bytes) -> None:
    http.say(b"GET /old HTTP/1.0\r\n" + head + b"\r\n")
    assert http.answers() == [(200, b"/old")] and http.state == state


def test_pipelined_requests_are_answered_one_by_one_after_the_others(http: Fixture) -> None:
    http.far.send(b"".join(get(f"/{n}") for n in range(5)) + post("/p", b"body") + get("/last"))
    begun = []
    for _ in range(9):
        http.loop.run_once(0)
        begun.append(len(http.router.begun))
    assert begun == [1, 2, 3, 4, 5, 6, 7, 7, 7]
    assert [body for _, body in http.answers()] == [b"/0", b"/1", b"/2", b"/3", b"/4", b"body", b"/last"]


def test_in_pieces_of_one_byte(http: Fixture) -> None:
    chunked = get("/c", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    for data in (get("/a"), post("/p", b"hello"), chunked, get("/b")):
        http.say(*(data[at : at + 1] for at in range(len(data))))
    assert http.answers() == [(200, b"/a"), (200, b"hello"), (200, b"abcde"), (200, b"/b")]


@given(st.lists(st.integers(1, 200), max_size=12))
def test_any_split_of_any_kinds_of_requests(cuts: list[int]) -> None:
    http = Fixture()
    chunked = get("/c", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n"
    stream = get("/a") + post("/p", b"x" * 300) + chunked + post("/q", b"") + post("/r", b"z") + get("/b")
    for cut in cuts:
        http.say(stream[:cut]) if stream else None
        stream = stream[cut:]
    http.say(stream) if stream else None
    http.turn(20)
    assert [body for _, body in http.answers()] == [b"/a", b"x" * 300, b"abc", b"/q", b"z", b"/b"]
    assert http.router.released == ["/p", "/c", "/r"] and http.router.abandoned == []
    http.close()


@given(st.binary(max_size=700))
def test_no_bytes_break_the_server(noise: bytes) -> None:
    for prefix in (b"", b"GET /a HTTP/1.1\r\n", post("/p", b"")[:-2] + b"\r\n", get("/")):
        http = Fixture()
        if prefix + noise:
            http.say(prefix + noise)
        http.far.shutdown(socket.SHUT_WR)
        http.turn()
        assert http.reasons in (["done"], ["cut-short"], ["reset"])
        http.close()


# -- bodies


def test_a_body_with_a_length_is_read_straight_into_its_place(http: Fixture) -> None:
    head = get("/p", "Content-Length: 600", method="POST")
    http.say(head + b"early")
    [body] = http.router.bodies
    assert body.length == 5
    place = http.http.place()
    assert place is not None and (len(place), place.obj is body.memory.obj) == (595, True)
    http.say(b"x" * 595 + get("/next"))
    assert http.answers() == [(200, b"early" + b"x" * 595), (200, b"/next")]


def test_a_body_may_wait_for_its_place_and_its_answer(http: Fixture) -> None:
    for early in (b"", b"hel", b"hello"):
        http.say(get("/wait", "Content-Length: 5", method="POST") + early)
        http.say(*[b"hello"[len(early) :]] if early != b"hello" else [])
        exchange = http.router.begun[-1]
        assert http.connection.is_paused and exchange.body is None
        exchange.target = "/later"
        http.router.receive(exchange)
        body = http.router.bodies[-1]
        assert body.is_complete and http.answers() == [] and http.connection.is_paused
        http.say(get("/next"))
        assert http.router.begun[-1] is exchange, "one at a time"
        body.echo()
        http.turn()
        assert http.answers() == [(200, b"hello"), (200, b"/next")]


def test_a_place_that_comes_later_while_the_body_is_still_coming(http: Fixture) -> None:
    http.say(get("/wait", "Content-Length: 5", method="POST") + b"he")
    http.router.receive(http.router.begun[-1])
    assert http.router.bodies[-1].length == 2 and not http.connection.is_paused
    http.say(b"llo")
    assert http.answers() == [(200, b"hello")]


def test_an_answer_later_without_a_body(http: Fixture) -> None:
    http.say(get("/wait"))
    http.router.begun[0].answer(HttpAnswer(200, (), b"now"))
    http.router.begun[0].answer(HttpAnswer(200, (), b"twice"))
    assert http.answers() == [(200, b"now")]
    http.turn()
    http.say(get("/a"))
    assert http.answers() == [(200, b"/a")]


@pytest.mark.parametrize("more", [["Content-Length: 4"], ["Transfer-Encoding: chunked"]])
def test_the_body_is_asked_for_only_when_it_is_wanted(more: list[str]) -> None:
    wanted, unwanted = Fixture(), Fixture()
    wanted.say(get("/p", "Expect: 100-continue", *more, method="POST"))
    unwanted.say(get("/wrong", "Expect: 100-continue", *more, method="POST"))
    assert received(wanted.far) == b"HTTP/1.1 100 \r\n\r\n|open"
    assert received(unwanted.far).startswith(b"HTTP/1.1 404 ")
    wanted.say(b"4\r\nbody\r\n0\r\n\r\n" if "chunked" in more[0] else b"body")
    assert wanted.answers() == [(200, b"body")] and wanted.state == b"open"
    wanted.close()
    unwanted.close()


# -- refusals


@pytest.mark.parametrize(
    ("request_", "status", "target"),
    [
        (get("/wrong", "Content-Length: 5000", method="POST"), 404, "/wrong"),
        (post("/wrong", b"12345"), 404, "/wrong"),
        (get("/p", "Content-Length: 1001", method="POST"), 413, None),
        (get("/p", "Transfer-Encoding: chunked", method="POST") + b"500\r\n" + b"x" * 0x500, 413, "/p"),
        (get("/early", "Content-Length: 50", method="POST") + b"1234567", 409, None),
        (get("/early", "Transfer-Encoding: chunked", method="POST") + b"4\r\n1234\r\n", 409, None),
        (get("/p", "Transfer-Encoding: chunked", method="POST") + b"odd\r\n", 400, "/p"),
        (get("/p", "Transfer-Encoding: gzip", method="POST"), 501, None),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, None),
        (get("/", "X: \x00"), 400, None),
        (get("/", "X: " + "y" * 600), 431, None),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 600, 431, None),
    ],
)
def test_an_early_refusal_is_answered_and_ends(
    http: Fixture, request_: bytes, status: int, target: str | None
) -> None:
    http.say(request_)
    http.say(b"x" * 100_000)  # thrown away, or a reset would overtake the answer
    assert [code for code, _ in http.answers()] == [status]
    assert http.state == b"end" and b"connection: close" in http.raw.lower()
    http.far.close()
    http.turn()
    assert http.reasons == ["done"]
    assert http.router.abandoned == ([target] if target else [])


def test_an_answer_to_the_last_bytes_of_a_body_keeps_the_connection(http: Fixture) -> None:
    http.post("/early", b"123")
    http.say(get("/early", "Content-Length: 3", method="POST"), b"123", get("/a"))
    assert [status for status, _ in http.answers()] == [409, 409, 200] and http.state == b"open"


def test_who_sends_its_body_at_once_is_not_told_to(http: Fixture) -> None:
    http.post("/p", b"body", "Expect: 100-continue")
    assert http.answers() == [(200, b"body")] and b"HTTP/1.1 100" not in http.raw


def test_a_refusal_after_the_whole_body_keeps_the_connection(http: Fixture) -> None:
    http.post("/full", b"hello")
    assert http.answers() == [(429, b"full")] and b"Retry-After: 1\r\n" in http.raw.title()
    assert http.router.abandoned == ["/full"]
    http.say(get("/wrong"), get("/a"))
    assert [status for status, _ in http.answers()] == [404, 200] and http.state == b"open"


def test_a_head_may_have_just_its_limit() -> None:
    for size, status in ((512, 200), (513, 431)):
        for cut in (size, 100):
            http = Fixture()
            head = get("/", "X: " + "y" * (size - len(get("/", "X: "))))
            assert len(head) == size
            http.say(*(part for part in (head[:cut], head[cut:]) if part))
            assert [code for code, _ in http.answers()] == [status]
            http.close()


# -- bodies that are refused

SKIPPING = HttpLimits(head_bytes=512, skip_bytes=ROOM * 4)


@pytest.mark.parametrize("cut", [0, 1, ROOM, ROOM * 2])
@pytest.mark.parametrize("target", ["/wrong", "/p"])
def test_a_body_that_was_refused_is_thrown_away_and_the_connection_goes_on(cut: int, target: str) -> None:
    http = Fixture(SKIPPING)
    body = b"y" * (ROOM * 2)
    whole = post(target, body)
    at = len(whole) - len(body) + cut
    http.say(whole[:at])
    status = {"/wrong": 404, "/p": 413}[target]
    assert [code for code, _ in http.answers()] == [status], "before the body"
    http.say(*(part for part in (whole[at:] + get("/a"), get("/b")) if part))
    assert http.answers() == [(200, b"/a"), (200, b"/b")] and not http.reasons
    http.post("/p", b"kept")
    assert http.answers() == [(200, b"kept")]
    http.close()


@pytest.mark.parametrize(
    "headers", [("Expect: 100-continue",), ("Content-Length: 999999999",), ("Transfer-Encoding: chunked",)]
)
def test_the_connection_ends_where_the_body_may_not_come_is_too_long_or_has_no_length(
    headers: tuple[str, ...],
) -> None:
    http = Fixture(SKIPPING)
    more = headers if "Expect" not in headers[0] else (*headers, f"Content-Length: {ROOM * 2}")
    http.say(get("/wrong", *more, method="POST"))
    assert [code for code, _ in http.answers()] == [404] and http.state == b"end"
    http.close()


def test_a_client_that_ends_in_the_middle_of_a_refused_body_is_let_go() -> None:
    http = Fixture(SKIPPING)
    http.say(get("/wrong", f"Content-Length: {ROOM}", method="POST") + b"y")
    http.far.shutdown(socket.SHUT_WR)
    http.turn()
    assert [code for code, _ in http.answers()] == [404] and http.reasons == ["done"]


def test_a_drain_ends_a_connection_after_the_refused_body() -> None:
    http = Fixture(SKIPPING)
    http.say(get("/wrong", "Content-Length: 5", method="POST") + b"y")
    http.http.drain()
    http.say(b"yyyy")
    assert [code for code, _ in http.answers()] == [404] and http.state == b"end"
    http.close()


# -- ends


@pytest.mark.parametrize("leave", [socket.socket.close, reset, lambda sock: sock.shutdown(socket.SHUT_WR)])
def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(
    http: Fixture, leave: Callable[[socket.socket], object]
) -> None:
    http.say(get("/p", "Content-Length: 5", method="POST") + b"12")
    leave(http.far)
    http.turn()
    assert len(http.reasons) == 1 and http.router.abandoned == ["/p"]


def test_a_late_answer_to_nobody_is_released(http: Fixture) -> None:
    http.post("/later", b"hello")
    http.connection.close("cut")
    http.router.bodies[0].echo()
    assert (http.router.released, http.router.abandoned) == (["/later"], ["/later"])


def test_the_client_may_end_its_side_first(http: Fixture) -> None:
    http.far.send(get("/a") + get("/b"))
    http.far.shutdown(socket.SHUT_WR)
    http.turn(9)
    assert http.answers() == [(200, b"/a"), (200, b"/b")] and http.state == b"end"
    assert http.reasons == ["done"]


def test_half_a_head_and_an_end_is_told(http: Fixture) -> None:
    http.say(b"GET / HTT")
    http.far.shutdown(socket.SHUT_WR)
    http.turn()
    assert [status for status, _ in http.answers()] == [400]


def test_drain_ends_between_two_requests_or_after_the_answer() -> None:
    idle, busy, fresh = Fixture(), Fixture(), Fixture()
    idle.say(get("/a"))
    busy.post("/later", b"hello")
    for http in (idle, busy, fresh):
        http.http.drain()
        http.turn()
    assert idle.answers() == [(200, b"/a")] and idle.state == b"end"
    assert fresh.answers() == [] and fresh.state == b"open", "its first request may be on its way"
    fresh.say(get("/f"))
    busy.router.bodies[0].echo()
    busy.turn()
    for http, body in ((fresh, b"/f"), (busy, b"hello")):
        assert http.answers() == [(200, body)] and http.state == b"end"
        assert b"connection: close" in http.raw.lower()
    for http in (idle, busy, fresh):
        http.close()


def deadline_of(http: Fixture) -> float:
    return http.connection.deadline - http.now


def test_each_step_has_its_deadline(http: Fixture) -> None:
    assert deadline_of(http) == LIMITS.head_seconds
    http.now += 1.0
    http.say(b"GET / HT")
    assert deadline_of(http) == LIMITS.head_seconds - 1.0, "a byte now and then buys no time"
    http.say(b"TP/1.1\r\nHost: x\r\n\r\n")
    assert deadline_of(http) == LIMITS.idle_seconds
    http.now += 70.0
    http.say(get("/")[:-1])
    assert deadline_of(http) == LIMITS.head_seconds
    http.now += 5.1
    http.turn()
    assert http.reasons == ["timeout"]


def test_an_idle_connection_is_closed_and_one_under_way_is_not(http: Fixture) -> None:
    http.post("/later", b"hello")
    http.now += 1e6
    http.turn()
    assert http.reasons == []
    http.router.bodies[0].echo()
    http.turn()
    http.now += LIMITS.idle_seconds
    http.turn()
    assert http.reasons == ["idle"]


def test_a_client_that_does_not_take_its_answer_is_cut(http: Fixture) -> None:
    http.say(get("/wait"))
    released: list[Any] = []
    http.router.begun[0].answer(HttpAnswer(200, (), bytes(32 << 20)), lambda: released.append(1))
    http.now += LIMITS.send_seconds - 0.1
    http.turn()
    assert http.reasons == []
    http.now += 0.2
    http.turn()
    assert http.reasons == ["timeout"] and released == [1]
