"""Sizes and boxes: the rounding of nfnt/resize, exact targets, boxes within the source."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.imaging.geometry import (
    contained_size,
    covering_box,
    decode_size,
    missing_side,
    plan_resize,
    scaled_box,
)

SIDES = st.integers(1, 20_000)


@pytest.mark.parametrize(
    ("source", "width", "height", "fit", "size"),
    [
        ((400, 300), 160, 160, "stretch", (160, 160)),
        ((400, 300), 160, 0, "stretch", (160, 120)),
        ((400, 300), 0, 120, "stretch", (160, 120)),
        ((1000, 333), 100, 0, "stretch", (100, 34)),  # 33.3 + 0.7 = 34.0: up from .3
        ((1000, 332), 100, 0, "stretch", (100, 33)),
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
    assert plan_resize(source, width, height, fit, is_turned=False).size == size


def test_a_turned_picture_is_planned_upright_and_resized_as_stored():
    found = plan_resize((400, 300), 0, 160, "stretch", is_turned=True)
    assert found.size == (120, 160)
    assert found.stored == (160, 120)
    assert found.box == (0, 0, 400, 300)


def test_cover_crops_both_sides_equally_in_either_orientation():
    assert plan_resize((400, 300), 100, 100, "cover", is_turned=False).box == (50, 0, 350, 300)
    assert plan_resize((400, 300), 100, 50, "cover", is_turned=True).box == (125, 0, 275, 300)


@settings(deadline=None)
@given(SIDES, SIDES, SIDES)
def test_a_missing_side_is_within_one_pixel_of_the_aspect_ratio(given, along, across):
    found, exact = missing_side(given, along, across), across * given / along
    assert found >= 1
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
