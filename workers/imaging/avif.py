"""AVIF: the colours and the repetitions that its boxes state, a copy without metadata, and writing.

RULES: reads bytes and decodes nothing. The decoder applies the matrix and the range of the colours; their primaries and
transfer curve are left to `colour`.
"""

import io
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
