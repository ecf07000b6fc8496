"""What a picture may be, and how a refusal is said.

RULES  Every check here takes plain numbers and runs before a single pixel is decoded. A check returns
nothing or raises `PictureRefused`; nobody else in the package invents a status. The sentence names the measure and
the limit, because whoever reads it (a person with curl, a log) has to know which option to change.

    400  the job makes no sense             (no side given, unknown fit, unknown format)
    413  too many bytes
    415  not a picture we read
    422  a picture, but too much of one     (pixels, side, frames, scans, target) or a damaged one
"""

from dataclasses import dataclass


class PictureRefused(Exception):
    """The picture or the job is not accepted: `status` speaks HTTP, `sentence` speaks to a person."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True)
class PictureLimits:
    """Upper bounds of one job. The pixel limit is the memory limit: a decoded picture takes 4 bytes a pixel,
    a progressive JPEG up to 6 more."""

    max_bytes: int = 32 << 20  # of the picture as sent
    max_pixels: int = 50_000_000  # of the source, one frame
    max_side: int = 16_383  # of source and target, pixels; WebP can write no more
    max_target_pixels: int = 32_000_000
    max_frames: int = 1_000  # of an animation
    max_scans: int = 32  # of a progressive JPEG; encoders write about 10, a bomb 200


# An animation is decoded frame by frame, so its frames cost time and not memory: all of them together may
# hold this many times the pixels of one picture (at 12 ns a pixel about 2.5 s).
ANIMATION_FACTOR = 4


def check_bytes(size: int, limits: PictureLimits) -> None:
    if size > limits.max_bytes:
        raise PictureRefused(413, f"picture of {size} bytes is over the limit of {limits.max_bytes} bytes")


def check_source(width: int, height: int, limits: PictureLimits) -> None:
    """Refuses the size a header claims, whether or not it is true: decoders allocate by it."""
    if width < 1 or height < 1:
        raise PictureRefused(422, f"picture of {width}x{height} has no pixels")
    if max(width, height) > limits.max_side:
        raise PictureRefused(
            422, f"picture of {width}x{height} has a side over the limit of {limits.max_side} pixels"
        )
    if width * height > limits.max_pixels:
        raise PictureRefused(
            422,
            f"picture of {width}x{height} has {width * height} pixels, over the limit of {limits.max_pixels}",
        )


def check_request(width: int, height: int, limits: PictureLimits) -> None:
    """The target as asked for, before the picture is looked at: 0 means "keep the aspect ratio"."""
    if width < 0 or height < 0:
        raise PictureRefused(400, f"target {width}x{height} has a negative side")
    if width == 0 and height == 0:
        raise PictureRefused(400, "target 0x0 names no side: give a width, a height or both")
    if max(width, height) > limits.max_side:
        raise PictureRefused(
            422, f"target {width}x{height} has a side over the limit of {limits.max_side} pixels"
        )


def check_target(width: int, height: int, limits: PictureLimits) -> None:
    """The target as computed: a missing side may have grown beyond any that was asked for."""
    if max(width, height) > limits.max_side:
        raise PictureRefused(
            422, f"target {width}x{height} has a side over the limit of {limits.max_side} pixels"
        )
    if width * height > limits.max_target_pixels:
        pixels = f"{width * height} pixels, over the limit of {limits.max_target_pixels}"
        raise PictureRefused(422, f"target {width}x{height} has {pixels}")


def check_frames(frames: int, pixels_each: int, limits: PictureLimits) -> None:
    """`pixels_each`: source and target pixels of one frame together."""
    if frames > limits.max_frames:
        raise PictureRefused(422, f"animation has more than the limit of {limits.max_frames} frames")
    total, allowed = frames * pixels_each, limits.max_pixels * ANIMATION_FACTOR
    if frames > 1 and total > allowed:
        raise PictureRefused(
            422, f"animation of {frames} frames has {total} pixels in all, over the limit of {allowed}"
        )


def check_scans(scans: int, limits: PictureLimits) -> None:
    if scans > limits.max_scans:
        raise PictureRefused(422, f"JPEG has more than the limit of {limits.max_scans} scans")
