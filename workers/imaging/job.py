"""One job and its result: plain values and their checks.

RULES: does not import Pillow, because the front process checks jobs without it.
"""

from dataclasses import dataclass

from workers.imaging.limits import PictureRefused

FITS = ("stretch", "contain", "cover")
ICC = ("keep", "srgb", "drop")
FORMATS = ("jpeg", "png", "gif", "webp", "avif")
DEFAULT_QUALITY = 75  # as in Go's image/jpeg, so results have about the size of the original service's

_ALIASES = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "mpo": "jpeg"}


@dataclass(frozen=True)
class ResizeJob:
    """What is asked for. A side of 0 keeps the aspect ratio; a quality of 0 is the default.

    fit: `stretch` gives exactly width x height; `contain` the largest picture of the source's aspect ratio within it;
    `cover` fills it and crops equally on both sides. format: "" keeps the source's."""

    width: int
    height: int
    fit: str = "stretch"
    format: str = ""
    quality: int = DEFAULT_QUALITY  # 1..100, of the lossy formats
    orient: bool = False  # turn the picture upright as its EXIF tag says
    icc: str = "drop"


@dataclass(frozen=True)
class ResizedPicture:
    """An encoded picture with its format and size, and the size of its source as stored (before EXIF orientation).
    `note`: what the result lacks, a sentence, or ""."""

    data: bytes
    format: str
    width: int
    height: int
    source_width: int
    source_height: int
    note: str = ""


def check_job(job: ResizeJob) -> None:
    """Raises PictureRefused(400) for an unknown fit or icc or a quality out of range."""
    if job.fit not in FITS:
        raise PictureRefused(400, f"fit {job.fit!r} is unknown: one of {', '.join(FITS)}")
    if job.icc not in ICC:
        raise PictureRefused(400, f"icc {job.icc!r} is unknown: one of {', '.join(ICC)}")
    if not 0 <= job.quality <= 100:
        raise PictureRefused(400, f"quality {job.quality} is outside 1..100")


def parse_format(text: str) -> str:
    """`JPG`, `.jpeg`, `image/jpeg` -> `jpeg`. Raises PictureRefused(400) for an unknown format."""
    name = text.strip().lower().removeprefix("image/").removeprefix(".")
    name = _ALIASES.get(name, name)
    if name not in FORMATS:
        raise PictureRefused(400, f"format {text!r} is unknown: one of {', '.join(FORMATS)}")
    return name
