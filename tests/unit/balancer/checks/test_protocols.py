"""What a service says, in any pieces, and what a check makes of it: transcripts of real servers, and of broken ones."""

import struct

import pytest

from balancer.checks.check import check_of, parse_check_line
from balancer.checks.protocols import HEALTH_REQUEST, dialogue_of
from balancer.checks.talk import MOST_BYTES, SHOWN, Dialogue, printable
from workers.wire.frames import frame
from workers.wire.messages import Request, Response, decode_request, encode_request, encode_response


def pg(kind: str, text: bytes) -> bytes:
    return kind.encode() + struct.pack(">I", len(text) + 4) + text


def packet(number: int, text: bytes) -> bytes:
    return len(text).to_bytes(3, "little") + bytes([number]) + text


PG_OK, PG_SASL = pg("R", b"\0\0\0\0"), pg("R", b"\0\0\0\nSCRAM-SHA-256\0\0")
PG_PRIMARY = PG_OK + pg("S", b"server_version\x0015\0") + pg("S", b"in_hot_standby\0off\0") + pg("Z", b"I")
PG_STANDBY = PG_PRIMARY.replace(b"\x18in_hot_standby\0off\0", b"\x17in_hot_standby\0on\0").replace(
    pg("S", b"in_hot_standby\0off\0"), pg("S", b"in_hot_standby\0on\0")
)
PG_STARTING = pg("E", b"SFATAL\0C57P03\0Mthe database system is starting up\0\0")
PG_FULL = pg("E", b"SFATAL\0C53300\0Msorry, too many clients already\0\0")
PG_NO_ROLE = pg("E", b'SFATAL\0C28000\0Mrole "postgres" does not exist\0\0')
PG_LOGIN = (
    b"\x00\x00\x00\x46\x00\x03\x00\x00user\0check\0database\0postgres\0application_name\0balancer-check\0\0"
)
GREETING = packet(0, b"\x0a8.0.36\0" + b"x" * 40)
FULL = packet(0, b"\xff\x10\x04Too many connections")
REPLY = frame(encode_response(Response(resized_width=1)))
BULK = b"$20\r\n# Replication\r\nrole:%s\r\nconnected_slaves:0\r\n\r\n"

TRANSCRIPTS = [  # what the check is, what the service says, its outcome, what came instead
    ("http GET /", b"HTTP/1.1 200 OK\r\n\r\n", "ok", ""),
    ("http GET /", b"HTTP/1.0 302 Found\r\n\r\n", "ok", ""),
    ("http GET / expect=200", b"HTTP/1.1 204 No Content\r\n", "status", "HTTP/1.1 204 No Content"),
    ("http GET /", b"HTTP/1.1 503 Service Unavailable\r\n", "status", "HTTP/1.1 503 Service Unavailable"),
    ("http GET /", b"SSH-2.0-OpenSSH_9.2\r\n", "reply", "SSH-2.0-OpenSSH_9.2"),
    ("http GET /", b"HTTP/1.1 20\r\n", "reply", "1 20"),
    ("redis", b"+PONG\r\n", "ok", ""),
    ("redis", b"-NOAUTH Authentication required.\r\n", "ok", ""),
    ("redis", b"-LOADING Redis is loading\r\n", "reply", "-LOADING Redis is loading"),
    ("redis role=primary", b"+PONG\r\n" + BULK % b"master", "ok", ""),
    ("redis role=primary", b"+PONG\r\n" + BULK % b"slave", "reply", "slave connected_slaves:0"),
    ("redis role=replica", b"+PONG\r\n" + BULK % b"slave", "ok", ""),
    ("redis role=primary", b"-NOAUTH Authentication required.\r\n", "reply", "-NOAUTH Authentication required."),
    ("smtp", b"220-a\r\n220 b\r\n221 bye\r\n", "ok", ""),
    ("smtp", b"421 too busy\r\n", "reply", "421 too busy"),
    ("smtp", b"220 a\r\n500 what\r\n", "reply", "500 what"),
    ("imap", b"* OK ready\r\n* BYE\r\na OK\r\n", "ok", ""),
    ("imap", b"* PREAUTH ready\r\n* BYE\r\n", "ok", ""),
    ("imap", b"* BYE full\r\n", "reply", "* BYE full"),
    ("mqtt", b"\x20\x02\x00\x00", "ok", ""),
    ("mqtt", b"\x20\x02\x00\x05", "ok", ""),
    ("mqtt", b"\x20\x02\x00\x03", "reply", "..."),
    ("mqtt", b"HTTP/1.1 400\r\n", "reply", "HTTP/1.1 400"),
    ("mysql", GREETING, "ok", ""),
    ("mysql", FULL, "reply", "...Too many connections"),
    ("mysql user=c", GREETING + packet(2, b"\0\0\0\2\0\0\0"), "ok", ""),
    ("mysql user=c", GREETING + packet(2, b"\xfecaching_sha2\0") + packet(4, b"\0\0\0"), "ok", ""),
    ("mysql user=c", GREETING + packet(2, b"\xff\x15\x04denied"), "reply", "...denied"),
    ("pgsql", PG_SASL, "ok", ""),
    ("pgsql", PG_PRIMARY, "ok", ""),
    ("pgsql", PG_NO_ROLE, "ok", ""),
    ("pgsql", PG_STARTING, "reply", "57P03 the database system is starting up"),
    ("pgsql", PG_FULL, "reply", "53300 sorry, too many clients already"),
    ("pgsql user=check", b"HTTP/1.1 400\r\n", "reply", "HTTP/1.1 400"),
    ("pgsql role=primary", PG_PRIMARY, "ok", ""),
    ("pgsql role=replica", PG_STANDBY, "ok", ""),
    ("pgsql role=primary", PG_STANDBY, "reply", "in_hot_standby=on"),
    ("pgsql role=replica", PG_PRIMARY, "reply", "in_hot_standby=off"),
    ("pgsql role=primary", PG_SASL, "reply", "asks for a password: a role is told to users without one onl"),
    ("pgsql role=primary", PG_NO_ROLE, "reply", '28000 role "postgres" does not exist'),
    ("pgsql role=primary", PG_OK + pg("Z", b"I"), "reply", "does not say in_hot_standby: older than PostgreSQL 14"),
    ("frame", REPLY, "ok", ""),
    ("frame", b"HTTP/1.1 400\r\n", "reply", "HTTP/1.1 400"),
    ("frame", REPLY[:8] + b"\xff" * 8, "reply", ".....W.." + "." * 8),
]  # fmt: skip


def talk(line: str, said: bytes, size: int) -> tuple[Dialogue, bytes]:
    """The dialogue after a service has said this in pieces of `size` bytes, and what the check has said."""
    dialogue = dialogue_of(check_of([parse_check_line(line)]), "web.test:80")
    assert dialogue is not None
    words = dialogue.advance()
    for at in range(0, len(said), size):
        assert not dialogue.outcome or at
        if not dialogue.outcome:
            words += dialogue.advance(said[at : at + size])
    return dialogue, words


@pytest.mark.parametrize("line, said, outcome, came", TRANSCRIPTS)
def test_the_outcome_of_a_talk(line: str, said: bytes, outcome: str, came: str) -> None:
    dialogue, _ = talk(line, said, len(said))
    assert dialogue.outcome == outcome
    if outcome != "ok":
        assert dialogue.came() == came


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("line, said, outcome, came", TRANSCRIPTS)
def test_it_is_the_same_in_pieces(line: str, said: bytes, outcome: str, came: str, size: int) -> None:
    assert talk(line, said, size)[0].outcome == outcome


@pytest.mark.parametrize("line, said, outcome, came", [one for one in TRANSCRIPTS if one[2] == "ok"])
def test_a_talk_cut_short_is_no_good_one(line: str, said: bytes, outcome: str, came: str) -> None:
    for cut in range(len(said)):
        dialogue, _ = talk(line, said[:cut], len(said))
        if dialogue.outcome == "ok":
            assert cut >= len(said) - 40, "what follows the answer does not matter"
            return
        assert dialogue.outcome == ""
        dialogue.ended()
        assert dialogue.outcome == "closed"


def test_what_a_check_says() -> None:
    assert talk("http HEAD /a host=b.test", b"HTTP/1.1 200 OK\n", 99)[1].split(b"\r\n")[:2] == [
        b"HEAD /a HTTP/1.1", b"Host: b.test"
    ]  # fmt: skip
    assert b"\r\nHost: web.test:80\r\n" in talk("http GET /", b"", 1)[1]
    assert b"\r\nHost: a.test\r\n" in talk("http GET / sni=a.test", b"", 1)[1]
    assert b"\r\nHost: b.test\r\n" in talk("http GET / sni=a.test host=b.test", b"", 1)[1]
    assert talk("smtp", b"220 a\r\n221 b\r\n", 99)[1] == b"QUIT\r\n" == talk("smtp", b"554 no\r\n", 99)[1]
    assert talk("pgsql user=check", PG_PRIMARY, 99)[1] == PG_LOGIN + b"X\0\0\0\4"
    assert talk("pgsql user=check", PG_SASL, 99)[1] == PG_LOGIN
    assert talk("pgsql user=check role=primary", PG_STANDBY, 99)[1] == PG_LOGIN + b"X\0\0\0\4"
    assert talk("mqtt", b"\x20\x02\0\0", 9)[1] == b"\x10\x0c\0\4MQTT\4\2\0\n\0\0" + b"\xe0\0"
    assert talk("mysql user=c", GREETING + packet(2, b"\0"), 999)[1].endswith(packet(0, b"\1"))
    assert b"c\0\0mysql_native_password\0" in talk("mysql user=c", GREETING, 999)[1]


def test_the_health_request_is_one_of_our_wire_format() -> None:
    assert frame(encode_request(Request(dry_run=True))) == HEALTH_REQUEST
    assert decode_request(HEALTH_REQUEST[16:]) == Request(
        dry_run=True, data=decode_request(HEALTH_REQUEST[16:]).data
    )


@pytest.mark.parametrize("line", sorted({line for line, *_ in TRANSCRIPTS}))
@pytest.mark.parametrize("byte", [b"\n", b"\0", b"a", b"\xff"])
def test_a_service_that_says_anything_at_all_comes_to_an_end(line: str, byte: bytes) -> None:
    dialogue, _ = talk(line, byte * MOST_BYTES, 512)
    assert dialogue.outcome == "reply" and len(dialogue.came()) <= SHOWN


SCRIPT = ['send "a"', 'expect "b"', 'expect ^"c"', 'send "d"', 'expect ~"[xy]z"']


@pytest.mark.parametrize(
    "said, outcome", [(b"--bc--yz", "ok"), (b"--b--", "reply"), (b"--bc--", ""), (b"--bcyz", "ok")]
)
@pytest.mark.parametrize("size", [1, 99])
def test_a_script_reads_in_its_order(said: bytes, outcome: str, size: int) -> None:
    dialogue = dialogue_of(check_of([parse_check_line(line) for line in SCRIPT]), "")
    assert dialogue is not None
    words = dialogue.advance()
    for at in range(0, len(said), size):
        if not dialogue.outcome:
            words += dialogue.advance(said[at : at + size])
    assert dialogue.outcome == outcome and words == (b"a" if outcome == "reply" else b"ad")


def test_what_is_shown_is_printable_and_short() -> None:
    assert printable(b"a\tb\\c\r\n\x00\x1b[31m\xe9\n") == "a b\\c ..[31m."
    for data in (b"x" * 100, b"\0" * 100, b"\n" * 100, b"x" * 58 + b"\0\0"):
        shown = printable(data)
        assert len(shown) <= SHOWN and shown.isascii()
        assert all(32 <= ord(each) < 127 for each in shown)
