"""Where a frame begins and ends, from configuration alone: `magic=HEX length=u32 be` as people write it, and its sizer.

RULES: pure; reads header bytes and nothing of a payload. A length is a stranger's word: it is compared with the limit
before anything is done with it. A wrong magic is refused at its first wrong byte.

    frame   | magic | .. up to offset .. | length | payload ......... |
              ^ 0     any bytes            ^ offset  with counts-header the length is that of the whole frame
"""

import re
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Protocol

from balancer.config.units import counted

FORM = "magic=HEX length=u8|u16|u32|u64 be|le [offset=N] [counts-header] [least=N], or gowork"
_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_MOST_MAGIC, _MOST_OFFSET = 32, 256


class Sizer(Protocol):
    """Gives the size in bytes of the frame that begins at `data[at]`, header included; -1: its header is not complete.
    Raises FrameRefused."""

    def __call__(self, data: bytes, at: int = 0) -> int: ...


class FrameRefused(ValueError):
    """The bytes begin no frame, or one outside the limits: where the next one begins is unknown."""


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """A magic, and the length behind it. `least` is the smallest payload, in bytes."""

    magic: bytes
    width: str  # key of _CODES
    is_big: bool  # byte order: most significant byte first
    offset: int  # of the length, from the frame's first byte
    counts_header: bool = False
    least: int = 0

    def __str__(self) -> str:
        for name, preset in PRESETS.items():
            if self == preset:
                return name
        words = [f"magic={self.magic.hex()}"] if self.magic else []
        words += [f"length={self.width}", "be" if self.is_big else "le"]
        if self.offset != len(self.magic):
            words.append(f"offset={self.offset}")
        if self.counts_header:
            words.append("counts-header")
        if self.least:
            words.append(f"least={self.least}")
        return " ".join(words)

    @property
    def header(self) -> int:
        """Bytes up to the payload."""
        return self.offset + int(self.width[1:]) // 8

    def sizer(self, most: int) -> Sizer:
        """A function that gives the size of the frame at the beginning of some bytes.

        It raises FrameRefused for a wrong magic, and for a payload below `least` or above `most` bytes."""
        magic, header = self.magic, self.header
        layout = f"{len(magic)}s{self.offset - len(magic)}x{_CODES[self.width]}"
        unpack = Struct((">" if self.is_big else "<") + layout).unpack_from
        beside = 0 if self.counts_header else header
        smallest, largest = header + self.least, header + most

        def size_of(data: bytes, at: int = 0) -> int:
            try:
                begin, length = unpack(data, at)
            except StructError:
                begin = data[at : at + len(magic)]
                if magic.startswith(begin):
                    return -1
            else:
                size: int = length + beside
                if begin == magic and smallest <= size <= largest:
                    return size
            if begin != magic:
                raise FrameRefused(f"no frame: begins with {begin.hex(' ')}")
            raise FrameRefused(self._outside(size - header, most))

        return size_of

    def _outside(self, payload: int, most: int) -> str:
        if payload > most:
            return f"frame of {payload} bytes is over max-frame {most}"
        return f"frame of {counted(max(payload, 0), 'byte')} is below its least of {self.least}"


PRESETS = {"gowork": FrameFormat(bytes.fromhex("aade07a60257c2d0"), "u64", True, 8, least=1)}


def parse_frame_format(text: str) -> FrameFormat:
    """A format from "magic=aade07a6 length=u32 be offset=8 counts-header", or the name of a preset. Without a magic the
    length alone tells frames apart. Raises ValueError with a sentence."""
    words = text.split()
    if len(words) == 1 and words[0] in PRESETS:
        return PRESETS[words[0]]
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        is_known = key in ("magic", "length", "offset", "least") if equals else key in _BARE
        key = _BARE.get(word, key)
        if not is_known or key in settings:
            raise ValueError(
                f"{text!r}: {word!r} is {'given twice' if is_known else 'not understood'}; write {FORM}"
            )
        settings[key] = value if equals else word
    return _built(text, settings)


_BARE = {"be": "order", "le": "order", "counts-header": "counts-header"}


def _built(text: str, settings: dict[str, str]) -> FrameFormat:
    width = settings.get("length", "")
    if width not in _CODES:
        raise ValueError(f"{text!r} has no length=u8, u16, u32 or u64; write {FORM}")
    if "order" not in settings and width != "u8":
        raise ValueError(f"{text!r} does not say the byte order of the length, be or le; write {FORM}")
    try:
        magic = bytes.fromhex(settings.get("magic", ""))
    except ValueError:
        raise ValueError(f"{text!r}: the magic is not hexadecimal, two digits a byte") from None
    if len(magic) > _MOST_MAGIC:
        raise ValueError(f"{text!r}: the magic has more than {_MOST_MAGIC} bytes")
    offset = _number(text, settings, "offset", len(magic))
    if not len(magic) <= offset <= _MOST_OFFSET:
        raise ValueError(
            f"{text!r}: offset {offset} is not between the magic's end {len(magic)} and {_MOST_OFFSET}"
        )
    least = _number(text, settings, "least", 0)
    is_big = settings.get("order", "be") == "be"
    return FrameFormat(magic, width, is_big, offset, "counts-header" in settings, least)


def _number(text: str, settings: dict[str, str], key: str, default: int) -> int:
    found = settings.get(key, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", found):
        raise ValueError(f"{text!r}: {key}={found} is not a number of bytes")
    return int(found)
