"""A stream of TLS over a socket pair: bytes, bounds, edges, ends and what goes wrong."""

import contextlib
import errno
import random
import re
import socket
import ssl
from collections import Counter
from collections.abc import Iterator

import pytest

from balancer.edge.certificates import read_certificate
from balancer.edge.tls import ListenerTls, make_context
from balancer.eventloop.loop import READ, READ_HANGUP
from balancer.relay.half import LIMIT
from balancer.relay.tls.stream import MOST_CONTROL, TlsStream
from scripts.lab.waiting import is_readable
from tests.authority import Authority
from tests.unit.balancer.edge.handshakes import client_context
from tests.unit.mutations import mutations

AUTHORITY = Authority()
FILE = read_certificate("a.pem", AUTHORITY.issue("a.example"), 0.0)
CONTEXT = make_context(ListenerTls(tls_cert=(FILE,)), [FILE])
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Pair:
    """`stream` is the server's side, `client` the client's TLS object, whose bytes go by hand."""

    def __init__(self, version: ssl.TLSVersion, is_shaken: bool = True) -> None:
        self.ours, self.theirs = socket.socketpair()
        for side in (self.ours, self.theirs):
            side.setblocking(False)
        self.wanted: list[int] = []
        self.stream = TlsStream(self.ours.fileno(), CONTEXT, self.wanted.append)
        context = client_context(AUTHORITY)
        context.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self.incoming, self.outgoing, server_hostname="a.example")
        if is_shaken:
            self._shake_hands()

    def _shake_hands(self) -> None:
        left = {"client", "server"}
        while left:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
                left.discard("client")
            self.send()
            if "server" in left and self.stream.shake_hands(READ):
                left.discard("server")
            self.receive()

    def send(self, most: int | None = None) -> None:
        """What the client has said goes onto the wire, or its first bytes."""
        self.theirs.sendall(self.outgoing.read(-1 if most is None else most))

    def receive(self, most: int = 1 << 20) -> int:
        try:
            data = self.theirs.recv(most)
        except BlockingIOError:
            return 0
        self.incoming.write(data)
        return len(data)

    def say(self, data: bytes) -> None:
        self.client.write(data)
        self.send()

    def heard(self) -> bytes:
        """All that the client can read; `END` behind a close_notify."""
        parts = []
        while True:
            while self.receive():
                pass
            try:
                data = self.client.read(LIMIT)
            except ssl.SSLWantReadError:
                return b"".join(parts)
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                return b"".join([*parts, b"END"])
            parts.append(data)

    def is_fin_sent(self) -> bool:
        return is_readable(self.theirs) and not self.theirs.recv(1, socket.MSG_PEEK)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=VERSIONS, ids=["1.2", "1.3"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


def test_bytes_both_ways(pair: Pair) -> None:
    pair.say(b"question")
    assert pair.stream.read(LIMIT) == (b"question", True)
    assert pair.stream.write(b"answer") == 6
    assert pair.heard() == b"answer"
    with pytest.raises(BlockingIOError):
        pair.stream.read(LIMIT)


def test_several_records_come_at_once_and_a_limit_keeps_the_rest(pair: Pair) -> None:
    data = random.Random(1).randbytes(40_000)
    pair.say(data)
    first, is_dry = pair.stream.read(20_000)
    assert (len(first), is_dry) == (20_000, False)
    rest, is_dry = pair.stream.read(LIMIT)
    assert (first + rest, is_dry) == (data, True)


def test_nothing_is_read_from_the_socket_before_all_is_decrypted(pair: Pair) -> None:
    pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    pair.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    pair.say(bytes(150_000))
    got = 0
    while got < 150_000:
        data, is_dry = pair.stream.read(1000)
        got += len(data)
        assert pair.stream.buffered <= LIMIT + 16_384
        assert is_dry == (got == 150_000)


def test_a_record_in_pieces_is_waited_for(pair: Pair) -> None:
    pair.client.write(b"x" * 100)
    whole = pair.outgoing.read()
    for byte in whole[:-1]:
        pair.theirs.send(bytes([byte]))
        with pytest.raises(BlockingIOError):
            pair.stream.read(LIMIT)
    pair.theirs.send(whole[-1:])
    assert pair.stream.read(LIMIT) == (b"x" * 100, True)


def test_a_fin_behind_half_a_record_is_an_end_without_a_second_event(pair: Pair) -> None:
    pair.client.write(b"x" * 100)
    pair.send(50)
    pair.theirs.shutdown(socket.SHUT_WR)
    assert pair.stream.read(LIMIT) == (b"", True)
    assert pair.stream.is_truncated


def test_data_close_notify_and_fin_in_one_segment(pair: Pair) -> None:
    pair.client.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.send()
    pair.theirs.shutdown(socket.SHUT_WR)
    data, is_dry = pair.stream.read(LIMIT)
    assert (data, is_dry) == (b"last", False), "the end is still to be read, and no event will come for it"
    assert pair.stream.read(LIMIT) == (b"", True)
    assert pair.stream.has_ended and not pair.stream.is_truncated


def test_a_fin_without_close_notify_is_truncation(pair: Pair) -> None:
    pair.say(b"last")
    pair.theirs.shutdown(socket.SHUT_WR)
    assert pair.stream.read(LIMIT)[0] == b"last"
    assert pair.stream.read(LIMIT) == (b"", True)
    assert pair.stream.is_truncated


def test_after_the_clients_close_notify_we_still_write(pair: Pair) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.send()
    assert pair.stream.read(LIMIT) == (b"", True)
    assert pair.stream.write(b"answer") == 6
    pair.stream.shut()
    assert pair.heard() == b"answerEND"
    assert pair.is_fin_sent()


@pytest.mark.parametrize("amount", [0, 10, 16_384, 60_000])
def test_after_our_close_notify_the_client_still_writes(pair: Pair, amount: int) -> None:
    """Also what has arrived before it and is not read yet: OpenSSL breaks on it unless it is out of its sight."""
    data = random.Random(amount).randbytes(amount)
    if amount:
        pair.say(data)
        pair.stream.receive()
        first, _ = pair.stream.read(5)
        assert first == data[:5]
        data = data[5:]
    pair.stream.shut()
    assert pair.heard() == b"END" and pair.is_fin_sent()
    pair.say(b"more")
    with contextlib.suppress(ssl.SSLError):
        pair.client.unwrap()
    pair.send()
    got = b""
    while part := pair.stream.read(LIMIT)[0]:
        got += part
    assert got == data + b"more" and not pair.stream.is_truncated


def fill(pair: Pair) -> tuple[int, bytes]:
    """Write until the socket takes no more: (bytes taken, the data not taken)."""
    pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    taken = 0
    while True:
        data = random.Random(taken).randbytes(LIMIT)
        sent = pair.stream.write(data)
        taken += sent
        if sent < LIMIT:
            return taken, data[sent:]


def test_a_full_socket_takes_a_part_and_goes_on_where_it_stood(pair: Pair) -> None:
    taken, rest = fill(pair)
    held = len(pair.stream.unsent)
    assert pair.stream.write(rest) == 0 and len(pair.stream.unsent) == held, "encrypted once"
    got = b""
    while rest:
        got += pair.heard()
        sent = pair.stream.write(rest)
        assert 0 <= sent <= len(rest)
        taken, rest = taken + sent, rest[sent:]
    got += pair.heard()
    assert len(got) == taken and taken % LIMIT == 0
    for place in range(0, taken, LIMIT):
        assert got[place : place + LIMIT] == random.Random(place).randbytes(LIMIT)


def test_close_notify_waits_for_room_and_fin_for_it(pair: Pair) -> None:
    """Raw bytes fill the socket, so that close_notify finds no room although nothing of ours is pending."""
    pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    filler = 0
    try:
        while True:
            filler += pair.ours.send(b"?" * 100)
    except BlockingIOError:
        pass
    pair.stream.shut()
    assert pair.stream.unsent and pair.wanted == [pair.ours.fileno()]
    while filler:
        filler -= len(pair.theirs.recv(filler))
    pair.stream.flush()
    assert not pair.stream.unsent
    assert pair.heard() == b"END" and pair.is_fin_sent()


@pytest.mark.parametrize("amount", [1, LIMIT])
def test_the_last_bytes_and_the_end_behind_them(pair: Pair, amount: int) -> None:
    """Also when the socket takes a part of them: what is left is sent by `write`, and `shut` has nothing to add."""
    if amount == LIMIT:
        pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    data = random.Random(1).randbytes(amount)
    sent = pair.stream.write_last(data)
    assert (sent == amount) == (amount == 1) and pair.stream.is_held == (sent < amount)
    got, rest = pair.heard(), data[sent:]
    while rest:
        rest = rest[pair.stream.write(rest) :]
        got += pair.heard()
    pair.stream.shut()
    assert got == data + b"END" and pair.is_fin_sent()


def test_the_last_bytes_behind_others_that_wait(pair: Pair) -> None:
    """They wait as well, and the end with them."""
    taken, rest = fill(pair)
    assert pair.stream.write_last(rest) == 0
    got = pair.heard()
    while rest:
        sent = pair.stream.write(rest)
        taken, rest = taken + sent, rest[sent:]
        got += pair.heard()
    assert len(got) == taken and not pair.is_fin_sent()
    pair.stream.shut()
    assert pair.heard() == b"END" and pair.is_fin_sent()


@pytest.mark.parametrize("place", ["type", "version", "body", "length"])
def test_a_mutated_record_breaks_the_stream(pair: Pair, place: str) -> None:
    pair.client.write(b"x" * 100)
    record = bytearray(pair.outgoing.read())
    at = {"type": 0, "version": 1, "body": 50, "length": 3}[place]
    record[at] ^= 0x55
    pair.theirs.send(record)
    with pytest.raises(OSError) as raised:
        pair.stream.read(LIMIT)
    assert raised.value.errno == errno.EPROTO and pair.stream.fault
    assert pair.receive() > 0, "the client is told, by an alert"


@pytest.mark.parametrize("streams", [400, pytest.param(200_000, marks=pytest.mark.soak)])
def test_any_mutation_ends_in_data_or_in_an_error(streams: int) -> None:
    """Whatever a client sends, in a flight of its handshake or in records behind it: no other exception, no endless loop,
    and no byte that it has not said. Half of them stay connected, and the stream waits for more."""
    rng = random.Random(7)
    outcomes: Counter[str] = Counter()
    for number in range(streams):
        version, has_left = VERSIONS[number % 2], rng.random() < 0.5
        if number % 3:
            outcomes[mutated_handshake(version, rng.randrange(2), rng, has_left)] += 1
        else:
            outcomes[mutated_records(version, rng, has_left)] += 1
    assert set(outcomes) == {"over", "failed", "left", "waits", "data"}, outcomes


def mutated(data: bytes, rng: random.Random) -> bytes:
    return next(mutations([data], 1, rng.getrandbits(32)))


def mutated_handshake(version: ssl.TLSVersion, flight: int, rng: random.Random, has_left: bool) -> str:
    """How it ends for the server when that flight of the client is a wrong one."""
    pair = Pair(version, is_shaken=False)
    try:
        for number in range(flight + 1):
            with contextlib.suppress(ssl.SSLWantReadError):
                pair.client.do_handshake()
            data = pair.outgoing.read()
            pair.theirs.sendall(mutated(data, rng) if number == flight else data)
            if number == flight and has_left:
                pair.theirs.shutdown(socket.SHUT_WR)
            is_over = pair.stream.shake_hands(READ | (READ_HANGUP if has_left else 0))
            pair.receive()
        return "over" if is_over else "left" if pair.stream.has_ended else "waits"
    except ssl.SSLError:
        assert pair.stream.fault
        return "failed"
    finally:
        pair.stream.shut()
        pair.close()


def mutated_records(version: ssl.TLSVersion, rng: random.Random, has_left: bool) -> str:
    """What is read of wrong records is the beginning of what was said."""
    pair = Pair(version)
    said = [rng.randbytes(rng.randrange(1, 20_000)) for _ in range(rng.randrange(1, 4))]
    for data in said:
        pair.client.write(data)
    pair.theirs.sendall(mutated(pair.outgoing.read(), rng))
    if has_left:
        pair.theirs.shutdown(socket.SHUT_WR)
    got = b""
    try:
        for _ in range(20):
            data, is_dry = pair.stream.read(LIMIT)
            got += data
            if not data:
                assert is_dry and pair.stream.has_ended
                return "left"
        raise AssertionError("it reads on and on")
    except BlockingIOError:
        assert not has_left and not pair.stream.fault
        return "data"
    except OSError as error:
        assert error.errno == errno.EPROTO and pair.stream.fault
        with pytest.raises(OSError, match=re.escape(pair.stream.fault)):
            pair.stream.read(LIMIT)
        return "failed"
    finally:
        assert b"".join(said).startswith(got)
        pair.stream.shut()
        pair.close()


@pytest.mark.parametrize("is_held", [False, True])
def test_a_peer_that_asks_for_key_updates_and_reads_nothing_is_cut(is_held: bool) -> None:
    """The module cannot ask for key updates; an alert that finds no room stands for the answer to one. Bytes of an answer
    that wait for the peer change nothing."""
    pair = Pair(ssl.TLSVersion.TLSv1_3)
    if is_held:
        fill(pair)
    pair.stream.unsent += bytes(MOST_CONTROL + 1)
    try:
        while True:
            pair.ours.send(bytes(4096))
    except BlockingIOError:
        pass
    pair.theirs.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(OSError, match="key updates"):
        pair.stream.read(LIMIT)
    pair.close()


def test_what_cannot_be_sent_behind_our_end_does_not_wait(pair: Pair) -> None:
    """As the answer to a key update cannot, once FIN is sent: were it to wait, so would the close of the session."""
    pair.stream.shut()
    pair.stream.unsent = b"an answer"
    with pytest.raises(BrokenPipeError):
        pair.stream.flush()
    assert not pair.stream.unsent


def test_a_reset_is_no_end(pair: Pair) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
    ):
        other, _ = server.accept()
        stream = TlsStream(other.fileno(), CONTEXT, print)
        stream.reset()
        other.close()
        with pytest.raises(ConnectionResetError):
            one.recv(1)


def test_an_amount_that_is_written_counts_once_it_is_sent(pair: Pair) -> None:
    """Proportionally while a block is on its way, so that a slow reader is seen to move."""
    taken, rest = fill(pair)
    before = len(rest)
    assert pair.receive(20_000) and pair.stream.write(rest) < before
    assert taken > 0
