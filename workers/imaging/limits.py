"""The limits of a picture and of a target, and the refusal.

RULES: every check takes plain numbers and runs before a pixel is decoded. It returns nothing or raises
`PictureRefused`. The sentence states the measure and the limit, so that its reader (with curl, or in a log) knows which
option to change.

    400  the job is invalid                 (no side given, unknown fit, unknown format)
    413  too many bytes
    415  not a picture of a readable format
    422  a picture over a limit             (pixels, side, frames, scans, target), or a damaged one
"""

from dataclasses import dataclass


class PictureRefused(Exception):
    """The picture or the job is not accepted: `status` as in HTTP, `sentence` for a person."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True)
class PictureLimits:
    """Upper bounds of one job."""

    max_bytes: int = 32 << 20  # of the picture as sent
    max_pixels: int = 50_000_000  # of the source, one frame
    max_side: int = 16_383  # of source and target, pixels; the most that WebP can hold
    max_target_pixels: int = 32_000_000
    max_frames: int = 1_000  # of an animation
    max_scans: int = 32  # of a progressive JPEG; encoders write about 10, a bomb 200
    max_memory: int = 0  # bytes for the picture, as reckoned by memory.py; 0 is no limit


LONGEST_ASKED = 999_999_999  # pixels of a side that only bounds the result
# An animation is decoded frame by frame, so its frames cost time, no memory. All frames together may have this many
# times the pixels of one picture (about 2.5 s at 12 ns a pixel).
ANIMATION_FACTOR = 4


def check_bytes(size: int, limits: PictureLimits) -> None:
    """Check the size of the file."""
    if size > limits.max_bytes:
        raise PictureRefused(413, f"picture of {size} bytes is over the limit of {limits.max_bytes} bytes")


def check_source(width: int, height: int, limits: PictureLimits) -> None:
    """Check the size stated by the header: decoders allocate by it, true or not."""
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


def check_request(width: int, height: int, limits: PictureLimits, is_exact: bool = True) -> None:
    """Check the target as asked for, before the picture is read; a side of 0 keeps the aspect ratio. Unless `is_exact`
    the result may be smaller, and `check_target` decides once the picture's size is known."""
    if width < 0 or height < 0:
        raise PictureRefused(400, f"target {width}x{height} has a negative side")
    if width == 0 and height == 0:
        raise PictureRefused(400, "target 0x0 names no side: give a width, a height or both")
    if is_exact and width and height:
        check_target(width, height, limits)
    else:
        _check_side(width, height, limits.max_side if is_exact else LONGEST_ASKED)


def _check_side(width: int, height: int, limit: int) -> None:
    if max(width, height) > limit:
        raise PictureRefused(422, f"target {width}x{height} has a side over the limit of {limit} pixels")


def check_target(width: int, height: int, limits: PictureLimits) -> None:
    """Check the target as computed: the side that follows from the aspect ratio may be long."""
    _check_side(width, height, limits.max_side)
    if width * height > limits.max_target_pixels:
        pixels = f"{width * height} pixels, over the limit of {limits.max_target_pixels}"
        raise PictureRefused(422, f"target {width}x{height} has {pixels}")


def check_enlargement(source: tuple[float, float], target: tuple[int, int], limit: int) -> None:
    """Check by how much the part of the source that is shown is enlarged; a limit of 0 is none."""
    factor = max(target[0] / source[0], target[1] / source[1])
    if limit and factor > limit + 1e-9:
        shown, wanted = f"{source[0]:.0f}x{source[1]:.0f}", f"{target[0]}x{target[1]}"
        sentence = (
            f"target {wanted} enlarges {shown} pixels {factor:.1f} times, over the limit of {limit} times"
        )
        raise PictureRefused(422, f"{sentence}: ask for less, or with enlarge=no")


def check_frames(frames: int, pixels_each: int, limits: PictureLimits) -> None:
    """Check an animation. `pixels_each`: source and target pixels of one frame together."""
    if frames > limits.max_frames:
        raise PictureRefused(422, f"animation has more than the limit of {limits.max_frames} frames")
    total, allowed = frames * pixels_each, limits.max_pixels * ANIMATION_FACTOR
    if frames > 1 and total > allowed:
        raise PictureRefused(
            422, f"animation of {frames} frames has {total} pixels in all, over the limit of {allowed}"
        )


def check_memory(reckoned: int, limits: PictureLimits) -> None:
    """Check what the picture will take of memory."""
    if 0 < limits.max_memory < reckoned:
        raise PictureRefused(
            422,
            f"picture takes about {reckoned >> 20} MiB of memory to resize, over the limit of "
            f"{limits.max_memory >> 20} MiB here: ask for a smaller result or another format",
        )


def check_scans(scans: int, limits: PictureLimits) -> None:
    """Check the number of scans of a JPEG."""
    if scans > limits.max_scans:
        raise PictureRefused(422, f"JPEG has more than the limit of {limits.max_scans} scans")
