"""Sizes and boxes: rounding, exact targets, boxes within the source."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from workers.imaging.geometry import (
    Target,
    contained_size,
    covering_box,
    decode_size,
    missing_side,
    plan_resize,
    scaled_box,
    stored_box,
)

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDES = st.integers(1, 20_000)


@pytest.mark.parametrize(
    ("source", "width", "height", "fit", "size"),
    [
        ((400, 300), 160, 160, "stretch", (160, 160)),
        ((400, 300), 160, 0, "stretch", (160, 120)),
        ((400, 300), 0, 120, "stretch", (160, 120)),
        ((1000, 333), 100, 0, "stretch", (100, 33)),
        ((1000, 335), 100, 0, "stretch", (100, 34)),
        ((3000, 1), 10, 0, "cover", (10, 1)),  # at least one
        ((1, 3000), 0, 10, "contain", (1, 10)),
        ((3, 3), 999, 0, "stretch", (999, 999)),
        ((400, 300), 160, 160, "contain", (160, 120)),
        ((300, 400), 160, 160, "contain", (120, 160)),
        ((40, 30), 160, 160, "contain", (160, 120)),
        ((400, 300), 160, 160, "cover", (160, 160)),
        ((5000, 2), 100, 100, "contain", (100, 1)),
    ],
)
def test_size_of_the_result(source, width, height, fit, size):
    assert plan_resize(source, Target(width, height, fit)).size == size


@pytest.mark.parametrize(
    ("source", "width", "height", "fit", "size"),
    [
        ((1000, 333), 100, 0, "stretch", (100, 34)),  # 33.3 + 0.7 = 34.0: up from .3
        ((1000, 332), 100, 0, "stretch", (100, 33)),
        ((1000, 333), 100, 100, "contain", (100, 34)),
    ],
)
def test_peers_of_the_original_get_its_rounding(source, width, height, fit, size):
    assert plan_resize(source, Target(width, height, fit, original=True)).size == size


@pytest.mark.parametrize(
    ("source", "width", "height", "fit", "size"),
    [
        ((100, 50), 200, 200, "contain", (100, 50)),
        ((100, 50), 200, 30, "contain", (60, 30)),
        ((100, 50), 40, 200, "contain", (40, 20)),
        ((100, 50), 200, 200, "cover", (50, 50)),
        ((100, 50), 200, 100, "cover", (100, 50)),
        ((100, 50), 400, 100, "cover", (100, 25)),
        ((100, 50), 20, 40, "cover", (20, 40)),
        ((100, 50), 20, 60, "cover", (17, 50)),
        ((100, 50), 200, 20, "stretch", (100, 20)),
        ((100, 50), 200, 0, "stretch", (100, 50)),
        ((100, 50), 0, 200, "cover", (100, 50)),
        ((1, 1), 10, 300, "cover", (1, 1)),
    ],
)
def test_no_result_is_larger_than_its_source(source, width, height, fit, size):
    found = plan_resize(source, Target(width, height, fit, enlarge=False))
    assert found.size == size
    turned = plan_resize((source[1], source[0]), Target(width, height, fit, enlarge=False), turn=6)
    assert turned.size == size


@settings(deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 900),
    st.integers(1, 900),
    st.sampled_from(["stretch", "contain", "cover"]),
)
def test_without_enlarging_no_side_is_longer_than_the_sources(
    source_width, source_height, width, height, fit
):
    size = plan_resize((source_width, source_height), Target(width, height, fit, enlarge=False)).size
    assert 1 <= size[0] <= min(width, source_width)
    assert 1 <= size[1] <= min(height, source_height)


def test_a_turned_picture_is_planned_upright_and_resized_as_stored():
    found = plan_resize((400, 300), Target(0, 160), turn=6)
    assert found.size == (120, 160)
    assert found.stored == (160, 120)
    assert found.box == (0, 0, 400, 300)


def test_cover_crops_both_sides_equally_in_either_orientation():
    assert plan_resize((400, 300), Target(100, 100, "cover")).box == (50, 0, 350, 300)
    assert plan_resize((400, 300), Target(100, 50, "cover"), turn=8).box == (125, 0, 275, 300)


@pytest.mark.parametrize(
    ("gravity", "target", "box"),
    [
        ("west", (100, 100), (0, 0, 300, 300)),
        ("east", (100, 100), (100, 0, 400, 300)),
        ("north", (100, 100), (50, 0, 350, 300)),
        ("northeast", (100, 100), (100, 0, 400, 300)),
        ("north", (400, 100), (0, 0, 400, 100)),
        ("south", (400, 100), (0, 200, 400, 300)),
        ("southwest", (400, 100), (0, 200, 400, 300)),
        ("center", (400, 100), (0, 100, 400, 200)),
    ],
)
def test_gravity(gravity, target, box):
    assert covering_box((400, 300), target, gravity) == box


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_box_is_turned_with_its_picture(turn):
    """The corner pixel of the upright picture, found in the stored one."""
    stored = Image.new("L", (7, 4))
    stored.putdata(range(28))
    upright = stored.transpose(TURNS[turn]) if turn in TURNS else stored
    for x, y in ((0, 0), (upright.width - 1, 0), (2, 3)):
        left, top, right, bottom = stored_box((x, y, x + 1, y + 1), upright.size, turn)
        assert (right - left, bottom - top) == (1, 1)
        assert stored.getpixel((left, top)) == upright.getpixel((x, y))


@settings(deadline=None)
@given(SIDES, SIDES, SIDES)
def test_a_missing_side_is_within_one_pixel_of_the_aspect_ratio(given, along, across):
    found, exact = missing_side(given, along, across), across * given / along
    assert found >= 1
    assert found == 1 or abs(found - exact) <= 0.5
    found = missing_side(given, along, across, original=True)
    assert found == 1 or exact - 0.31 <= found <= exact + 0.71


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_a_contained_size_is_within_the_bounds_and_equals_one(source_width, source_height, width, height):
    found = contained_size((source_width, source_height), (width, height))
    assert 1 <= found[0] <= width
    assert 1 <= found[1] <= height
    assert found[0] == width or found[1] == height


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_covering_box_is_inside_centred_and_of_the_targets_shape(source_width, source_height, width, height):
    left, top, right, bottom = covering_box((source_width, source_height), (width, height))
    assert 0 <= left < right <= source_width + 1e-6
    assert 0 <= top < bottom <= source_height + 1e-6
    assert math.isclose(left, source_width - right, abs_tol=1e-6)
    assert math.isclose((right - left) * height, (bottom - top) * width, rel_tol=1e-6)


def test_decode_size_is_larger_when_only_a_part_is_used():
    assert decode_size((4000, 3000), (0, 0, 4000, 3000), (160, 120), 2.0) == (320, 240)
    assert decode_size((4000, 3000), (500, 0, 3500, 3000), (120, 120), 2.0) == (320, 240)


def test_a_box_follows_the_exact_area_and_not_the_rounded_size():
    # 257 pixels at an eighth are 32.125 of 33
    assert scaled_box((0, 0, 257, 193), (257, 193), (0, 0, 32.125, 24.125)) == (0, 0, 32.125, 24.125)
    left, _, right, _ = scaled_box((32, 0, 225, 193), (257, 193), (0, 0, 32.125, 24.125))
    assert (left, right) == (4, 28.125)
