"""Acts over HTTP: drain, ready, maint and weight, as balancerctl does them, for those who know the token of
`metrics-admin-token`.

RULES
- One path, POST /act. The body is a form: act, name (several, patterns too), weight, reason, token, view. It has at most
  8 KiB and 5 s to arrive.
- The token is in the field of the form, else in `Authorization: Bearer TOKEN`: never in a URL, a log line or a cookie.
  So a browser has nothing that another site could make it send; Origin and Sec-Fetch-Site are looked at all the same.
- What may be asked is judged before what is known: method, URL, origin, form and length by the head, then the token,
  then the command, by the code that balancerctl's commands take (commands.py).
- A browser without script is led back to the page it came from; everything else gets the answer of balancerctl as JSON.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote

from balancer.console.answers import ALWAYS, json_answer, refusal
from balancer.console.peer import PagePeer, page_peer_of
from balancer.eventloop.http import HttpAnswer, HttpError, HttpExchange
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.eventloop.repeats import RepeatedLine
from balancer.web.page import ACTS

BODY_LIMIT = 8192  # bytes
BODY_SECONDS = 5.0
MOST_FIELDS = 256
FORM = "application/x-www-form-urlencoded"
ONCE = ("act", "weight", "reason", "token", "view")  # fields; `name` may come several times
CHALLENGE = ("WWW-Authenticate", 'Bearer realm="balancer"')

Headers = Mapping[bytes, bytes]


class Handler(Protocol):
    """Takes one command line (Commands.handle)."""

    def __call__(self, words: list[str], reply: "PageReply") -> None: ...


def check_head(method: str, query: str, headers: Headers, length: int | None) -> None:
    """Raises HttpError for a request whose body need not be read."""
    if method != "POST":
        raise HttpError(405, "acts are asked for by POST", (("Allow", "POST"),))
    if query:
        raise HttpError(400, "an act has no query: what is in a URL stands in the logs of those on the way")
    check_site(headers)
    kind = _text(headers, b"content-type").partition(";")[0].strip().lower()
    if kind != FORM:
        raise HttpError(415, f"the body is a form: Content-Type: {FORM}")
    if length is None:
        raise HttpError(411, "the body has a Content-Length")
    if length > BODY_LIMIT:
        raise HttpError(413, f"the body has at most {BODY_LIMIT} bytes")


def check_site(headers: Headers) -> None:
    """A browser says whose page it sends a form for. Raises HttpError for that of another site."""
    site, origin = _text(headers, b"sec-fetch-site"), _text(headers, b"origin")
    if site not in ("", "same-origin", "none"):
        raise HttpError(403, f"the page of another site asks for this (Sec-Fetch-Site: {site[:40]})")
    host = _text(headers, b"host").lower()
    if origin and (not host or origin.lower().partition("://")[2] != host):  # "null" has no host
        sentence = f"a page of {origin[:200]} asks {host[:200]} for this; a web server in between is to pass the Host on"
        raise HttpError(403, sentence)


def token_of(headers: Headers, field: str) -> str:
    """The token that was given. A web server in between may have an Authorization of its own, so the field goes first."""
    scheme, _, token = _text(headers, b"authorization").partition(" ")
    return field or (token.strip() if scheme.lower() == "bearer" else "")


def check_token(given: str, digest: bytes) -> None:
    """Takes the same time whatever is wrong with the token. Raises HttpError."""
    if not given:
        raise HttpError(401, "an act takes the token of metrics-admin-token", (CHALLENGE,))
    found = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
    if not hmac.compare_digest(found, digest):
        raise HttpError(401, "the token is wrong", (CHALLENGE,))


def read_form(body: bytes) -> tuple[list[str], dict[str, str]]:
    """The names, and the fields that come once. Raises HttpError with the sentence for what is wrong."""
    try:
        # A name need not be UTF-8: it may come from an argument.
        given = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="surrogateescape", max_num_fields=MOST_FIELDS
        )
    except ValueError:  # UnicodeDecodeError is one
        raise HttpError(400, f"the body is no form of at most {MOST_FIELDS} fields") from None
    names = [value for key, value in given if key == "name" and value]
    fields: dict[str, str] = {}
    for key, value in given:
        if key == "name":
            continue
        if key not in ONCE or key in fields:
            what = "is given twice" if key in fields else f"is no field; there are name, {', '.join(ONCE)}"
            raise HttpError(400, f"{key[:40]!r} {what}")
        fields[key] = value
    return names, fields


def words_of(names: list[str], fields: Mapping[str, str]) -> list[str]:
    """The command, as balancerctl would say it. Raises HttpError."""
    act, weight, reason = (fields.get(key, "").strip() for key in ("act", "weight", "reason"))
    if act not in ACTS:
        raise HttpError(400, f"act is one of {', '.join(ACTS)}")
    if not names:
        raise HttpError(400, "name says which backend")
    if act == "weight" and (len(names) > 1 or not weight):
        raise HttpError(400, "a weight takes one name and one number")
    words = [act, *names, *([weight] if act == "weight" else ())]
    return [*words, "--reason", reason] if reason else words


def _text(headers: Headers, name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1").strip()


class FormBody:
    """HttpBody: the bytes of one form. `then` gets them whole."""

    def __init__(self, length: int, then: Callable[[bytes], object]) -> None:
        self._data = bytearray(length)
        self._count = 0
        self._then = then

    def place(self, count: int) -> memoryview:
        return memoryview(self._data)[self._count :]

    def filled(self, count: int) -> None:
        self._count += count

    def complete(self) -> None:
        self._then(bytes(self._data))


@dataclass(frozen=True, slots=True)
class PageReply:
    """Reply of commands.py: the answer of one act on its way to whoever has asked. `back` is the page to lead a browser
    to, None for a program."""

    exchange: HttpExchange
    peer: PagePeer
    back: str | None

    def send(self, answer: Mapping[str, Any]) -> None:
        if "error" in answer:
            self.exchange.answer(refused(HttpError(400, str(answer["error"])), self.back is not None))
        elif self.back is None:
            self.exchange.answer(json_answer(answer))
        else:
            self.exchange.answer(HttpAnswer(303, (("Location", self.back), *ALWAYS), b""))

    def send_bytes(self, answer: bytes | memoryview) -> None:
        self.exchange.answer(HttpAnswer(200, (("Content-Type", "application/json"), *ALWAYS), answer))


def refused(error: HttpError, wants_page: bool) -> HttpAnswer:
    """A sentence for people, JSON for programs."""
    if wants_page:
        return refusal(error.status, error.sentence, *error.headers)
    found = json_answer({"error": error.sentence})
    return HttpAnswer(error.status, (*found.headers, *error.headers), found.body)


class PageActs:
    """Serves /act. `digest`: SHA-256 of the token; `views`: names of the pages there are; `done` is called after
    each act, so that the next page shows what it did."""

    def __init__(
        self,
        loop: Loop,
        digest: bytes,
        views: frozenset[str],
        handle: Handler,
        done: Callable[[], object],
        log: Log,
    ) -> None:
        self._loop = loop
        self._digest = digest
        self._views = views
        self._handle = handle
        self._done = done
        self._refuse = RepeatedLine(loop, partial(log.warning, "refuse")).report

    def begin(self, exchange: HttpExchange, query: str) -> None:
        """Take a request whose head is complete; its body follows."""
        length = exchange.body_length
        try:
            check_head(exchange.method, query, exchange.headers, length)
        except HttpError as error:
            self._turn_away(exchange, error)
            return
        if not length:
            self._act(exchange, b"")
            return
        timer = self._loop.call_later(BODY_SECONDS, lambda: self._give_up(exchange))

        def complete(body: bytes) -> None:
            timer.cancel()
            self._act(exchange, body)

        exchange.on_abandoned = timer.cancel
        exchange.receive(FormBody(length, complete))

    def _give_up(self, exchange: HttpExchange) -> None:
        self._turn_away(exchange, HttpError(408, f"the form has {BODY_SECONDS:.0f} s to arrive"))

    def _act(self, exchange: HttpExchange, body: bytes) -> None:
        try:
            names, fields = read_form(body)
            check_token(token_of(exchange.headers, fields.get("token", "")), self._digest)
            words = words_of(names, fields)
        except HttpError as error:
            self._turn_away(exchange, error)
            return
        back = self._way_back(fields.get("view", "")) if wants_page(exchange.headers) else None
        self._handle(words, PageReply(exchange, page_peer_of(exchange.sock), back))
        self._done()

    def _turn_away(self, exchange: HttpExchange, error: HttpError) -> None:
        if error.status in (401, 403):
            peer = page_peer_of(exchange.sock)
            self._refuse(socket="metrics", **peer.labels(), reason=error.sentence)
        exchange.answer(refused(error, wants_page(exchange.headers)))

    def _way_back(self, view: str) -> str:
        """From /act to a page that there is: relative, for a web server in between may have put a path before it."""
        return f"./{quote(view)}#backends" if view in self._views else "./#backends"


def wants_page(headers: Headers) -> bool:
    """Whether a browser has sent the form by itself, without the page's script."""
    return "text/html" in _text(headers, b"accept")
