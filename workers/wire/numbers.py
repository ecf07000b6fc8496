"""Numbers of gob: the variable-length unsigned integer, and signed integers and floats encoded as one.

    0..127         one byte
    otherwise      256 - n, then n bytes, big-endian, n = 1..8           ff 80 = 128, fe 01 00 = 256
    signed         zigzag: shifted left by one, complemented when negative
    float64        its 8 bytes reversed, as an unsigned integer: small whole numbers become short

RULES: readers check every length against the bytes at hand and raise GobError, for any input.
"""

from struct import Struct

Buffer = bytes | bytearray | memoryview

MAX_UINT = (1 << 64) - 1
MAX_INT = (1 << 63) - 1

_DOUBLE_BIG = Struct(">d")
_DOUBLE_LITTLE = Struct("<d")


class GobError(ValueError):
    """The bytes are not the expected gob, or a value does not fit its type."""


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
    encoded, at = take_uint(buf, at)
    return from_zigzag(encoded), at


def from_zigzag(encoded: int) -> int:
    """The signed integer of a zigzag-encoded one."""
    return ~(encoded >> 1) if encoded & 1 else encoded >> 1


def float_of(encoded: int) -> float:
    """The float64 of its encoding as an unsigned integer."""
    return float(_DOUBLE_LITTLE.unpack(encoded.to_bytes(8, "big"))[0])


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
    """Append `text` with its length. Surrogate escapes are written as the bytes they stand for."""
    raw = text.encode("utf-8", "surrogateescape")
    put_uint(out, len(raw))
    out += raw
