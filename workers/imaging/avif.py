"""AVIF: the colours and the repetitions that its boxes state, a copy without metadata, and writing.

RULES: reads bytes and decodes nothing. The decoder applies the matrix and the range of the colours; their primaries and
transfer curve are left to `colour`.
"""

import io
import re
from collections.abc import Sequence

from PIL import Image

from workers.imaging.embedded import Embedded

# The speed of the encoder by the pixels of the result, all frames together: 6 takes ten times as long as 9 and gives 8 %
# fewer bytes at 0.3 to 0.8 dB more, 8 takes four times as long. A small result is worth it and takes up to 30 ms: 160x120
# at 6 in 12 to 22 ms, 400x300 at 8 in 20 to 32 ms; 1600x1200 at 9 in 54 to 108 ms. 10 is no faster.
SPEEDS = ((20_000, 6), (130_000, 8))
SPEED = 9
LONGEST_TOTAL = (1 << 31) - 1  # milliseconds

_REPEATS = 1  # flag of an edit list
_FOR_EVER = b"\xff" * 8  # as the time that a track lasts


def plays(data: bytes) -> int:
    """How often an image sequence is shown, 0 for ever; for ever too where the file does not say, as in browsers."""
    moov = data.find(b"moov")
    track, edits = data.find(b"tkhd", moov), data.find(b"elst", moov)
    if moov < 0 or track < 0 or edits < 0 or edits + 20 > len(data):
        return 0
    if not data[edits + 7] & _REPEATS:
        return 1
    wide = data[track + 4] == 1
    total = data[track + 32 : track + 40] if wide else data[track + 24 : track + 28]
    once = data[edits + 12 : edits + 20] if data[edits + 4] == 1 else data[edits + 12 : edits + 16]
    if total == b"\xff" * len(total) or not any(once):
        return 0
    return max(1, -(-int.from_bytes(total, "big") // int.from_bytes(once, "big")))


def with_plays(data: bytes, plays: int) -> bytes:
    """The image sequence `data`, as libavif writes it and shown for ever, shown `plays` times; 0 for ever. The time that
    a track lasts says so: a multiple of the time that its edit list lasts."""
    end = data.find(b"mdat")
    head = bytearray(data[:end])
    edits = head.find(b"elst")
    if not plays or edits < 0:
        return data
    once = int.from_bytes(head[edits + 12 : edits + 20], "big")
    total = min(once * plays, (1 << 63) - 1).to_bytes(8, "big")
    for box in re.finditer(rb"(?:mvhd|tkhd)\x01", bytes(head)):  # of version 1: 64 bits
        at = box.start() + (28 if box[0].startswith(b"mvhd") else 32)
        if head[at : at + 8] == _FOR_EVER:
            head[at : at + 8] = total
    return bytes(head) + data[end:]


def colours(data: bytes) -> tuple[int, int]:
    """(primaries, transfer) of the nclx colour box as H.273 numbers them; (2, 2), unspecified, without one."""
    at = data.find(b"colrnclx")
    if at < 0 or at + 12 > len(data):
        return 2, 2
    return int.from_bytes(data[at + 8 : at + 10], "big"), int.from_bytes(data[at + 10 : at + 12], "big")


def without_metadata(data: bytes) -> bytes:
    """A copy in which no item is called Exif or a text, so that damage in them refuses nothing."""
    end = data.find(b"mdat")
    head = data[: end if end >= 0 else len(data)]
    return head.replace(b"Exif", b"skip").replace(b"mime", b"skip") + data[len(head) :]


def speed_for(pixels: int) -> int:
    """The encoder's speed, 0 to 10, for so many pixels."""
    return next((speed for most, speed in SPEEDS if pixels <= most), SPEED)


def encode(
    frames: Sequence[Image.Image], delays: Sequence[int], quality: int, subsampling: str, embedded: Embedded
) -> bytes:
    """Encode one picture, or a sequence with `delays` in milliseconds."""
    out = io.BytesIO()
    options: dict[str, object] = {
        "quality": quality,
        "speed": speed_for(frames[0].width * frames[0].height * len(frames)),
        "max_threads": 1,
        "subsampling": subsampling,
    }
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:], "duration": list(delays)}
    frames[0].save(out, "AVIF", **embedded.options(), **options)
    return out.getvalue()
