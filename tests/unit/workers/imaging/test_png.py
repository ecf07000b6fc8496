"""PNG: transparency by key in every depth, chunks that are wrong, small files of every colour type."""

import io
import struct
import zlib

import pytest
from PIL import Image

from workers.imaging import PictureLimits, PictureRefused, ResizeJob, png, resize

SIZE = 16
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
END = b"\0\0\0\0IEND\xaeB`\x82"


def chunk(kind, body, checksum=None):
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def rows(depth, colour_type, left, right):
    """The unpacked pixels of a picture whose left half has the samples `left` and the right half `right`."""
    samples = list(left) * (SIZE // 2) + list(right) * (SIZE // 2)
    if depth == 16:
        row = struct.pack(f">{len(samples)}H", *samples)
    else:
        bits = "".join(f"{value:0{depth}b}" for value in samples)
        row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return (b"\0" + row) * SIZE


def png_of(depth, colour_type, left, right, *others):
    head = struct.pack(">2I5B", SIZE, SIZE, depth, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(48)) * 16) if colour_type == 3 else b""
    pixels = zlib.compress(rows(depth, colour_type, left, right))
    return b"".join(
        [png.SIGNATURE, chunk(b"IHDR", head), palette, *others, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


def alpha_of(data, out="png"):
    """Alpha in the middle of the left and of the right half of the result; 255 where it has none."""
    answer = Image.open(io.BytesIO(resize(data, ResizeJob(8, 8, format=out), PictureLimits()).data))
    shown = answer.convert("RGBA")
    return [nearly(shown.getpixel((x, 4))[3]) for x in (1, 6)]


def nearly(alpha):
    """Resampling rings by a step or two."""
    return 0 if alpha < 8 else 255 if alpha > 247 else alpha


KEYED = [
    (1, 0, [1], [0]),
    (1, 0, [0], [1]),
    (2, 0, [2], [1]),
    (2, 0, [3], [0]),
    (4, 0, [7], [6]),
    (4, 0, [15], [0]),
    (8, 0, [200], [199]),
    (16, 0, [0x1234], [0x1235]),
    (16, 0, [0xFF00], [0xFFFF]),
    (8, 2, [1, 2, 3], [1, 2, 4]),
    (16, 2, [0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABD]),
    (16, 2, [0, 0, 1], [0, 0, 0]),
]


@pytest.mark.parametrize("out", ["png", "webp"])
@pytest.mark.parametrize(("depth", "colour_type", "key", "other"), KEYED)
def test_a_key_is_compared_in_the_depth_of_the_file(depth, colour_type, key, other, out):
    trns = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    assert alpha_of(png_of(depth, colour_type, key, other, trns), out) == [0, 255]
    assert alpha_of(png_of(depth, colour_type, other, key, trns), out) == [255, 0]


@pytest.mark.parametrize(("depth", "colour_type", "key", "other"), KEYED)
def test_a_key_that_no_pixel_has(depth, colour_type, key, other):
    if depth > 1:
        trns = chunk(
            b"tRNS", struct.pack(f">{len(key)}H", *key[:-1], key[-1] ^ 1 if key[-1] ^ 1 != other[-1] else 5)
        )
        assert alpha_of(png_of(depth, colour_type, key, other, trns)) == [255, 255]


def test_a_key_in_an_animation():
    head = struct.pack(">2I5B", SIZE, SIZE, 16, 2, 0, 0, 0)
    key, other = [0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABD]
    control = struct.pack(">5I2H2B", 0, SIZE, SIZE, 0, 0, 4, 100, 0, 0)
    again = struct.pack(">5I2H2B", 1, SIZE, SIZE, 0, 0, 4, 100, 0, 0)
    data = b"".join(
        [
            png.SIGNATURE,
            chunk(b"IHDR", head),
            chunk(b"acTL", struct.pack(">2I", 2, 0)),
            chunk(b"tRNS", struct.pack(">3H", *key)),
            chunk(b"fcTL", control),
            chunk(b"IDAT", zlib.compress(rows(16, 2, key, other))),
            chunk(b"fcTL", again),
            chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(rows(16, 2, other, key))),
            chunk(b"IEND", b""),
        ]
    )
    shown = Image.open(io.BytesIO(resize(data, ResizeJob(8, 8, format="webp"), PictureLimits()).data))
    found = []
    for index in range(2):
        shown.seek(index)
        found.append([nearly(shown.convert("RGBA").getpixel((x, 4))[3]) for x in (1, 6)])
    assert found == [[0, 255], [255, 0]]


@pytest.mark.parametrize(("depth", "value"), [(1, 1), (2, 3), (4, 9), (8, 200)])
def test_the_alpha_of_a_palette(depth, value):
    trns = chunk(b"tRNS", b"\xff" * value + b"\0")
    assert alpha_of(png_of(depth, 3, [value], [0], trns)) == [0, 255]


@pytest.mark.parametrize("length", [0, 1, 3, 300])
@pytest.mark.parametrize("colour_type", [0, 2, 3])
def test_a_transparency_of_the_wrong_length_is_ignored_or_cut(colour_type, length):
    data = png_of(
        8,
        colour_type,
        [9] * SAMPLES[colour_type],
        [0] * SAMPLES[colour_type],
        chunk(b"tRNS", b"\xff" * length),
    )
    assert resize(data, ResizeJob(8, 8), PictureLimits()).format == "png"


@pytest.mark.parametrize("checksum", [None, 0])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"tEXt", b"a\0b"),
        (b"tEXt", b""),
        (b"zTXt", b"a\0\1damaged"),
        (b"zTXt", b"a\0\0" + zlib.compress(b"x" * (80 << 20))),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0damaged"),
        (b"iTXt", b"\xff"),
        (b"iCCP", b"x"),
        (b"iCCP", b"x\0\1"),
        (b"iCCP", b"x\0\0" + zlib.compress(b"\0" * (80 << 20))),
        (b"gAMA", b"\0"),
        (b"gAMA", b"\0\0\0\0"),
        (b"cHRM", b"\0" * 9),
        (b"cHRM", b"\0" * 32),
        (b"cICP", b"\1"),
        (b"sRGB", b""),
        (b"pHYs", b"\0"),
        (b"eXIf", b"MM"),
        (b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        (b"acTL", b"\0"),
        (b"acTL", struct.pack(">2I", 3, 0)),
        (b"fcTL", b"\0" * 26),
        (b"fdAT", b"\0"),
        (b"vpAg", b"private"),
        (b"tRNS", b"\0" * 6),
    ],
)
def test_what_only_describes_a_picture_never_refuses_it(kind, body, checksum):
    data = png_of(8, 2, [1, 2, 3], [1, 2, 4], chunk(kind, body, checksum))
    result = resize(data, ResizeJob(8, 8, orient=True, icc="srgb"), PictureLimits())
    assert Image.open(io.BytesIO(result.data)).size == (8, 8)


@pytest.mark.parametrize("extra", [b"", chunk(b"tEXt", b"a\0b")])
@pytest.mark.parametrize(
    "end",
    [
        b"",
        b"\0\0",
        b"\0\0\0\0IEND",
        b"\0\0\0\0IEND\1\2\3\4",
        b"\0\0\0\x09IEN",
        b"\0\0\1\0IDAT",
        b"\0\0\1\0IDATmore",
        b"\0\0\1\0tEXtmore",
        b"\xff\xff\xff\xfftEXt",
        b"garbage of no chunk at all",
    ],
)
def test_damage_behind_the_pixels_refuses_nothing(extra, end):
    whole = png_of(8, 2, [250, 2, 3], [1, 2, 250], extra)
    data = whole[: -len(END)] + end
    assert (
        resize(data, ResizeJob(8, 8), PictureLimits()).data
        == resize(whole, ResizeJob(8, 8), PictureLimits()).data
    )


@pytest.mark.parametrize("extra", [b"", chunk(b"tEXt", b"a\0b")])
@pytest.mark.parametrize("lost", [5, 20])
@pytest.mark.parametrize("is_ended", [False, True])
def test_pixels_that_are_missing_refuse_the_picture(extra, lost, is_ended):
    data = png_of(8, 2, [250, 2, 3], [1, 2, 250], extra)
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    if is_ended:
        body = data[at + 4 : at + 4 + length - lost]
        cut = data[: at - 4] + chunk(b"IDAT", body) + END
    else:
        cut = data[: at + 4 + length - lost]
    with pytest.raises(PictureRefused, match="it ends early"):
        resize(cut, ResizeJob(8, 8), PictureLimits())
    assert resize(cut, ResizeJob(8, 8, tolerant=True), PictureLimits()).width == 8


@pytest.mark.parametrize(("frames", "is_behind"), [(0, False), (1 << 31, False), (1, True)])
def test_an_animation_that_is_not_announced_as_one_is_a_still(frames, is_behind):
    data = png_of(8, 2, [250, 2, 3], [250, 2, 3])
    announced = chunk(b"acTL", struct.pack(">2I", frames, 0))
    control = chunk(b"fcTL", struct.pack(">5I2H2B", 0, SIZE, SIZE, 0, 0, 1, 10, 0, 0))
    at = data.index(b"IDAT") - 4
    green = zlib.compress((b"\0" + b"\0\xff\0" * SIZE) * SIZE)
    more = control + chunk(b"fdAT", b"\0\0\0\1" + green)
    head = b"" if is_behind else announced
    made = data[:at] + head + data[at : -len(END)] + announced * is_behind + more + END
    answer = Image.open(io.BytesIO(resize(made, ResizeJob(8, 8), PictureLimits()).data))
    assert answer.convert("RGB").getpixel((4, 4)) == (250, 2, 3)


def test_a_wrong_checksum_of_the_header_refuses_in_a_sentence_of_our_own():
    data = bytearray(png_of(8, 0, [1], [2]))
    data[29] ^= 1
    with pytest.raises(PictureRefused) as refusal:
        resize(bytes(data), ResizeJob(8, 8), PictureLimits())
    assert "b'" not in refusal.value.sentence


@pytest.mark.parametrize(
    ("depth", "colour_type"),
    [
        (1, 0),
        (2, 0),
        (4, 0),
        (8, 0),
        (16, 0),
        (8, 2),
        (16, 2),
        (1, 3),
        (2, 3),
        (4, 3),
        (8, 3),
        (8, 4),
        (16, 4),
        (8, 6),
        (16, 6),
    ],
)
def test_every_depth_of_every_colour_type(depth, colour_type):
    most = (1 << depth) - 1
    samples = SAMPLES[colour_type]
    left, right = [most] * samples, [0] * (samples - 1) + [most if colour_type in (4, 6) else 0]
    data = png_of(depth, colour_type, left, right, chunk(b"tEXt", b"a\0b"))
    answer = Image.open(io.BytesIO(resize(data, ResizeJob(8, 8, format="png"), PictureLimits()).data))
    if colour_type != 3:
        shown = (
            answer
            if answer.mode != "I;16"
            else answer.convert("I").point([v >> 8 for v in range(65536)], "L")
        )
        found = [shown.convert("RGB").getpixel((x, 4))[0] for x in (1, 6)]
        assert found[0] > 240 and found[1] < 15
