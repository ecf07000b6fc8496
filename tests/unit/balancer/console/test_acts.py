"""Acts over HTTP: who may ask for what, and what is done with it."""

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.console.acts import (
    BODY_LIMIT,
    BODY_SECONDS,
    PageActs,
    PageReply,
    check_head,
    check_token,
    read_form,
    token_of,
    words_of,
)
from balancer.console.answers import Answers
from balancer.eventloop.http import HttpError
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.balancer.console.http_simulation import HttpSimulation
from tests.unit.balancer.eventloop.sockets import received
from tests.unit.mutations import mutations

TOKEN = "correct-horse-battery"
DIGEST = hashlib.sha256(TOKEN.encode()).digest()
FORM = "application/x-www-form-urlencoded"
HEAD = {b"host": b"lb:9091", b"content-type": FORM.encode()}


# -- the pure parts


@pytest.mark.parametrize(
    ("method", "query", "changes", "length", "code"),
    [
        ("POST", "", {}, 10, 0),
        ("POST", "", {b"content-type": b"Application/X-www-form-urlencoded; charset=utf-8"}, 10, 0),
        ("POST", "", {b"origin": b"http://lb:9091", b"sec-fetch-site": b"same-origin"}, 10, 0),
        ("POST", "", {b"origin": b"https://LB:9091"}, BODY_LIMIT, 0),
        ("GET", "", {}, 0, 405),
        ("HEAD", "", {}, 0, 405),
        ("PUT", "", {}, 10, 405),
        ("post", "", {}, 10, 405),
        ("POST", f"token={TOKEN}", {}, 10, 400),
        ("POST", "", {b"content-type": b""}, 10, 415),
        ("POST", "", {b"content-type": b"text/plain"}, 10, 415),
        ("POST", "", {b"content-type": b"multipart/form-data; boundary=" + FORM.encode()}, 10, 415),
        ("POST", "", {b"content-type": b"application/json"}, 10, 415),
        ("POST", "", {}, None, 411),
        ("POST", "", {}, BODY_LIMIT + 1, 413),
        ("POST", "", {b"origin": b"http://evil"}, 10, 403),
        ("POST", "", {b"origin": b"null"}, 10, 403),
        ("POST", "", {b"origin": b"null", b"host": b""}, 10, 403),
        ("POST", "", {b"origin": b"lb:9091"}, 10, 403),
        ("POST", "", {b"origin": b"http://lb"}, 10, 403),
        ("POST", "", {b"origin": b"http://lb:9091.evil"}, 10, 403),
        ("POST", "", {b"origin": b"http://evil/http://lb:9091"}, 10, 403),
        ("POST", "", {b"sec-fetch-site": b"cross-site"}, 10, 403),
        ("POST", "", {b"sec-fetch-site": b"same-site"}, 10, 403),
        ("POST", "", {b"sec-fetch-site": b"cross-site", b"origin": b"http://lb:9091"}, 10, 403),
        ("POST", "", {b"sec-fetch-site": b"same-origin", b"origin": b"http://evil"}, 10, 403),
    ],
)
def test_the_head_says_whether_the_body_is_read(
    method: str, query: str, changes: dict[bytes, bytes], length: int | None, code: int
) -> None:
    found = 0
    try:
        check_head(method, query, HEAD | changes, length)
    except HttpError as error:
        found = error.status
        assert " " in error.sentence and TOKEN not in error.sentence
        assert (("Allow", "POST") in error.headers) == (found == 405)
    assert found == code


@pytest.mark.parametrize(
    ("authorization", "field", "token"),
    [
        ("", TOKEN, TOKEN),
        (f"Bearer {TOKEN}", "", TOKEN),
        (f"bearer  {TOKEN} ", "", TOKEN),
        ("Basic dXNlcjpwYXNz", TOKEN, TOKEN),  # of the web server in between
        ("Bearer of-the-web-server", TOKEN, TOKEN),
        (f"Basic {TOKEN}", "", ""),
        (TOKEN, "", ""),
        ("", "", ""),
    ],
)
def test_where_the_token_may_be(authorization: str, field: str, token: str) -> None:
    assert token_of({b"authorization": authorization.encode()}, field) == token


@pytest.mark.parametrize(
    "given",
    ["", " ", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), f" {TOKEN}", f"{TOKEN}\n", "\udcff", "x" * 8000],
)
def test_every_other_token_is_wrong(given: str) -> None:
    check_token(TOKEN, DIGEST)
    with pytest.raises(HttpError) as caught:
        check_token(given, DIGEST)
    assert caught.value.status == 401 and caught.value.headers[0][0] == "WWW-Authenticate"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("act=drain&name=main%2Fweb-1", ["drain", "main/web-1"]),
        ("act=ready&name=web-*&name=api%2Fa", ["ready", "web-*", "api/a"]),
        ("act=maint&name=a&weight=&reason=+new+disk+", ["maint", "a", "--reason", "new disk"]),
        ("act=weight&name=a&weight=+5", ["weight", "a", "5"]),
        ("act=drain&name=a&weight=5", ["drain", "a"]),  # the field is there whatever is chosen
        ("act=drain&name=my+app&token=t&view=pool%2Fweb", ["drain", "my app"]),
        ("act=drain&name=%FF", ["drain", "\udcff"]),
    ],
)
def test_a_form_is_a_command_line(body: str, words: list[str]) -> None:
    assert words_of(*read_form(body.encode())) == words


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "act is one of drain, ready, maint, weight"),
        (b"act=kill&name=a", "act is one of"),
        (b"act=reload", "act is one of"),
        (b"act=drain", "which backend"),
        (b"act=drain&name=", "which backend"),
        (b"act=weight&name=a", "one number"),
        (b"act=weight&name=a&name=b&weight=1", "one name"),
        (b"act=drain&act=ready&name=a", "'act' is given twice"),
        (b"act=drain&name=a&reasom=x", "'reasom' is no field"),
        (b"act=drain&name=\xff", "no form"),
        (b"&".join([b"name=a"] * 300), "no form"),
    ],
)
def test_a_form_that_is_none(body: bytes, sentence: str) -> None:
    with pytest.raises(HttpError, match=sentence) as caught:
        words_of(*read_form(body))
    assert caught.value.status == 400


# -- the server


class Fixture(HttpSimulation):
    """The HTTP server with acts; `done` is what was asked of the commands."""

    def __init__(self, directory: Path) -> None:
        self.done: list[list[str]] = []
        self.log_file = directory / "log"
        super().__init__(str(self.log_file), self.make_acts)

    def make_acts(self, loop: Loop, answers: Answers, log: Log) -> PageActs:
        return PageActs(loop, DIGEST, frozenset({"pool/a b"}), self.handle, answers.outdate, log)

    def handle(self, words: list[str], reply: PageReply) -> None:
        self.done.append(words)
        reply.send({"error": "no such backend"} if "nobody" in words else {"text": "done"})


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    fixture.close()


def post(body: str, *headers: str, path: str = "/act") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Content-Type: {FORM}",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return "\r\n".join((*lines, "", body)).encode()


DRAIN = f"act=drain&name=a&token={TOKEN}"
HTML = "Accept: text/html,*/*;q=0.8"


def test_a_program_gets_the_answer_and_a_browser_its_page(web: Fixture) -> None:
    answer = received(web.say(post(DRAIN)))
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b'{"text":"done"}\n|open')
    answer = received(web.say(post(f"{DRAIN}&view=pool%2Fa+b", HTML)))
    assert answer.startswith(b"HTTP/1.1 303 ") and b"\r\nLocation: ./pool/a%20b#backends\r\n" in answer
    for view in ("", "//evil", "https://evil", "pool/a b\r\nX: y", "../x"):
        answer = received(web.say(post(f"{DRAIN}&view={view}", HTML)))
        assert b"\r\nLocation: ./#backends\r\n" in answer
    bearer = received(web.say(post("act=drain&name=a", f"Authorization: Bearer {TOKEN}", path="/%61ct")))
    assert bearer.startswith(b"HTTP/1.1 200 ")
    assert web.done == [["drain", "a"]] * 8


@pytest.mark.parametrize(("accept", "end"), [(HTML, b"such backend\n"), ("Accept: */*", b'such backend"}\n')])
def test_a_refusal_is_a_sentence(web: Fixture, accept: str, end: bytes) -> None:
    answer = received(web.say(post(f"act=drain&name=nobody&token={TOKEN}", accept)))
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.endswith(end + b"|open")


REFUSED = {
    "wrong token": (post("act=drain&name=a&token=wrong-wrong-wrong"), 401),
    "no token": (post("act=drain&name=a"), 401),
    "token in the URL": (post("act=drain&name=a", path=f"/act?token={TOKEN}"), 400),
    "another site": (post(DRAIN, "Origin: http://evil"), 403),
    "two sites": (post(DRAIN, "Origin: http://evil", "Origin: http://x"), 403),
    "two sites, ours first": (post(DRAIN, "Origin: http://x", "Origin: http://evil"), 403),
    "two fetches": (post(DRAIN, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-origin"), 403),
    "two types": (post(DRAIN, f"Content-Type: {FORM}"), 415),
    "two tokens": (post("act=drain&name=a", "Authorization: Bearer x", f"Authorization: Bearer {TOKEN}"), 401),
    "chunked": (post("").replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nX"), 411),
    "too long": (post(f"{DRAIN}&reason={'x' * BODY_LIMIT}"), 413),
    "GET": (f"GET /act HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode(), 405),
    "another path": (post(DRAIN, path="/"), 405),
    "an unknown path": (post(DRAIN, path="/acts"), 405),
    "plain text": (post(DRAIN).replace(FORM.encode(), b"text/plain"), 415),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_nothing_is_done_without_the_right(web: Fixture, kind: str) -> None:
    request, code = REFUSED[kind]
    answer = received(web.say(request))
    assert answer.startswith(f"HTTP/1.1 {code} ".encode()) and web.done == []
    log = web.log_file.read_text() if web.log_file.exists() else ""
    assert (" refuse socket=metrics who=page client=unix uid=" in log) == (code in (401, 403))
    assert "wrong-wrong" not in log and TOKEN not in log and TOKEN.encode() not in answer


def test_wrong_tokens_by_the_hundred_are_a_few_lines(web: Fixture) -> None:
    client, count = web.say(REFUSED["wrong token"][0] * 100), 0
    for _ in range(200):
        web.turn()
        count += received(client).count(b"HTTP/1.1 401 ")
    web.now += 2
    web.turn()
    lines = web.log_file.read_text().splitlines()
    assert count == 100 and len(lines) == 6 and lines[-1].endswith(" omitted=94")


def test_a_form_that_is_slow_to_arrive_is_given_up(web: Fixture) -> None:
    whole = post(DRAIN)
    slow, left, late = (web.say(whole[:-3]) for _ in range(3))
    left.close()
    web.now += BODY_SECONDS - 0.1
    late.send(whole[-3:])
    web.turn()
    assert received(late).startswith(b"HTTP/1.1 200 ") and web.done == [["drain", "a"]]
    web.now += 0.2
    web.turn()
    assert received(slow).startswith(b"HTTP/1.1 408 ") and web.done == [["drain", "a"]]


def test_what_comes_after_an_act_shows_what_it_did(web: Fixture) -> None:
    asks = b"GET /status.json HTTP/1.1\r\nHost: x\r\n\r\n"
    for _ in range(2):
        assert b" 200 " in received(web.say(asks))
    assert web.reads == 1, "an answer is used again"
    received(web.say(post(DRAIN)))
    assert b" 200 " in received(web.say(asks)) and web.reads == 2


def test_no_bytes_of_a_stranger_do_anything(web: Fixture) -> None:
    """Requests with everything but the token, made wrong: an answer or an end, never an act."""
    vectors = [request for request, _ in REFUSED.values() if TOKEN.encode() not in request]
    vectors.append(
        post("act=weight&name=a&weight=0&token=", "Authorization: Bearer x", HTML, "Expect: 100-continue")
    )
    for data in mutations(vectors, int(os.environ.get("MUTATIONS", "300")), random.randrange(1 << 30)):
        client = web.say(data)
        client.close()
        web.clients.remove(client)
        web.turn()
    assert web.done == []
