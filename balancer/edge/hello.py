"""A TLS ClientHello: which name a client asks for, and which protocols it offers, read without decrypting anything.

RULES: pure; bytes in, a hello out. A hello may be cut into records of any size. What is unknown is skipped (GREASE, new
extensions); what does not add up is refused, so that a name is never believed that a server would read differently.
Encrypted ClientHello shows the outer, public name: nothing more is claimed.

Source: RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3 (server_name); RFC 7301, section 3.1 (ALPN).
"""

import re
import struct
from dataclasses import dataclass

MOST_HANDSHAKE = 16_384  # bytes of the handshake message
MOST = 20_480  # bytes of it on the wire, record headers included
MOST_RECORD = 16_384
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_RECORD_HEAD, _MESSAGE_HEAD = 5, 4
_SERVER_NAME, _ALPN, _VERSIONS, _ENCRYPTED_HELLO = 0, 16, 43, 0xFE0D
SERVER_NAME = re.compile(rb"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_EXTENSION = struct.Struct(">HH")
MOST_NAME = 253


class NotTls(ValueError):
    """What came does not begin as TLS does."""


class BadHello(ValueError):
    """What came begins as TLS does and does not add up; the text says where."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client says. `name` is the server name in lower case without a dot at its end, "" when it names none."""

    name: str = ""
    alpn: tuple[bytes, ...] = ()
    versions: tuple[int, ...] = ()  # 0x0304 is TLS 1.3
    is_encrypted: bool = False  # there is an inner hello; the name is the public one


@dataclass(frozen=True, slots=True)
class MissingBytes:
    """The hello is not whole: at least so many more bytes are needed."""

    count: int


def parse(data: bytes) -> ClientHello | MissingBytes:
    """The hello at the beginning of `data`, or how much of it is missing at least. Raises NotTls, BadHello."""
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
    error = NotTls if is_first else BadHello
    if head and head[0] != _HANDSHAKE:
        raise error(f"a record of type {head[0]}, not a handshake")
    if len(head) > 1 and head[1] != 3:
        raise error(f"a record of version {head[1]}")


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


def _parse_hello(data: bytes) -> ClientHello:
    hello = _Fields(data)
    version = hello.number(2)
    hello.take(32)  # random
    if len(hello.vector(1)) > 32:
        raise BadHello("a session id of more than 32 bytes")
    suites = hello.vector(2)
    if not suites or len(suites) % 2:
        raise BadHello(f"cipher suites of {len(suites)} bytes")
    if not hello.vector(1):
        raise BadHello("no compression method")
    if hello.is_empty:
        return ClientHello(versions=(version,))
    found = _parse_extensions(hello.vector(2))
    if not hello.is_empty:
        raise BadHello("bytes behind the extensions")
    return ClientHello(
        _parse_name(found[_SERVER_NAME]) if _SERVER_NAME in found else "",
        _parse_alpn(found[_ALPN]) if _ALPN in found else (),
        _parse_versions(found[_VERSIONS]) if _VERSIONS in found else (version,),
        _ENCRYPTED_HELLO in found,
    )


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
    names = _Fields(_whole(data, 2, "server names"))
    kind, name = names.number(1), names.vector(2)
    if kind or not names.is_empty:
        raise BadHello("a server name of another kind than a host's, or several")
    name = name.lower().removesuffix(b".")
    if len(name) > MOST_NAME or not SERVER_NAME.fullmatch(name):
        raise BadHello(f"{name[:40]!r} is no host name")
    return name.decode()


def _parse_alpn(data: bytes) -> tuple[bytes, ...]:
    protocols = _Fields(_whole(data, 2, "protocols"))
    found = []
    while not protocols.is_empty:
        found.append(protocols.vector(1))
    return tuple(found)


def _parse_versions(data: bytes) -> tuple[int, ...]:
    versions = _whole(data, 1, "versions")
    if len(versions) % 2:
        raise BadHello(f"versions of {len(versions)} bytes")
    return tuple(int.from_bytes(versions[at : at + 2]) for at in range(0, len(versions), 2))


def _whole(data: bytes, size: int, what: str) -> bytes:
    """The one field of an extension."""
    reader = _Fields(data)
    field = reader.vector(size)
    if not field or not reader.is_empty:
        raise BadHello(f"{what} that do not fill their extension")
    return field
