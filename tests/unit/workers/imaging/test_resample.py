"""The SIMD kernel is used where it proves itself, and Pillow's in every other case."""

import math

import pytest
from PIL import Image

from workers.imaging import resample as kernel


@pytest.fixture(autouse=True)
def choice_of_this_test(monkeypatch):
    monkeypatch.setattr(kernel, "_chosen", kernel._chosen)


def test_psnr_of_equal_and_of_opposite_pictures():
    black, white = Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")
    assert kernel.psnr(black, black) == math.inf
    assert kernel.psnr(black, white) == 0


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_keeps_its_mode_and_gets_its_size(draw, mode):
    image = draw((97, 61), mode)
    image.info = {"comment": "secret"}
    made = kernel.resample(image, (31, 23), (0.5, 0.25, 90.5, 60.75))
    assert (made.mode, made.size, made.info) == (mode, (31, 23), {})


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(31, 23), (1, 1), (97, 61), (200, 5)])
def test_agrees_with_pillow(draw, mode, size):
    kernel.choose()
    image, box = draw((97, 61), mode), (0.5, 0.25, 90.5, 60.75)
    reference = image.resize(size, Image.Resampling.LANCZOS, box=box)
    assert kernel.psnr(kernel.resample(image, size, box), reference) > 40


def test_hidden_colours_do_not_bleed_out_of_clear_pixels(draw):
    image = Image.new("RGBA", (40, 40), (0, 0, 255, 255))
    image.paste((255, 0, 0, 0), (0, 0, 20, 40))
    made = kernel.resample(image, (10, 10), (0, 0, 40, 40))
    seen = [pixel for pixel in made.get_flattened_data() if pixel[3] > 40]
    assert seen
    assert max(pixel[0] for pixel in seen) < 8


def test_switched_off():
    assert "switched off" in kernel.choose(simd=False)
    assert kernel._chosen is kernel.pillow


def test_not_installed(monkeypatch):
    monkeypatch.setattr(kernel, "_simd", None)
    assert "not installed" in kernel.choose()
    assert kernel._chosen is kernel.pillow


def test_a_release_nobody_proved_is_not_trusted(monkeypatch):
    if kernel._simd is None:
        pytest.skip("no SIMD kernel here")
    monkeypatch.setattr(kernel.PIL, "__version__", "14.0.0")
    assert kernel.choose() == "Pillow LANCZOS (Pillow 14.0.0 is not proved with it)"
    assert kernel._chosen is kernel.pillow


def test_a_kernel_that_ignores_the_box_is_found_out(monkeypatch):
    if kernel._simd is None:
        pytest.skip("no SIMD kernel here")

    def boxless(image, size, box):
        return kernel.pillow(image, size, (0, 0, *image.size))

    monkeypatch.setattr(kernel, "_resampler", lambda: boxless)
    assert "differs in RGB" in kernel.choose()
    assert kernel._chosen is kernel.pillow


def test_the_first_picture_decides_when_nobody_has(monkeypatch, draw):
    monkeypatch.setattr(kernel, "_chosen", kernel._undecided)
    assert kernel.resample(draw(), (8, 8), (0, 0, 97, 61)).size == (8, 8)
    assert kernel._chosen is not kernel._undecided
