"""Frames: a magic number, a length, a payload. Sans-IO: bytes in, payloads out.

RULES: the length is untrusted. It is checked before memory is used for it, and memory grows with the bytes received,
never with the length announced. A wrong magic is detected at its first wrong byte. The content of a payload is not
interpreted here.

    feed():   input   | h h h h  p p p p p p p p | h h h h  p p p . . . .
                        header   payload -> out    header   kept in pieces until complete, joined once
"""

from struct import Struct

MAGIC = bytes.fromhex("aade07a60257c2d0")
HEADER = 16
MAX_FRAME = 32 * 1024 * 1024

_HEADER = Struct(">8sQ")


class FrameError(ValueError):
    """The peer broke the framing: the start of the next frame is unknown, so the connection must end.

    `before` holds the payloads that were complete in the same feed before the error, so that the result does not depend
    on how the bytes were divided into segments.
    """

    before: tuple[bytes, ...] = ()


class NotAFrame(FrameError):
    """The bytes are of another protocol, or the place in the stream is lost."""


def parse_header(header: bytes | bytearray | memoryview, max_frame: int = MAX_FRAME) -> int:
    """The payload length in bytes that the first HEADER bytes of `header` announce.

    Raises FrameError for a wrong magic, an empty frame or a length over `max_frame`.
    """
    if len(header) < HEADER:
        raise FrameError(f"a frame header has {HEADER} bytes, not {len(header)}")
    magic, length = _HEADER.unpack_from(header)
    if magic != MAGIC:
        raise NotAFrame(f"not a frame: begins with {magic.hex(' ')}")
    if length == 0:
        raise FrameError("empty frame")
    if length > max_frame:
        raise FrameError(f"frame of {length} bytes is over the limit of {max_frame}")
    return int(length)


def header(length: int) -> bytes:
    """The HEADER bytes that announce a payload of `length` bytes."""
    return _HEADER.pack(MAGIC, length)


def frame(payload: bytes | bytearray | memoryview) -> bytes:
    """The frame of `payload`."""
    return _HEADER.pack(MAGIC, len(payload)) + payload


class FrameReader:
    """Collects the bytes of one connection and returns complete payloads. Not to be used after a FrameError."""

    __slots__ = ("_header", "_missing", "_pieces", "max_frame")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self.max_frame = max_frame
        self._header = bytearray()
        self._missing = 0  # bytes of the payload still to come; 0 while a header is being read
        self._pieces: list[bytes] = []

    def is_between_frames(self) -> bool:
        """True when no frame is incomplete, the only place where EOF is clean."""
        return not self._missing and not self._header

    @property
    def wanted(self) -> int:
        """Bytes that are missing from the current header or payload: a hint for the next read, not for an allocation."""
        return self._missing or HEADER - len(self._header)

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Add received bytes; returns the payloads that are complete now, in order. Raises FrameError."""
        ready: list[bytes] = []
        try:
            self._feed(memoryview(data), ready)
        except FrameError as error:
            error.before = tuple(ready)
            raise
        return ready

    def _feed(self, view: memoryview, ready: list[bytes]) -> None:
        at, end = 0, len(view)
        while at < end:
            if not self._missing:
                at += self._feed_header(view[at : at + HEADER - len(self._header)])
                continue
            piece = bytes(view[at : at + self._missing])
            at += len(piece)
            self._missing -= len(piece)
            if self._missing:
                self._pieces.append(piece)
            elif self._pieces:
                self._pieces.append(piece)
                ready.append(b"".join(self._pieces))
                self._pieces.clear()
            else:
                ready.append(piece)

    def _feed_header(self, piece: memoryview) -> int:
        self._header += piece
        if len(self._header) < HEADER:
            if not MAGIC.startswith(self._header[: len(MAGIC)]):
                raise NotAFrame(f"not a frame: begins with {self._header[: len(MAGIC)].hex(' ')}")
            return len(piece)
        self._missing = parse_header(self._header, self.max_frame)
        self._header.clear()
        return len(piece)
