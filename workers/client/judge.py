"""Is this reply what was asked for? Format and size are read from the picture itself, not from what the reply says.

RULES: pure; reads headers only, decodes nothing, so a reply cannot make the client do picture work. An objection is a
sentence for a person; the picture is then not saved and not asked for again.
"""

from dataclasses import dataclass

from workers.wire.messages import Request, Response

_NO_SIZE = (0xC4, 0xC8, 0xCC)  # JPEG markers among the frame headers that are none
_LOOK = 4096  # bytes in which an AVIF's size is looked for


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's first bytes say; a side is 0 where they do not."""

    format: str
    width: int = 0
    height: int = 0


def read_header(data: bytes | memoryview) -> Header | None:
    """Format and size of a picture of a kind we know, else None."""
    head = bytes(data[:32])
    if head[:3] == b"\xff\xd8\xff":
        return Header("jpeg", *_jpeg_size(data))
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR":
        return Header("png", int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return Header("gif", int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Header("webp", *_webp_size(head))
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return Header("avif", *_avif_size(bytes(data[:_LOOK])))
    return None


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # fill bytes, markers without a body
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
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


def objection(asked: Request, source: Header | None, answer: Response) -> str:
    """Why `answer` is not a result of `asked`; "" when it is. `source`: the header of the picture that was sent."""
    if asked.dry_run:
        return ""
    got = read_header(answer.data)
    if got is None:
        return "the reply is no picture"
    wanted = asked.format or (source.format if source else got.format)
    if got.format != wanted:
        return f"the reply is {got.format}, not {wanted}"
    if not got.width or not got.height:
        return f"the reply is a {got.format} without a size"
    said = (answer.resized_width, answer.resized_height)
    if any(said) and said != (got.width, got.height):
        return f"the reply says {said[0]}x{said[1]} and is {got.width}x{got.height}"
    if not _is_size_right(asked, got):
        return f"the reply is {got.width}x{got.height}, asked for {asked.target_width}x{asked.target_height}"
    return ""


def _is_size_right(asked: Request, got: Header) -> bool:
    width, height = asked.target_width, asked.target_height
    if not width or not height:
        return got.height == height if not width else got.width == width
    if asked.fit == "contain":
        inside = got.width <= width and got.height <= height
        return inside and (got.width == width or got.height == height)
    return (got.width, got.height) == (width, height)
