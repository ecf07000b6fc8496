"""A picture that is open for resizing: what it says of itself, its first picture, its frames.

RULES: one class for each format, all with the attributes of `Source`. Metadata are read here from the bytes, so that the
decoder may be given a copy without them: it refuses a picture whose metadata it cannot read, and that is no reason.
"""

import io
from collections.abc import Callable, Iterator

from PIL import Image, ImageFile

from workers.imaging import avif, colour, exif, gif, jpeg, limits, modes, png, webp
from workers.imaging.geometry import Box, ResizePlan, Size
from workers.imaging.limits import PictureLimits

_SAME_GAMMA = 0.05  # what libpng does not correct

Shot = tuple[Image.Image, float]  # a frame in a mode that can be resampled, its time in milliseconds


class Source:
    """An open picture. `plays` and `frames` are those of an animation, 1 of a still."""

    size: Size
    orientation = 1  # EXIF, 1..8
    profile = b""  # ICC
    exif = b""
    xmp = b""
    frames = 1
    plays = 1
    is_photo = True
    has_palette = False
    may_have_alpha = False
    is_multi_scan = False  # the decoder keeps all coefficients

    def still(self, plan: ResizePlan) -> tuple[Image.Image, Box]:
        """The first picture, loaded and in a mode that can be resampled, and the plan's box in its pixels."""
        picture, _ = next(self.shots())
        return picture, plan.box

    def shots(self) -> Iterator[Shot]:
        """Each frame as it is seen. A picture is valid until the next one is asked for."""
        return iter(())

    def close(self) -> None:
        """Release what is open."""


class JpegSource(Source):
    """A JPEG; the decoder reduces it."""

    def __init__(self, data: bytes, bounds: PictureLimits) -> None:
        found = jpeg.read(data)
        if found.is_multi_scan:
            limits.check_scans(jpeg.count_scans(data, bounds.max_scans + 1), bounds)
        self._image = _opened("jpeg", data, jpeg.without_metadata)
        if found.is_arithmetic:
            self._image.decodermaxblock = len(data)
        self.is_multi_scan = found.is_multi_scan
        self.size = self._image.size
        self.exif, self.xmp, self.profile = found.exif, found.xmp, found.profile
        self.orientation = exif.orientation(found.exif)

    def still(self, plan: ResizePlan) -> tuple[Image.Image, Box]:
        box = jpeg.reduce_in_decoder(self._image, plan.stored, plan.box)
        self._image.load()
        return modes.to_resizable(self._image), box

    def close(self) -> None:
        self._image.close()


class PngSource(Source):
    """A PNG or an APNG."""

    def __init__(self, data: bytes, bounds: PictureLimits) -> None:
        self._data = data
        self._found = png.read(data, bounds.max_frames + 1)
        self._plain = png.plain(data, self._found)
        self._image = _opened("png", self._plain)
        self.size = self._image.size
        self.exif, self.xmp = self._found.notes.get(b"eXIf", b""), self._found.xmp
        self.orientation = exif.orientation(self.exif)
        self.has_palette = self._found.colour_type == png.PALETTE
        self.may_have_alpha = self._found.colour_type > png.PALETTE or b"tRNS" in self._found.notes
        self.profile = _png_colours(self._found)
        self.frames = len(self._found.frames) or 1
        self.plays = self._found.plays

    def still(self, plan: ResizePlan) -> tuple[Image.Image, Box]:
        if self._found.frames:
            return super().still(plan)
        if file := png.with_stored_rows(self._plain, self._found):
            self._image = Image.open(file, formats=("PNG",))
        self._image.load()
        self.is_photo = png.is_photo(len(self._plain), self._image)
        return modes.to_resizable(png.with_key(self._image, self._plain, self._found)), plan.box

    def shots(self) -> Iterator[Shot]:
        return png.shots(self._data, self._found)

    def close(self) -> None:
        self._image.close()


class GifSource(Source):
    """A GIF."""

    is_photo = False
    has_palette = True
    may_have_alpha = True

    def __init__(self, data: bytes, bounds: PictureLimits) -> None:
        self._data = data
        self._found = gif.read(data, bounds.max_frames + 1)
        if not self._found.frames:
            raise ValueError("no frame")
        self._bounds = bounds
        self.size = self._found.size
        self.frames = len(self._found.frames)
        self.plays = self._found.plays

    def shots(self) -> Iterator[Shot]:
        for frame in self._found.frames:
            limits.check_source(*frame.size, self._bounds)
        return gif.shots(self._data, self._found)


class DecodedSource(Source):
    """A WebP or an AVIF, whose decoder composes the frames."""

    def __init__(self, kind: str, data: bytes, without_metadata: Callable[[bytes], bytes]) -> None:
        self._image = _opened(kind, data, without_metadata)
        info = self._image.info
        self.size = self._image.size
        self.exif, self.xmp = info.get("exif") or b"", info.get("xmp") or b""
        self.orientation = exif.orientation(self.exif)
        self.may_have_alpha = "A" in self._image.mode
        self.profile = info.get("icc_profile") or b""
        self.frames = getattr(self._image, "n_frames", 1)
        self.plays = info.get("loop", 1)

    def shots(self) -> Iterator[Shot]:
        for index in range(self.frames):
            self._image.seek(index)
            self._image.load()
            yield modes.to_resizable(self._image), float(self._image.info.get("duration", 0) or 0)

    def close(self) -> None:
        self._image.close()


def open_source(data: bytes, kind: str, bounds: PictureLimits) -> Source:
    """The picture `data` of the format `kind`, its header read and no pixel decoded."""
    Image.MAX_IMAGE_PIXELS = bounds.max_pixels
    if kind == "jpeg":
        return JpegSource(data, bounds)
    if kind == "png":
        return PngSource(data, bounds)
    if kind == "gif":
        return GifSource(data, bounds)
    if kind == "webp":
        if canvas := webp.canvas(data):
            limits.check_source(*canvas, bounds)
        return DecodedSource(kind, data, webp.without_metadata)
    source = DecodedSource(kind, data, avif.without_metadata)
    source.plays = avif.plays(data)
    source.profile = source.profile or colour.described(*avif.colours(data))
    return source


def _png_colours(found: png.PngFile) -> bytes:
    """The profile that the chunks of a PNG state or describe; the first of cICP, iCCP, sRGB, gAMA with cHRM counts."""
    if (numbers := png.coding(found)) and colour.is_known(*numbers):
        return colour.described(*numbers)
    if colour.is_profile(profile := png.profile(found)):
        return profile
    gamma, primaries = png.gamma(found), png.chromaticities(found)
    is_common = gamma is None or abs(gamma * 2.2 - 1) <= _SAME_GAMMA
    if b"sRGB" in found.notes or (is_common and colour.is_srgb(primaries)):
        return b""
    return colour.made_profile(primaries or colour.SRGB_PRIMARIES, 1 / gamma if gamma else colour.srgb_curve)


def _opened(
    kind: str, data: bytes, without_metadata: Callable[[bytes], bytes] | None = None
) -> ImageFile.ImageFile:
    """The picture with its header read, from a copy without metadata when they are in the way."""
    try:
        return Image.open(io.BytesIO(data), formats=(kind.upper(),))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise
    except Exception:
        if without_metadata is None:
            raise
        return Image.open(io.BytesIO(without_metadata(data)), formats=(kind.upper(),))
