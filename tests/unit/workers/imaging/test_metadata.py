"""Metadata: what is kept on request, and that none of it ever refuses a picture."""

import base64
import io
import struct

import pytest
from PIL import Image

from workers.imaging import FORMATS, PictureLimits, PictureRefused, ResizeJob, avif, exif, jpeg, resize, webp
from workers.imaging.resample import psnr

# 40x30 pixels, arithmetic-coded by jpegtran: baseline and progressive.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//yQARCAAeACgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDQsmkMftnpUqHNE0Z89LDVpgeyr38lAVBMZFuiNwhMwdMKuKh1VyusDarBnrdyq6pWZfK02IRYvr0RUscK/DUayEVUW9PeQIoypvFr23scqRsv8MLidtveLoDHuR/6VoBaEPgE62SYtefpOhmV0g+STHkJfFDjyJ7Zri0cYVyk1fRXZsUkzTuQxQuk+2X9GVQ/d87ic1EHodm+4ke0pcs0SxVGl+AV5qHPmSJgkKm3t5ZPdO4rtjdr7VOMJyLKOw8Cmms0kn5Zw6Mx5l0dBDZfcXT9E4+hFkBEcC+55eTxqIcL84pyjFP1eA5t1eJC4z2GwjXwrxr/AMaOlNz2XYgO/GrCTw9819JZXUgzccKVAe673rQqu5NNDOgm/n1kcjzBE88ik7WYk6A1p+KowzTMSVXMVUFOIiR4yjj/2Q=="
)
ARITHMETIC_PROGRESSIVE = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//ygARCAAeACgDASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAc6JMb5a4iJYbNYucWB9UdhwQBkAW7ME0P/MAAQQBf/aAAgBAQABBQIVU7oNpvHoTvhdFEt1X8+IlpFR22tALRRYsvmsuPunBPffrmBXORU4/8wABBEF/9oACAEDAQE/AaPYWv/MAAQRBf/aAAgBAgEBPwGLt5tfKyD/zAAEEAX/2gAIAQEABj8CIx7AKb1qHEw7HYBG9mByZnF+Ckwc8mn7cmIQ0YqIlGxTwxj/zAAEEAX/2gAIAQEAAT8he7vvlWT7O3mOBjilk9uQFLcaFkAnHrZKdgK8bJZ7vtFefcKgi8nupbfNrUGHXYSEoK6EMSODB6VvSN1g/9oADAMBAAIAAwAAABAX8x2tiP/MAAQRBf/aAAgBAwEBPxC/OIZSjRypIP/MAAQRBf/aAAgBAgEBPxDWSTzqZcSQaMf/zAAEEAX/2gAIAQEAAT8QGhkc8DdQ2+MSnEQ8UhDSitIKllzhjyIP+OeInae/G5JewIadG4tmEyxbw7CglQW3g+PmQS7mbklAosq1sVK3LJ7IUItaPa0ZdfaIb3SjQhlJCoHrL3G1OkJowRPS9uggfjp63axIpY5OE4DkOgQi6uZkkHXCZUD/2Q=="
)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:rights="me"/></x:xmpmeta>'
)


def tags(orientation=6):
    found = Image.Exif()
    found[exif.ORIENTATION] = orientation
    found[exif.COPYRIGHT] = "(c) me"
    found[exif.ARTIST] = "me"
    found[0x010F] = "camera"
    found.get_ifd(0x8825)[1] = "N"
    return found.tobytes()


def picture():
    image = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    image.paste("red", (0, 0, 20, 10))
    return image


def stored(kind, **options):
    out = io.BytesIO()
    if kind == "PNG" and "xmp" in options:
        from PIL import PngImagePlugin

        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp"))
    picture().save(out, kind, **options)
    return out.getvalue()


def answer(data, **job):
    job = {"width": 32, "height": 0, "orient": True} | job
    result = resize(data, ResizeJob(**job), PictureLimits())
    return Image.open(io.BytesIO(result.data)), result


def exif_of(image):
    found = Image.Exif()
    found.load(image.info.get("exif", b"") or b"")
    return found


# -- keeping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["jpeg", "png", "webp", "avif"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_nothing_is_kept_unless_asked(kind, out):
    image, _ = answer(stored(kind, exif=tags(), xmp=XMP), format=out)
    assert not {"exif", "xmp"} & set(image.info)


@pytest.mark.parametrize("out", ["jpeg", "png", "webp", "avif"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_is_kept_without_the_orientation_that_was_applied(kind, out):
    image, result = answer(stored(kind, exif=tags(), xmp=XMP), format=out, keep=("exif",))
    assert (result.width, result.height) == (32, 43)
    found = exif_of(image)
    assert (found[exif.COPYRIGHT], found[0x010F]) == ("(c) me", "camera")
    assert found.get(exif.ORIENTATION, 1) == 1
    assert found.get_ifd(0x8825)[1] == "N"
    assert "xmp" not in image.info
    assert exif.orientation(image.info["exif"]) == 1


@pytest.mark.parametrize("out", ["jpeg", "png", "webp", "avif"])
def test_only_the_author_is_kept(out):
    image, _ = answer(stored("JPEG", exif=tags()), format=out, keep=("copyright",))
    found = exif_of(image)
    assert {tag for tag in found if tag != 0x8769} == {exif.COPYRIGHT, exif.ARTIST}
    assert not found.get_ifd(0x8825)


@pytest.mark.parametrize("out", ["jpeg", "png", "webp", "avif"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_xmp_is_kept_and_says_upright(kind, out):
    image, _ = answer(stored(kind, exif=tags(), xmp=XMP), format=out, keep=("xmp",))
    found = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
    assert found == XMP.replace(b'"6"', b'"1"')
    assert "exif" not in image.info


def test_a_picture_that_is_not_turned_keeps_its_orientation():
    image, result = answer(stored("JPEG", exif=tags()), orient=False, keep=("exif",))
    assert (result.height, exif_of(image)[exif.ORIENTATION]) == (24, 6)


def test_a_gif_holds_no_metadata_and_says_so():
    _, result = answer(stored("JPEG", exif=tags()), format="gif", keep=("exif", "xmp"))
    assert "no metadata" in result.note


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif",
        b"Exif\0\0",
        b"Exif\0\0MM\0*",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40,
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_left_out(kind, block):
    data = stored(kind, exif=tags())
    whole = tags()
    body = whole if kind == "JPEG" else whole.removeprefix(b"Exif\0\0")
    assert data.count(body) == 1
    padded = (block.removeprefix(b"Exif\0\0") if kind != "JPEG" else block).ljust(len(body), b"\xfe")[
        : len(body)
    ]
    image, result = answer(data.replace(body, padded), keep=("exif", "xmp", "copyright"))
    assert result.width == 32
    assert exif_of(image).get(exif.COPYRIGHT) is None


def test_metadata_that_a_jpeg_cannot_hold_are_left_out():
    long = Image.Exif()
    long[0x010E] = "x" * 60_000
    long[exif.ARTIST] = "y" * 60_000
    data = stored("PNG", exif=long.tobytes(), xmp=b"z" * 200_000)
    image, _ = answer(data, format="jpeg", keep=("exif", "xmp"))
    assert not {"exif", "xmp"} & set(image.info)


# -- orientation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_xmp_alone_turns_nothing(kind):
    assert answer(stored(kind, xmp=XMP))[1].height == 24


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "count", "value", "expected"),
    [(3, 1, 6, 6), (3, 1, 9, 1), (3, 1, 0, 1), (3, 2, 6, 1), (2, 1, 6, 1), (4, 1, 6, 1)],
)
def test_the_orientation_tag(order, kind, count, value, expected):
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    entry = struct.pack(order + "HHIHxx", exif.ORIENTATION, kind, count, value)
    block = (
        head + struct.pack(order + "H", 2) + struct.pack(order + "HHII", 0x0100, 4, 1, 9) + entry + b"\0" * 4
    )
    for data in (block, exif.HEADER + block):
        assert exif.orientation(data) == expected
        for length in range(len(data)):
            assert exif.orientation(data[:length]) in (1, expected)


# -- nothing of it refuses -----------------------------------------------------------------------------------------


def segment(marker, body):
    return b"\xff" + bytes((marker,)) + struct.pack(">H", len(body) + 2) + body


SEGMENTS = [
    segment(0xE1, b"Exif\0\0MM\0*\0\0"),
    segment(0xE1, b"Exif\0\0"),
    segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
    segment(0xE2, b"ICC_PROFILE\0"),
    segment(0xE2, b"ICC_PROFILE\0\1"),
    segment(0xE2, b"ICC_PROFILE\0\2\1damaged"),
    segment(0xE2, b"ICC_PROFILE\0\0\0damaged"),
    segment(0xE2, b"MPF\0"),
    segment(0xE2, b"MPF\0MM\0*\xff\xff\xff\xff"),
    segment(0xE0, b""),
    segment(0xE0, b"JFIF"),
    segment(0xE0, b"JFIF\0\1"),
    segment(0xED, b"Photoshop 3.0\0008BIM"),
    segment(0xED, b"Photoshop 3.0\0008BIM\4\4\0\0\xff\xff\xff\xff"),
    segment(0xEE, b"Adobe"),
    segment(0xEE, b"Adobe\0"),
    segment(0xFE, b""),
]


@pytest.mark.parametrize("extra", SEGMENTS)
def test_segments_of_a_jpeg(extra):
    data = stored("JPEG", quality=95)
    for made in (data[:2] + extra + data[2:], data[:20] + extra * 2 + data[20:]):
        image, result = answer(made, icc="keep", keep=("exif", "xmp"))
        assert (result.width, result.height) == (32, 24)
        assert psnr(image.convert("RGB"), picture().resize((32, 24), Image.Resampling.LANCZOS)) > 25


def test_a_jpeg_without_its_metadata_is_the_same_picture():
    data = stored("JPEG", exif=tags(), xmp=XMP, comment=b"x", icc_profile=b"x" * 99)
    plain = jpeg.without_metadata(data)
    assert b"camera" not in plain and b"xap" not in plain and b"JFIF" in plain
    assert Image.open(io.BytesIO(plain)).tobytes() == Image.open(io.BytesIO(data)).tobytes()
    assert jpeg.without_metadata(data[:30])
    found = jpeg.read(data)
    assert (found.profile, found.xmp) == (b"x" * 99, XMP)


def riff(kind, body):
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


@pytest.mark.parametrize(
    "extra",
    [
        riff(b"EXIF", b"x"),
        riff(b"ICCP", b""),
        riff(b"XMP ", b"\xff"),
        riff(b"ABCD", b"abc"),
        b"EXIF\xff\xff\xff\x0f",
        b"XM",
    ],
)
def test_chunks_of_a_webp(extra):
    data = stored("WEBP", exif=tags(1), icc_profile=b"x" * 20, lossless=True) + extra
    for size in (len(data) - 8, len(data) - 9 - len(extra), 99):
        made = data[:4] + struct.pack("<I", size) + data[8:]
        if size == 99:
            made = webp.without_metadata(made)
        assert answer(made)[1].width == 32


def test_a_webp_that_claims_metadata_it_has_not():
    data = bytearray(stored("WEBP", exif=tags(1), lossless=True))
    data[20] = 0x3E  # every flag of the extended header
    assert Image.open(io.BytesIO(webp.without_metadata(bytes(data)))).size == (64, 48)


@pytest.mark.parametrize("block", [b"\xff" * 30, b"MM\0*\xff\xff\xff\xff"])
def test_exif_of_an_avif(block):
    data = stored("AVIF", exif=tags(1), speed=10)
    at = data.index(b"MM\0*")
    made = data[:at] + block + data[at + len(block) :]
    assert answer(made)[1].width == 32
    assert Image.open(io.BytesIO(avif.without_metadata(data))).size == (64, 48)


# -- JPEG: arithmetic coding, files that end early -------------------------------------------------------------------


@pytest.mark.parametrize("data", [ARITHMETIC, ARITHMETIC_PROGRESSIVE])
@pytest.mark.parametrize("room", [None, 20, 100, 200])
@pytest.mark.parametrize("width", [5, 13, 40, 90])
def test_arithmetic_coding_at_every_size(data, room, width):
    """The decoder gets a file in blocks of 64 KB, and in such data it cannot wait for the next one."""
    if room is not None:  # the first block ends `room` bytes before the end of the file
        padding = (1 << 16) - len(data) - 4 + room
        data = data[:2] + segment(0xFE, b"x" * padding) + data[2:]
    assert answer(data, width=width)[1].width == width


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_file_that_ends_early_is_shown_on_request(options, share):
    out = io.BytesIO()
    whole = Image.effect_mandelbrot((200, 160), (-2.0, -1.2, 1.0, 1.2), 40).convert("RGB")
    whole.save(out, "JPEG", **options)
    data = out.getvalue()[: int(len(out.getvalue()) * share)]
    with pytest.raises(PictureRefused) as refusal:
        answer(data, width=100)
    assert "it ends early" in refusal.value.sentence
    image, _ = answer(data, width=100, tolerant=True)
    top = (0, 0, 100, int(60 * share))
    assert (
        psnr(image.convert("RGB").crop(top), whole.resize((100, 80), Image.Resampling.LANCZOS).crop(top)) > 15
    )
    with pytest.raises(PictureRefused):
        answer(data, width=100)


def test_a_jpeg_without_its_last_marker():
    data = stored("JPEG")[:-2]
    with pytest.raises(PictureRefused):
        answer(data)
    assert answer(data, tolerant=True)[1].width == 32


def test_refusals_are_sentences_of_our_own():
    words = set()
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "AVIF"):
        data = stored(kind)
        for cut in range(1, len(data), max(1, len(data) // 60)):
            try:
                answer(data[:cut])
            except PictureRefused as refusal:
                words.add(refusal.sentence.replace(f"{kind.lower()} ", ""))
    assert {word for word in words if "known format" not in word and "no pixels" not in word} <= {
        "picture is damaged: it ends early",
        "picture is damaged: it cannot be decoded",
        "picture is damaged: its header cannot be read",
    }


@pytest.mark.parametrize("out", FORMATS)
def test_a_profile_and_metadata_together(out):
    image, _ = answer(
        stored("JPEG", exif=tags(), icc_profile=b"x" * 99), format=out, keep=("exif",), icc="keep"
    )
    assert image.format == out.upper()
