"""One job and its result: plain values and their checks.

RULES: does not import Pillow, because the front process checks jobs without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from workers.imaging.limits import PictureRefused

FITS = ("stretch", "contain", "cover")
ICC = ("keep", "srgb", "drop")
FORMATS = ("jpeg", "png", "gif", "webp", "avif")
SUBSAMPLINGS = ("auto", "420", "444")
GRAVITIES = ("center", "north", "south", "east", "west", "northeast", "northwest", "southeast", "southwest")
KEPT = ("exif", "xmp", "copyright")

_YES_NO = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}
_ALIASES = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "mpo": "jpeg"}


@dataclass(frozen=True)
class ResizeJob:
    """What is asked for. A side of 0 keeps the aspect ratio; a quality of 0 is the default.

    fit: `stretch` gives exactly width x height; `contain` the largest picture of the source's aspect ratio within it;
    `cover` fills it and crops what is beyond, on the side opposite to `gravity`. format: "" keeps the source's; `auto` is
    the smallest of those in `accepts`. icc: `srgb` converts to sRGB what is of another colour space, `keep` embeds the
    profile, `drop` ignores it."""

    width: int
    height: int
    fit: str = "stretch"
    format: str = ""
    quality: int = 0  # 1..100, of the lossy formats
    orient: bool = False  # turn the picture upright as its EXIF tag says
    icc: str = "srgb"
    subsampling: str = "auto"  # of colours in JPEG and AVIF; auto is 444 from quality 90 on
    enlarge: bool = True  # False: no result is larger than its source
    tolerant: bool = False  # a file that ends early is shown as far as it goes
    gravity: str = "center"
    keep: tuple[str, ...] = ()  # metadata that the result has too
    accepts: tuple[str, ...] = ()  # formats that `auto` may choose besides JPEG, PNG and GIF
    original: bool = False  # sizes and bytes as the original program's clients expect them
    max_enlarge: int = 0  # times that a side may grow; 0 is any

    @property
    def is_exact(self) -> bool:
        """True when the sides that are given are those of the result, whatever the picture."""
        return self.enlarge and (self.fit != "contain" or not (self.width and self.height))


def _one_of(*choices: str) -> Callable[[str], object]:
    def parse(text: str) -> object:
        if text not in choices:
            raise ValueError(f"is unknown: one of {', '.join(choices)}")
        return text

    return parse


def _some_of(*choices: str) -> Callable[[str], object]:
    parse_one = _one_of(*choices)

    def parse(text: str) -> object:
        return tuple(dict.fromkeys(str(parse_one(part)) for part in text.split(",") if part))

    return parse


def _switch(text: str) -> object:
    if text not in _YES_NO:
        raise ValueError("is neither yes nor no")
    return _YES_NO[text]


def _number(text: str) -> object:
    return int(text)


# What a request may say beyond size, fit, format, quality and orientation. In frames and orders it is one text, as
# `icc=keep&enlarge=no`; each parameter is a field of ResizeJob.
PARAMETERS: Mapping[str, Callable[[str], object]] = {
    "icc": _one_of(*ICC),
    "subsampling": _one_of(*SUBSAMPLINGS),
    "enlarge": _switch,
    "tolerant": _switch,
    "gravity": _one_of(*GRAVITIES),
    "keep": _some_of(*KEPT),
}
# What a front adds for its CPU processes.
_READERS = {**PARAMETERS, "accepts": _some_of("avif", "webp"), "original": _switch, "max_enlarge": _number}


@lru_cache(maxsize=256)  # requests say few different things, each of them many times
def parse_parameters(text: str) -> Mapping[str, Any]:
    """Fields of ResizeJob by name; of two with one name the later. Raises PictureRefused(400)."""
    found: dict[str, object] = {}
    for part in text.split("&") if text else ():
        name, _, value = part.partition("=")
        if name not in _READERS:
            known = ", ".join(PARAMETERS)
            raise PictureRefused(400, f"parameter {name[:40]!r} is unknown: there are {known}")
        try:
            found[name] = _READERS[name](value)
        except ValueError as error:
            raise PictureRefused(400, f"{name} {value[:40]!r} {error}") from None
    return found


@lru_cache(maxsize=256)
def parameters_of(job: ResizeJob) -> str:
    """The text of the parameters of `job`, without those that have their default."""
    fields = ResizeJob.__dataclass_fields__
    changed = ((name, getattr(job, name)) for name in _READERS if getattr(job, name) != fields[name].default)
    return "&".join(f"{name}={_text(value)}" for name, value in changed)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(value) if isinstance(value, tuple) else str(value)


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
    """Raises PictureRefused(400) for an unknown fit or parameter or a quality out of range."""
    if job.fit not in FITS:
        raise PictureRefused(400, f"fit {job.fit!r} is unknown: one of {', '.join(FITS)}")
    if not 0 <= job.quality <= 100:
        raise PictureRefused(400, f"quality {job.quality} is outside 1..100")
    parse_parameters(parameters_of(job))


def parse_format(text: str) -> str:
    """`JPG`, `.jpeg`, `image/jpeg` -> `jpeg`; `auto` stays. Raises PictureRefused(400) for an unknown format."""
    name = text.strip().lower().removeprefix("image/").removeprefix(".")
    name = _ALIASES.get(name, name)
    if name not in FORMATS and name != "auto":
        raise PictureRefused(400, f"format {text!r} is unknown: one of {', '.join(FORMATS)}")
    return name
