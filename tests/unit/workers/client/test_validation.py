"""Which replies are results of the request and which are not."""

import io

import pytest
from PIL import Image

from workers.client.validation import validate
from workers.picture_header import PictureHeader
from workers.wire.messages import Request, Response


def picture(format: str, width: int, height: int, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(out, format, **options)
    return out.getvalue()


JPEG, PNG = PictureHeader("jpeg", 300, 200), PictureHeader("png", 300, 200)


def check(
    asked: Request, data: bytes, source: PictureHeader | None = JPEG, said: tuple[int, int] = (0, 0)
) -> str:
    return validate(asked, source, Response(data=data, resized_width=said[0], resized_height=said[1]))


@pytest.mark.parametrize(
    ("asked", "size", "fits"),
    [
        (Request(target_width=20, target_height=10), (20, 10), True),
        (Request(target_width=20, target_height=10), (10, 20), False),
        (Request(target_width=20), (20, 13), True),
        (Request(target_width=20), (19, 13), False),
        (Request(target_height=10), (15, 10), True),
        (Request(target_height=10), (10, 15), False),
        (Request(target_width=20, target_height=10, fit="contain"), (15, 10), True),
        (Request(target_width=20, target_height=10, fit="contain"), (15, 9), False),
        (Request(target_width=20, target_height=10, fit="contain"), (20, 11), False),
        (Request(target_width=20, target_height=10, fit="cover"), (20, 10), True),
        (Request(target_width=20, target_height=10, fit="cover"), (15, 10), False),
    ],
)
def test_sizes(asked: Request, size: tuple[int, int], fits: bool) -> None:
    assert (check(asked, picture("JPEG", *size)) == "") is fits


def test_a_result_may_be_as_small_as_its_source_where_enlarging_was_ruled_out() -> None:
    for fit in ("", "contain", "cover"):
        asked = Request(target_width=900, target_height=400, fit=fit, parameters="icc=keep&enlarge=no")
        assert check(asked, picture("JPEG", 300, 200)) == ""
        assert check(asked, picture("JPEG", 901, 200)) != ""
        asked.parameters = "icc=keep"
        assert check(asked, picture("JPEG", 300, 200)) != ""


def test_formats() -> None:
    asked = Request(target_width=20, target_height=10)
    assert check(asked, picture("PNG", 20, 10)) == "the reply is png, not jpeg"
    assert check(asked, picture("PNG", 20, 10), PNG) == ""
    assert check(asked, picture("PNG", 20, 10), None) == ""
    asked.format = "gif"
    assert check(asked, picture("GIF", 20, 10)) == ""
    assert "not gif" in check(asked, picture("JPEG", 20, 10))


def test_a_reply_must_be_what_it_says() -> None:
    asked = Request(target_width=20)
    assert check(asked, picture("JPEG", 20, 13), said=(20, 13)) == ""
    assert "says 20x14" in check(asked, picture("JPEG", 20, 13), said=(20, 14))


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture(data: bytes) -> None:
    assert check(Request(target_width=20), data) != ""


def test_a_dry_run_brings_no_picture() -> None:
    assert check(Request(target_width=20, dry_run=True), b"") == ""
