"""EXIF: the orientation of a picture and the tags of its author, read from the TIFF block and from nothing else.

RULES: reads bytes and never raises: damaged metadata counts as none. XMP is not consulted for the orientation, because
browsers do not.
"""

import struct
from collections.abc import Iterator

HEADER = b"Exif\0\0"  # in front of the TIFF block in JPEG, optional in WebP
ORIENTATION, ARTIST, COPYRIGHT = 0x0112, 0x013B, 0x8298
_SHORT = 3  # the type of a value


def orientation(exif: bytes) -> int:
    """The orientation that the EXIF block states, 1..8; 1 when there is none or it is damaged."""
    tiff = exif.removeprefix(HEADER)
    for tag, kind, count, at in _entries(tiff):
        if tag == ORIENTATION and kind == _SHORT and count == 1:
            value: int = struct.unpack_from(_order(tiff) + "H", tiff, at + 8)[0]
            return value if 1 <= value <= 8 else 1
    return 1


def _order(tiff: bytes) -> str:
    return "<" if tiff[:2] == b"II" else ">"


def _entries(tiff: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, offset of the entry) of the first directory, as far as it is there."""
    order = _order(tiff)
    if tiff[:4] not in (b"II*\0", b"MM\0*") or len(tiff) < 10:
        return
    start = struct.unpack_from(order + "I", tiff, 4)[0] + 2
    if start > len(tiff):
        return
    entries = struct.unpack_from(order + "H", tiff, start - 2)[0]
    for at in range(start, min(start + 12 * entries, len(tiff) - 11), 12):
        yield *struct.unpack_from(order + "HHI", tiff, at), at
