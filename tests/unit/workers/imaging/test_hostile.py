"""Bombs, wrong formats, damage: refused at once with a status and a sentence, never with another exception."""

import io
import random
import time
import zlib

import pytest
from PIL import Image, ImageDraw, ImageFile

from workers.imaging import PictureLimits, PictureRefused, ResizedPicture, ResizeJob, resample, resize


def refusal_of(data, job=None, limits=None):
    started = time.process_time()
    with pytest.raises(PictureRefused) as refusal:
        resize(data, job or ResizeJob(16, 16), limits or PictureLimits())
    assert time.process_time() - started < 0.5
    return refusal.value


def png_header(width, height):
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    body = b"IDAT" + zlib.compress(b"\x00" * 99)
    chunks = (
        len(part[4:]).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in (head, body)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_header(draw, save, width, height):
    data = bytearray(save(draw(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def gif_header(width, height):
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"GIF89a" + size + b"\x00\x00\x00\x2c\x00\x00\x00\x00" + size + b"\x00\x02\x02\x44\x01\x00\x3b"


def webp_header(draw, save, width, height):
    body = save(draw(), "WEBP", lossless=True)[12:]
    head = b"VP8X" + (10).to_bytes(4, "little") + b"\x00" * 4
    head += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + (4 + len(head) + len(body)).to_bytes(4, "little") + b"WEBP" + head + body


def avif_header(draw, save, width, height):
    data = bytearray(save(draw(), "AVIF", speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "avif"])
def test_a_header_that_states_fifty_thousand_pixels_a_side(draw, save, kind):
    bomb = {
        "png": lambda: png_header(50_000, 50_000),
        "jpeg": lambda: jpeg_header(draw, save, 50_000, 50_000),
        "gif": lambda: gif_header(50_000, 50_000),
        "webp": lambda: webp_header(draw, save, 50_000, 50_000),
        "avif": lambda: avif_header(draw, save, 50_000, 50_000),
    }[kind]()
    refusal = refusal_of(bomb)
    assert refusal.status == 422
    assert kind == "avif" or "limit" in refusal.sentence  # libavif itself refuses to read such a header


def test_a_webp_canvas_is_checked_before_the_decoder_allocates_it(draw, save, monkeypatch):
    bomb = webp_header(draw, save, 50_000, 50_000)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened"))
    assert "50000x50000" in refusal_of(bomb).sentence


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(1, 2**31 - 1), (2**31 - 1, 1), (16_384, 1), (10_000, 6_000), (0, 5)])
def test_invalid_sizes(size):
    refusal = refusal_of(png_header(*size))
    assert refusal.status == 422
    assert "limit" in refusal.sentence or "no pixels" in refusal.sentence or 0 in size


def test_a_frame_that_enlarges_the_canvas_is_checked_again():
    small = b"GIF89a\x10\x00\x10\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    frame = b"\x2c\x00\x00\x00\x00%s%s\x00\x02\x02\x44\x01\x00"
    tiny, huge = (1).to_bytes(2, "little"), (60_000).to_bytes(2, "little")
    refusal = refusal_of(small + frame % (tiny, tiny) + frame % (huge, huge) + b"\x3b")
    assert refusal.status == 422


@pytest.mark.parametrize(
    ("job", "status"),
    [
        (ResizeJob(65_535, 65_535), 422),
        (ResizeJob(16_383, 16_383), 422),
        (ResizeJob(10**9, 0), 422),
        (ResizeJob(0, 10**9), 422),
        (ResizeJob(0, 0), 400),
        (ResizeJob(-1, 10), 400),
        (ResizeJob(10, 10, format="tiff"), 400),
        (ResizeJob(10, 10, fit="zoom"), 400),
    ],
)
def test_targets_are_refused_before_the_picture_is_opened(job, status, draw, save, monkeypatch):
    data = save(draw(), "PNG") if job.width == 16_383 else b"not read"
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert refusal_of(data, job).status == status


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "AVIF"])
def test_a_missing_side_is_limited_too(save, kind, monkeypatch):
    data = save(Image.new("L", (2, 900)), kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert "100x45000" in refusal_of(data, ResizeJob(100, 0, orient=True)).sentence


def test_too_many_bytes(draw, save):
    assert refusal_of(save(draw(), "PNG"), limits=PictureLimits(max_bytes=50)).status == 413


@pytest.mark.parametrize("kind", ["EPS", "PDF", "TIFF", "BMP", "ICO", "PPM", "TGA", "PCX", "SGI"])
def test_other_formats_reach_no_decoder(draw, save, kind):
    refusal = refusal_of(save(draw(), kind))
    assert refusal.status == 415
    assert "jpeg, png, gif" in refusal.sentence


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"8BPS\x00\x01",
        b"SIMPLE  =                    T",
        b"\x00\x00\x00\x18ftypmp42",
        b"RIFF\x00\x00\x00\x00WAVE",
        b"P6 9 9 255 ",
    ],
)
def test_what_is_no_picture(data):
    assert refusal_of(data).status == 415


def test_only_the_decoder_of_the_signature_is_tried(draw, save, monkeypatch):
    asked = []

    def opened(file, formats):
        asked.append(formats)
        raise OSError("enough")

    data = save(draw(), "PNG")
    monkeypatch.setattr(Image, "open", opened)
    assert refusal_of(data).status == 422
    assert asked == [("PNG",)]


KINDS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("GIF", {}),
    ("WEBP", {}),
    ("AVIF", {"speed": 10}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_cut_off_picture(draw, save, kind, options, share):
    data = save(draw(), kind, **options)
    refusal = refusal_of(data[: max(12, int(len(data) * share))])
    assert refusal.status in (415, 422)
    assert refusal.sentence


def test_out_of_memory_is_a_refusal(draw, save):
    def out_of_memory(*_):
        raise MemoryError

    data = save(draw(), "PNG")
    before = resample.use(out_of_memory)
    try:
        assert "memory" in refusal_of(data).sentence
    finally:
        resample.use(before)


def originals():
    """One small picture of each kind."""
    image = Image.radial_gradient("L").resize((48, 40)).convert("RGB")
    ImageDraw.Draw(image).text((4, 4), "damage me", fill="red")
    moved = [image.rotate(turn) for turn in (0, 90, 180)]
    kinds = [
        (image, "JPEG", {}),
        (image, "JPEG", {"progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "PNG", {}),
        (image.quantize(16), "PNG", {}),
        (image, "WEBP", {"lossless": True}),
        (image, "AVIF", {"speed": 10}),
        (moved[0], "GIF", {"save_all": True, "append_images": moved[1:]}),
        (moved[0], "WEBP", {"save_all": True, "append_images": moved[1:]}),
    ]
    for picture, kind, options in kinds:
        out = io.BytesIO()
        picture.save(out, kind, **options)
        yield out.getvalue()


def damaged(chance, data):
    """`data` with one to eight changes: a byte replaced, a run removed or doubled, the end cut off."""
    body = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(body))
        match chance.randrange(5):
            case 0 | 1:
                body[at] = chance.randrange(256)
            case 2:
                body[at] ^= 1 << chance.randrange(8)
            case 3:
                del body[at : at + chance.randint(1, 16)]
            case 4:
                body[at:at] = body[at : at + chance.randint(1, 64)]
        if not body:
            break
    return bytes(body[: chance.randrange(len(body) + 1)] if chance.random() < 0.1 else body)


def resize_damaged(count, seed):
    """Resize `count` damaged pictures; returns how many succeeded. Any other outcome than a ResizedPicture or a
    PictureRefused within two seconds fails."""
    chance, sound, whole = random.Random(seed), list(originals()), 0
    bounds = PictureLimits(max_pixels=4_000_000)
    for _ in range(count):
        data = damaged(chance, chance.choice(sound))
        started = time.process_time()
        try:
            result = resize(data, ResizeJob(20, 0, orient=True, icc="srgb"), bounds)
            assert isinstance(result, ResizedPicture)
            whole += 1
        except PictureRefused as refusal:
            assert refusal.status in (413, 415, 422)
            assert refusal.sentence
        assert time.process_time() - started < 2
    return whole


def test_damaged_pictures_are_resized_or_refused():
    assert 20 < resize_damaged(400, seed=4) < 380


@pytest.mark.soak
def test_twenty_thousand_damaged_pictures():
    assert 1000 < resize_damaged(20_000, seed=5) < 19_000


@pytest.mark.soak
def test_memory_stays_flat_over_ten_thousand_pictures(draw, save):
    """Damaged and intact pictures of all sizes: from the 1,000th to the 10,000th the memory grows by 20 MB at most."""

    def held():
        with open("/proc/self/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024

    chance = random.Random(6)
    sizes = [(160, 120), (640, 480), (1200, 900)]
    sound = [save(draw(size), kind) for size in sizes for kind in ("JPEG", "PNG", "WEBP")] + list(originals())
    before = 0.0
    for index in range(10_000):
        data = chance.choice(sound)
        try:
            resize(
                damaged(chance, data) if index % 20 == 0 else data,
                ResizeJob(chance.choice((40, 160, 400)), 0),
                PictureLimits(),
            )
        except PictureRefused:
            pass
        if index == 1_000:
            before = held()
    assert held() - before < 20
