"""Format and size are read from the first bytes of a picture."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from workers.picture_header import PictureHeader, read_header


def picture(format: str, width: int, height: int, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", ["jpeg", "png", "gif", "webp", "avif"])
@pytest.mark.parametrize("size", [(1, 1), (300, 200), (1023, 17)])
def test_headers_of_every_format(format: str, size: tuple[int, int]) -> None:
    if format in ("webp", "avif") and not features.check(format):
        pytest.skip(f"this Pillow writes no {format}")
    assert read_header(picture(format, *size)) == PictureHeader(format, *size)


def test_headers_of_rarer_kinds() -> None:
    assert read_header(picture("JPEG", 33, 44, progressive=True, comment="x" * 500)) == PictureHeader(
        "jpeg", 33, 44
    )
    if features.check("webp"):
        assert read_header(picture("WEBP", 33, 44, lossless=True)) == PictureHeader("webp", 33, 44)
        transparent = io.BytesIO()
        Image.new("RGBA", (33, 44), (1, 2, 3, 4)).save(transparent, "WEBP")
        assert read_header(transparent.getvalue()) == PictureHeader("webp", 33, 44)


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
