"""Request and Response, the messages between client and resizer, and their gob encoding.

RULES: a message without extension fields is encoded byte for byte as the original peer encodes it; the extended type
definitions are sent only with an extension field. Zero means absent. Only the encoding is checked here: sizes, formats
and limits are checked by the resizer, replies by the client.
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
    """A payload is not the expected message, or a message cannot be encoded."""


@dataclass(slots=True)
class Request:
    """One picture to resize. Times in nanoseconds since the epoch; a target side of 0 keeps the aspect ratio.
    `parameters`: what else is asked for, as `icc=keep`."""

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
    parameters: str = ""


@dataclass(slots=True)
class Response:
    """One reply. `status` 0 (original peers) or 200 is success; `error` is a sentence for a person; `note` says what a
    picture lacks."""

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
    note: str = ""

    def is_ok(self) -> bool:
        """True when the request succeeded."""
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
_REQUEST_EXTENSION = (
    ("ID", UINT),
    ("Fit", STRING),
    ("Format", STRING),
    ("Quality", UINT),
    ("Parameters", STRING),
)
_RESPONSE_EXTENSION = (
    ("ID", UINT),
    ("Status", UINT),
    ("Error", STRING),
    ("Server", STRING),
    ("Queue", UINT),
    ("Workers", UINT),
    ("Note", STRING),
)
_IMAGE = (("ImgInfo", IMG_INFO),)

_REQUEST_BASE = StructCodec(StructType("Request", 64, (*_IMAGE, *_REQUEST)))
_REQUEST_FULL = StructCodec(StructType("Request", 64, (*_IMAGE, *_REQUEST, *_REQUEST_EXTENSION)))
# With extension fields the picture is last, so that a resizer can refuse a request when it has read the head.
_REQUEST_EXTENDED = StructCodec(StructType("Request", 64, (*_REQUEST_EXTENSION, *_REQUEST, *_IMAGE)))
_RESPONSE_BASE = StructCodec(StructType("Response", 66, (*_IMAGE, *_RESPONSE)))
_RESPONSE_FULL = StructCodec(StructType("Response", 66, (*_IMAGE, *_RESPONSE, *_RESPONSE_EXTENSION)))
_TAIL = b"\0\0"  # ends of the structs ImgInfo and Request

_image = attrgetter(*Request.__slots__[:5])
_request = attrgetter(*Request.__slots__[5:9])
_request_extension = attrgetter(*Request.__slots__[9:])
_response = attrgetter(*Response.__slots__[5:9])
_response_extension = attrgetter(*Response.__slots__[9:])

Parts = tuple[bytes, "bytes | memoryview", bytes]


def decode_request(payload: Buffer) -> Request:
    """The Request in `payload`; its data is a memoryview of it. Raises MessageError."""
    try:
        return Request(*_REQUEST_FULL.decode(payload))
    except GobError as error:
        raise MessageError(f"not a request: {error}") from None


def decode_request_head(head: Buffer, length: int) -> tuple[Request, int, int] | None:
    """The Request, without its data, in a payload of `length` bytes that begins with `head`, and where the data begins
    and ends. None when `head` is too short or other fields follow the data."""
    found = _REQUEST_FULL.decode_head(head, length)
    if found is None or found[2] != length - len(_TAIL):
        return None
    values, start, stop = found
    return Request(*values), start, stop


def check_request_tail(payload: Buffer) -> None:
    """Raises MessageError when the complete payload of decode_request_head does not end after its data."""
    if payload[-len(_TAIL) :] != _TAIL:
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
    """The frame of `request` in three parts for sendmsg(); the middle one is its data, not copied."""
    return _frame_parts(*_encode_request(request))


def encode_response_parts(response: Response) -> Parts:
    """The frame of `response` in three parts for sendmsg(); the middle one is its data, not copied."""
    return _frame_parts(*_encode_response(response))


def _encode_request(request: Request) -> Parts:
    extension = _request_extension(request)
    try:
        if any(extension):
            return _REQUEST_EXTENDED.encode((*extension, *_request(request), _image(request)))
        return _REQUEST_BASE.encode((_image(request), *_request(request)))
    except (GobError, UnicodeEncodeError) as error:
        raise MessageError(f"cannot be encoded: {error}") from None


def _encode_response(response: Response) -> Parts:
    extension = _response_extension(response)
    try:
        if any(extension):
            return _RESPONSE_FULL.encode((_image(response), *_response(response), *extension))
        return _RESPONSE_BASE.encode((_image(response), *_response(response)))
    except (GobError, UnicodeEncodeError) as error:
        raise MessageError(f"cannot be encoded: {error}") from None


def _frame_parts(head: bytes, data: bytes | memoryview, tail: bytes) -> Parts:
    return header(len(head) + len(data) + len(tail)) + head, data, tail
