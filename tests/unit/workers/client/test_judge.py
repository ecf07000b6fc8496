"""What is a result and what is not."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from workers.client.judge import Header, objection, read_header
from workers.wire.messages import Request, Response


def picture(format: str, width: int, height: int, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", ["jpeg", "png", "gif", "webp", "avif"])
@pytest.mark.parametrize("size", [(1, 1), (300, 200), (1023, 17)])
def test_headers_of_every_format(format: str, size: tuple[int, int]) -> None:
    if format in ("webp", "avif") and not features.check(format):
        pytest.skip(f"this Pillow writes no {format}")
    assert read_header(picture(format, *size)) == Header(format, *size)


def test_headers_of_rarer_kinds() -> None:
    assert read_header(picture("JPEG", 33, 44, progressive=True, comment="x" * 500)) == Header("jpeg", 33, 44)
    if features.check("webp"):
        assert read_header(picture("WEBP", 33, 44, lossless=True)) == Header("webp", 33, 44)
        transparent = io.BytesIO()
        Image.new("RGBA", (33, 44), (1, 2, 3, 4)).save(transparent, "WEBP")
        assert read_header(transparent.getvalue()) == Header("webp", 33, 44)


@given(
    st.binary(max_size=60), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF"])
)
def test_noise_never_raises(noise: bytes, start: bytes) -> None:
    read_header(start + noise)


@pytest.mark.parametrize("format", ["jpeg", "png", "gif"])
def test_every_prefix_of_a_picture_is_read_without_raising(format: str) -> None:
    whole = picture(format, 300, 200)
    for end in range(0, len(whole), 3):
        read_header(memoryview(whole)[:end])


JPEG, PNG = Header("jpeg", 300, 200), Header("png", 300, 200)


def judge(asked: Request, data: bytes, source: Header | None = JPEG, said: tuple[int, int] = (0, 0)) -> str:
    return objection(asked, source, Response(data=data, resized_width=said[0], resized_height=said[1]))


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
    assert (judge(asked, picture("JPEG", *size)) == "") is fits


def test_formats() -> None:
    asked = Request(target_width=20, target_height=10)
    assert judge(asked, picture("PNG", 20, 10)) == "the reply is png, not jpeg"
    assert judge(asked, picture("PNG", 20, 10), PNG) == ""
    assert judge(asked, picture("PNG", 20, 10), None) == ""
    asked.format = "gif"
    assert judge(asked, picture("GIF", 20, 10)) == ""
    assert "not gif" in judge(asked, picture("JPEG", 20, 10))


def test_a_reply_must_be_what_it_says() -> None:
    asked = Request(target_width=20)
    assert judge(asked, picture("JPEG", 20, 13), said=(20, 13)) == ""
    assert "says 20x14" in judge(asked, picture("JPEG", 20, 13), said=(20, 14))


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture(data: bytes) -> None:
    assert judge(Request(target_width=20), data) != ""


def test_a_dry_run_brings_no_picture() -> None:
    assert judge(Request(target_width=20, dry_run=True), b"") == ""
