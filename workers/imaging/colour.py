"""Colours: what a file says that its values mean, and conversion to sRGB.

RULES: pixels and profiles, no formats. Every description of colours becomes an ICC profile: that of the file, or one made
here of primaries and a transfer curve (gAMA and cHRM of PNG, cICP of PNG and nclx of AVIF, numbered as in H.273). A
profile that is damaged, or of another colour space than the picture, counts as none, as in browsers. One that differs
from sRGB by less than a step or two is sRGB.

Black is white is grey: a grey picture is converted by a table of 256 values, one of 16 bits by interpolation in it.
"""

import io
import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache

from PIL import Image, ImageCms, ImageMath

MAX_PROFILE = 4 << 20  # bytes; a larger profile is ignored
SAME = 2  # steps of 255 by which a profile may differ from sRGB and count as the same

Chromaticity = tuple[float, float]
Primaries = tuple[Chromaticity, Chromaticity, Chromaticity, Chromaticity]  # white, red, green, blue
Curve = float | Callable[[float], float]  # an exponent, or value 0..1 -> light 0..1
_Matrix = tuple[tuple[float, float, float], ...]

_D65, _DCI, _C, _E = (0.3127, 0.3290), (0.314, 0.351), (0.310, 0.316), (1 / 3, 1 / 3)
SRGB_PRIMARIES: Primaries = (_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_BY_NUMBER: dict[int, Primaries] = {  # ColourPrimaries of H.273; 1 is sRGB's
    4: (_C, (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: (_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    8: (_C, (0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    10: (_E, (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)),
    11: (_DCI, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: (_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
_SPACES = {"L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "CMYK": b"CMYK"}
# A screen without HDR shows light of up to 1,000 nits: in proportion up to the knee, above it rolled off. Scale and curve
# are those of Chromium 156, within a step.
_MOST_NITS = 1000.0
_WHITE_NITS = 406.0  # what would be white without the roll-off
_KNEE = 0.53


# -- transfer curves -------------------------------------------------------------------------------------------


def srgb_curve(value: float) -> float:
    """Light of an sRGB value."""
    return value / 12.92 if value <= 0.04045 else math.pow((value + 0.055) / 1.055, 2.4)


def _pq_curve(value: float) -> float:
    """Light of a PQ value (ST 2084) on a screen without HDR."""
    power = math.pow(value, 1 / 78.84375)
    share = max(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return _rolled_off(10_000 * math.pow(share, 1 / 0.1593017578125))


def _hlg_curve(value: float) -> float:
    """Light of an HLG value (BT.2100), made for a screen of 1,000 nits, on one without HDR."""
    scene = value**2 / 3 if value <= 0.5 else (math.exp((value - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return _rolled_off(1_000 * math.pow(scene, 1.2))


def _rolled_off(nits: float) -> float:
    light = nits / _WHITE_NITS
    if light <= _KNEE:
        return light
    stops = max(0.0, math.log2(_MOST_NITS / nits))  # below the brightest
    return 1 - stops * (0.178 + 0.0155 * stops)


def _cinema_curve(value: float) -> float:
    """Light of a value of ST 428-1, whose white is 48 of 52.37 units."""
    return min(1.0, 52.37 / 48 * math.pow(value, 2.6))


# BT.709 and its kin count as sRGB: files that state them were made for the same screens.
_CURVES: dict[int, Curve] = {4: 2.2, 5: 2.8, 8: 1.0, 16: _pq_curve, 17: _cinema_curve, 18: _hlg_curve}
_LIKE_SRGB = (1, 6, 7, 11, 12, 13, 14, 15)


def is_known(primaries: int, transfer: int) -> bool:
    """True when both H.273 numbers say something that is known here."""
    return (primaries == 1 or primaries in _BY_NUMBER) and (transfer in _LIKE_SRGB or transfer in _CURVES)


def is_profile(profile: bytes) -> bool:
    """True when `profile` has the head of an ICC profile."""
    return len(profile) > 132 and profile[36:40] == b"acsp"


def described(primaries: int, transfer: int) -> bytes:
    """The profile of H.273 numbers; empty when they say sRGB, nothing, or what is not known here."""
    places = _BY_NUMBER.get(primaries, SRGB_PRIMARIES)
    curve = _CURVES.get(transfer, srgb_curve)
    return b"" if places is SRGB_PRIMARIES and curve is srgb_curve else made_profile(places, curve)


def is_srgb(primaries: Primaries | None) -> bool:
    """True when `primaries` are those of sRGB, or not known."""
    pairs = zip(primaries or SRGB_PRIMARIES, SRGB_PRIMARIES, strict=True)
    return all(abs(one[0] - other[0]) < 0.002 and abs(one[1] - other[1]) < 0.002 for one, other in pairs)


# -- profiles ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def made_profile(primaries: Primaries, curve: Curve) -> bytes:
    """An ICC profile, version 2, of a screen with these primaries and this curve; empty when they make no sense."""
    try:
        to_pcs = _to_pcs(primaries)
    except ZeroDivisionError:
        return b""
    curve_tag = _curve_tag(curve)
    tags = [
        (b"desc", b"desc\0\0\0\0\0\0\0\5made\0" + b"\0" * 78),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", _xyz(_D50)),
    ]
    tags += [(name, _xyz([row[i] for row in to_pcs])) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += [(name, curve_tag) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    places: dict[bytes, tuple[int, int]] = {}
    for name, content in tags:
        if content not in places:
            places[content] = at + len(body), len(content)
            body += content + b"\0" * (-len(content) % 4)
        table += name + struct.pack(">2I", *places[content])
    head = struct.pack(
        ">I4xI4s4s4s12x4s4x4x4x4x8x4x3i",
        at + len(body),
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"acsp",
        *_fixed(_D50),
    )
    return head.ljust(128, b"\0") + table + body


_D50 = (0.9642, 1.0, 0.8249)


def _fixed(values: Sequence[float]) -> list[int]:
    return [round(value * 65536) for value in values]


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *_fixed(values))


def _curve_tag(curve: Curve) -> bytes:
    if not callable(curve):
        return b"curv\0\0\0\0" + struct.pack(">IH2x", 1, min(65_535, round(curve * 256)))
    steps = [round(65_535 * curve(step / 1023)) for step in range(1024)]
    return b"curv\0\0\0\0" + struct.pack(">I1024H", len(steps), *steps)


def _to_pcs(primaries: Primaries) -> _Matrix:
    """The matrix from linear RGB to XYZ under D50: white is adapted by Bradford's matrix."""
    white, *rest = ((x / y, 1.0, (1 - x - y) / y) if y else (1.0, 0.0, 0.0) for x, y in primaries)
    columns = _transposed(rest)
    shares = _times(_inverse(columns), white)
    to_xyz = tuple(tuple(value * share for value, share in zip(row, shares, strict=True)) for row in columns)
    eye = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
    seen, meant = _times(eye, white), _times(eye, _D50)
    scaled = tuple(tuple(v * d / s for v in row) for row, s, d in zip(eye, seen, meant, strict=True))
    return _product(_product(_inverse(eye), scaled), to_xyz)


def _transposed(matrix: Sequence[Sequence[float]]) -> _Matrix:
    return tuple((row[0], row[1], row[2]) for row in zip(*matrix, strict=True))


def _times(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def _product(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> _Matrix:
    return _transposed([_times(one, column) for column in zip(*other, strict=True)])


def _inverse(m: Sequence[Sequence[float]]) -> _Matrix:
    (a, b, c), (d, e, f), (g, h, i) = m
    minors = ((e * i - f * h, c * h - b * i, b * f - c * e), (f * g - d * i, a * i - c * g, c * d - a * f))
    third = (d * h - e * g, b * g - a * h, a * e - b * d)
    whole = a * minors[0][0] + b * minors[1][0] + c * third[0]
    return tuple((x / whole, y / whole, z / whole) for x, y, z in (*minors, third))


# -- pictures ----------------------------------------------------------------------------------------------------


def managed(image: Image.Image, profile: bytes, how: str, written: str) -> tuple[Image.Image, bytes]:
    """`image` with its colours as `how` says (keep, srgb, drop), and the profile to embed. `written`: the mode in which
    it will be written, "" for a format that holds no profile; a profile of another colour space is not embedded, and
    the picture is converted instead."""
    if how == "drop" or not profile or len(profile) > MAX_PROFILE:
        return image, b""
    if how == "keep" and profile[16:20] == _SPACES.get(written) == _SPACES.get(image.mode):
        return image, profile
    return to_srgb(image, profile), b""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture converted from `profile` to sRGB; CMYK becomes RGB, grey stays grey."""
    space = profile[16:20]
    if image.mode in ("L", "LA", "I;16"):
        return _grey_to_srgb(image, profile) if space in (b"GRAY", b"RGB ") else image
    if space != _SPACES.get(image.mode):
        return image
    transform = _transform(profile, "CMYK" if image.mode == "CMYK" else "RGB")
    if transform is None:
        return image
    if image.mode != "RGBA":
        return transform.apply(image)
    made = transform.apply(image.convert("RGB"))
    made.putalpha(image.getchannel("A"))
    return made


def _grey_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    table = _grey_table(profile)
    if table is None:
        return image
    if image.mode == "L":
        return image.point(table)
    if image.mode == "LA":
        return Image.merge("LA", (image.getchannel("L").point(table), image.getchannel("A")))
    low, high = Image.frombytes("LA", image.size, image.tobytes()).split()  # little-endian
    steps = [257 * value for value in table]
    lower, upper = high.point(steps, "I"), high.point([*steps[1:], steps[-1]], "I")

    def between(operands: dict[str, ImageMath._Operand]) -> ImageMath._Operand:
        lower, upper, low = operands["lower"], operands["upper"], operands["low"]
        return lower + (upper - lower) * low / 256

    mixed: Image.Image = ImageMath.lambda_eval(between, lower=lower, upper=upper, low=low.convert("I"))
    return mixed.convert("I;16")


@lru_cache(maxsize=8)
def _grey_table(profile: bytes) -> list[int] | None:
    """sRGB grey by grey value; None when every value stays what it is."""
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    if profile[16:20] == b"GRAY":
        transform = _transform(profile, "L")
        made = transform.apply(ramp) if transform is not None else None
    else:
        transform = _transform(profile, "RGB")
        made = transform.apply(ramp.convert("RGB")) if transform is not None else None
    return list(made.getchannel("G").tobytes()) if made is not None else None


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of `mode` to sRGB; None when the profile cannot be used or is sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return transform
    steps = range(0, 256, 51)
    colours = bytes(value for r in steps for g in steps for b in steps for value in (r, g, b))
    if mode == "L":
        colours = bytes(value for step in range(256) for value in (step, step, step))
    grid = Image.frombytes("RGB", (len(colours) // 3, 1), colours)
    made = transform.apply(grid.getchannel("R") if mode == "L" else grid)
    differs = max(abs(one - other) for one, other in zip(made.tobytes(), colours, strict=True))
    return transform if differs > SAME else None
