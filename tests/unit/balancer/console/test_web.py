"""The HTTP server: reading only, bounded connections, idle ones make room."""

from collections.abc import Iterator

import pytest

from balancer.console.web import CLIENT_LIMIT, HTTP_LIMITS
from tests.unit.balancer.console.http_simulation import HttpSimulation
from tests.unit.balancer.eventloop.sockets import received

REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def web() -> Iterator[HttpSimulation]:
    fixture = HttpSimulation()
    yield fixture
    fixture.close()


@pytest.mark.parametrize(("method", "status"), [("GET", 413), ("HEAD", 413), ("POST", 405), ("DELETE", 405)])
@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_a_request_has_no_body(web: HttpSimulation, method: str, status: int, framing: str) -> None:
    client = web.say(f"{method} /health HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\nhello".encode())
    answer = received(client)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and answer.endswith(b"|end")
    assert (b"allow: get, head" in answer.lower()) == (status == 405)


@pytest.mark.parametrize(
    ("accept", "kind"), [("", "text/plain"), ("application/openmetrics-text", "application/op")]
)
def test_metrics_come_in_the_format_that_was_asked_for(web: HttpSimulation, accept: str, kind: str) -> None:
    wanted = f"Accept: {accept};version=1.0.0,*/*;q=0.1\r\n" if accept else ""
    answer = received(web.say(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{wanted}\r\n".encode()))
    assert f"Content-Type: {kind}".encode() in answer
    assert answer.endswith(b"# EOF\n|open") == bool(accept)


@pytest.mark.parametrize("said", [b"", REQUEST[:10], REQUEST])
def test_health_is_answered_whatever_the_other_clients_do(web: HttpSimulation, said: bytes) -> None:
    others = [web.say(said) for _ in range(2 * CLIENT_LIMIT)]
    assert received(web.say(REQUEST)).endswith(b"ok\n|open")
    assert [received(client).endswith(b"|end") for client in others].count(True) == CLIENT_LIMIT + 1
    assert len(web.server.connections) == CLIENT_LIMIT


def test_a_slow_head_is_cut(web: HttpSimulation) -> None:
    slow, whole = web.say(REQUEST[:10]), web.say(REQUEST[:10])
    whole.send(REQUEST[10:])
    web.turn()
    web.pass_time(HTTP_LIMITS.head_seconds)
    assert received(whole).endswith(b"ok\n|open") and received(slow) == b"|end"


def test_stopped_it_closes_the_idle_and_answers_the_others(web: HttpSimulation) -> None:
    idle, under_way = web.say(REQUEST), web.say(REQUEST[:10])
    received(idle)
    web.server.stop()
    web.turn()
    assert received(idle) == b"|end" and received(under_way) == b"|open"
    under_way.send(REQUEST[10:])
    web.turn()
    assert received(under_way).endswith(b"ok\n|end")
