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
_BEGINNING, _TYPE = bytes((_HANDSHAKE, 3)), bytes((_CLIENT_HELLO,))
_SERVER_NAME = 0
SERVER_NAME = re.compile(rb"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_EXTENSION, _LENGTH = struct.Struct(">HH"), struct.Struct(">H")
_BEFORE_ID = 2 + 32  # version, random
_NAME_HEAD = 2 + 1 + 2  # bytes before the name in its extension
_OVERRUN = "a field runs over the end of what holds it"
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
    if _is_one_record(data):
        return _parse_hello(data[_RECORD_HEAD + _MESSAGE_HEAD : _RECORD_HEAD + int.from_bytes(data[3:5])])
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


def _is_one_record(data: bytes) -> bool:
    """Whether the hello is whole and the only thing in its record, as nearly all are."""
    length = int.from_bytes(data[3:5])
    return (
        data.startswith(_BEGINNING)
        and data[5:6] == _TYPE
        and length - _MESSAGE_HEAD == int.from_bytes(data[6:9])
        and length <= MOST_RECORD
        and len(data) >= _RECORD_HEAD + length
    )


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


def _parse_hello(data: bytes) -> str:
    """The name in the body of a whole hello. Written out with offsets: a class that reads fields costs 40 us."""
    size = len(data)
    try:
        if data[_BEFORE_ID] > 32:
            raise BadHello("a session id of more than 32 bytes")
        at = _BEFORE_ID + 1 + data[_BEFORE_ID]
        (suites,) = _LENGTH.unpack_from(data, at)
        if not suites or suites % 2:
            raise BadHello(f"cipher suites of {suites} bytes")
        at += 2 + suites
        if not data[at]:
            raise BadHello("no compression method")
        at += 1 + data[at]
        if at == size:
            return ""
        (length,) = _LENGTH.unpack_from(data, at)
    except (IndexError, struct.error):
        raise BadHello(_OVERRUN) from None
    at += 2
    if at + length != size:
        raise BadHello(_OVERRUN if at + length > size else "bytes behind the extensions")
    name = _find_name(data, at)
    return "" if name is None else _parse_name(name)


def _find_name(data: bytes, at: int) -> bytes | None:
    """The body of the extension with the server name, of those from `at` to the end."""
    name, kinds, end = None, [], len(data)
    try:
        while at < end:
            kind, length = _EXTENSION.unpack_from(data, at)
            kinds.append(kind)
            at += 4 + length
            if kind == _SERVER_NAME:
                name = data[at - length : at]
    except struct.error:
        raise BadHello("an extension without a length") from None
    if at != end:
        raise BadHello("an extension runs over the end of the hello")
    if len(set(kinds)) != len(kinds):
        raise BadHello("an extension twice")
    return name


def _parse_name(data: bytes) -> str:
    """The only name in an extension: lengths of the list and of the name, and its kind between them."""
    size = len(data)
    if size < _NAME_HEAD or int.from_bytes(data[:2]) != size - 2:
        raise BadHello("server names of another length than they say")
    if data[2] or int.from_bytes(data[3:_NAME_HEAD]) != size - _NAME_HEAD:
        raise BadHello("a server name of another kind than a host's, or several")
    name = data[_NAME_HEAD:].lower().removesuffix(b".")
    if len(name) > MOST_NAME or not SERVER_NAME.fullmatch(name):
        raise BadHello(f"{name[:40]!r} is no host name")
    return name.decode()
