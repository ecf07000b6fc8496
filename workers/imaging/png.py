"""PNG: its chunks, a copy that the decoder takes, transparency by key, APNG, and writing.

RULES: `read` walks over chunks and unpacks nothing. What describes a picture never refuses it: the decoder is given the
chunks that pixels are made of and no others, and the checksum of an ancillary chunk is not looked at.

On photographs zlib's default level is slow (2 MP -> 1920 wide: 1255 ms, 950 of them in the search for matches, of which
there are few). Z_RLE, which matches runs only, takes 303 ms for 1 % more bytes. On drawings and screenshots its level 3
takes a third of the time of level 6, and text gets even smaller. `deflate` has better means than zlib.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageChops

from workers.imaging import deflate
from workers.imaging.animation import CLEAR, KEEP, RESTORE, Canvas
from workers.imaging.colour import Primaries
from workers.imaging.embedded import Embedded
from workers.imaging.geometry import Size
from workers.imaging.resample import psnr

PHOTO_BYTES_PER_SAMPLE = 0.4  # a source PNG above this compressed badly: noise, so a photograph
ART_LEVEL = 3
SAME_LOOK = 34.0  # dB, of a picture reduced to a palette; photographs that have one come to 35 to 44
_MEDIAN_CUT_PIXELS = 500_000  # up to here the better quantizer takes less than 0.2 s
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE = 0, 2, 3  # colour types that may have a tRNS chunk
MOST_UNPACKED = 4 << 20  # bytes of a colour profile or an XMP packet; a larger one is ignored

_PIXELS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_KEPT = frozenset((b"tRNS", b"iCCP", b"cICP", b"sRGB", b"gAMA", b"cHRM", b"eXIf"))
_XMP = b"XML:com.adobe.xmp\0"
_DISPOSALS = {0: KEEP, 1: CLEAR, 2: RESTORE}
_HEADER_CHUNK = 25  # bytes of the IHDR chunk
_MOST_ANNOUNCED = (1 << 31) - 1
_NO_SUM = b"\0\0\0\0"  # of pixels: the decoder does not check it, since zlib has its own
_LEAST_UNPACKED = 64 << 10  # bytes of rows
_SAMPLES = {GREY: 1, COLOUR: 3, PALETTE: 1, 4: 2, 6: 4}  # by colour type
_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(slots=True)
class PngFrame:
    """One frame of an APNG; `data`: where its compressed pixels lie in the file."""

    at: tuple[int, int]
    size: Size
    delay: float  # milliseconds
    disposal: int
    over: bool
    data: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class PngFile:
    """What the chunks say. `notes`: the body of each ancillary chunk of _KEPT. `frames`: empty where it is no APNG."""

    size: Size = (0, 0)
    depth: int = 0
    colour_type: int = 0
    plays: int = 1
    announced: int = 0  # frames, by acTL
    frames: list[PngFrame] = field(default_factory=list)
    notes: dict[bytes, bytes] = field(default_factory=dict)
    xmp: bytes = b""
    header: bytes = b""  # IHDR
    palette: bytes = b""
    pixels: list[tuple[int, int]] = field(
        default_factory=list
    )  # runs of whole chunks that pixels are made of
    has_others: bool = False  # chunks that the decoder does not need, or damage behind the pixels
    has_pixels: bool = False
    is_sequence_broken: bool = False


def read(data: bytes, most: int) -> PngFile:
    """The chunks of the PNG in `data`, up to `most` frames; a truncated file is read up to its end."""
    found, at, sequence = PngFile(), len(SIGNATURE), -1
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, start = data[at + 4 : at + 8], at + 8
        at = start + length + 4
        if kind in _PIXELS:
            if found.pixels and found.pixels[-1][1] == start - 8:
                found.pixels[-1] = found.pixels[-1][0], at
            else:
                found.pixels.append((start - 8, at))
            if kind == b"IEND":
                found.has_others |= at > len(data)
                break
            _on_pixels(found, kind, data, start, length)
            continue
        found.has_others = True
        if kind in (b"fcTL", b"fdAT"):
            number = int.from_bytes(data[start : start + 4], "big")
            found.is_sequence_broken |= number != sequence + 1
            sequence = number
            if kind == b"fcTL" and len(found.frames) >= most:
                break
        _on_other(found, kind, data, start, length)
    else:
        found.has_others = True  # no end
    _settle_frames(found)
    return found


def _on_pixels(found: PngFile, kind: bytes, data: bytes, start: int, length: int) -> None:
    body = data[start : start + length] if kind != b"IDAT" else b""
    if kind == b"IHDR" and length == 13 and len(body) == 13 and not found.header:
        found.header = body
        found.size = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")
        found.depth, found.colour_type = body[8], body[9]
    elif kind == b"PLTE":
        found.palette = body
    elif kind == b"IDAT":
        found.has_pixels = True
        if found.frames:
            found.frames[-1].data.append((start, start + length))


def _on_other(found: PngFile, kind: bytes, data: bytes, start: int, length: int) -> None:
    if kind == b"fdAT" and found.frames:
        found.frames[-1].data.append((start + 4, start + length))
    elif kind == b"fcTL" and length == 26 and start + 26 <= len(data):
        _, width, height, left, top, number, parts, disposal, blend = struct.unpack_from(
            ">5I2H2B", data, start
        )
        found.frames.append(
            PngFrame(
                (left, top),
                (width, height),
                1000 * number / (parts or 100),
                _DISPOSALS.get(disposal, KEEP),
                blend == 1,
            )
        )
    elif kind == b"acTL" and length == 8 and not found.announced and not found.has_pixels:
        frames = int.from_bytes(data[start : start + 4], "big")
        found.announced = frames if frames <= _MOST_ANNOUNCED else 0
        found.plays = int.from_bytes(data[start + 4 : start + 8], "big")
    elif kind in _KEPT and kind not in found.notes:
        found.notes[kind] = data[start : start + length]
    elif kind == b"iTXt" and not found.xmp and data[start : start + len(_XMP)] == _XMP:
        found.xmp = _itxt(data[start + len(_XMP) : start + length])


def _settle_frames(found: PngFile) -> None:
    """Frames of a file that breaks the rules of APNG are left out, as in browsers: the picture is a still."""
    frames = [frame for frame in found.frames[: found.announced] if frame.data]
    inside = all(
        0 < frame.size[0] <= found.size[0] - frame.at[0] and 0 < frame.size[1] <= found.size[1] - frame.at[1]
        for frame in frames
    )
    found.frames = frames if inside and not found.is_sequence_broken else []


def _itxt(body: bytes) -> bytes:
    """The text of an iTXt chunk, from its compression flag on."""
    rest = body[2:].split(b"\0", 2)
    if len(rest) < 3:
        return b""
    return unpacked(rest[2]) if body[0] else rest[2]


def unpacked(body: bytes) -> bytes:
    """`body` without its zlib compression; empty when it is damaged or longer than MOST_UNPACKED."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(body, MOST_UNPACKED)
    except zlib.error:
        return b""
    return b"" if unpacker.unconsumed_tail else text


def profile(found: PngFile) -> bytes:
    """The colour profile of the iCCP chunk, empty without one."""
    _, _, body = found.notes.get(b"iCCP", b"").partition(b"\0")
    return unpacked(body[1:]) if body[:1] == b"\0" else b""


def coding(found: PngFile) -> tuple[int, int] | None:
    """(primaries, transfer) of the cICP chunk as H.273 numbers them; None without one."""
    body = found.notes.get(b"cICP", b"")
    return (body[0], body[1]) if len(body) == 4 else None


def gamma(found: PngFile) -> float | None:
    """The exponent of the gAMA chunk, about 0.4545 of most files; None without one."""
    body = found.notes.get(b"gAMA", b"")
    value = int.from_bytes(body, "big") / 100_000
    return value if len(body) == 4 and 0.01 <= value <= 100 else None


def chromaticities(found: PngFile) -> Primaries | None:
    """White, red, green and blue of the cHRM chunk; None without one."""
    body = found.notes.get(b"cHRM", b"")
    if len(body) != 32:
        return None
    values = [value / 100_000 for value in struct.unpack(">8I", body)]
    if any(not 0 <= value <= 1 for value in values):
        return None
    white, red, green, blue = zip(values[::2], values[1::2], strict=True)
    return white, red, green, blue


def plain(data: bytes, found: PngFile) -> bytes:
    """The file for the decoder: pixels, palette and the palette's alpha. A chunk that the file cuts off ends where the
    file does, and the end is there: whether pixels are missing shows when they are unpacked."""
    if not found.has_others:
        return data
    parts = [data[start:stop] for start, stop in found.pixels]
    if found.pixels and found.pixels[-1][1] > len(data):
        parts[-1] = _closed(parts[-1])
    if not parts or not parts[-1].endswith(_END):
        parts.append(_END)
    if (alpha := _palette_alpha(found)) and parts:
        parts[:1] = parts[0][:_HEADER_CHUNK], alpha, parts[0][_HEADER_CHUNK:]
    return b"".join([SIGNATURE, *parts])


def with_stored_rows(data: bytes, found: PngFile) -> io.BytesIO | None:
    """The file for the decoder, `data`, with rows that it only has to copy; None where it has to unpack them itself."""
    width, height, depth, colour_type, _, _, interlaced = struct.unpack(">2I5B", found.header)
    size = height * (1 + (width * _SAMPLES.get(colour_type, 1) * depth + 7) // 8)
    if interlaced or not size >= _LEAST_UNPACKED or not deflate.is_here(size):
        return None
    head, parts = _split(data)
    pixels, out = b"".join(parts), io.BytesIO()
    out.write(head + deflate.stored_size(size).to_bytes(4, "big") + b"IDAT")
    if not deflate.store(pixels, size, out):
        return None
    out.write(_NO_SUM + _END)
    out.seek(0)
    return out


def _split(file: bytes) -> tuple[bytes, list[memoryview]]:
    """The chunks before the first IDAT, and the bodies of all IDAT chunks, of a file whose chunks are sound."""
    at, first, bodies, view = len(SIGNATURE), len(file), [], memoryview(file)
    while at < len(file):
        length = int.from_bytes(file[at : at + 4], "big")
        if file[at + 4 : at + 8] == b"IDAT":
            first = min(first, at)
            bodies.append(view[at + 8 : at + 8 + length])
        at += length + 12
    return file[:first], bodies


def _closed(run: bytes) -> bytes:
    """The chunks of `run`, the last of which is cut off, with a last one that is whole."""
    at = 0
    while (stop := at + 12 + int.from_bytes(run[at : at + 4], "big")) < len(run):
        at = stop
    return run[:at] + _chunk(run[at + 4 : at + 8], run[at + 8 :])


def _palette_alpha(found: PngFile) -> bytes:
    body = found.notes.get(b"tRNS", b"")[: len(found.palette) // 3]
    return _chunk(b"tRNS", body) if body and found.colour_type == PALETTE else b""


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join(_chunk_in_parts(kind, [body]))


def _chunk_in_parts(kind: bytes, bodies: Sequence[bytes]) -> list[bytes]:
    checksum = zlib.crc32(kind)
    for body in bodies:
        checksum = zlib.crc32(body, checksum)
    return [sum(map(len, bodies)).to_bytes(4, "big"), kind, *bodies, checksum.to_bytes(4, "big")]


# -- transparency by key ---------------------------------------------------------------------------------------


def with_key(image: Image.Image, data: bytes, found: PngFile) -> Image.Image:
    """`image`, decoded from the file `data`, with alpha where its pixels have the colour of the tRNS chunk.

    The colour is compared in the file's own depth: the decoder scales 2 and 4 bits to 8 and reduces 3x16 bits to 3x8."""
    body = found.notes.get(b"tRNS", b"")
    samples = 3 if found.colour_type == COLOUR else 1
    if found.colour_type not in (GREY, COLOUR) or len(body) < 2 * samples:
        return image
    most = (1 << found.depth) - 1
    key = [value & most for value in struct.unpack_from(f">{samples}H", body)]
    if found.depth == 16:
        alpha = _alpha_of_sixteen_bits(image, data, key)
    else:
        image = image.convert("L") if image.mode == "1" else image
        alpha = _alpha_where(image.split(), [255 * value // most for value in key])
    if image.mode == "I;16":
        image = image.convert("I").point([step >> 8 for step in range(65536)], "L")
    image.putalpha(alpha)
    return image


def _alpha_of_sixteen_bits(image: Image.Image, data: bytes, key: list[int]) -> Image.Image:
    if image.mode == "I;16":
        table = [0 if value == key[0] else 255 for value in range(65536)]
        return image.convert("I").point(table, "L")
    high = [value >> 8 for value in key]
    low = [value & 255 for value in key]
    with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
        # The same decoder told that the bytes of each sample are swapped: it keeps the lower ones.
        again.tile = [again.tile[0]._replace(args="RGB;16L")]
        again.load()
        return _alpha_where((*image.split(), *again.split()), [*high, *low])


def _alpha_where(bands: Sequence[Image.Image], values: Sequence[int]) -> Image.Image:
    """0 where every band has its value, else 255."""
    alpha = Image.new("L", bands[0].size)
    for band, value in zip(bands, values, strict=True):
        alpha = ImageChops.lighter(alpha, band.point([255] * value + [0] + [255] * (255 - value)))
    return alpha


# -- animations ------------------------------------------------------------------------------------------------


def shots(data: bytes, found: PngFile) -> Iterator[tuple[Image.Image, float]]:
    """Each frame as it is seen, RGB or RGBA, with its time in milliseconds. A picture is valid until the next."""
    canvas = Canvas(found.size)
    for frame in found.frames:
        yield canvas.draw(_part(data, found, frame), frame.at, frame.disposal, frame.over), frame.delay


def _part(data: bytes, found: PngFile, frame: PngFrame) -> Image.Image:
    """The frame alone, RGBA."""
    head = b"".join(side.to_bytes(4, "big") for side in frame.size) + found.header[8:]
    pixels = b"".join(data[start:stop] for start, stop in frame.data)
    palette = _chunk(b"PLTE", found.palette) if found.palette else b""
    file = b"".join(
        (
            SIGNATURE,
            _chunk(b"IHDR", head),
            palette,
            _palette_alpha(found),
            len(pixels).to_bytes(4, "big") + b"IDAT",
            pixels,
            _NO_SUM,
            _END,
        )
    )
    with Image.open(io.BytesIO(file), formats=("PNG",)) as opened:
        opened.load()
        image = with_key(opened, file, found)
        if image.mode == "I;16":
            image = image.convert("I").point([step >> 8 for step in range(65536)], "L")
        return image.convert("RGBA")


# -- writing ---------------------------------------------------------------------------------------------------


def is_photo(size_in_bytes: int, image: Image.Image) -> bool:
    """True when the source PNG of `size_in_bytes` compressed as badly as photographs do."""
    samples = image.width * image.height * len(image.getbands())
    return size_in_bytes > PHOTO_BYTES_PER_SAMPLE * samples


def encode(image: Image.Image, photo: bool, embedded: Embedded, has_palette: bool = False) -> bytes:
    """Encode with Z_RLE for a photo, at ART_LEVEL otherwise. `has_palette`: with a palette, where that is smaller and
    looks the same."""
    whole = _encode(image, photo, embedded)
    if has_palette and image.mode in ("RGB", "RGBA"):
        for reduced in _with_palettes(image):
            small = _encode(reduced, photo, embedded)
            if len(small) < len(whole):
                return small
    return whole


def _with_palettes(image: Image.Image) -> Iterator[Image.Image]:
    """The picture in 256 colours, as each quantizer makes it, the better one first; those that look the same."""
    is_fast = image.mode == "RGBA" or image.width * image.height > _MEDIAN_CUT_PIXELS
    shown = _premultiplied(image)
    for quantizer in (Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE)[is_fast:]:
        made = image.quantize(256, quantizer)
        if psnr(shown, _premultiplied(made)) >= SAME_LOOK:
            yield made


def _premultiplied(image: Image.Image) -> Image.Image:
    """Four bands in which the colour of a transparent pixel does not count."""
    made = image.convert("RGBA").convert("RGBa")
    return Image.merge("CMYK", [made.getchannel(index) for index in range(4)])


def _encode(image: Image.Image, photo: bool, embedded: Embedded) -> bytes:
    out = io.BytesIO()
    size = image.width * image.height * len(image.getbands()) * (1 + (image.mode == "I;16"))
    if deflate.is_here(size):
        image.save(out, "PNG", compress_level=0, **embedded.png_options())
        head, stored = _split(out.getvalue())
        out.close()
        return b"".join((head, *_chunk_in_parts(b"IDAT", deflate.packed(stored, photo)), _END))
    if photo:
        image.save(out, "PNG", compress_type=zlib.Z_RLE, **embedded.png_options())
    else:
        image.save(out, "PNG", compress_level=ART_LEVEL, **embedded.png_options())
    return out.getvalue()


def encode_animation(
    frames: Sequence[Image.Image], delays: Sequence[float], plays: int, embedded: Embedded
) -> bytes:
    """Encode an APNG of RGB or RGBA pictures. `delays` in milliseconds; `plays`: 0 for ever."""
    mode = "RGBA" if any(frame.mode == "RGBA" for frame in frames) else "RGB"
    out, sequence = [SIGNATURE], 0
    for index, (frame, delay) in enumerate(zip(frames, delays, strict=True)):
        file = encode(frame.convert(mode), photo=False, embedded=embedded if not index else Embedded())
        head, parts = _split(file)
        pixels = b"".join(parts)
        if not index:
            out.append(head[len(SIGNATURE) :])  # with the profile
            out.append(_chunk(b"acTL", struct.pack(">2I", len(frames), plays)))
        control = struct.pack(">5I2H2B", sequence, *frame.size, 0, 0, *_fraction(delay), 0, 0)
        out.append(_chunk(b"fcTL", control))
        sequence += 1
        if not index:
            out.append(_chunk(b"IDAT", pixels))
        else:
            out.append(_chunk(b"fdAT", sequence.to_bytes(4, "big") + pixels))
            sequence += 1
    return b"".join([*out, _END])


def _fraction(delay: float) -> tuple[int, int]:
    """`delay` in milliseconds as a fraction of a second, as exact as 16 bits hold it, 65,535 seconds at most."""
    for parts in (1000, 100, 1):
        if delay * parts / 1000 <= 65_535:
            return round(delay * parts / 1000), parts
    return 65_535, 1
