"""The compression of PNG's rows by ISA-L and zlib-ng: Pillow's wheels use the system's zlib, which takes two to four
times as long.

RULES: bytes only. Pillow filters rows and takes the filters back; here rows are unpacked before it reads them and packed
after it has written them, so that its zlib only copies. Beyond MOST_BYTES (rows are held once more), without the
libraries, and where data are damaged, Pillow does it all.

Measured: rows of 2 MP RGBA are unpacked in 34 ms by zlib 1.2.13, in 21 by zlib-ng, in 15 by ISA-L. Rows of 0.5 MP RGBA
are packed as a photograph in 20, 10 and 6 ms, by the first two to the same bytes, by ISA-L to up to 13 % more. A
screenshot takes 11 ms at zlib's level 3 and 5 at zlib-ng's level 6, and drawings get smaller.
"""

import importlib
import struct
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO


def _installed(name: str) -> Any:
    """The module, None where it is not installed: there are wheels for the common platforms only."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


igzip_lib, isal_zlib = _installed("isal.igzip_lib"), _installed("isal.isal_zlib")
zlib_ng = _installed("zlib_ng.zlib_ng")

MOST_BYTES = 32 << 20  # of rows
_BLOCK = 65_535  # bytes in a block that is not compressed
_ART_LEVEL = 6
_MEMORY_LEVEL = 9


def is_here(size: int) -> bool:
    """Whether rows of `size` bytes are packed and unpacked here."""
    return None not in (igzip_lib, isal_zlib, zlib_ng) and size <= MOST_BYTES


def stored_size(size: int) -> int:
    """Bytes of zlib data of `size` bytes that are not compressed."""
    return 2 + 5 * -(-size // _BLOCK) + size + 4


def store(packed: bytes, size: int, out: BinaryIO) -> bool:
    """Write `packed`, zlib data of `size` bytes, to `out` as zlib data that only have to be copied. False unless they are
    whole and sound."""
    unpacker, checksum = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_ZLIB), 1
    out.write(b"\x78\x01")
    for left in range(size, 0, -_BLOCK):
        length = min(left, _BLOCK)
        try:
            block = unpacker.decompress(packed, length)
        except (isal_zlib.error, EOFError):
            return False
        if len(block) < length:
            return False
        packed = b""  # the unpacker has it
        out.write(struct.pack("<BHH", left <= _BLOCK, length, length ^ 0xFFFF))
        out.write(block)
        checksum = isal_zlib.adler32(block, checksum)
    out.write(checksum.to_bytes(4, "big"))
    return True


def packed(stored: Iterable[bytes | memoryview], is_photo: bool) -> list[bytes]:
    """`stored`, zlib data that are not compressed, in parts, as zlib data that are: runs only for a photograph, which has
    few other matches."""
    strategy = zlib.Z_RLE if is_photo else zlib.Z_DEFAULT_STRATEGY
    packer = zlib_ng.compressobj(_ART_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, _MEMORY_LEVEL, strategy)
    unpacker = zlib.decompressobj()
    return [*(packer.compress(unpacker.decompress(part)) for part in stored), packer.flush()]
