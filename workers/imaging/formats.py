"""The allow-list of formats: detecting, opening and writing each of them.

RULES: a format is detected by its first bytes, never by a name, and only the decoder of that format reads the data.
Other data than JPEG, PNG, GIF, WebP and AVIF reaches no decoder (EPS would start Ghostscript). Every exception of a
decoder is raised as `PictureRefused`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError, features

from workers.imaging import avif, gif, jpeg, png, webp
from workers.imaging.animation import whole_delays
from workers.imaging.embedded import Embedded
from workers.imaging.job import ResizeJob
from workers.imaging.limits import PictureLimits, PictureRefused
from workers.imaging.sources import Source

READABLE = ("jpeg", "png", "gif", "webp", "avif")
# Where a request names no quality. JPEG: that of Go's image/jpeg, so that results have about the size of the original
# service's. WebP and AVIF: about the PSNR of that JPEG or more (-1.5 to +2.1 dB, median +0.6) in 2 to 42 % fewer bytes
# (four photographs, 160 to 800 wide).
DEFAULT_QUALITY = {"jpeg": 75, "webp": 75, "avif": 63}
FINE = 90  # from this quality on colours are not subsampled
ANIMATED = ("gif", "webp", "avif")  # an animation of any format is written as one in these
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_AVIF_BRANDS = (b"avif", b"avis")


def sniff(data: bytes, has_codec: Callable[[str], bool | None] = features.check) -> str:
    """The format of `data` by its signature. Raises PictureRefused(415) when it is none of READABLE or Pillow was built
    without it."""
    kind = _signature(data)
    if kind is None:
        named = other_format(data)
        what = f"{named} is not taken" if named else "not a picture of a known format"
        raise PictureRefused(415, f"{what}: one of {', '.join(READABLE)}")
    check_codec(kind, has_codec)
    return kind


def check_codec(kind: str, has_codec: Callable[[str], bool | None] = features.check) -> None:
    """Raises PictureRefused(415) when Pillow was built without the format `kind`."""
    if kind in ("webp", "avif") and not has_codec(kind):
        raise PictureRefused(415, f"this Pillow was built without {kind}")


def _signature(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        if any(brands[at : at + 4] in _AVIF_BRANDS for at in range(0, len(brands), 4)):
            return "avif"
    return None


_OTHER_SIGNATURES = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\0\0\1\0", "ICO"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "PSD"),
    (b"\x1aE\xdf\xa3", "WebM"),
    (b"\x8aMNG", "MNG"),
    (b"qoif", "QOI"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\3\4", "a ZIP file"),
)
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def other_format(data: bytes) -> str:
    """The name of a format that is known but not taken; "" when it is not known."""
    for signature, name in _OTHER_SIGNATURES:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return "HEIC" if data[8:12] in _HEIC_BRANDS else "a video (MP4)"
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<"):
        if b"<svg" in head:
            return "SVG"
        if b"<html" in head or b"<!doctype html" in head:
            return "an HTML page"
    return "PDF" if b"%PDF-" in data[:1024] else ""


@contextmanager
def decoder_errors(kind: str, limits: PictureLimits) -> Iterator[None]:
    """Raise the exceptions of a decoder as PictureRefused. Pillow's plugins raise many types on damaged data (OSError,
    SyntaxError, ValueError, IndexError, struct.error...), so every Exception is caught; it remains as the cause."""
    try:
        yield
    except (PictureRefused, KeyboardInterrupt):
        raise
    except MemoryError:
        raise PictureRefused(422, "picture needs more memory than this process may use") from None
    except _TOO_LARGE:
        raise PictureRefused(422, f"picture has more pixels than the limit of {limits.max_pixels}") from None
    except UnidentifiedImageError:
        raise PictureRefused(422, f"picture is damaged: its {kind} header cannot be read") from None
    except Exception as error:
        is_cut = "truncated" in str(error) or "not enough" in str(error) or isinstance(error, EOFError)
        reason = "it ends early" if is_cut else "it cannot be decoded"
        raise PictureRefused(422, f"{kind} picture is damaged: {reason}") from error


def holds_animation(kind: str, source: str) -> bool:
    """True when an animation of the format `source` is written as one in the format `kind`. A PNG holds one that it held
    before: asked for instead of a GIF, it is asked for as a still."""
    return kind in ANIMATED or kind == source


def choose(kind: str, accepts: Sequence[str], is_animated: bool, may_have_alpha: bool) -> str:
    """The format of the result where `auto` is asked for: the smallest of those in `accepts`, else that of the source
    `kind`, unless only some can show it."""
    for each in ("avif", "webp"):
        if each in accepts and features.check(each):
            return each
    if kind not in ("webp", "avif"):
        return kind
    if is_animated:
        return "gif"
    return "png" if may_have_alpha else "jpeg"


@dataclass(frozen=True, slots=True)
class Writing:
    """How a result is written."""

    quality: int
    embedded: Embedded
    is_photo: bool
    has_palette: bool  # the source's colours were those of a palette
    subsampling: str
    is_optimized: bool  # JPEG: Huffman tables of its own


def writing(out: str, job: ResizeJob, source: Source, pixels: int, embedded: Embedded) -> Writing:
    """How a result of `pixels` pixels is written in the format `out`."""
    quality = job.quality or DEFAULT_QUALITY.get(out, 0)
    is_fine = job.subsampling == "444" or (job.subsampling == "auto" and quality >= FINE)
    return Writing(
        quality,
        embedded,
        source.is_photo,
        source.has_palette and not job.original,
        "4:4:4" if is_fine else "4:2:0",
        not job.original and pixels <= jpeg.SMALL_PIXELS,
    )


def encode(image: Image.Image, kind: str, how: Writing) -> bytes:
    """The encoded file of a picture in a mode of the format."""
    if kind == "jpeg":
        return jpeg.encode(image, how.quality, how.subsampling, how.is_optimized, how.embedded)
    if kind == "png":
        return png.encode(image, how.is_photo, how.embedded, how.has_palette)
    if kind == "gif":
        return gif.encode(image)
    if kind == "webp":
        return webp.encode(image, how.quality, how.embedded)
    return avif.encode([image], [0], how.quality, how.subsampling, how.embedded)


class AnimationWriter:
    """Collects the frames of an animation in the format `kind` and encodes them. `plays`: 0 for ever."""

    def __init__(self, kind: str, plays: int) -> None:
        self._kind = kind
        self._plays = plays
        self._gif = gif.GifWriter()
        self._frames: list[Image.Image] = []
        self._delays: list[float] = []

    def add(self, image: Image.Image, delay: float) -> None:
        """Append a picture in a mode of the format, shown for `delay` milliseconds."""
        self._delays.append(delay)
        if self._kind == "gif":
            self._gif.add(image)
        else:
            self._frames.append(image)

    def finish(self, how: Writing) -> bytes:
        """The encoded file."""
        if self._kind == "gif":
            return self._gif.finish(self._delays, self._plays)
        if self._kind == "png":
            return png.encode_animation(self._frames, self._delays, self._plays, how.embedded)
        if self._kind == "webp":
            return webp.encode_animation(self._frames, self._delays, self._plays, how.quality, how.embedded)
        delays = whole_delays(self._delays, 1, avif.LONGEST_TOTAL // len(self._delays))
        file = avif.encode(self._frames, delays, how.quality, how.subsampling, how.embedded)
        return avif.with_plays(file, self._plays)
