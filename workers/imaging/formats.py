"""The allow-list of formats: detecting, opening and writing each of them.

RULES: a format is detected by its first bytes, never by a name, and only the decoder of that format reads the data.
Other data than JPEG, PNG, GIF, WebP and AVIF reaches no decoder (EPS would start Ghostscript). Every exception of a
decoder is raised as `PictureRefused`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError, features

from workers.imaging import avif, gif, jpeg, png, webp
from workers.imaging.animation import whole_delays
from workers.imaging.limits import PictureLimits, PictureRefused

READABLE = ("jpeg", "png", "gif", "webp", "avif")
ANIMATED = ("gif", "webp")  # an animation of any format can be written in these
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_AVIF_BRANDS = (b"avif", b"avis")


def sniff(data: bytes, has_codec: Callable[[str], bool | None] = features.check) -> str:
    """The format of `data` by its signature. Raises PictureRefused(415) when it is none of READABLE or Pillow was built
    without it."""
    kind = _signature(data)
    if kind is None:
        raise PictureRefused(415, f"not a picture of a known format: one of {', '.join(READABLE)}")
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
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PictureRefused(422, f"{kind} picture is damaged: {reason}") from error


def holds_animation(kind: str, source: str) -> bool:
    """True when an animation of the format `source` is written as one in the format `kind`. PNG and AVIF hold those that
    they held before: asked for instead of a GIF, they are asked for as stills."""
    return kind in ANIMATED or kind == source


def encode(image: Image.Image, kind: str, quality: int, icc: bytes = b"", photo: bool = True) -> bytes:
    """The encoded file of a picture in a mode of the format."""
    if kind == "jpeg":
        return jpeg.encode(image, quality, icc)
    if kind == "png":
        return png.encode(image, photo, icc)
    if kind == "gif":
        return gif.encode(image)
    if kind == "webp":
        return webp.encode(image, quality, icc)
    return avif.encode([image], [0], quality, "4:2:0", icc)


class AnimationWriter:
    """Collects the frames of an animation in the format `kind` and encodes them. `plays`: 0 for ever."""

    def __init__(self, kind: str, quality: int, plays: int) -> None:
        self._kind = kind
        self._quality = quality
        self._plays = plays
        self._gif = gif.GifWriter()
        self._frames: list[Image.Image] = []
        self._delays: list[float] = []
        self._icc = b""

    def add(self, image: Image.Image, icc: bytes, delay: float) -> None:
        """Append a picture in a mode of the format, shown for `delay` milliseconds."""
        self._icc = icc
        self._delays.append(delay)
        if self._kind == "gif":
            self._gif.add(image)
        else:
            self._frames.append(image)

    def finish(self) -> bytes:
        """The encoded file."""
        if self._kind == "gif":
            return self._gif.finish(self._delays, self._plays)
        if self._kind == "png":
            return png.encode_animation(self._frames, self._delays, self._plays, self._icc)
        if self._kind == "webp":
            return webp.encode_animation(self._frames, self._delays, self._plays, self._quality, self._icc)
        delays = whole_delays(self._delays, 1, avif.LONGEST_TOTAL // len(self._delays))
        return avif.encode(self._frames, delays, self._quality, "4:2:0", self._icc)
