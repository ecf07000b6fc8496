"""What a front and its CPU processes say to each other: one message a packet on a SOCK_SEQPACKET channel.

RULES: fixed binary layouts, no pickle; nothing here knows sockets or pictures; a message is not changed once
made (not frozen: a frozen dataclass of twelve fields takes 2 us to make). An order names the process
it is meant for: the channel outlives the processes at both ends, and an order written to one that died
meanwhile must not be obeyed by its successor, whose slot may by then be somebody else's.

    front -> cpu    Order      resize what lies there          Roll   who is there?
    cpu -> front    Result     the answer lies in the slot     Hello  I am, and am idle
                    Bye        I go, and have begun nothing since my last Result
"""

from dataclasses import dataclass
from struct import Struct
from struct import error as StructError

LONGEST = 1024  # bytes of one message
LONGEST_TEXT = 512  # bytes of a sentence

FITS = ("", "stretch", "contain", "cover")

_ORDER = Struct("<cIIQQIIIIBBB12s")
_ROLL = Struct("<cI")
_HELLO = Struct("<cII")
_BYE = Struct("<cI")
_RESULT = Struct("<cIQHIIIIIQ")


class OrderError(ValueError):
    """A packet on the channel that is none of ours."""


@dataclass(slots=True)
class Order:
    """Resize `length` bytes at `offset` of the arena, write the answer to the start of `slot`.

    `worker` is the pid it is meant for, `front` the pid that gave it; `format` at most 12 ASCII letters, ""
    as the source.
    """

    worker: int
    front: int
    serial: int
    offset: int
    length: int
    slot: int
    width: int
    height: int
    fit: str
    quality: int
    orient: bool
    format: str


@dataclass(slots=True)
class Roll:
    """The front `front` has just started: say Hello."""

    front: int


@dataclass(slots=True)
class Hello:
    """Process `worker` is idle; `front` is whose Roll it answers, 0 when it has just started."""

    worker: int
    front: int


@dataclass(slots=True)
class Result:
    """How a task ended. `text` is the answer's format when `status` is 200, else a sentence for a person.
    Times in nanoseconds of the resize itself.
    """

    worker: int
    serial: int
    status: int
    length: int = 0
    width: int = 0
    height: int = 0
    source_width: int = 0
    source_height: int = 0
    elapsed_ns: int = 0
    text: str = ""


@dataclass(slots=True)
class Bye:
    """Process `worker` exits now; orders that came after its last Result are somebody else's to carry out."""

    worker: int


Message = Order | Roll | Hello | Result | Bye


def encode(message: Message) -> bytes:
    """The packet of `message`. Raises OrderError for what does not fit its fields."""
    try:
        if isinstance(message, Order):
            return _encode_order(message)
        if isinstance(message, Result):
            return _encode_result(message)
        if isinstance(message, Hello):
            return _HELLO.pack(b"H", message.worker, message.front)
        if isinstance(message, Bye):
            return _BYE.pack(b"B", message.worker)
        return _ROLL.pack(b"R", message.front)
    except (StructError, ValueError, UnicodeEncodeError) as error:
        raise OrderError(f"cannot be ordered: {error}") from None


def _encode_order(order: Order) -> bytes:
    name = order.format.encode("ascii")
    if len(name) > 12:
        raise OrderError(f"format name of {len(name)} bytes")
    return _ORDER.pack(
        b"O",
        order.worker,
        order.front,
        order.serial,
        order.offset,
        order.length,
        order.slot,
        order.width,
        order.height,
        FITS.index(order.fit),
        order.quality,
        order.orient,
        name,
    )


def _encode_result(result: Result) -> bytes:
    head = _RESULT.pack(
        b"A",
        result.worker,
        result.serial,
        result.status,
        result.length,
        result.width,
        result.height,
        result.source_width,
        result.source_height,
        result.elapsed_ns,
    )
    return head + result.text.encode("utf-8", "replace")[:LONGEST_TEXT]


def decode(packet: bytes) -> Message:
    """The message in `packet`. Raises OrderError."""
    try:
        match packet[:1]:
            case b"A":
                return _decode_result(packet)
            case b"O":
                return _decode_order(packet)
            case b"H":
                _, worker, front = _HELLO.unpack(packet)
                return Hello(worker, front)
            case b"B":
                return Bye(_BYE.unpack(packet)[1])
            case b"R":
                return Roll(_ROLL.unpack(packet)[1])
    except (StructError, IndexError, UnicodeDecodeError) as error:
        raise OrderError(f"broken message: {error}") from None
    raise OrderError(f"unknown message {packet[:8]!r}")


def _decode_order(packet: bytes) -> Order:
    _, worker, front, serial, offset, length, slot, width, height, fit, quality, orient, name = _ORDER.unpack(
        packet
    )
    text = name.rstrip(b"\0").decode("ascii")
    return Order(
        worker, front, serial, offset, length, slot, width, height, FITS[fit], quality, bool(orient), text
    )


def _decode_result(packet: bytes) -> Result:
    _, worker, serial, status, length, width, height, from_width, from_height, elapsed = _RESULT.unpack_from(
        packet
    )
    text = packet[_RESULT.size :].decode("utf-8", "replace")
    return Result(worker, serial, status, length, width, height, from_width, from_height, elapsed, text)
