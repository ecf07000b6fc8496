"""The messages between a front and its CPU processes: one message per packet of a SOCK_SEQPACKET channel.

RULES: fixed binary layouts, no pickle; no sockets and no pictures. Messages are immutable by convention: a frozen
dataclass of twelve fields takes 2 us to make. An order carries the pid of its process, because the channel outlives the
processes at both ends: a process must not carry out an order to its predecessor, whose client may have had its answer.

    front -> cpu    Order      resize the picture in a place     Ping   asks for a Hello
                    Transfer   the memory of the places, with its descriptor
    cpu -> front    Result     the answer lies in the place      Hello  the process is idle
                    Bye        the process exits and has begun nothing since its last Result
"""

from dataclasses import dataclass
from struct import Struct
from struct import error as StructError

from balancer.eventloop.log_format import printable

LONGEST = 1024  # bytes of one message
LONGEST_TEXT = 512  # bytes of the sentence in a Result

FITS = ("", "stretch", "contain", "cover")

_ORDER = Struct("<cIIQBQIIBBB12s")
_PING = Struct("<cI")
_TRANSFER = Struct("<cIQ")
_HELLO = Struct("<cII")
_BYE = Struct("<cI")
_RESULT = Struct("<cIQHIIIIIQ")


class OrderError(ValueError):
    """A packet that is no message, or a message that does not fit its layout."""


@dataclass(slots=True)
class Order:
    """Resize the first `length` bytes of `place` and write the answer over them.

    `worker_pid` is to carry it out, `front_pid` has sent it. `format`: at most 12 ASCII letters, "" for the source's.
    `parameters`: as in workers.imaging.job.
    """

    worker_pid: int
    front_pid: int
    serial: int
    place: int
    length: int
    width: int
    height: int
    fit: str
    quality: int
    orient: bool
    format: str
    parameters: str = ""


@dataclass(slots=True)
class Ping:
    """The front `front_pid` has just started and asks for a Hello."""

    front_pid: int


@dataclass(slots=True)
class Transfer:
    """The memory for the orders that follow to process `worker_pid`: places of `place_bytes`. Its descriptor comes in the
    same packet."""

    worker_pid: int
    place_bytes: int


@dataclass(slots=True)
class Hello:
    """Process `worker_pid` is idle. `front_pid` has sent the Ping that this answers; 0: the process has just started."""

    worker_pid: int
    front_pid: int


@dataclass(slots=True)
class Result:
    """How a task ended. `text`: the format of the answer when `status` is 200, else a sentence for a person.
    `elapsed_ns`: of the resize itself. `note`: what the answer lacks, a sentence, or "".
    """

    worker_pid: int
    serial: int
    status: int
    length: int = 0
    width: int = 0
    height: int = 0
    source_width: int = 0
    source_height: int = 0
    elapsed_ns: int = 0
    text: str = ""
    note: str = ""


@dataclass(slots=True)
class Bye:
    """Process `worker_pid` exits and will not carry out the orders that it has got after its last Result."""

    worker_pid: int


Message = Order | Ping | Transfer | Hello | Result | Bye


def encode(message: Message) -> bytes:
    """The packet of `message`. Raises OrderError for what does not fit its fields."""
    try:
        if isinstance(message, Order):
            return _encode_order(message)
        if isinstance(message, Result):
            return _encode_result(message)
        if isinstance(message, Hello):
            return _HELLO.pack(b"H", message.worker_pid, message.front_pid)
        if isinstance(message, Bye):
            return _BYE.pack(b"B", message.worker_pid)
        if isinstance(message, Transfer):
            return _TRANSFER.pack(b"T", message.worker_pid, message.place_bytes)
        return _PING.pack(b"R", message.front_pid)
    except (StructError, ValueError, UnicodeEncodeError) as error:
        raise OrderError(f"does not fit its layout: {error}") from None


def _encode_order(order: Order) -> bytes:
    name = order.format.encode("ascii")
    if len(name) > 12:
        raise OrderError(f"format name of {len(name)} bytes")
    return _ORDER.pack(
        b"O",
        order.worker_pid,
        order.front_pid,
        order.serial,
        order.place,
        order.length,
        order.width,
        order.height,
        FITS.index(order.fit),
        order.quality,
        order.orient,
        name,
    ) + order.parameters.encode("ascii")


def _encode_result(result: Result) -> bytes:
    head = _RESULT.pack(
        b"A",
        result.worker_pid,
        result.serial,
        result.status,
        result.length,
        result.width,
        result.height,
        result.source_width,
        result.source_height,
        result.elapsed_ns,
    )
    text = f"{result.text}\0{result.note}" if result.note else result.text
    return head + text.encode("utf-8", "replace")[:LONGEST_TEXT]


def decode(packet: bytes) -> Message:
    """The message in `packet`. Raises OrderError."""
    try:
        match packet[:1]:
            case b"A":
                return _decode_result(packet)
            case b"O":
                return _decode_order(packet)
            case b"H":
                _, worker_pid, front_pid = _HELLO.unpack(packet)
                return Hello(worker_pid, front_pid)
            case b"B":
                return Bye(_BYE.unpack(packet)[1])
            case b"R":
                return Ping(_PING.unpack(packet)[1])
            case b"T":
                _, worker_pid, place_bytes = _TRANSFER.unpack(packet)
                return Transfer(worker_pid, place_bytes)
    except (StructError, IndexError, UnicodeDecodeError) as error:
        raise OrderError(f"broken message: {error}") from None
    raise OrderError(f"unknown message {packet[:8]!r}")


def _decode_order(packet: bytes) -> Order:
    _, worker, front, serial, place, length, width, height, fit, quality, orient, name = _ORDER.unpack_from(
        packet
    )
    text = name.rstrip(b"\0").decode("ascii")
    parameters = packet[_ORDER.size :].decode("ascii")
    return Order(
        worker,
        front,
        serial,
        place,
        length,
        width,
        height,
        FITS[fit],
        quality,
        bool(orient),
        text,
        parameters,
    )


def _decode_result(packet: bytes) -> Result:
    _, worker, serial, status, length, width, height, from_width, from_height, elapsed = _RESULT.unpack_from(
        packet
    )
    text, _, note = packet[_RESULT.size :].decode("utf-8", "replace").partition("\0")
    text, note = (
        printable(text),
        printable(note),
    )  # they become headers, and the sender may be in a stranger's hands
    return Result(worker, serial, status, length, width, height, from_width, from_height, elapsed, text, note)
