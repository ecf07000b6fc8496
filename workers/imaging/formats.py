"""Which bytes are a picture we read, and how each format is opened and written.

RULES  The allow-list lives here. A format is told by its first bytes, never by a name, and only that
format's decoder then sees the data: what is no JPEG, PNG, GIF, WebP or AVIF meets no decoder at all (EPS
would start Ghostscript). Whatever a decoder raises is the picture's fault and leaves here as `PictureRefused`.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError, features

from workers.imaging import gif, jpeg, png, webp
from workers.imaging.limits import PictureLimits, PictureRefused

READABLE = ("jpeg", "png", "gif", "webp", "avif")
ANIMATED = ("gif", "webp")  # others are given, and give, their first frame
AVIF_SPEED = 9  # of 0..10: a tenth of the time of the default 6, at the same size and 0.5 dB less
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_AVIF_BRANDS = (b"avif", b"avis")


def sniff(data: bytes) -> str:
    """The format by its signature. Raises PictureRefused(415) for anything else, and for AVIF where Pillow lacks
    it."""
    kind = _signature(data)
    if kind is None:
        raise PictureRefused(415, f"not a picture of a known format: one of {', '.join(READABLE)}")
    check_built(kind)
    return kind


def check_built(kind: str) -> None:
    if kind in ("webp", "avif") and not features.check(kind):
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
    """Turns what a decoder raises into a refusal. Pillow's plugins raise nearly anything on damaged data
    (OSError, SyntaxError, ValueError, IndexError, struct.error...), so the net is wide; what it
    caught stays behind the refusal as its cause."""
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
    """The picture, its header read and nothing decoded."""
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
    """The file. `frames`: in a mode the format holds (for GIF: with palettes); one, but for ANIMATED
    formats."""
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
