"""Format and size of a picture, read from its first bytes.

RULES: pure; reads headers and decodes nothing, so that a reply cannot make the client decode pictures.
"""

from dataclasses import dataclass

_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # JPEG markers between SOF0 and SOF15 that are not frame headers
MOST_SEGMENTS = 1000  # of a JPEG, before the frame header; cameras write about twenty
_AVIF_SEARCH = 4096  # bytes in which the ispe box of an AVIF is searched


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """Format and size as the first bytes state them; a side is 0 when they do not."""

    format: str
    width: int = 0
    height: int = 0


def read_header(data: bytes | memoryview) -> PictureHeader | None:
    """The header of a picture in one of the five formats; None for other bytes."""
    head = bytes(data[:32])
    if head[:3] == b"\xff\xd8\xff":
        return PictureHeader("jpeg", *_jpeg_size(data))
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR":
        return PictureHeader("png", int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return PictureHeader("gif", int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return PictureHeader("webp", *_webp_size(head))
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return PictureHeader("avif", *_avif_size(bytes(data[:_AVIF_SEARCH])))
    return None


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    at = 2
    for _ in range(MOST_SEGMENTS):
        if at + 9 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # fill bytes, markers without a body
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return 0, 0


def _webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _avif_size(head: bytes) -> tuple[int, int]:
    at = head.find(b"ispe")
    if at < 0 or at + 16 > len(head):
        return 0, 0
    return int.from_bytes(head[at + 8 : at + 12], "big"), int.from_bytes(head[at + 12 : at + 16], "big")
