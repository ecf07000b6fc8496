"""Sizes and boxes, in numbers only.

RULES: pure arithmetic, no pictures. Sizes are (width, height) in whole pixels; boxes are (left, top, right, bottom) in
source pixels and may be fractional. "Stored" is the layout of the pixels in the file, "upright" the picture after its
EXIF orientation is applied: orientations 5 to 8 swap width and height.

    source (stored) --plan_resize()--> box to read from the source, size to resize to, size of the result
                    --decode_size()--> how small a decoder may make the picture before it is resized
"""

import math
from dataclasses import dataclass

SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations

Size = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ResizePlan:
    """The sizes and the box of one job."""

    size: Size  # of the result, upright
    stored: Size  # the same before the orientation is applied: the size to resample to
    box: Box  # the part of the stored source that is used


def missing_side(given: int, along: int, across: int, original: bool = False) -> int:
    """The side that was not given: the source's side `along` becomes `given`, `across` is the source's other side.

    Rounds to the nearest; for peers of the original service up from .3, as nfnt/resize does."""
    if original:
        return max(1, int(0.7 + across / (along / given)))
    return max(1, (2 * across * given + along) // (2 * along))


def contained_size(source: Size, bounds: Size, original: bool = False) -> Size:
    """The largest size of the source's aspect ratio within `bounds`; one side is equal to its bound."""
    if source[0] * bounds[1] >= source[1] * bounds[0]:
        return bounds[0], min(bounds[1], missing_side(bounds[0], source[0], source[1], original))
    return min(bounds[0], missing_side(bounds[1], source[1], source[0], original)), bounds[1]


def covering_box(source: Size, target: Size, gravity: str = "center") -> Box:
    """The largest part of `source` with the aspect ratio of `target`, as far towards `gravity` as it goes."""
    scale = min(source[0] / target[0], source[1] / target[1])
    width, height = min(source[0], target[0] * scale), min(source[1], target[1] * scale)
    across = 0.0 if "west" in gravity else 1.0 if "east" in gravity else 0.5
    down = 0.0 if "north" in gravity else 1.0 if "south" in gravity else 0.5
    left, top = (source[0] - width) * across, (source[1] - height) * down
    return left, top, left + width, top + height


def stored_box(box: Box, upright: Size, turn: int) -> Box:
    """`box` of the upright picture of size `upright` in the pixels of the stored one. `turn`: EXIF orientation, 1..8."""
    left, top, right, bottom = box
    if turn in (2, 3, 6, 7):
        left, right = upright[0] - right, upright[0] - left
    if turn in (3, 4, 7, 8):
        top, bottom = upright[1] - bottom, upright[1] - top
    return (top, left, bottom, right) if turn in SWAPS_SIDES else (left, top, right, bottom)


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for, upright: a side of 0 follows from the aspect ratio. The rest is as in a ResizeJob."""

    width: int
    height: int
    fit: str = "stretch"
    gravity: str = "center"
    enlarge: bool = True
    original: bool = False


def plan_resize(stored: Size, target: Target, turn: int = 1) -> ResizePlan:
    """The plan for a picture of the size `stored`. `turn`: EXIF orientation, 1..8."""
    source = (stored[1], stored[0]) if turn in SWAPS_SIDES else stored
    box: Box = (0.0, 0.0, float(source[0]), float(source[1]))
    width, height = target.width, target.height
    if not target.enlarge:
        width, height = min(width, source[0]), min(height, source[1])
    if height == 0:
        size = width, missing_side(width, source[0], source[1], target.original)
    elif width == 0:
        size = missing_side(height, source[1], source[0], target.original), height
    elif target.fit == "contain":
        size = contained_size(source, (width, height), target.original)
    elif target.fit == "cover":
        size = target.width, target.height
        box = covering_box(source, size, target.gravity)
        if not target.enlarge and box[2] - box[0] < size[0]:
            # the part as it is: the aspect ratio that was asked for counts for more than the size
            size = max(1, round(box[2] - box[0])), max(1, round(box[3] - box[1]))
    else:
        size = width, height
    box = stored_box(box, source, turn)
    return ResizePlan(size, (size[1], size[0]) if turn in SWAPS_SIDES else size, box)


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
