"""GIF: its blocks, its frames one by one, and writing stills and animations.

RULES: `read` reads block headers and unpacks nothing. Each frame is handed to the decoder as a file of its own and drawn
on a canvas here, because Pillow clears "restore to background" to the background colour, and browsers to transparent.

Pillow's default quantizer (median cut) takes 1835 ms where FASTOCTREE takes 124 (24 frames -> 400x267), for 2 dB. One
palette for all frames gives smaller files but is not faster. GIF has no partial transparency: alpha below one half
becomes transparent.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageChops

from workers.imaging.animation import CLEAR, KEEP, RESTORE, Canvas, whole_delays
from workers.imaging.geometry import Size

COLOURS = 256
LONGEST_DELAY = 65_535  # hundredths of a second
MOST_LOOPS = 65_535
_TRANSPARENCY_MASK = [255] * 128 + [0] * 128  # by alpha value
_IS_OPAQUE = [0] * 128 + [255] * 128
_IS_CHANGED = [0] + [255] * 255
_DISPOSALS = {2: CLEAR, 3: RESTORE, 4: RESTORE}  # 4: as some encoders write 3
_INTERLACED = 0x40
_LEAVE, _TO_BACKGROUND = 1, 2  # disposal as written
_LOOP_BLOCK = b"\x21\xff\x0bNETSCAPE2.0\x03\x01"
_LOOP_READERS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


@dataclass(frozen=True, slots=True)
class GifFrame:
    """One frame: its place on the canvas and where its data lie in the file. `key`: transparent index, -1: none."""

    at: tuple[int, int]
    size: Size
    delay: int  # milliseconds
    disposal: int
    key: int
    flags: int
    palette: tuple[int, int]  # offsets in the file
    data: tuple[int, int]


@dataclass(slots=True)
class GifFile:
    """The frames of a file, as far as they were read. `plays`: 0 for ever."""

    size: Size
    plays: int = 1
    frames: list[GifFrame] = field(default_factory=list)


def read(data: bytes, most: int) -> GifFile:
    """The blocks of the GIF in `data`, up to `most` frames. As in the decoder, junk between blocks is skipped and a
    truncated file is read up to its end."""
    found = GifFile((_word(data, 6), _word(data, 8)))
    shared = 13, 13 + _palette_size(data, 10)
    delay, disposal, key = 0, KEEP, -1
    at, end = shared[1], len(data)
    while at < end and len(found.frames) < most:
        block = data[at]
        at += 1
        if block == 0x3B:  # trailer
            break
        if block == 0x21:  # extension: a label, then sub-blocks
            body = data[at : at + 17]
            if body[:2] == b"\xf9\x04" and len(body) > 5:
                delay, disposal = 10 * _word(data, at + 3), _DISPOSALS.get(body[2] >> 2 & 7, KEEP)
                key = body[5] if body[2] & 1 else -1
            elif body[:2] == b"\xff\x0b" and body[2:13] in _LOOP_READERS:
                found.plays = _plays(data, at + 13, found.plays)
            at = _after_sub_blocks(data, at + 1)
        elif block == 0x2C:  # image: place and flags, its own palette, the code size, then sub-blocks
            flags = data[at + 8] if at + 8 < end else 0
            size = _palette_size(data, at + 8)
            start = at + 9 + size
            palette = (at + 9, start) if size else shared
            place = _word(data, at), _word(data, at + 2)
            sides = _word(data, at + 4) or found.size[0], _word(data, at + 6) or found.size[1]
            at = _after_sub_blocks(data, start + 1)
            found.frames.append(
                GifFrame(place, sides, delay, disposal, key, flags, palette, (start, min(at, end)))
            )
            delay, disposal, key = 0, KEEP, -1
    _settle_canvas(found)
    return found


def _settle_canvas(found: GifFile) -> None:
    """As in browsers: a first frame that is larger than the canvas enlarges it."""
    if found.frames:
        first = found.frames[0]
        found.size = (
            max(found.size[0], first.at[0] + first.size[0]),
            max(found.size[1], first.at[1] + first.size[1]),
        )


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _palette_size(data: bytes, flags_at: int) -> int:
    """Bytes of the palette announced by the flags byte at `flags_at`."""
    flags = data[flags_at] if flags_at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _plays(data: bytes, at: int, otherwise: int) -> int:
    """How often the animation is shown, by the sub-blocks at `at`: one that begins with 1 holds the repetitions."""
    while at + 3 < len(data) and data[at]:
        if data[at] >= 3 and data[at + 1] & 7 == 1:
            loops = _word(data, at + 2)
            return loops + 1 if loops else 0
        at += data[at] + 1
    return otherwise


def _after_sub_blocks(data: bytes, at: int) -> int:
    end = len(data)
    while at < end and data[at]:
        at += data[at] + 1
    return at + 1


def shots(data: bytes, found: GifFile) -> Iterator[tuple[Image.Image, float]]:
    """Each frame as it is seen, RGB or RGBA, with its time in milliseconds. A picture is valid until the next."""
    canvas = Canvas(found.size)
    for frame in found.frames:
        yield canvas.draw(_part(data, frame), frame.at, frame.disposal, over=True), frame.delay


def _part(data: bytes, frame: GifFrame) -> Image.Image:
    """The frame alone, RGBA."""
    palette = data[slice(*frame.palette)]
    head = b"GIF89a" + _words(*frame.size) + bytes((_palette_flags(palette), 0, 0)) + palette
    descriptor = b"\x2c" + _words(0, 0, *frame.size) + bytes((frame.flags & _INTERLACED,))
    body = head + descriptor + data[slice(*frame.data)] + b"\x3b"
    with Image.open(io.BytesIO(body), formats=("GIF",)) as image:
        image.load()
        if frame.key >= 0:
            image.info["transparency"] = frame.key
        return image.convert("RGBA")


def indexed(image: Image.Image) -> Image.Image:
    """An RGB or RGBA picture with a palette of its own; pixels with alpha below one half become transparent."""
    if image.mode == "RGB":
        return image.quantize(COLOURS, Image.Quantize.FASTOCTREE)
    mask = image.getchannel("A").point(_TRANSPARENCY_MASK)
    made = image.convert("RGB").quantize(COLOURS - 1, Image.Quantize.FASTOCTREE)
    key = 1 + max(index for index, count in enumerate(made.histogram()) if count)
    made.putpalette([*(made.getpalette() or [])[: 3 * key], 0, 0, 0])
    made.paste(key, mask=mask)
    made.info["transparency"] = key
    return made


def encode(image: Image.Image) -> bytes:
    """Encode one RGB or RGBA picture."""
    out = io.BytesIO()
    indexed(image).save(out, "GIF", optimize=False)
    return out.getvalue()


@dataclass(slots=True)
class _Part:
    """A frame to be written: a file of one picture, its place, what becomes of it before the next one is drawn."""

    file: bytes
    at: tuple[int, int] = (0, 0)
    disposal: int = _LEAVE


class GifWriter:
    """An animation, written frame by frame. Where no pixel is transparent, a frame holds only what has changed."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._before: Image.Image | None = None

    def add(self, image: Image.Image) -> None:
        """Append an RGB or RGBA picture."""
        before, self._before = self._before, image
        if before is not None and image.mode == before.mode == "RGB":
            self._parts.append(_changes(before, image))
            return
        if before is not None and before.mode == "RGB":  # what is transparent from now on has to be cleared
            self._parts[-1] = _Part(encode(before.convert("RGBA")), disposal=_TO_BACKGROUND)
        if image.mode == "RGB":
            self._parts.append(_Part(encode(image)))
        elif before is None:
            self._parts.append(_Part(encode(image), disposal=_TO_BACKGROUND))
        else:
            box = image.getchannel("A").point(_IS_OPAQUE).getbbox() or (0, 0, 1, 1)
            self._parts.append(_Part(encode(image.crop(box)), (box[0], box[1]), _TO_BACKGROUND))

    def finish(self, delays: Sequence[float], plays: int) -> bytes:
        """The file. `delays` in milliseconds, one for each picture; `plays`: 0 for ever."""
        assert self._before is not None
        out = [b"GIF89a" + _words(*self._before.size) + b"\0\0\0"]
        if plays != 1:
            loops = min(max(0, plays - 1), MOST_LOOPS)
            out.append(_LOOP_BLOCK + _words(loops) + b"\0")
        units = whole_delays(delays, 10, LONGEST_DELAY)
        out += [_frame_blocks(part, delay) for part, delay in zip(self._parts, units, strict=True)]
        return b"".join([*out, b"\x3b"])


def _changes(before: Image.Image, image: Image.Image) -> _Part:
    """The smallest part of `image` that differs from `before`, transparent where it does not."""
    red, green, blue = ImageChops.difference(before, image).split()
    changed = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    box = changed.getbbox() or (0, 0, 1, 1)
    part = image.crop(box)
    part.putalpha(changed.crop(box).point(_IS_CHANGED))
    return _Part(encode(part), (box[0], box[1]))


def _frame_blocks(part: _Part, delay: int) -> bytes:
    frame = read(part.file, 1).frames[0]
    palette = part.file[slice(*frame.palette)]
    control = part.disposal << 2 | (frame.key >= 0)
    flags = _palette_flags(palette) | frame.flags & _INTERLACED
    return b"".join(
        (
            b"\x21\xf9\x04" + bytes((control,)) + _words(delay) + bytes((max(frame.key, 0), 0)),
            b"\x2c" + _words(*part.at, *frame.size) + bytes((flags,)) + palette,
            part.file[slice(*frame.data)],
        )
    )


def _words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2, "little") for number in numbers)


def _palette_flags(palette: bytes) -> int:
    return 0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0
