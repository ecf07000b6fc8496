"""HTTP requests and answers, as tables."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.eventloop.http import HttpError
from workers.resizer.http_api import ApiRequest, error_answer, json_answer, parse_request, picture_answer
from workers.resizer.orders import Result


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/health", ApiRequest("/health")),
        ("HEAD", "/status?x=1", ApiRequest("/status")),
        ("POST", "/resize?w=200", ApiRequest("/resize", 200)),
        ("POST", "/resize?w=200&h=100&fit=cover", ApiRequest("/resize", 200, 100, "cover")),
        ("POST", "/resize?h=7&format=webp&quality=80", ApiRequest("/resize", 0, 7, "", "webp", 80)),
        ("POST", "/resize?w=&h=7&orient=no", ApiRequest("/resize", 0, 7, orient=False)),
        ("POST", "http://host:9/resize?w=3", ApiRequest("/resize", 3)),
        ("POST", "/resize", ApiRequest("/resize")),
    ],
)
def test_requests(method: str, target: str, expected: ApiRequest) -> None:
    assert parse_request(method, target) == expected


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/resize/../etc/passwd", 404),
        ("GET", "/resize?w=1", 405),
        ("DELETE", "/status", 405),
        ("POST", "/resize?w=abc", 400),
        ("POST", "/resize?w=-1", 400),
        ("POST", "/resize?w=1.5", 400),
        ("POST", "/resize?w=1e3", 400),
        ("POST", "/resize?w=%D9%A1", 400),  # an Arabic digit: isdigit() alone would take it
        ("POST", "/resize?w=1234567890", 400),
        ("POST", "/resize?w=1&w=1", 400),
        ("POST", "/resize?width=1", 400),
        ("POST", "/resize?w", 400),
        ("POST", "/resize?orient=maybe", 400),
        ("POST", "/resize?" + "&".join(f"w{n}=1" for n in range(50)), 400),
        ("POST", "http://[::1/resize", 400),
    ],
)
def test_refused_requests(method: str, target: str, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        parse_request(method, target)
    assert caught.value.status == status
    assert caught.value.sentence
    assert (status == 405) == any(name == "Allow" for name, _ in caught.value.headers)


@given(st.sampled_from(["GET", "POST", "HEAD", "PUT"]), st.text(max_size=80))
def test_any_target_is_a_request_or_an_error(method: str, target: str) -> None:
    for text in (target, "/resize?" + target):
        try:
            parse_request(method, text)
        except HttpError as error:
            assert error.status in (400, 404, 405)


def test_busy_and_draining_have_a_retry_after() -> None:
    for status, again in ((429, True), (503, True), (422, False), (504, False)):
        answer = error_answer(HttpError(status, "a sentence", (("Allow", "GET"),)))
        assert json.loads(answer.body) == {"status": status, "error": "a sentence"}
        assert answer.status == status and dict(answer.headers)["Allow"] == "GET"
        assert ("Retry-After" in dict(answer.headers)) is again


def test_headers_of_answers() -> None:
    answer = json_answer({"a": 1})
    assert json.loads(answer.body) == {"a": 1} and dict(answer.headers)["Cache-Control"] == "no-store"
    picture = picture_answer(
        Result(1, 2, 200, 99, 20, 10, elapsed_ns=1_500_000, text="png"), memoryview(b"x")
    )
    assert dict(picture.headers) == {
        "Content-Type": "image/png",
        "X-Picture-Size": "20x10",
        "Server-Timing": "resize;dur=1.5",
    }
    noted = picture_answer(Result(1, 2, 200, text="png", note="first of 3 frames"), memoryview(b"x"))
    assert dict(noted.headers)["X-Picture-Note"] == "first of 3 frames"
