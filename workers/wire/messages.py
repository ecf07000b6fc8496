"""Request and Response: what client and resizer say to each other, and their gob form.

RULES: a message whose extension fields are all unset is written byte for byte as the original peer writes it;
the extended definitions go out only with an extension field. Zero means absent. Nothing is judged here beyond
form: sizes, formats and limits are the resizer's business, and a reply's truth is the client's.
"""

from dataclasses import dataclass
from operator import attrgetter

from workers.wire.frames import header
from workers.wire.gob import StructCodec
from workers.wire.numbers import Buffer, GobError
from workers.wire.types import BOOL, BYTES, INT, STRING, UINT, StructType

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


IMG_INFO = StructType(
    "ImgInfo",
    65,
    (("OriginalName", STRING), ("Typ", INT), ("Width", UINT), ("Height", UINT), ("ImgData", BYTES)),
)
_REQUEST = (
    ("TargetWidth", UINT),
    ("TargetHeight", UINT),
    ("CreatedAt", INT),
    ("DryRun", BOOL),
)
_RESPONSE = (
    ("ResizedWidth", UINT),
    ("ResizedHeight", UINT),
    ("ProcessingTime", INT),
    ("CreatedAt", INT),
)
_REQUEST_MORE = (("ID", UINT), ("Fit", STRING), ("Format", STRING), ("Quality", UINT))
_RESPONSE_MORE = (
    ("ID", UINT),
    ("Status", UINT),
    ("Error", STRING),
    ("Server", STRING),
    ("Queue", UINT),
    ("Workers", UINT),
)
_IMAGE = (("ImgInfo", IMG_INFO),)

_REQUEST_BASE = StructCodec(StructType("Request", 64, (*_IMAGE, *_REQUEST)))
_REQUEST_FULL = StructCodec(StructType("Request", 64, (*_IMAGE, *_REQUEST, *_REQUEST_MORE)))
# What we ask of our own kind: the picture last, so that who has read the head of a frame can answer it.
_REQUEST_OURS = StructCodec(StructType("Request", 64, (*_REQUEST_MORE, *_REQUEST, *_IMAGE)))
_RESPONSE_BASE = StructCodec(StructType("Response", 66, (*_IMAGE, *_RESPONSE)))
_RESPONSE_FULL = StructCodec(StructType("Response", 66, (*_IMAGE, *_RESPONSE, *_RESPONSE_MORE)))
_ENDS = b"\0\0"  # of ImgInfo and of the Request around it

_image = attrgetter(*Request.__slots__[:5])
_request = attrgetter(*Request.__slots__[5:9])
_request_more = attrgetter(*Request.__slots__[9:])
_response = attrgetter(*Response.__slots__[5:9])
_response_more = attrgetter(*Response.__slots__[9:])

Parts = tuple[bytes, "bytes | memoryview", bytes]


def decode_request(payload: Buffer) -> Request:
    """The Request in `payload`; its data is a memoryview of it. Raises MessageError."""
    try:
        return Request(*_REQUEST_FULL.decode(payload))
    except GobError as error:
        raise MessageError(f"not a request: {error}") from None


def decode_request_head(head: Buffer, length: int) -> tuple[Request, int, int] | None:
    """The Request in a payload of `length` bytes that begins with `head`, but for its data, and where that begins
    and ends. None when it cannot be told yet: `head` is too short, or more than the data follows."""
    found = _REQUEST_FULL.decode_head(head, length)
    if found is None or found[2] != length - len(_ENDS):
        return None
    values, start, stop = found
    return Request(*values), start, stop


def check_request_tail(payload: Buffer) -> None:
    """Raises MessageError when a Request that was foreseen does not end as it must, now that all of it is here."""
    if payload[-len(_ENDS) :] != _ENDS:
        raise MessageError("not a request: bytes after the value")


def decode_response(payload: Buffer) -> Response:
    """The Response in `payload`; its data is a memoryview of it. Raises MessageError."""
    try:
        return Response(*_RESPONSE_FULL.decode(payload))
    except GobError as error:
        raise MessageError(f"not a response: {error}") from None


def encode_request(request: Request) -> bytes:
    """The payload of `request`. Raises MessageError."""
    return b"".join(_encode_request(request))


def encode_response(response: Response) -> bytes:
    """The payload of `response`. Raises MessageError."""
    return b"".join(_encode_response(response))


def encode_request_parts(request: Request) -> Parts:
    """The whole frame of `request` in three parts for sendmsg(): its data is the middle one, uncopied."""
    return _framed(*_encode_request(request))


def encode_response_parts(response: Response) -> Parts:
    """The whole frame of `response` in three parts for sendmsg(): its data is the middle one, uncopied."""
    return _framed(*_encode_response(response))


def _encode_request(request: Request) -> Parts:
    more = _request_more(request)
    try:
        if any(more):
            return _REQUEST_OURS.encode((*more, *_request(request), _image(request)))
        return _REQUEST_BASE.encode((_image(request), *_request(request)))
    except (GobError, UnicodeEncodeError) as error:
        raise MessageError(f"cannot be written: {error}") from None


def _encode_response(response: Response) -> Parts:
    more = _response_more(response)
    try:
        if any(more):
            return _RESPONSE_FULL.encode((_image(response), *_response(response), *more))
        return _RESPONSE_BASE.encode((_image(response), *_response(response)))
    except (GobError, UnicodeEncodeError) as error:
        raise MessageError(f"cannot be written: {error}") from None


def _framed(head: bytes, data: bytes | memoryview, tail: bytes) -> Parts:
    return header(len(head) + len(data) + len(tail)) + head, data, tail
