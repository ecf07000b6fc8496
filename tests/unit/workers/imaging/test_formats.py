"""The sizes in WebP headers, photograph or drawing, the allow-list, prepare()."""

import os
import warnings

import pytest
from PIL import Image

import workers.imaging
from workers.imaging import formats, png, webp


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
