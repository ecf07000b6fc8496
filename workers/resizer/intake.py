"""What has arrived of one client's frames: a header, then a payload, in pieces of any size.

RULES: pure, no socket, no clock. A length is judged before anything is kept for it. A payload of at most
SMALL bytes is kept in ordinary memory (dry runs, refusals: they must go on when every slot is taken); a
bigger one goes where its owner says once he has seen its head, and until then nothing more is to be read:
that is the back-pressure.

    held:  | header | small payload | header | head of a big one    (at most one read plus one small frame)
    into:  slot of a big payload, filled by recv_into without a copy (its head excepted), and a little beyond its end:
           a read that comes back short of that has emptied the socket, and nobody need ask it once more
"""

from enum import Enum

from workers.wire.frames import HEADER, MAGIC, FrameError, parse_header

SMALL = 4096  # bytes: a dry run with its type definitions has 250, a picture worth a resize more
# As much of a bigger one is its head: definitions and all that comes before the picture where it comes last.
SPARE = SMALL  # bytes read beyond the end of a big payload: the next frame, or the proof that there is none


class Step(Enum):
    """What the owner of an Intake has to do next."""

    READ = "read more"
    HEAD = "look at the head and provide a place for `length` bytes"
    SMALL = "take the small payload"
    FULL = "take the payload that is complete in the place provided"


class Intake:
    """The frames of one connection. Raises FrameError (from `step`) when the peer breaks the framing."""

    __slots__ = ("_held", "_into", "filled", "length", "max_frame")

    def __init__(self, max_frame: int) -> None:
        self.max_frame = max_frame
        self.length = 0  # of the payload being read; 0 while its header is not complete
        self.filled = 0  # bytes of it that lie in the place provided
        self._held = bytearray()
        self._into: memoryview | None = None

    def is_between_frames(self) -> bool:
        """True when nothing is half read."""
        return not self.length and not self._held

    def room(self) -> memoryview | None:
        """Where the next bytes belong; None: anywhere, then `take`."""
        return None if self._into is None else self._into[self.filled : self.length + SPARE]

    def take(self, data: memoryview) -> None:
        """Keep what was read elsewhere than in `room`."""
        self._held += data

    def fill(self, count: int) -> bool:
        """`count` bytes were read into `room`; True when the payload is complete."""
        self.filled += count
        if self.filled < self.length:
            return False
        if self.filled > self.length and self._into is not None:
            self._held += self._into[self.length : self.filled]
            self.filled = self.length
        return True

    def head(self) -> bytes:
        """The first SMALL bytes of a big payload."""
        return bytes(memoryview(self._held)[:SMALL])

    def provide(self, place: memoryview) -> None:
        """`place` (at least `length` bytes) takes the payload; what has already arrived moves there. It is written to
        beyond `length`, as far as it reaches."""
        early = min(self.length, len(self._held))
        place[:early] = memoryview(self._held)[:early]
        del self._held[:early]
        self._into = place
        self.filled = early

    def step(self) -> Step:
        """Where the frame stands."""
        if self._into is not None:
            return Step.FULL if self.filled == self.length else Step.READ
        if not self.length and not self._open():
            return Step.READ
        if self.length > SMALL:
            return Step.HEAD if len(self._held) >= SMALL else Step.READ
        return Step.SMALL if len(self._held) >= self.length else Step.READ

    def small(self) -> bytes:
        """The small payload; the next frame begins behind it."""
        payload = bytes(memoryview(self._held)[: self.length])
        del self._held[: self.length]
        self.length = 0
        return payload

    def full(self) -> memoryview:
        """The payload that lies in the place provided, which goes back to the owner."""
        if self._into is None:
            raise RuntimeError("no payload is complete")
        payload = self._into[: self.length]
        self.drop()
        return payload

    def drop(self) -> None:
        """Forget the place provided and the frame under way."""
        self._into = None
        self.length = self.filled = 0

    def _open(self) -> bool:
        """Judge the header; False while it is incomplete. A wrong magic is found at its first wrong byte."""
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
