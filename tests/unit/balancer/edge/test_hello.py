"""A ClientHello in every piece, in records of any size, and with everything that may be wrong."""

import ssl
import struct

import pytest

from balancer.edge.hello import MOST, SERVER_NAME, BadHello, MissingBytes, NotTls, server_name
from tests.unit.mutations import mutations


def hello_of(name: str | None, versions: tuple[ssl.TLSVersion, ssl.TLSVersion] | None = None) -> bytes:
    """What OpenSSL sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if versions:
        context.minimum_version, context.maximum_version = versions
    sent = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


def message_of(data: bytes) -> bytes:
    """The handshake message out of its records."""
    message, at = b"", 0
    while at < len(data):
        length = int.from_bytes(data[at + 3 : at + 5])
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
    return message


def in_records(message: bytes, size: int) -> bytes:
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + struct.pack(">H", len(piece)) + piece for piece in pieces)


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">HH", kind, len(body)) + body


def names(*pairs: tuple[int, bytes]) -> bytes:
    entries = b"".join(struct.pack(">BH", kind, len(name)) + name for kind, name in pairs)
    return extension(0, struct.pack(">H", len(entries)) + entries)


def built(
    *extensions: bytes, suites: bytes = b"\x13\x01", compression: bytes = b"\1\0", behind: bytes = b""
) -> bytes:
    """A hello of our own making, in one record."""
    joined = b"".join(extensions)
    body = b"\3\3" + bytes(32) + b"\0" + struct.pack(">H", len(suites)) + suites + compression
    body += struct.pack(">H", len(joined)) + joined + behind
    return in_records(b"\1" + len(body).to_bytes(3) + body, 16_384)


BOTH = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
VECTORS = {
    "tls 1.3": (hello_of("www.Example.com"), "www.example.com"),
    "tls 1.2": (hello_of("a.example", BOTH), "a.example"),
    "without a name": (hello_of(None), ""),
    "a dot at the end": (built(names((0, b"a.example."))), "a.example"),
    "an underscore": (built(names((0, b"_x.a.example"))), "_x.a.example"),
    "grease": (
        built(extension(0x0A0A, b""), names((0, b"a.example")), extension(0xFAFA, b"\0")),
        "a.example",
    ),
    "nothing": (built(), ""),
}


@pytest.mark.parametrize("which", VECTORS)
def test_the_name_is_read_and_what_follows_is_left(which: str) -> None:
    data, name = VECTORS[which]
    assert server_name(data + b"more") == name


@pytest.mark.parametrize("size", [1, 7, 100, 512])
@pytest.mark.parametrize("which", VECTORS)
def test_records_of_any_size_say_the_same(which: str, size: int) -> None:
    data, _ = VECTORS[which]
    assert server_name(in_records(message_of(data), size)) == server_name(data)


@pytest.mark.parametrize("size", [1, 7, 16_384])
@pytest.mark.parametrize("which", VECTORS)
def test_every_prefix_lacks_bytes_and_says_no_more_than_it_lacks(which: str, size: int) -> None:
    whole = in_records(message_of(VECTORS[which][0]), size)
    for cut in range(len(whole)):
        found = server_name(whole[:cut])
        assert isinstance(found, MissingBytes) and 0 < found.count <= len(whole) - cut


def test_the_name_of_an_encrypted_hello_is_the_public_one() -> None:
    hello = built(names((0, b"public.example")), extension(0xFE0D, b"\0" * 20))
    assert server_name(hello) == "public.example"


NOT_TLS = [
    b"GET / HTTP/1.1\r\n",
    b"SSH-2.0-x\r\n",
    b"\0\0\0\x08\x04\xd2\x16\x2f",
    b"\x15\3\1\0\2\1\0",
    b"\x16\2",
]


@pytest.mark.parametrize("data", NOT_TLS)
def test_what_is_not_tls_is_told_from_what_is_wrong(data: bytes) -> None:
    with pytest.raises(NotTls):
        server_name(data)


def spoiled(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes((value,)) + data[at + 1 :]


BAD = {
    "two names": built(names((0, b"a.example"), (0, b"b.example"))),
    "another kind of name": built(names((1, b"a.example"))),
    "no name in the extension": built(extension(0, b"\0\0")),
    "bytes behind the names": built(extension(0, b"\0\x0c\0\0\x09a.example!")),
    "two server names": built(names((0, b"a.example")), names((0, b"b.example"))),
    "a blank": built(names((0, b"a example"))),
    "a line feed": built(names((0, b"a.example\nx"))),
    "an empty label": built(names((0, b"a..example"))),
    "a name too long": built(names((0, b"a." * 127 + b"aa"))),
    "an extension over the end": built(b"\0\0\0\x09ab"),
    "half an extension": built(b"\0\0\0"),
    "odd suites": built(suites=b"\x13"),
    "no suites": built(suites=b""),
    "no compression": built(compression=b"\0"),
    "bytes behind the extensions": built(behind=b"x"),
    "a session id too long": spoiled(built(), 5 + 4 + 34, 33),
    "another message": spoiled(built(), 5, 2),
    "an empty record": b"\x16\3\1\0\0",
    "a record too long": b"\x16\3\1\x40\x01",
    "a hello too long": b"\x16\3\1\x02\0\1\0\x40\x01",
    "another record between": in_records(message_of(built()), 10)[:15] + b"\x17\3\3\0\1x",
}


@pytest.mark.parametrize("which", BAD)
def test_what_does_not_add_up_is_refused(which: str) -> None:
    with pytest.raises(BadHello):
        server_name(BAD[which])


def test_many_records_end() -> None:
    """One byte a record: 6 bytes on the wire for each of the hello."""
    wire = in_records(b"\1" + (16_000).to_bytes(3) + bytes(16_000), 1)
    with pytest.raises(BadHello, match=f"no whole hello within {MOST} bytes"):
        server_name(wire)


def parse_mutations(count: int, seed: int) -> int:
    """How many of them have a name all the same."""
    named = 0
    for data in mutations([data for data, _ in VECTORS.values()], count, seed):
        try:
            found = server_name(data)
        except (BadHello, NotTls):
            continue
        if isinstance(found, MissingBytes):
            assert found.count > 0
        else:
            assert found == "" or SERVER_NAME.fullmatch(found.encode())
            named += 1
    return named


def test_no_mutation_raises_anything_else() -> None:
    assert 500 < parse_mutations(5_000, seed=11) < 4_500


@pytest.mark.soak
def test_two_hundred_thousand_mutations() -> None:
    assert 20_000 < parse_mutations(200_000, seed=12) < 180_000
