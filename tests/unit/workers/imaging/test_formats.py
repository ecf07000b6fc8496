"""The sizes in WebP headers, photograph or drawing, the allow-list, prepare()."""

import io
import os
import random
import warnings
from dataclasses import replace

import pytest
from PIL import Image

import workers.imaging
from workers.imaging import avif, formats, png, webp
from workers.imaging.embedded import Embedded
from workers.imaging.resample import psnr


@pytest.mark.parametrize(
    "options", [{"quality": 80}, {"lossless": True}, {"quality": 80, "icc_profile": b"x" * 30}]
)
@pytest.mark.parametrize("size", [(97, 61), (1, 1), (300, 2)])
def test_the_size_of_a_webp_is_read_from_its_header(draw, save, options, size):
    assert webp.canvas(save(draw(size), "WEBP", **options)) == size


@pytest.mark.parametrize("data", [b"", b"RIFF....WEBPVP8X", b"RIFF....WEBPJUNK" + b"\x00" * 40])
def test_a_webp_without_a_size(data):
    assert webp.canvas(data) is None


def test_a_photograph_differs_from_a_drawing_by_the_compression_of_its_png(draw, save):
    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    assert png.is_photo(len(save(noise, "PNG")), noise)
    assert not png.is_photo(len(save(draw((64, 64)), "PNG")), noise)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "avif"])
def test_signatures(draw, save, kind):
    assert formats.sniff(save(draw(), kind.upper())) == kind


def test_a_format_pillow_was_built_without(draw, save):
    with pytest.raises(workers.imaging.PictureRefused) as refusal:
        formats.sniff(save(draw(), "WEBP"), has_codec=lambda name: False)
    assert refusal.value.status == 415


def test_prepare_returns_the_libraries_in_use():
    with warnings.catch_warnings():
        line = workers.imaging.prepare()
        assert "Pillow 13" in line or "Pillow 1" in line
        assert "resize by" in line
        with pytest.raises(Image.DecompressionBombWarning):
            warnings.warn("large", Image.DecompressionBombWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"BM\x36\0\0\0", "BMP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made -->\n<!DOCTYPE svg>\n<SVG/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"junk\n%PDF-1.4", "PDF"),
        (b"8BPS\0\1", "PSD"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\0\0\0\x18ftypisom", "MP4"),
    ],
)
def test_a_format_that_is_known_but_not_taken_is_named(data, name):
    for tail in (b"", b"\0" * 5000):
        with pytest.raises(workers.imaging.PictureRefused) as refusal:
            formats.sniff(data + tail)
        assert refusal.value.status == 415
        assert name in refusal.value.sentence
        assert "jpeg, png, gif, webp, avif" in refusal.value.sentence


def decoded(data, **job):
    job = {"width": 300, "height": 200} | job
    result = workers.imaging.resize(data, workers.imaging.ResizeJob(**job), workers.imaging.PictureLimits())
    return Image.open(io.BytesIO(result.data))


@pytest.mark.parametrize(
    ("quality", "subsampling", "is_fine"),
    [
        (0, "auto", False),
        (89, "auto", False),
        (90, "auto", True),
        (100, "auto", True),
        (95, "420", False),
        (30, "444", True),
    ],
)
def test_colours_are_subsampled_below_quality_90(draw, save, quality, subsampling, is_fine):
    data = save(draw((400, 300)), "PNG")
    image = decoded(data, format="jpeg", quality=quality, subsampling=subsampling)
    assert image.layer[0][1:3] == ((1, 1) if is_fine else (2, 2))
    job = workers.imaging.ResizeJob(300, 200, format="avif", quality=quality, subsampling=subsampling)
    avif = workers.imaging.resize(data, job, workers.imaging.PictureLimits()).data
    at = avif.index(b"av1C") + 6
    assert (avif[at] & 0b1100 == 0) == is_fine  # chroma_subsampling_x and _y


def few_colours(mode, size=(240, 180)):
    image = Image.new("RGBA" if mode == "RGBA" else "RGB", size, "white")
    for index in range(12):
        image.paste(
            (20 * index, 255 - 20 * index, 99), (20 * index, 10 * index, 20 * index + 60, 10 * index + 50)
        )
    if mode == "RGBA":
        image.paste((0, 0, 0, 0), (100, 0, 240, 40))
        return image.quantize(64, Image.Quantize.FASTOCTREE)
    return image.quantize(64)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("GIF", "RGB")])
def test_a_palette_stays_one_where_that_is_smaller(save, kind, mode):
    data = save(few_colours(mode), kind)
    image, whole = (
        decoded(data, width=120, height=0, format="png", original=original) for original in (False, True)
    )
    assert (image.mode, whole.mode) == ("P", mode)
    one, other = (each.convert("RGBA") for each in (image, whole))
    assert psnr(one.convert("RGB"), other.convert("RGB")) > 30
    assert psnr(one.getchannel("A"), other.getchannel("A")) > 30
    job = workers.imaging.ResizeJob(120, 0, format="png")
    limits = workers.imaging.PictureLimits()
    plain = workers.imaging.resize(data, job, limits).data
    assert len(plain) < len(workers.imaging.resize(data, replace(job, original=True), limits).data)


def test_a_palette_is_given_up_where_it_is_larger_or_looks_worse(save):
    noise = Image.frombytes("RGB", (64, 64), random.Random(1).randbytes(64 * 64 * 3)).quantize(256)
    assert decoded(save(noise, "PNG"), width=200, height=0, format="png").mode == "RGB"  # looks worse
    assert decoded(save(few_colours("RGB"), "PNG"), width=4, height=3, format="png").mode == "RGB"  # larger
    colours = save(few_colours("RGB").convert("RGB"), "PNG")
    assert decoded(colours, width=120, height=0, format="png").mode == "RGB"  # was none


def tables(data):
    """Bytes of the Huffman tables of a JPEG."""
    found, at = 0, 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found += length if data[at + 1] == 0xC4 else 0
        at += 2 + length
    return found


def test_small_results_have_tables_of_their_own(draw, save):
    data, limits = save(draw((900, 700)), "JPEG"), workers.imaging.PictureLimits()

    def made(*size, **job):
        return workers.imaging.resize(data, workers.imaging.ResizeJob(*size, **job), limits).data

    assert tables(made(160, 120)) < tables(made(160, 120, original=True)) == tables(made(800, 600))
    assert tables(made(400, 300)) < tables(made(800, 600))
    assert len(made(160, 120)) < len(made(160, 120, original=True))
    assert psnr(*(Image.open(io.BytesIO(made(160, 120, original=x))) for x in (True, False))) > 99


def test_a_webp_is_as_small_as_with_the_usual_effort():
    photo = Image.effect_mandelbrot((640, 480), (-2.0, -1.2, 1.0, 1.2), 90).convert("RGB")
    photo = Image.blend(photo, Image.effect_noise((640, 480), 90).convert("RGB"), 0.3)
    out = io.BytesIO()
    photo.save(out, "WEBP", quality=75, method=4)
    made = webp.encode(photo, 75, Embedded())
    assert len(made) <= 1.02 * len(out.getvalue())
    ours, usual = (
        psnr(Image.open(io.BytesIO(each)).convert("RGB"), photo) for each in (made, out.getvalue())
    )
    assert ours > usual - 0.05


def test_formats_by_default_smaller_than_jpeg(draw, save):
    photo = Image.effect_mandelbrot((640, 480), (-2.0, -1.2, 1.0, 1.2), 90).convert("RGB")
    photo = Image.blend(photo, draw((640, 480)), 0.5)
    data, limits = save(photo, "PNG"), workers.imaging.PictureLimits()
    exact = photo.resize((320, 240), Image.Resampling.LANCZOS)
    sizes, likeness = {}, {}
    for out in ("jpeg", "webp", "avif"):
        made = workers.imaging.resize(data, workers.imaging.ResizeJob(320, 240, format=out), limits).data
        sizes[out], likeness[out] = len(made), psnr(Image.open(io.BytesIO(made)).convert("RGB"), exact)
    assert max(sizes["avif"], sizes["webp"]) < sizes["jpeg"]
    assert min(likeness.values()) > likeness["jpeg"] - 1.5


@pytest.mark.parametrize(
    ("kind", "accepts", "is_animated", "has_alpha", "chosen"),
    [
        ("jpeg", ("avif", "webp"), False, False, "avif"),
        ("png", ("webp",), False, True, "webp"),
        ("jpeg", (), False, False, "jpeg"),
        ("png", (), False, False, "png"),
        ("gif", ("avif", "webp"), True, True, "avif"),
        ("gif", ("webp",), True, True, "webp"),
        ("avif", ("avif", "webp"), True, False, "avif"),
        ("avif", (), True, True, "gif"),
        ("webp", (), True, True, "gif"),
        ("avif", (), False, True, "png"),
        ("webp", (), False, False, "jpeg"),
        ("png", ("avif",), True, False, "avif"),
        ("png", (), True, False, "png"),
    ],
)
def test_the_format_of_auto(kind, accepts, is_animated, has_alpha, chosen):
    assert formats.choose(kind, accepts, is_animated, has_alpha) == chosen


def test_auto_in_a_job(draw, save):
    data = save(draw((90, 60), "RGBA"), "WEBP", lossless=True)
    assert decoded(data, format="auto").format == "PNG"
    assert decoded(data, format="auto", accepts=("webp",)).format == "WEBP"
    assert decoded(save(draw(), "AVIF", speed=10), format="auto").format == "JPEG"


@pytest.mark.parametrize(
    ("size", "frames", "speed"),
    [((160, 125), 1, 6), ((160, 126), 1, 8), ((130, 100), 10, 8), ((1300, 101), 1, 9)],
)
def test_an_avif_is_encoded_with_the_effort_that_its_pixels_allow(size, frames, speed):
    picture = Image.effect_noise(size, 60).convert("RGB")
    pictures = [picture.rotate(angle) for angle in range(frames)]
    out = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:], "duration": [50] * frames} if frames > 1 else {}
    pictures[0].save(
        out, "AVIF", quality=63, speed=speed, max_threads=1, subsampling="4:2:0", icc_profile=b"", **more
    )
    assert len(avif.encode(pictures, [50] * frames, 63, "4:2:0", Embedded(b"", b"", b""))) == len(
        out.getvalue()
    )
