"""Sizes and boxes, in numbers only.

RULES: pure arithmetic, no pictures. Sizes are (width, height) in whole pixels; boxes are (left, top, right, bottom) in
source pixels and may be fractional. "Stored" is the layout of the pixels in the file, "upright" the picture after its
EXIF orientation is applied: orientations 5 to 8 swap width and height.

    source (stored) --plan_resize()--> box to read from the source, size to resize to, size of the result
                    --decode_size()--> how small a decoder may make the picture before it is resized
"""

import math
from dataclasses import dataclass

Size = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ResizePlan:
    """The sizes and the box of one job."""

    size: Size  # of the result, upright
    stored: Size  # the same before the orientation is applied: the size to resample to
    box: Box  # the part of the stored source that is used


def missing_side(given: int, along: int, across: int) -> int:
    """The side that was not given: the source's side `along` becomes `given`, `across` is the source's other side.

    Rounds up from .3 as nfnt/resize does, because results of the original service had that size."""
    return max(1, int(0.7 + across / (along / given)))


def contained_size(source: Size, bounds: Size) -> Size:
    """The largest size of the source's aspect ratio within `bounds`; one side is equal to its bound."""
    if source[0] * bounds[1] >= source[1] * bounds[0]:
        return bounds[0], min(bounds[1], missing_side(bounds[0], source[0], source[1]))
    return min(bounds[0], missing_side(bounds[1], source[1], source[0])), bounds[1]


def covering_box(source: Size, target: Size) -> Box:
    """The largest centred part of `source` with the aspect ratio of `target`."""
    scale = min(source[0] / target[0], source[1] / target[1])
    width, height = min(source[0], target[0] * scale), min(source[1], target[1] * scale)
    left, top = (source[0] - width) / 2, (source[1] - height) / 2
    return left, top, left + width, top + height


def plan_resize(stored: Size, width: int, height: int, fit: str, is_turned: bool) -> ResizePlan:
    """The plan for a target of width x height, upright, at most one of them 0. `is_turned`: EXIF orientation 5 to 8."""
    source = (stored[1], stored[0]) if is_turned else stored
    box: Box = (0.0, 0.0, float(source[0]), float(source[1]))
    if height == 0:
        size = width, missing_side(width, source[0], source[1])
    elif width == 0:
        size = missing_side(height, source[1], source[0]), height
    elif fit == "contain":
        size = contained_size(source, (width, height))
    else:
        size = width, height
        if fit == "cover":
            box = covering_box(source, size)
    if is_turned:
        # The box is centred: turning or mirroring only swaps its axes.
        return ResizePlan(size, (size[1], size[0]), (box[1], box[0], box[3], box[2]))
    return ResizePlan(size, size, box)


def decode_size(source: Size, box: Box, target: Size, gap: float) -> Size:
    """The smallest size to decode the whole source at so that `box` still has `gap` times the sides of `target`."""
    return (
        math.ceil(gap * target[0] * source[0] / (box[2] - box[0])),
        math.ceil(gap * target[1] * source[1] / (box[3] - box[1])),
    )


def scaled_box(box: Box, source: Size, decoded: Box) -> Box:
    """`box` in the pixels of a picture that was decoded smaller. `decoded` is the exact, fractional area of the whole
    source: 101 pixels halved cover 50.5 of 51 pixels, and rounding that shifts the picture by up to a pixel."""
    across, down = decoded[2] / source[0], decoded[3] / source[1]
    return box[0] * across, box[1] * down, min(decoded[2], box[2] * across), min(decoded[3], box[3] * down)
