"""The HTTP interface in plain values: what a request asks for, and the heads of answers and errors.

RULES: pure; no socket and no parser (eventloop/http.py reads and writes the protocol). An unknown parameter is an
error: were it ignored, `?width=200` would return the picture at a size that was not asked for.

    POST /resize?w=&h=&fit=&format=&quality=&orient=     picture in, picture out
    GET  /live                                            200 while the front answers
    GET  /ready, /health                                  200 while a picture can be taken, else 503 and the reason
    GET  /agent                                           state and weight, as HAProxy's agents say it
    GET  /, /status, /metrics                             counters: a page, JSON, for Prometheus
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

from balancer.eventloop.http import Header, HttpAnswer, HttpError
from workers.imaging.job import PARAMETERS
from workers.resizer.orders import Result

NAMES = ("w", "h", "fit", "format", "quality", "orient", *PARAMETERS)
LOOKS = ("/", "/live", "/ready", "/health", "/agent", "/status", "/metrics")
ALLOWED = {"/resize": ("POST",), **dict.fromkeys(LOOKS, ("GET", "HEAD"))}
LONGEST_NUMBER = 9  # digits: no side has more, and int() of a million digits is an attack
RETRY_SECONDS = 1
_NEGOTIATED = {"image/avif": "avif", "image/webp": "webp"}
_NO_QUALITY = re.compile(r"q\s*=\s*0(\.0*)?")
YES_NO = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}


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
    parameters: str = ""  # as in workers.imaging.job


@lru_cache(maxsize=256)  # requests name few different targets, each of them many times
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
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=32)
    except ValueError:
        raise HttpError(400, "the query cannot be read: write it as ?w=200&h=100") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in NAMES:
            raise HttpError(400, f"parameter {name[:40]!r} is unknown: there are {', '.join(NAMES)}")
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
        "&".join(f"{name}={values[name]}" for name in PARAMETERS if name in values),
    )


def job_parameters(request: ApiRequest, defaults: str, accept: bytes, max_enlarge: int) -> str:
    """The parameters of the job of `request`: `defaults`, those of HTTP, those of the request, the later stronger.
    `accept`: the header of that name. `max_enlarge`: as in a ResizeJob."""
    parts = [f"{defaults}&max_enlarge={max_enlarge}"]
    if request.fit in ("contain", "cover"):
        parts.append("enlarge=no")
    if request.format == "auto":
        parts.append(f"accepts={','.join(accepted(accept))}")
    if request.parameters:
        parts.append(request.parameters)
    return "&".join(parts)


def accepted(accept: bytes) -> list[str]:
    """Which of AVIF and WebP an Accept header names. Wildcards do not count: browsers without AVIF send them too."""
    found = []
    for part in accept.decode("latin-1").lower().split(","):
        name, *fields = (field.strip() for field in part.split(";"))
        if name in _NEGOTIATED and not any(_NO_QUALITY.fullmatch(field) for field in fields):
            found.append(_NEGOTIATED[name])
    return found


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


def error_answer(error: HttpError) -> HttpAnswer:
    """A JSON body with the sentence; 429 and 503 have a Retry-After."""
    body = json.dumps({"status": error.status, "error": error.sentence}).encode() + b"\n"
    headers: list[Header] = [("Content-Type", "application/json"), *error.headers]
    if error.status in (429, 503) and "Retry-After" not in dict(headers):
        headers.append(("Retry-After", str(RETRY_SECONDS)))
    return HttpAnswer(error.status, tuple(headers), body)


def json_answer(document: dict[str, object]) -> HttpAnswer:
    """A JSON document."""
    body = json.dumps(document, indent=2).encode() + b"\n"
    return HttpAnswer(200, (("Content-Type", "application/json"), ("Cache-Control", "no-store")), body)


def text_answer(kind: str, text: str, *headers: Header) -> HttpAnswer:
    """A text of the type `kind`."""
    return HttpAnswer(200, (("Content-Type", kind), ("Cache-Control", "no-store"), *headers), text.encode())


def picture_answer(result: Result, body: memoryview, is_negotiated: bool = False) -> HttpAnswer:
    """A resized picture. `is_negotiated`: its format depends on the Accept header."""
    headers: list[Header] = [
        ("Content-Type", f"image/{result.text}"),
        ("X-Picture-Size", f"{result.width}x{result.height}"),
        ("Server-Timing", f"resize;dur={result.elapsed_ns / 1e6:.1f}"),
    ]
    if is_negotiated:
        headers.append(("Vary", "Accept"))
    if result.note:
        headers.append(("X-Picture-Note", result.note))
    return HttpAnswer(200, tuple(headers), body)
