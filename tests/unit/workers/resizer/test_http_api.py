"""HTTP requests and answers, as tables."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.eventloop.http import HttpError
from workers.imaging.job import ResizeJob
from workers.imaging.limits import PictureLimits, PictureRefused
from workers.resizer.http_api import (
    ApiRequest,
    error_answer,
    job_parameters,
    json_answer,
    parse_request,
    picture_answer,
)
from workers.resizer.orders import Result
from workers.resizer.task import job_for


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
        ("GET", "/index.html", 404),
        ("POST", "/", 405),
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


DEFAULTS = "icc=srgb"


def job_of(target: str, accept: bytes = b"") -> ResizeJob:
    request = parse_request("POST", "/resize?" + target)
    parameters = job_parameters(request, DEFAULTS, accept, 4)
    return job_for(
        request.width, request.height, request.fit, request.format, 0, True, parameters, PictureLimits()
    )


@pytest.mark.parametrize(
    ("target", "field", "value"),
    [
        ("w=9", "icc", "srgb"),
        ("w=9&icc=keep", "icc", "keep"),
        ("w=9", "enlarge", True),
        ("w=9&h=9", "enlarge", True),
        ("w=9&h=9&fit=stretch", "enlarge", True),
        ("w=9&h=9&fit=contain", "enlarge", False),
        ("w=9&h=9&fit=cover", "enlarge", False),
        ("w=9&h=9&fit=cover&enlarge=yes", "enlarge", True),
        ("w=9&enlarge=no", "enlarge", False),
        ("w=9&h=9&fit=cover&gravity=northwest", "gravity", "northwest"),
        ("w=9&subsampling=444", "subsampling", "444"),
        ("w=9&tolerant=1", "tolerant", True),
        ("w=9&keep=exif,copyright", "keep", ("exif", "copyright")),
        ("w=9&keep=", "keep", ()),
        ("w=9", "original", False),
    ],
)
def test_parameters_of_a_request(target: str, field: str, value: object) -> None:
    assert getattr(job_of(target), field) == value


@pytest.mark.parametrize(
    "target",
    ["w=9&gravity=up", "w=9&icc=p3", "w=9&enlarge=perhaps", "w=9&keep=exif,gps", "w=9&subsampling=411"],
)
def test_a_parameter_with_an_unknown_value_is_refused(target: str) -> None:
    with pytest.raises(PictureRefused) as caught:
        job_of(target)
    assert caught.value.status == 400


@pytest.mark.parametrize("name", ["original", "accepts", "width"])
def test_what_a_front_says_to_its_processes_is_no_parameter(name: str) -> None:
    with pytest.raises(HttpError):
        parse_request("POST", f"/resize?w=9&{name}=yes")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"image/avif,image/webp,image/apng,*/*;q=0.8", ("avif", "webp")),
        (b"image/webp;q=0.5, image/jpeg", ("webp",)),
        (b"IMAGE/AVIF ; q=0.9", ("avif",)),
        (b"image/avif;q=0, image/webp;q=0.000", ()),
        (b"image/avif;q=0.01", ("avif",)),
        (b"image/*,*/*", ()),
        (b"", ()),
        (b"\xff\xfe,;;q=", ()),
    ],
)
def test_formats_that_an_accept_header_names(accept: bytes, expected: tuple[str, ...]) -> None:
    job = job_of("w=9&format=auto", accept)
    assert (job.format, job.accepts) == ("auto", expected)
    assert job_of("w=9&format=png", accept).accepts == ()


def test_a_negotiated_answer_says_on_what_it_depends() -> None:
    result = Result(1, 2, 200, text="avif")
    assert ("Vary", "Accept") in picture_answer(result, memoryview(b"x"), is_negotiated=True).headers
    assert "Vary" not in dict(picture_answer(result, memoryview(b"x")).headers)


@pytest.mark.parametrize("fit", ["contain", "cover"])
@pytest.mark.parametrize("size", [(8000, 8000), (20_000, 300), (999_999_999, 999_999_999)])
def test_sides_that_only_bound_the_result_are_not_refused_at_the_head(
    fit: str, size: tuple[int, int]
) -> None:
    """The result may be far smaller: it is judged when the picture's size is known."""
    assert job_of(f"w={size[0]}&h={size[1]}&fit={fit}").width == size[0]
    if fit == "cover":
        with pytest.raises(PictureRefused, match="limit"):
            job_of(f"w={size[0]}&h={size[1]}&fit={fit}&enlarge=yes")


def test_http_bounds_the_enlargement() -> None:
    assert job_of("w=9").max_enlarge == 4
