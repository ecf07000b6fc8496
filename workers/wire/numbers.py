"""Gob's numbers: the variable-length unsigned integer under everything, and what is folded into it.

    0..127         one byte
    otherwise      256 - n, then n bytes, big end first, n = 1..8        ff 80 = 128, fe 01 00 = 256
    signed         shifted left by one, complemented when negative, the low bit says so
    float64        its 8 bytes reversed, as an unsigned integer: small numbers end in zeros and become short

RULES: readers check against the bytes at hand and raise GobError, whatever they are given.
"""

from struct import Struct

Buffer = bytes | bytearray | memoryview

MAX_UINT = (1 << 64) - 1
MAX_INT = (1 << 63) - 1

_DOUBLE_BIG = Struct(">d")
_DOUBLE_LITTLE = Struct("<d")


class GobError(ValueError):
    """The bytes are not the gob they should be, or a value does not fit its type."""


def take_uint(buf: Buffer, at: int) -> tuple[int, int]:
    """The unsigned integer at `at` and the position after it."""
    if at >= len(buf):
        raise GobError("ends in the middle of a number")
    first = buf[at]
    return (first, at + 1) if first < 128 else take_long(first, buf, at + 1)


def take_long(first: int, buf: Buffer, at: int) -> tuple[int, int]:
    """The rest of an unsigned integer whose first byte was `first` >= 128: value and position after it."""
    count = 256 - first
    if count > 8:
        raise GobError(f"a number of {count} bytes")
    stop = at + count
    if stop > len(buf):
        raise GobError("ends in the middle of a number")
    return int.from_bytes(buf[at:stop], "big"), stop


def take_int(buf: Buffer, at: int) -> tuple[int, int]:
    """The signed integer at `at` and the position after it."""
    folded, at = take_uint(buf, at)
    return from_zigzag(folded), at


def from_zigzag(folded: int) -> int:
    """The signed integer behind its unsigned form."""
    return ~(folded >> 1) if folded & 1 else folded >> 1


def float_of(folded: int) -> float:
    """The float64 behind its unsigned form."""
    return float(_DOUBLE_LITTLE.unpack(folded.to_bytes(8, "big"))[0])


def put_uint(out: bytearray, value: int) -> None:
    """Append `value`; raises GobError outside 0..2^64-1."""
    if value < 128:
        if value < 0:
            raise GobError(f"{value} is not unsigned")
        out.append(value)
        return
    count = (value.bit_length() + 7) >> 3
    if count > 8:
        raise GobError(f"{value} does not fit 64 bits")
    out.append(256 - count)
    out += value.to_bytes(count, "big")


def put_int(out: bytearray, value: int) -> None:
    """Append the signed `value`; raises GobError outside 64 bits."""
    if not -MAX_INT - 1 <= value <= MAX_INT:
        raise GobError(f"{value} does not fit 64 bits")
    put_uint(out, ~(value << 1) if value < 0 else value << 1)


def put_float(out: bytearray, value: float) -> None:
    """Append the float64 `value`."""
    put_uint(out, int.from_bytes(_DOUBLE_BIG.pack(value), "little"))


def put_text(out: bytearray, text: str) -> None:
    """Append `text` with its length. Bytes that were not UTF-8 when they came in go out as they were."""
    raw = text.encode("utf-8", "surrogateescape")
    put_uint(out, len(raw))
    out += raw
