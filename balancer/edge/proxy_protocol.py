"""The PROXY protocol, versions 1 and 2: parse the header of a proxy in front, write the header for a backend.

RULES: pure. Strict by the specification where other programs are lax: no leading zeros, no port above 65535, addresses of
the header's family, lengths that add up, a correct checksum. A header of more than MOST bytes is refused.

Source: "The PROXY protocol, Versions 1 & 2" (Willy Tarreau), sections 2.1 and 2.2; CRC-32C as in RFC 3720, appendix B.4.
"""

import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Endpoint = tuple[str, int]  # an IPv4 or IPv6 address and a port

MOST = 4096
MOST_V1 = 107  # with CRLF
MOST_UNIQUE_ID = 128
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
NETWORKS = {
    1: (socket.AF_INET, struct.Struct(">4s4sHH")),
    2: (socket.AF_INET6, struct.Struct(">16s16sHH")),
}
UNIX, UNIX_BYTES = 3, 216
LOCAL, PROXY = 0x20, 0x21
ALPN, AUTHORITY, CRC32C, UNIQUE_ID, SSL = 0x01, 0x02, 0x03, 0x05, 0x20
SSL_VERSION, SSL_CN, SSL_CIPHER = 0x21, 0x22, 0x23  # within SSL
IS_TLS, HAS_CERTIFICATE, HAD_CERTIFICATE = (
    1,
    2,
    4,
)  # the client byte of SSL: on this connection, in this session
EXTRAS = ("crc32c", "unique-id", "authority", "alpn", "ssl")
_SSL_HEAD = 5  # client byte and verify word, before the sub-records
_PORT = re.compile(rb"0|[1-9]\d{0,4}")
_RECORD = struct.Struct(">BH")
_V1 = b"PROXY "
_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96


class BadProxyHeader(ValueError):
    """The bytes are no PROXY header; the text says why, for the log."""


@dataclass(frozen=True, slots=True)
class ProxyClaim:
    """A parsed header. `source` and `destination` are None where it names no IP addresses (LOCAL, UNKNOWN, a unix
    socket): the connection's own count then. `records` are the TLVs of version 2 by type; `size` is the header's, in
    bytes."""

    size: int
    source: Endpoint | None = None
    destination: Endpoint | None = None
    records: Mapping[int, bytes] = field(default_factory=dict)


def parse(data: bytes) -> ProxyClaim | None:
    """The claim of a header at the beginning of `data`; None while more bytes are needed. Raises BadProxyHeader."""
    if data.startswith(SIGNATURE):
        return _parse_v2(data)
    if data.startswith(_V1):
        return _parse_v1(data)
    if SIGNATURE.startswith(data) or _V1.startswith(data):
        return None
    raise BadProxyHeader("no PROXY header")


# -- version 1


def _parse_v1(data: bytes) -> ProxyClaim | None:
    head = data[:MOST_V1]
    end = head.find(b"\r")
    if b"\n" in (head if end < 0 else head[:end]):
        raise BadProxyHeader("a line feed without a carriage return")
    if end < 0 or end + 1 == len(head):
        if len(head) == MOST_V1:
            raise BadProxyHeader(f"no end of line within {MOST_V1} bytes")
        return None
    if head[end + 1] != 10:
        raise BadProxyHeader("a carriage return without a line feed")
    words = head[len(_V1) : end].split(b" ")
    if words[0] == b"UNKNOWN":
        return ProxyClaim(end + 2)
    if words[0] not in (b"TCP4", b"TCP6"):
        raise BadProxyHeader(f"protocol {_shown(words[0])}, not TCP4, TCP6 or UNKNOWN")
    if len(words) != 5:
        raise BadProxyHeader(f"{len(words)} words after PROXY, not 5")
    family = socket.AF_INET if words[0] == b"TCP4" else socket.AF_INET6
    addresses = [_address(family, word) for word in words[1:3]]
    ports = [_port(word) for word in words[3:]]
    return ProxyClaim(end + 2, (addresses[0], ports[0]), (addresses[1], ports[1]))


def _address(family: int, word: bytes) -> str:
    try:
        return address_text(family, socket.inet_pton(family, word.decode("ascii")))
    except (OSError, ValueError):
        kind = "IPv4" if family == socket.AF_INET else "IPv6"
        raise BadProxyHeader(f"{_shown(word)} is no {kind} address") from None


def _port(word: bytes) -> int:
    if not _PORT.fullmatch(word) or int(word) > 65535:
        raise BadProxyHeader(f"{_shown(word)} is no port")
    return int(word)


def _shown(word: bytes) -> str:
    return repr(word[:40])[1:]


def address_text(family: int, packed: bytes) -> str:
    """An address as text. An IPv4-mapped IPv6 address (::ffff:a.b.c.d) gives the IPv4 address, so that rules for that one
    hold."""
    if family == socket.AF_INET6 and packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(family, packed)


def endpoint_of(address: tuple[Any, ...]) -> Endpoint:
    """The address and port of what accept(2), getsockname(2) and getpeername(2) give; a zone is cut off."""
    name = address[0].partition("%")[0]
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    return address_text(family, socket.inet_pton(family, name)), address[1]


# -- version 2


def _parse_v2(data: bytes) -> ProxyClaim | None:
    if len(data) < 16:
        return None
    command, protocol, length = struct.unpack_from(">BBH", data, 12)
    if command not in (LOCAL, PROXY):
        raise BadProxyHeader(f"version and command 0x{command:02x}, not 0x20 or 0x21")
    family, transport = protocol >> 4, protocol & 15
    if family > UNIX or transport > 2:
        raise BadProxyHeader(f"family and transport 0x{protocol:02x}")
    size = 16 + length
    if size > MOST:
        raise BadProxyHeader(f"{size} bytes of header, above {MOST}")
    has_addresses = command == PROXY and family and transport == 1
    fixed = (UNIX_BYTES if family == UNIX else NETWORKS[family][1].size) if has_addresses else 0
    if length < fixed:
        raise BadProxyHeader(f"{length} bytes for addresses of {fixed}")
    if len(data) < size:
        return None
    if not has_addresses:
        return ProxyClaim(size)
    records = _parse_records(data[:size], 16 + fixed)
    if family == UNIX:
        return ProxyClaim(size, records=records)
    kind, layout = NETWORKS[family]
    source, destination, source_port, destination_port = layout.unpack_from(data, 16)
    return ProxyClaim(
        size,
        (address_text(kind, source), source_port),
        (address_text(kind, destination), destination_port),
        records,
    )


def _parse_records(header: bytes, at: int) -> dict[int, bytes]:
    """The TLVs from `at` to the end. The first of a type counts."""
    records: dict[int, bytes] = {}
    while at < len(header):
        if at + 3 > len(header):
            raise BadProxyHeader("a record without a length")
        kind, length = _RECORD.unpack_from(header, at)
        at += 3
        if at + length > len(header):
            raise BadProxyHeader(f"record 0x{kind:02x} runs over the header's end")
        value = header[at : at + length]
        if kind == CRC32C:
            if length != 4:
                raise BadProxyHeader(f"a checksum of {length} bytes")
            if crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(value):
                raise BadProxyHeader("the checksum is wrong")
        elif kind == UNIQUE_ID and length > MOST_UNIQUE_ID:
            raise BadProxyHeader(f"a unique id of {length} bytes")
        elif kind == SSL and length < _SSL_HEAD:
            raise BadProxyHeader(f"an SSL record of {length} bytes")
        records.setdefault(kind, value)
        at += length
    return records


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum of `data`."""
    value, table = 0xFFFFFFFF, _CRC_TABLE
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


# -- what we write


def write_v1(source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """A header for a backend. Without an address on both sides it says UNKNOWN."""
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    family, (client, server) = _common(source[0], destination[0])
    word = "TCP4" if family == 1 else "TCP6"
    kind = NETWORKS[family][0]
    pair = f"{socket.inet_ntop(kind, client)} {socket.inet_ntop(kind, server)}"
    return f"PROXY {word} {pair} {source[1]} {destination[1]}\r\n".encode()


def write_v2(
    source: Endpoint | None,
    destination: Endpoint | None,
    records: Mapping[int, bytes] | None = None,
    checksum: bool = False,
) -> bytes:
    """A header for a backend. Without an address on both sides it says LOCAL, as for our own checks."""
    if source is None or destination is None:
        return SIGNATURE + bytes((LOCAL, 0, 0, 0))
    family, (client, server) = _common(source[0], destination[0])
    body = NETWORKS[family][1].pack(client, server, source[1], destination[1])
    if records:
        body += b"".join(_RECORD.pack(kind, len(value)) + value for kind, value in records.items())
    if checksum:
        body += _RECORD.pack(CRC32C, 4) + bytes(4)
    header = SIGNATURE + struct.pack(">BBH", PROXY, family << 4 | 1, len(body)) + body
    return header[:-4] + crc32c(header).to_bytes(4) if checksum else header


def write_ssl(version: str, cipher: str, common_name: str | None) -> bytes:
    """The value of an SSL record. `common_name` is of a client certificate that was verified, None without one."""
    has_certificate = common_name is not None
    flags = IS_TLS | (HAS_CERTIFICATE | HAD_CERTIFICATE if has_certificate else 0)
    said = {SSL_VERSION: version, SSL_CN: common_name or "", SSL_CIPHER: cipher}
    body = b"".join(
        _RECORD.pack(kind, len(value)) + value for kind, text in said.items() if (value := text.encode())
    )
    return struct.pack(">BI", flags, not has_certificate) + body  # the verify word: 0 is verified


@dataclass(frozen=True, slots=True)
class SendProxy:
    """What begins a connection to a backend: a header of version 1 or 2, with these records ("authority" ...)."""

    version: int
    extras: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return " ".join((f"v{self.version}", *(extra for extra in EXTRAS if extra in self.extras)))


def parse_send_proxy(text: str) -> SendProxy:
    """What `send-proxy` says: "v1", "v2", "v2 crc32c unique-id". Raises ValueError."""
    version, *extras = text.split() or [""]
    if version not in ("v1", "v2"):
        raise ValueError(f"{text!r} names no version of the PROXY protocol: write v1 or v2")
    for extra in extras:
        if extra not in EXTRAS:
            raise ValueError(f"{extra!r} is nothing that a header can carry: write {', '.join(EXTRAS)}")
        if version == "v1":
            raise ValueError(f"a header of version 1 carries no {extra}: write v2 {' '.join(extras)}")
    return SendProxy(int(version[1]), frozenset(extras))


def _common(source: str, destination: str) -> tuple[int, tuple[bytes, bytes]]:
    """A family that has both addresses, and both in it: where one is IPv6 the other is written as ::ffff:a.b.c.d."""
    packed = [
        socket.inet_pton(socket.AF_INET6 if ":" in one else socket.AF_INET, one.partition("%")[0])
        for one in (source, destination)
    ]
    if len(packed[0]) == len(packed[1]) == 4:
        return 1, (packed[0], packed[1])
    six = [one if len(one) == 16 else _MAPPED + one for one in packed]
    return 2, (six[0], six[1])
