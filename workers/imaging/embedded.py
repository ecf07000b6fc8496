"""What is embedded in a result besides its pixels: a colour profile, and on request EXIF and XMP of the source.

RULES: bytes only. What is damaged, or too long for the format, is left out. A picture that was turned upright says so no
more: its orientation goes out of EXIF, and in XMP it is 1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, PngImagePlugin

from workers.imaging import exif

MOST_BYTES = 65_000  # of EXIF and of XMP: one segment of a JPEG
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>\s*))[2-8]")


@dataclass(frozen=True, slots=True)
class Embedded:
    """The profile and the metadata of a result; empty bytes are left out."""

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""

    def options(self) -> dict[str, object]:
        """As options of Pillow's save() for JPEG, WebP and AVIF."""
        found: dict[str, object] = {"icc_profile": self.icc or None}
        if self.exif:
            found["exif"] = self.exif
        if self.xmp:
            found["xmp"] = self.xmp
        return found

    def png_options(self) -> dict[str, object]:
        """As options of Pillow's save() for PNG."""
        found = self.options()
        if self.xmp:
            del found["xmp"]
            texts = PngImagePlugin.PngInfo()
            texts.add_itxt("XML:com.adobe.xmp", self.xmp)
            found["pnginfo"] = texts
        return found


def kept(block: bytes, xmp: bytes, wanted: Sequence[str], is_turned: bool) -> tuple[bytes, bytes]:
    """EXIF and XMP of a result. `block` and `xmp` are those of the source, `wanted` names what is kept."""
    found = b""
    if "exif" in wanted or "copyright" in wanted:
        found = _exif(block, "exif" in wanted, is_turned)
    packet = b""
    if "xmp" in wanted and len(xmp) <= MOST_BYTES:
        packet = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp) if is_turned else xmp
    return found, packet


def _exif(block: bytes, is_whole: bool, is_turned: bool) -> bytes:
    if not block:
        return b""
    try:
        tags = Image.Exif()
        tags.load(exif.HEADER + block.removeprefix(exif.HEADER))
        if is_turned:
            tags.pop(exif.ORIENTATION, None)
        if not is_whole:
            for tag in set(tags) - {exif.COPYRIGHT, exif.ARTIST}:
                del tags[tag]
        made = tags.tobytes() if len(tags) else b""
    except Exception:  # metadata never refuse a picture, whatever their reader raises
        return b""
    return made if len(made) <= MOST_BYTES else b""
