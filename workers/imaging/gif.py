"""GIF: frames counted before any is decoded, and written with a palette each.

RULES  `count_frames` walks blocks and never unpacks them.

Pillow's own way to a palette (median cut) takes 1835 ms where the octree takes 124 (24 frames -> 400x267)
for 2 dB; a palette shared by all frames is smaller but not faster. GIF has no half-transparent pixels: alpha
is cut at one half.
"""

import io
from collections.abc import Sequence

from PIL import Image

COLOURS = 256
_CLEAR = COLOURS - 1  # the index that shows through
_IS_CLEAR = [255] * 128 + [0] * 128  # of an alpha value, as a mask


def count_frames(data: bytes, enough: int) -> int:
    """Frames of the GIF in `data`, counted no further than `enough`. Junk between blocks is skipped and a
    cut-off file counts as far as it goes, as the decoder would read it."""
    frames, at, end = 0, 13 + _table(data, 10), len(data)
    while at < end and frames < enough:
        block = data[at]
        at += 1
        if block == 0x3B:  # trailer
            break
        if block == 0x21:  # extension: a label, then sub-blocks
            at = _after_sub_blocks(data, at + 1)
        elif block == 0x2C:  # image: place and flags, its own palette, the code size, then sub-blocks
            frames += 1
            at = _after_sub_blocks(data, at + 9 + _table(data, at + 8) + 1)
    return frames


def _table(data: bytes, flags_at: int) -> int:
    """Bytes of the palette announced by a flags byte."""
    flags = data[flags_at] if flags_at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(data: bytes, at: int) -> int:
    end = len(data)
    while at < end and data[at]:
        at += data[at] + 1
    return at + 1


def indexed(image: Image.Image) -> Image.Image:
    """An RGB or RGBA picture with a palette of its own; what was more than half clear is clear."""
    if image.mode == "RGB":
        return image.quantize(COLOURS, Image.Quantize.FASTOCTREE)
    clear = image.getchannel("A").point(_IS_CLEAR)
    made = image.convert("RGB").quantize(COLOURS - 1, Image.Quantize.FASTOCTREE)
    made.putpalette([*(made.getpalette() or [])[: 3 * (COLOURS - 1)], 0, 0, 0])
    made.paste(_CLEAR, mask=clear)
    made.info["transparency"] = _CLEAR
    return made


def encode(frames: Sequence[Image.Image], durations: Sequence[int], loop: int | None) -> bytes:
    """`frames`: from `indexed`, at least one. `durations` in milliseconds. `loop` None writes no loop block,
    so the animation plays once; 0 means for ever."""
    out = io.BytesIO()
    how: dict[str, object] = {"optimize": False}
    if len(frames) > 1:
        how |= {"save_all": True, "append_images": frames[1:], "duration": list(durations), "disposal": 2}
        if loop is not None:
            how["loop"] = loop
    frames[0].save(out, "GIF", **how)
    return out.getvalue()
