"""Parse a TLS ClientHello: the server name that a client asks for. Nothing is decrypted.

RULES: pure. A hello may be cut into records of any size. Unknown extensions are skipped (GREASE). A hello with wrong
lengths or ambiguous names is refused: a server could read another name out of it. With Encrypted ClientHello the name
is the public one of the outer hello.

Source: RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3 (server_name).
"""

import re
import struct
from dataclasses import dataclass

MOST_HANDSHAKE = 16_384  # bytes of the handshake message
MOST = 20_480  # bytes of it on the wire, record headers included
MOST_RECORD = 16_384
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_RECORD_HEAD, _MESSAGE_HEAD = 5, 4
_SERVER_NAME = 0
SERVER_NAME = re.compile(rb"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_EXTENSION = struct.Struct(">HH")
MOST_NAME = 253


class NotTls(ValueError):
    """The bytes do not begin as TLS does."""


class BadHello(ValueError):
    """The bytes begin as TLS does and are no valid ClientHello; the text says why."""


@dataclass(frozen=True, slots=True)
class MissingBytes:
    """The hello is not whole: at least so many more bytes are needed."""

    count: int


def server_name(data: bytes) -> str | MissingBytes:
    """Return the server name of the hello at the beginning of `data`, in lower case without a dot at its end, "" when
    there is none; or how much of the hello is missing at least. Raises NotTls, BadHello."""
    message = b""
    at = 0
    while True:
        head = data[at : at + _RECORD_HEAD]
        _check_record_head(head, is_first=not at)
        if len(head) < _RECORD_HEAD:
            return MissingBytes(_RECORD_HEAD - len(head))
        length = int.from_bytes(head[3:])
        if not 0 < length <= MOST_RECORD:
            raise BadHello(f"a record of {length} bytes")
        body = data[at + _RECORD_HEAD : at + _RECORD_HEAD + length]
        message += body
        wanted = _size_of(message)
        if wanted is not None and len(message) >= wanted:
            return _parse_hello(message[_MESSAGE_HEAD:wanted])
        if len(body) < length:
            return MissingBytes(length - len(body))
        at += _RECORD_HEAD + length
        if at > MOST:
            raise BadHello(f"no whole hello within {MOST} bytes")


def _check_record_head(head: bytes, is_first: bool) -> None:
    wrong = (head[:1] and head[0] != _HANDSHAKE) or (len(head) > 1 and head[1] != 3)
    if wrong and is_first:
        raise NotTls(f"no TLS: begins with {bytes(head)!r}")
    if wrong:
        raise BadHello(f"a record that begins with {bytes(head)!r} within the hello")


def _size_of(message: bytes) -> int | None:
    """The size of the handshake message, its head included; None while that is not known."""
    if message and message[0] != _CLIENT_HELLO:
        raise BadHello(f"a handshake message of type {message[0]}, not a ClientHello")
    if len(message) < _MESSAGE_HEAD:
        return None
    size = int.from_bytes(message[1:_MESSAGE_HEAD])
    if size > MOST_HANDSHAKE:
        raise BadHello(f"a hello of {size} bytes, above {MOST_HANDSHAKE}")
    return size + _MESSAGE_HEAD


class _Fields:
    """Fields of known and of told lengths."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise BadHello("a field runs over the end of what holds it")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """A field that begins with its length in `size` bytes."""
        return self.take(self.number(size))


def _parse_hello(data: bytes) -> str:
    hello = _Fields(data)
    hello.take(2 + 32)  # version, random
    if len(hello.vector(1)) > 32:
        raise BadHello("a session id of more than 32 bytes")
    suites = hello.vector(2)
    if not suites or len(suites) % 2:
        raise BadHello(f"cipher suites of {len(suites)} bytes")
    if not hello.vector(1):
        raise BadHello("no compression method")
    if hello.is_empty:
        return ""
    found = _parse_extensions(hello.vector(2))
    if not hello.is_empty:
        raise BadHello("bytes behind the extensions")
    return _parse_name(found[_SERVER_NAME]) if _SERVER_NAME in found else ""


def _parse_extensions(data: bytes) -> dict[int, bytes]:
    """Each extension by its type; written out, since a hello has up to twenty."""
    found: dict[int, bytes] = {}
    at, end = 0, len(data)
    while at < end:
        body = at + 4
        if body > end:
            raise BadHello("an extension without a length")
        kind, length = _EXTENSION.unpack_from(data, at)
        at = body + length
        if at > end:
            raise BadHello("an extension runs over the end of the hello")
        if kind in found:
            raise BadHello(f"extension {kind} twice")
        found[kind] = data[body:at]
    return found


def _parse_name(data: bytes) -> str:
    extension = _Fields(data)
    names = _Fields(extension.vector(2))
    if not extension.is_empty:
        raise BadHello("bytes behind the server names")
    kind, name = names.number(1), names.vector(2)
    if kind or not names.is_empty:
        raise BadHello("a server name of another kind than a host's, or several")
    name = name.lower().removesuffix(b".")
    if len(name) > MOST_NAME or not SERVER_NAME.fullmatch(name):
        raise BadHello(f"{name[:40]!r} is no host name")
    return name.decode()
