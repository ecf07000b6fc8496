"""The allow-list of formats: detecting, opening and writing each of them.

RULES: a format is detected by its first bytes, never by a name, and only the decoder of that format reads the data.
Other data than JPEG, PNG, GIF, WebP and AVIF reaches no decoder (EPS would start Ghostscript). Every exception of a
decoder is raised as `PictureRefused`.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError, features

from workers.imaging import gif, jpeg, png, webp
from workers.imaging.limits import PictureLimits, PictureRefused

READABLE = ("jpeg", "png", "gif", "webp", "avif")
ANIMATED = ("gif", "webp")  # of other formats the first frame is read and written
AVIF_SPEED = 9  # of 0..10: a tenth of the time of the default 6, same size, 0.5 dB worse
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


def open_header(data: bytes, kind: str) -> Image.Image:
    """The picture with its header read; no pixel is decoded."""
    return Image.open(io.BytesIO(data), formats=(kind.upper(),))


def encode(
    frames: Sequence[Image.Image],
    kind: str,
    quality: int,
    icc: bytes = b"",
    photo: bool = True,
    durations: Sequence[int] = (),
    loop: int | None = None,
) -> bytes:
    """The encoded file. `frames`: in a mode of the format (for GIF with palettes); one, except for ANIMATED formats."""
    if kind == "jpeg":
        return jpeg.encode(frames[0], quality, icc)
    if kind == "png":
        return png.encode(frames[0], photo, icc)
    if kind == "gif":
        return gif.encode(frames, durations, loop)
    if kind == "webp":
        return webp.encode(frames, durations, loop, quality, icc)
    out = io.BytesIO()
    frames[0].save(out, "AVIF", quality=quality, speed=AVIF_SPEED, max_threads=1, icc_profile=icc or None)
    return out.getvalue()
