"""The PROXY header: strict, every split, every prefix, what peers are lax about."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.edge import proxy_protocol as proxy
from balancer.edge.proxy_protocol import SIGNATURE, BadProxyHeader, ProxyClaim, parse, write_v1, write_v2
from tests.unit.mutations import mutations

FOUR = (("192.0.2.7", 56324), ("198.51.100.9", 443))
SIX = (("2001:db8::7", 1), ("2001:db8::9", 65535))
FOUR_BYTES = b"\xc0\0\2\7\xc63d\x09\xdc\x04\x01\xbb"


def v2(command: int, protocol: int, body: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, protocol, len(body) if length is None else length) + body


def record(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


GOOD = {
    "v1 four": (b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\r\n", FOUR),
    "v1 six": (b"PROXY TCP6 2001:db8::7 2001:db8::9 1 65535\r\n", SIX),
    "v1 the longest": (
        b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
        (("ffff:" * 7 + "ffff", 65535), ("ffff:" * 7 + "ffff", 65535)),
    ),
    "v1 mapped": (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.9 56324 443\r\n", FOUR),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", (None, None)),
    "v1 unknown with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", (None, None)),
    "v2 four": (v2(0x21, 0x11, FOUR_BYTES), FOUR),
    "v2 local": (v2(0x20, 0x11, FOUR_BYTES), (None, None)),
    "v2 local, unspecified": (v2(0x20, 0, b""), (None, None)),
    "v2 unspecified": (v2(0x21, 0, b"anything"), (None, None)),
    "v2 datagram": (v2(0x21, 0x12, FOUR_BYTES), (None, None)),
    "v2 unix": (v2(0x21, 0x31, bytes(216)), (None, None)),
    "v2 records": (v2(0x21, 0x11, FOUR_BYTES + record(2, b"a.example") + record(0xEE, b"x")), FOUR),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_header_is_read_whole_and_what_follows_is_left(name: str) -> None:
    header, (source, destination) = GOOD[name]
    claim = parse(header + b"GET / HTTP/1.1\r\n")
    assert claim and (claim.size, claim.source, claim.destination) == (len(header), source, destination)


@pytest.mark.parametrize("name", GOOD)
def test_every_prefix_asks_for_more(name: str) -> None:
    header = GOOD[name][0]
    assert [parse(header[:size]) for size in range(len(header))] == [None] * len(header)


BAD = {
    b"GET / HTTP/1.1\r\n": "no PROXY header",
    b"proxy TCP4": "no PROXY header",
    b"PROXY TCP4 192.0.2.07 1.2.3.4 1 2\r\n": "'192.0.2.07' is no IPv4 address",
    b"PROXY TCP4 192.0.2 1.2.3.4 1 2\r\n": "'192.0.2' is no IPv4 address",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n": "'01' is no port",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n": "'65536' is no port",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n": "'+1' is no port",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n": "6 words after PROXY, not 5",
    b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n": "6 words after PROXY, not 5",
    b"PROXY TCP4 ::1 ::2 1 2\r\n": "'::1' is no IPv4 address",
    b"PROXY TCP6 1.2.3.4 ::2 1 2\r\n": "'1.2.3.4' is no IPv6 address",
    b"PROXY TCP6 fe80::1%lo ::2 1 2\r\n": "'fe80::1%lo' is no IPv6 address",
    b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n": "protocol 'TCP5', not TCP4, TCP6 or UNKNOWN",
    b"PROXY UNKNOWNX\r\n": "protocol 'UNKNOWNX', not TCP4, TCP6 or UNKNOWN",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n": "a line feed without a carriage return",
    b"PROXY TCP4 1.2.3.4\r1.2.3.4 1 2\r\n": "a carriage return without a line feed",
    b"PROXY UNKNOWN " + b"x" * 93: "no end of line within 107 bytes",
    v2(0x11, 0x11, FOUR_BYTES): "version and command 0x11, not 0x20 or 0x21",
    v2(0x22, 0x11, FOUR_BYTES): "version and command 0x22, not 0x20 or 0x21",
    v2(0x21, 0x41, FOUR_BYTES): "family and transport 0x41",
    v2(0x21, 0x13, FOUR_BYTES): "family and transport 0x13",
    v2(0x21, 0x11, b"", 11): "11 bytes for addresses of 12",
    v2(0x21, 0x21, b"", 35): "35 bytes for addresses of 36",
    v2(0x21, 0x31, b"", 215): "215 bytes for addresses of 216",
    v2(0x20, 0, b"", 4081): "4097 bytes of header, above 4096",
    v2(0x21, 0x11, FOUR_BYTES + b"\4\0"): "a record without a length",
    v2(0x21, 0x11, FOUR_BYTES + b"\4\0\5abcd"): "record 0x04 runs over the header's end",
    v2(0x21, 0x11, FOUR_BYTES + record(5, b"x" * 129)): "a unique id of 129 bytes",
    v2(0x21, 0x11, FOUR_BYTES + record(0x20, b"xxxx")): "an SSL record of 4 bytes",
    v2(0x21, 0x11, FOUR_BYTES + record(3, b"xx")): "a checksum of 2 bytes",
    v2(0x21, 0x11, FOUR_BYTES + record(3, b"xxxx")): "the checksum is wrong",
}


@pytest.mark.parametrize("data", BAD)
def test_a_wrong_header_is_refused_with_its_reason(data: bytes) -> None:
    with pytest.raises(BadProxyHeader) as refused:
        parse(data)
    assert str(refused.value) == BAD[data]


@pytest.mark.parametrize("data", [data for data in BAD if data.startswith(b"PROXY T")])
def test_a_wrong_header_asks_for_no_more_than_its_line(data: bytes) -> None:
    answers = []
    for size in range(len(data)):
        try:
            answers.append(parse(data[:size]))
        except BadProxyHeader:
            break
    assert answers and set(answers) == {None}


def test_the_checksum_is_castagnolis() -> None:
    assert proxy.crc32c(b"123456789") == 0xE3069283  # the value that catalogues of checksums give
    assert proxy.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_a_flipped_bit_anywhere_spoils_a_header_with_a_checksum() -> None:
    header = write_v2(*FOUR, {proxy.AUTHORITY: b"a.example", proxy.UNIQUE_ID: b"7"}, checksum=True)
    assert parse(header) is not None
    checksum_type = len(header) - 7  # as another type it is a header without a checksum
    for bit in set(range(16 * 8, len(header) * 8)) - set(range(checksum_type * 8, checksum_type * 8 + 8)):
        spoiled = bytearray(header)
        spoiled[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadProxyHeader):
            parse(bytes(spoiled))


PLACES = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))


@given(PLACES, PLACES, st.dictionaries(st.integers(0xE0, 0xEF), st.binary(max_size=50)), st.booleans())
def test_what_is_written_is_read_back(
    source: tuple[str, int], destination: tuple[str, int], records: dict[int, bytes], checksum: bool
) -> None:
    def folded(place: tuple[str, int]) -> tuple[str, int]:
        is_six = ":" in place[0]
        family = proxy.socket.AF_INET6 if is_six else proxy.socket.AF_INET
        return proxy.address_text(family, proxy.socket.inet_pton(family, place[0])), place[1]

    wanted = folded(source), folded(destination)
    one, two = write_v1(source, destination), write_v2(source, destination, records, checksum)
    for header in (one, two):
        claim = parse(header + b"x")
        assert claim and (claim.size, claim.source, claim.destination) == (len(header), *wanted)
    claim = parse(two)
    assert claim and {k: v for k, v in claim.records.items() if k >= 0xE0} == records


def test_without_addresses_nothing_is_claimed() -> None:
    assert write_v1(None, FOUR[1]) == b"PROXY UNKNOWN\r\n"
    assert parse(write_v2(None, FOUR[1])) == ProxyClaim(16)


def parse_mutations(count: int, seed: int) -> int:
    """How many of them are headers all the same."""
    whole = 0
    for data in mutations([header for header, _ in GOOD.values()], count, seed):
        try:
            claim = parse(data)
        except BadProxyHeader:
            continue
        if claim is not None:
            assert claim.size <= min(len(data), proxy.MOST)
            for name, port in filter(None, (claim.source, claim.destination)):
                assert ip_address(name) and 0 <= port <= 65535
            whole += 1
    return whole


def test_no_mutation_raises_anything_else() -> None:
    assert 500 < parse_mutations(5_000, seed=7) < 4_500


@pytest.mark.soak
def test_two_hundred_thousand_mutations() -> None:
    assert 20_000 < parse_mutations(200_000, seed=8) < 180_000
