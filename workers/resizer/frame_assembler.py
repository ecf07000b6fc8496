"""The frames of one connection, assembled from reads of any size: a header, then a payload.

RULES: pure, no socket, no clock. A length is checked before any memory is kept for it. A payload of at most SMALL bytes
is kept in ordinary memory: dry runs and refusals must go on when every slot is taken. A bigger payload goes to the place
that the owner provides once it has seen its head; until then nothing more is to be read, which is the back-pressure.

    held:  | header | small payload | header | head of a big one    (at most one read plus one small frame)
    into:  the place of a big payload, filled by recv_into without a copy (its head excepted), and a little beyond its
           end: a read that comes back short of that has emptied the socket, which saves the read that finds EAGAIN
"""

from enum import Enum

from workers.wire.frames import HEADER, MAGIC, FrameError, parse_header

SMALL = 4096  # bytes: a dry run with its type definitions has 250, a picture worth a resize more
# The head of a bigger payload is as long: the definitions and all fields before the picture, where it comes last.
SPARE = SMALL  # bytes read beyond the end of a big payload: the next frame, or the proof that there is none


class FrameStep(Enum):
    """What the owner of a FrameAssembler has to do next."""

    READ = "read more"
    HEAD = "read the head and provide a place for `length` bytes"
    SMALL = "take the small payload"
    FULL = "take the payload, complete in the place provided"


class FrameAssembler:
    """The frames of one connection. `step` raises FrameError when the peer breaks the framing."""

    __slots__ = ("_held", "_into", "filled", "length", "max_frame")

    def __init__(self, max_frame: int) -> None:
        self.max_frame = max_frame
        self.length = 0  # of the payload being read; 0 while its header is not complete
        self.filled = 0  # bytes of it in the place provided
        self._held = bytearray()
        self._into: memoryview | None = None

    def is_between_frames(self) -> bool:
        """True when nothing is half read."""
        return not self.length and not self._held

    def place(self) -> memoryview | None:
        """Where the next bytes belong; None: anywhere."""
        return None if self._into is None else self._into[self.filled : self.length + SPARE]

    def received(self, data: memoryview) -> bool:
        """`data` was read, into `place` or elsewhere. False while the payload in its place is not complete."""
        if self._into is None:
            self._held += data
            return True
        self.filled += len(data)
        if self.filled < self.length:
            return False
        if self.filled > self.length:
            self._held += self._into[self.length : self.filled]
            self.filled = self.length
        return True

    def head(self) -> bytes:
        """The first SMALL bytes of a big payload."""
        return bytes(memoryview(self._held)[:SMALL])

    def provide(self, place: memoryview) -> None:
        """Assemble the payload in `place`, at least `length` bytes; what has already arrived moves there. Whatever it has
        beyond `length` is written to as well."""
        early = min(self.length, len(self._held))
        place[:early] = memoryview(self._held)[:early]
        del self._held[:early]
        self._into = place
        self.filled = early

    def redirect(self, place: memoryview) -> None:
        """Have the rest of the payload in another place, at the offset that it would have had in the one before."""
        self._into = place

    def step(self) -> FrameStep:
        """What to do next."""
        if self._into is not None:
            return FrameStep.FULL if self.filled == self.length else FrameStep.READ
        if not self.length and not self._read_header():
            return FrameStep.READ
        if self.length > SMALL:
            return FrameStep.HEAD if len(self._held) >= SMALL else FrameStep.READ
        return FrameStep.SMALL if len(self._held) >= self.length else FrameStep.READ

    def small(self) -> bytes:
        """Take the small payload out."""
        payload = bytes(memoryview(self._held)[: self.length])
        del self._held[: self.length]
        self.length = 0
        return payload

    def full(self) -> memoryview:
        """The complete payload; its place belongs to the owner again."""
        if self._into is None:
            raise RuntimeError("no payload is complete")
        payload = self._into[: self.length]
        self.drop()
        return payload

    def drop(self) -> None:
        """Forget the place provided and the current frame."""
        self._into = None
        self.length = self.filled = 0

    def _read_header(self) -> bool:
        """Check the header; False while it is incomplete. A wrong magic is found at its first wrong byte."""
        held = self._held
        if not held:
            return False
        if len(held) < HEADER:
            if not MAGIC.startswith(held[: len(MAGIC)]):
                raise FrameError(f"not a frame: begins with {held[: len(MAGIC)].hex(' ')}")
            return False
        self.length = parse_header(held, self.max_frame)
        del held[:HEADER]
        return True
