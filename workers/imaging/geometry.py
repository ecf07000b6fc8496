"""Sizes and boxes, in numbers only.

RULES  No picture enters here. Sizes are (width, height) in whole pixels, boxes (left, top, right, bottom) in
source pixels and may be fractional. "Stored" is how the pixels lie in the file, "upright" how the picture is
meant to be seen: EXIF orientations 5 to 8 swap the two.

    source (stored) --plan()--> box to read from the source, size to resize to, size of the answer
                    --decode_size()--> how small a decoder may make the picture before the resize
"""

import math
from dataclasses import dataclass

Size = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ResizePlan:
    size: Size  # of the answer, upright
    stored: Size  # the same before turning: what the resize has to make
    box: Box  # the part of the stored source that is shown


def missing_side(given: int, along: int, across: int) -> int:
    """The side nobody gave: `along` is the source's side that becomes `given`, `across` the other one.

    Rounds as nfnt/resize does (up from .3, not from .5), because answers of the original service were that
    size."""
    return max(1, int(0.7 + across / (along / given)))


def contained(source: Size, bounds: Size) -> Size:
    """The largest size of the source's aspect ratio inside `bounds`; one side is met exactly."""
    if source[0] * bounds[1] >= source[1] * bounds[0]:
        return bounds[0], min(bounds[1], missing_side(bounds[0], source[0], source[1]))
    return min(bounds[0], missing_side(bounds[1], source[1], source[0])), bounds[1]


def covering_box(source: Size, target: Size) -> Box:
    """The largest centred part of `source` with the aspect ratio of `target`."""
    scale = min(source[0] / target[0], source[1] / target[1])
    width, height = min(source[0], target[0] * scale), min(source[1], target[1] * scale)
    left, top = (source[0] - width) / 2, (source[1] - height) / 2
    return left, top, left + width, top + height


def plan(stored: Size, width: int, height: int, fit: str, turned: bool) -> ResizePlan:
    """width, height: as asked for, upright, at most one of them 0. turned: the picture lies on its side."""
    source = (stored[1], stored[0]) if turned else stored
    box: Box = (0.0, 0.0, float(source[0]), float(source[1]))
    if height == 0:
        size = width, missing_side(width, source[0], source[1])
    elif width == 0:
        size = missing_side(height, source[1], source[0]), height
    elif fit == "contain":
        size = contained(source, (width, height))
    else:
        size = width, height
        if fit == "cover":
            box = covering_box(source, size)
    if turned:
        # The box is centred, so lying down or mirrored it only swaps its axes.
        return ResizePlan(size, (size[1], size[0]), (box[1], box[0], box[3], box[2]))
    return ResizePlan(size, size, box)


def decode_size(source: Size, box: Box, target: Size, gap: float) -> Size:
    """The smallest size the whole source may be decoded at so that `box` still holds `gap` times the
    target."""
    return (
        math.ceil(gap * target[0] * source[0] / (box[2] - box[0])),
        math.ceil(gap * target[1] * source[1] / (box[3] - box[1])),
    )


def scaled_box(box: Box, source: Size, decoded: Box) -> Box:
    """`box` in the pixels of a picture decoded smaller. `decoded` is the exact, fractional area the whole
    source then covers: 101 pixels halved cover 50.5 of 51, and rounding that shifts the picture by up to a
    pixel."""
    across, down = decoded[2] / source[0], decoded[3] / source[1]
    return box[0] * across, box[1] * down, min(decoded[2], box[2] * across), min(decoded[3], box[3] * down)
