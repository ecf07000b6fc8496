"""Rows of a PNG packed and unpacked outside Pillow: the same pixels, and no decoder trusts what it has not checked."""

import io
import random
import struct
import zlib

import pytest
from PIL import Image

from workers.imaging import PictureLimits, PictureRefused, ResizeJob, deflate, png, resize
from workers.imaging.embedded import Embedded

pytestmark = pytest.mark.skipif(not deflate.is_here(0), reason="no wheels of isal and zlib-ng")

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
BLOCK = 65_535


def rows_of(size):
    return random.Random(size).randbytes(size // 2) + b"ab" * (size - size // 2)


@pytest.mark.parametrize("size", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 400_000])
def test_rows_are_stored_as_they_are(size):
    rows, out = rows_of(size)[:size], io.BytesIO()
    assert deflate.store(zlib.compress(rows), size, out)
    assert zlib.decompress(out.getvalue()) == rows
    assert len(out.getvalue()) == deflate.stored_size(size)


@pytest.mark.parametrize("damage", ["cut", "short", "changed", "empty", "nonsense"])
def test_damaged_rows_are_left_to_the_decoder(damage):
    rows = rows_of(200_000)
    packed = zlib.compress(rows)
    packed, size = {
        "cut": (packed[:90_000], len(rows)),
        "short": (packed, len(rows) + 1),
        "changed": (packed[:5000] + b"\xff" * 500 + packed[5500:], len(rows)),
        "empty": (b"", len(rows)),
        "nonsense": (b"no zlib data", len(rows)),
    }[damage]
    assert not deflate.store(packed, size, io.BytesIO())


def test_rows_that_unpack_to_more_than_the_picture_has_are_not_unpacked_whole():
    out = io.BytesIO()
    assert deflate.store(zlib.compress(b"\0" * (64 << 20)), 100_000, out)
    assert len(out.getvalue()) == deflate.stored_size(100_000)


@pytest.mark.parametrize("is_photo", [True, False])
@pytest.mark.parametrize("size", [1, BLOCK, 400_000])
def test_packed_rows_are_the_rows(size, is_photo):
    rows = rows_of(size)[:size]
    stored = zlib.compress(rows, 0)
    parts = [stored[at : at + 1000] for at in range(0, len(stored), 1000)]
    assert zlib.decompress(b"".join(deflate.packed(parts, is_photo))) == rows


def png_of(depth, colour_type, side, interlaced=0, kind=b"IDAT", pieces=3):
    """A PNG of noise that a generator made, in several IDAT chunks."""
    length = (side * SAMPLES[colour_type] * depth + 7) // 8
    noise = random.Random(depth)
    rows = zlib.compress(b"".join(bytes((y % 5,)) + noise.randbytes(length) for y in range(side)))

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">2I5B", side, side, depth, colour_type, 0, 0, interlaced))
    head += chunk(b"PLTE", noise.randbytes(768)) if colour_type == 3 else b""
    step = len(rows) // pieces + 1
    bodies = [chunk(kind, rows[at : at + step]) for at in range(0, len(rows), step)]
    return png.SIGNATURE + head + b"".join(bodies) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "colour_type", "side"),
    [
        *((1, 0, 900), (4, 0, 500), (8, 0, 300), (16, 0, 200), (8, 2, 200), (16, 2, 150)),
        *((2, 3, 600), (8, 3, 300), (8, 4, 200), (16, 4, 150), (8, 6, 150), (16, 6, 120)),
    ],
)
def test_the_decoder_sees_the_same_pixels(depth, colour_type, side):
    data = png_of(depth, colour_type, side)
    file = png.with_stored_rows(data, png.read(data, 1))
    assert file is not None
    with Image.open(file) as ours, Image.open(io.BytesIO(data)) as plain:
        assert (ours.mode, ours.tobytes()) == (plain.mode, plain.tobytes())


def test_small_and_interlaced_pictures_are_left_to_the_decoder():
    for data in (png_of(8, 0, 100), png_of(8, 0, 300, interlaced=1)):
        assert png.with_stored_rows(data, png.read(data, 1)) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("is_photo", [True, False])
def test_a_result_is_a_png_like_any_other(draw, mode, is_photo):
    image = draw((301, 203), mode)
    profile, xmp = b"an IDAT of no chunk" * 9, b"<x:xmpmeta IDAT/>"
    made = png.encode(image, is_photo, Embedded(icc=profile, xmp=xmp))
    with Image.open(io.BytesIO(made)) as found:
        assert (found.mode, found.tobytes()) == (image.mode, image.tobytes())
        assert found.info["icc_profile"] == profile
    sums = [
        zlib.crc32(made[at + 4 : at + 8 + length]) == int.from_bytes(made[at + 8 + length :][:4], "big")
        for at, length in chunks(made)
    ]
    assert sums and all(sums)


def chunks(data):
    at = len(png.SIGNATURE)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield at, length
        at += length + 12


def test_a_picture_too_large_for_it_is_resized_all_the_same():
    side = 3000
    row = b"\0" + b"\x80\x20\x10\xff" * side
    data = png_of(8, 6, 150).replace(struct.pack(">2I", 150, 150), struct.pack(">2I", side, side))
    head = data[: data.index(b"IDAT") - 4]
    pixels = zlib.compress(row * side, 1)
    body = struct.pack(">I", len(pixels)) + b"IDAT" + pixels + struct.pack(">I", zlib.crc32(b"IDAT" + pixels))
    head = head[:29] + struct.pack(">I", zlib.crc32(head[12:29]))
    data = head + body + b"\0\0\0\0IEND\xaeB`\x82"
    assert not deflate.is_here(len(row) * side)
    assert png.with_stored_rows(data, png.read(data, 1)) is None
    made = Image.open(io.BytesIO(resize(data, ResizeJob(8, 8), PictureLimits()).data))
    assert made.convert("RGBA").getpixel((4, 4)) == (128, 32, 16, 255)


@pytest.mark.parametrize("is_tolerant", [False, True])
def test_a_damaged_picture_is_refused_or_shown_as_far_as_it_goes(is_tolerant):
    data = png_of(8, 2, 300, pieces=1)
    at = data.index(b"IDAT") + 4
    cut = data[: at + 100_000] + b"\0\0\0\0IEND\xaeB`\x82"
    job = ResizeJob(30, 30, tolerant=is_tolerant)
    if is_tolerant:
        assert resize(cut, job, PictureLimits()).width == 30
    else:
        with pytest.raises(PictureRefused, match="damaged"):
            resize(cut, job, PictureLimits())
