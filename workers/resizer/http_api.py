"""The HTTP interface in plain values: what a request asks for, and the heads of answers and errors.

RULES: pure; no socket and no parser (h11 reads and writes the protocol in `http_protocol.py`). An unknown parameter is an
error: were it ignored, `?width=200` would return the picture at a size that was not asked for.

    POST /resize?w=&h=&fit=&format=&quality=&orient=     picture in, picture out
    GET  /health                                          200 while work is accepted, 503 while draining
    GET  /status                                          counters, JSON
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

PARAMETERS = ("w", "h", "fit", "format", "quality", "orient")
ALLOWED = {"/resize": ("POST",), "/health": ("GET", "HEAD"), "/status": ("GET", "HEAD")}
LONGEST_NUMBER = 9  # digits: no side has more, and int() of a million digits is an attack
RETRY_SECONDS = 1
YES_NO = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}

Header = tuple[str, str]


class HttpError(ValueError):
    """The request is refused with an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """What a request asks for. `path` is one of ALLOWED; the other fields count for /resize only."""

    path: str
    width: int = 0
    height: int = 0
    fit: str = ""
    format: str = ""
    quality: int = 0
    orient: bool = True


def parse_request(method: str, target: str) -> ApiRequest:
    """The ApiRequest of a request line. Raises HttpError (400, 404, 405)."""
    try:
        parts = urlsplit(target)
    except ValueError as error:
        raise HttpError(400, f"bad target: {error}") from None
    allowed = ALLOWED.get(parts.path)
    if allowed is None:
        raise HttpError(404, f"nothing at {parts.path[:80]!r}: there are {', '.join(ALLOWED)}")
    if method not in allowed:
        sentence = f"{parts.path} answers {' and '.join(allowed)}, not {method[:20]}"
        raise HttpError(405, sentence, (("Allow", ", ".join(allowed)),))
    if parts.path != "/resize":
        return ApiRequest(parts.path)
    return _parse_resize(parts.query)


def _parse_resize(query: str) -> ApiRequest:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=16)
    except ValueError:
        raise HttpError(400, "the query cannot be read: write it as ?w=200&h=100") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in PARAMETERS:
            raise HttpError(400, f"parameter {name[:40]!r} is unknown: there are {', '.join(PARAMETERS)}")
        if name in values:
            raise HttpError(400, f"parameter {name!r} is given twice")
        values[name] = value
    return ApiRequest(
        "/resize",
        _number(values, "w"),
        _number(values, "h"),
        values.get("fit", ""),
        values.get("format", ""),
        _number(values, "quality"),
        _switch(values, "orient"),
    )


def _number(values: dict[str, str], name: str) -> int:
    text = values.get(name, "")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
        raise HttpError(400, f"{name}={text[:40]!r} is not a whole number of at most {LONGEST_NUMBER} digits")
    return int(text)


def _switch(values: dict[str, str], name: str) -> bool:
    text = values.get(name, "")
    if text and text not in YES_NO:
        raise HttpError(400, f"{name}={text[:40]!r} is neither yes nor no")
    return YES_NO.get(text, True)


def reason(status: int) -> bytes:
    """The reason phrase of a status."""
    return HTTPStatus(status).phrase.encode()


def error_answer(status: int, sentence: str) -> tuple[list[Header], bytes]:
    """Headers and JSON body of an error; 429 and 503 have a Retry-After."""
    body = json.dumps({"status": status, "error": sentence}).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if status in (429, 503):
        headers.append(("Retry-After", str(RETRY_SECONDS)))
    return headers, body


def json_answer(document: dict[str, object]) -> tuple[list[Header], bytes]:
    """Headers and body of a JSON document."""
    body = json.dumps(document, indent=2).encode() + b"\n"
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ], body


def picture_headers(name: str, length: int, width: int, height: int, elapsed_ns: int) -> list[Header]:
    """Headers of a resized picture; `name` is its format."""
    return [
        ("Content-Type", f"image/{name}"),
        ("Content-Length", str(length)),
        ("X-Picture-Size", f"{width}x{height}"),
        ("Server-Timing", f"resize;dur={elapsed_ns / 1e6:.1f}"),
    ]
