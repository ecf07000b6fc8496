"""Request and Response: what client and resizer say to each other, and their gob form.

RULES: a message whose extension fields are all unset is written byte for byte as the original peer writes it;
the extended definitions go out only with an extension field. Zero means absent. Nothing is judged here beyond
form: sizes, formats and limits are the resizer's business, and a reply's truth is the client's.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from workers.wire.frames import header
from workers.wire.gob import Layout
from workers.wire.numbers import Buffer, GobError
from workers.wire.types import BOOL, BYTES, INT, STRING, UINT, Struct

JPEG, PNG, GIF = range(3)  # ImgInfo.Typ

OK, BUSY, DRAINING = 200, 429, 503
RETRYABLE = frozenset({BUSY, DRAINING})


class MessageError(ValueError):
    """A payload that is no such message, or a message that cannot be written."""


@dataclass(slots=True)
class Request:
    """One picture to resize. Times in nanoseconds since the epoch; a target side of 0 keeps the aspect."""

    original_name: str = ""
    typ: int = JPEG
    width: int = 0
    height: int = 0
    data: bytes | memoryview = b""
    target_width: int = 0
    target_height: int = 0
    created_at: int = 0
    dry_run: bool = False
    id: int = 0
    fit: str = ""
    format: str = ""
    quality: int = 0


@dataclass(slots=True)
class Response:
    """One answer. `status` 0 (original peers) or 200 is success; `error` is a sentence for a person."""

    original_name: str = ""
    typ: int = JPEG
    width: int = 0
    height: int = 0
    data: bytes | memoryview = b""
    resized_width: int = 0
    resized_height: int = 0
    processing_time: int = 0
    created_at: int = 0
    id: int = 0
    status: int = 0
    error: str = ""
    server: str = ""
    queue: int = 0
    workers: int = 0

    def is_ok(self) -> bool:
        """True when the picture (or the dry run) was served."""
        return self.status in (0, OK)


IMG_INFO = Struct(
    "ImgInfo",
    65,
    (("OriginalName", STRING), ("Typ", INT), ("Width", UINT), ("Height", UINT), ("ImgData", BYTES)),
)
_REQUEST = (
    ("ImgInfo", IMG_INFO),
    ("TargetWidth", UINT),
    ("TargetHeight", UINT),
    ("CreatedAt", INT),
    ("DryRun", BOOL),
)
_RESPONSE = (
    ("ImgInfo", IMG_INFO),
    ("ResizedWidth", UINT),
    ("ResizedHeight", UINT),
    ("ProcessingTime", INT),
    ("CreatedAt", INT),
)
_BASE = 9  # values before the extension fields, in both messages

_REQUEST_BASE = Layout(Struct("Request", 64, _REQUEST))
_REQUEST_FULL = Layout(
    Struct("Request", 64, (*_REQUEST, ("ID", UINT), ("Fit", STRING), ("Format", STRING), ("Quality", UINT)))
)
_RESPONSE_BASE = Layout(Struct("Response", 66, _RESPONSE))
_RESPONSE_FULL = Layout(
    Struct(
        "Response",
        66,
        (
            *_RESPONSE,
            ("ID", UINT),
            ("Status", UINT),
            ("Error", STRING),
            ("Server", STRING),
            ("Queue", UINT),
            ("Workers", UINT),
        ),
    )
)
_request_values = attrgetter(*Request.__slots__)
_response_values = attrgetter(*Response.__slots__)

Parts = tuple[bytes, "bytes | memoryview", bytes]


def decode_request(payload: Buffer) -> Request:
    """The Request in `payload`; its data is a memoryview of it. Raises MessageError."""
    try:
        return Request(*_REQUEST_FULL.decode(payload))
    except GobError as error:
        raise MessageError(f"not a request: {error}") from None


def decode_response(payload: Buffer) -> Response:
    """The Response in `payload`; its data is a memoryview of it. Raises MessageError."""
    try:
        return Response(*_RESPONSE_FULL.decode(payload))
    except GobError as error:
        raise MessageError(f"not a response: {error}") from None


def encode_request(request: Request) -> bytes:
    """The payload of `request`. Raises MessageError."""
    return b"".join(_encode(_REQUEST_BASE, _REQUEST_FULL, _request_values(request)))


def encode_response(response: Response) -> bytes:
    """The payload of `response`. Raises MessageError."""
    return b"".join(_encode(_RESPONSE_BASE, _RESPONSE_FULL, _response_values(response)))


def encode_request_parts(request: Request) -> Parts:
    """The whole frame of `request` in three parts for sendmsg(): its data is the middle one, uncopied."""
    return _framed(*_encode(_REQUEST_BASE, _REQUEST_FULL, _request_values(request)))


def encode_response_parts(response: Response) -> Parts:
    """The whole frame of `response` in three parts for sendmsg(): its data is the middle one, uncopied."""
    return _framed(*_encode(_RESPONSE_BASE, _RESPONSE_FULL, _response_values(response)))


def _encode(base: Layout, full: Layout, values: tuple[Any, ...]) -> tuple[bytearray, Any, bytearray]:
    try:
        return (full if any(values[_BASE:]) else base).encode(values)
    except (GobError, UnicodeEncodeError) as error:
        raise MessageError(f"cannot be written: {error}") from None


def _framed(head: bytearray, data: bytes | memoryview, tail: bytearray) -> Parts:
    return header(len(head) + len(data) + len(tail)) + head, data, bytes(tail)
