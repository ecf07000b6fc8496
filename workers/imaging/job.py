"""One job and its result: plain values, no behaviour beyond checking themselves.

RULES  No Pillow here: the front of the service checks jobs without it.
"""

from dataclasses import dataclass

from workers.imaging.limits import PictureRefused

FITS = ("stretch", "contain", "cover")
ICC = ("keep", "srgb", "drop")
FORMATS = ("jpeg", "png", "gif", "webp", "avif")
DEFAULT_QUALITY = 75  # Go's default too, so answers are alike in size

_ALIASES = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "mpo": "jpeg"}


@dataclass(frozen=True)
class ResizeJob:
    """What is wanted. A side of 0 keeps the aspect ratio; a quality of 0 means the default.

    fit: `stretch` gives exactly width x height; `contain` the largest picture of the source's aspect ratio
    inside it; `cover` fills it and cuts what hangs over, equally on both sides. format: "" keeps the
    source's."""

    width: int
    height: int
    fit: str = "stretch"
    format: str = ""
    quality: int = DEFAULT_QUALITY  # 1..100, of the lossy formats
    orient: bool = False  # turn the picture upright as its EXIF tag says
    icc: str = "drop"


@dataclass(frozen=True)
class ResizedPicture:
    """The answer: an encoded picture, what it is, and how large its source was (as stored, before
    turning)."""

    data: bytes
    format: str
    width: int
    height: int
    source_width: int
    source_height: int


def check_words(job: ResizeJob) -> None:
    """Raises PictureRefused(400) for words and numbers nobody has defined."""
    if job.fit not in FITS:
        raise PictureRefused(400, f"fit {job.fit!r} is unknown: one of {', '.join(FITS)}")
    if job.icc not in ICC:
        raise PictureRefused(400, f"icc {job.icc!r} is unknown: one of {', '.join(ICC)}")
    if not 0 <= job.quality <= 100:
        raise PictureRefused(400, f"quality {job.quality} is outside 1..100")


def format_word(word: str) -> str:
    """`JPG`, `.jpeg`, `image/jpeg` -> `jpeg`. Raises PictureRefused(400) for a format nobody writes here."""
    plain = word.strip().lower().removeprefix("image/").removeprefix(".")
    plain = _ALIASES.get(plain, plain)
    if plain not in FORMATS:
        raise PictureRefused(400, f"format {word!r} is unknown: one of {', '.join(FORMATS)}")
    return plain
