"""The SIMD resampler is used where it passes its test, and Pillow's in every other case."""

import math

import pytest
from PIL import Image

from workers.imaging import resample

RELEASES = {"Pillow": "13.0.0", "cykooz-resizer": "4.0.1"}


@pytest.fixture(autouse=True)
def resampler_in_use():
    """Restores the resampler of the test process."""
    before = resample.use(resample.choose_at_first_use)
    yield
    resample.use(before)


def test_psnr_of_equal_and_of_opposite_pictures():
    black, white = Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")
    assert resample.psnr(black, black) == math.inf
    assert resample.psnr(black, white) == 0


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_keeps_its_mode_and_gets_its_size(draw, mode):
    image = draw((97, 61), mode)
    image.info = {"comment": "secret"}
    for size in ((31, 23), (12, 8), (1, 1), (200, 100)):  # some by a reduction first
        made = resample.resample(image, size, (0.5, 0.25, 90.5, 60.75))
        assert (made.mode, made.size, made.info) == (mode, size, {})


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(31, 23), (1, 1), (97, 61), (200, 5)])
def test_agrees_with_pillow(draw, mode, size):
    resample.choose()
    image, box = draw((97, 61), mode), (0.5, 0.25, 90.5, 60.75)
    reference = image.resize(size, Image.Resampling.LANCZOS, box=box)
    assert resample.psnr(resample.resample(image, size, box), reference) > 40


def test_colours_of_transparent_pixels_do_not_bleed(draw):
    image = Image.new("RGBA", (40, 40), (0, 0, 255, 255))
    image.paste((255, 0, 0, 0), (0, 0, 20, 40))
    made = resample.resample(image, (10, 10), (0, 0, 40, 40))
    visible = [pixel for pixel in made.get_flattened_data() if pixel[3] > 40]
    assert visible
    assert max(pixel[0] for pixel in visible) < 8


def never_made():
    pytest.fail("the SIMD resampler was made")


@pytest.mark.parametrize(
    ("simd", "releases", "words"),
    [
        (False, RELEASES, "Pillow LANCZOS (SIMD switched off)"),
        (True, {"Pillow": "13.0.0"}, "Pillow LANCZOS (cykooz-resizer is not installed)"),
        (True, RELEASES | {"Pillow": "14.0.0"}, "Pillow LANCZOS (Pillow 14.0.0 is not tested with it)"),
        (True, RELEASES | {"cykooz-resizer": "4.1.0"}, "Pillow LANCZOS (cykooz-resizer 4.1.0 is not tested with it)"),
    ],
)  # fmt: skip
def test_pillow_resamples_where_simd_is_off_absent_or_not_tested(simd, releases, words):
    assert resample.select(simd, releases, never_made) == (resample.pillow, words)


def test_a_resampler_that_ignores_the_box_is_rejected():
    def without_box(image, size, box):
        return resample.pillow(image, size, (0, 0, *image.size))

    chosen, words = resample.select(True, RELEASES, lambda: without_box)
    assert chosen is resample.pillow
    assert "differs in RGB" in words


def test_a_resampler_that_agrees_with_pillow_is_chosen():
    def agrees(image, size, box):
        return resample.pillow(image, size, box)

    assert resample.select(True, RELEASES, lambda: agrees) == (agrees, "cykooz-resizer 4.0.1")


def test_the_first_picture_chooses_when_choose_was_not_called(draw):
    assert resample.resample(draw(), (8, 8), (0, 0, 97, 61)).size == (8, 8)
    assert resample.use(resample.pillow) is not resample.choose_at_first_use
