"""What a client sends before its session relays, in pieces: a PROXY header, a hello, the records of a handshake and the
first request, cut in two at every byte, sent byte by byte, ended behind every byte, and in TLS records of one byte.

A way yields what its client sends in one go, and reads in between what it has to know. A second piece is sent once the
kernel says that every byte of the first one was read: each is a segment of its own.
"""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from balancer.edge.proxy_protocol import write_v1, write_v2
from balancer.relay.postgres import SSL_REQUEST
from scripts.lab.backends import Echo
from scripts.lab.kernel import all_read
from scripts.lab.load import receive
from scripts.lab.network import Address, text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, ini_section
from tests.system.tls_clients import Renewable, client_context

Way = Callable[[socket.socket], Iterator[bytes]]
CLIENT, SERVER = ("192.0.2.7", 56324), ("198.51.100.9", 443)
QUESTION = b"question"


class Client:
    """The TLS of a client, by hand."""

    def __init__(self, sock: socket.socket, version: ssl.TLSVersion) -> None:
        context = client_context()
        context.maximum_version = version
        self._sock = sock
        self._received, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._sent, server_hostname="a.example")

    def hello(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._sent.read()

    def finish(self) -> bytes:
        """Read the server's part; return the rest of the client's."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                if self._sent.pending:
                    return self._sent.read()  # TLS 1.2: the server has a last word
                self._receive()
            else:
                return self._sent.read()

    def ask(self) -> bytes:
        """The question in records of one byte; with TLS 1.2 the handshake ends first."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._receive()
        for byte in QUESTION:
            self._tls.write(bytes([byte]))
        return self._sent.read()

    def check_answer(self) -> None:
        answer = b""
        while len(answer) < len(QUESTION):
            try:
                answer += self._tls.read(100)
            except ssl.SSLWantReadError:
                self._receive()
        assert answer == QUESTION

    def _receive(self) -> None:
        data = self._sock.recv(65536)
        assert data, "an end in place of the server's part"
        self._received.write(data)


def in_records_of_one_byte(flight: bytes) -> bytes:
    """Handshake records cut; what is encrypted, and a ChangeCipherSpec, cannot be."""
    parts = []
    while flight:
        head, size = flight[:3], int.from_bytes(flight[3:5])
        body, flight = flight[5 : 5 + size], flight[5 + size :]
        is_encrypted = parts[-1:] == [b"\x14\3\3\0\1\1"]
        pieces = [body] if head[0] != 22 or is_encrypted else [body[at : at + 1] for at in range(size)]
        parts += [head + len(piece).to_bytes(2) + piece for piece in pieces]
    return b"".join(parts)


def routed(header: bytes) -> Way:
    """To a backend that echoes: the hello, and nothing before it, reaches the backend as it was."""

    def way(sock: socket.socket) -> Iterator[bytes]:
        hello = Client(sock, ssl.TLSVersion.TLSv1_3).hello()
        yield header + hello
        assert receive(sock, len(hello)) == hello

    return way


def secure(
    version: ssl.TLSVersion, header: bytes = b"", cut: Callable[[bytes], bytes] = bytes, preread: bytes = b""
) -> Way:
    """To a listener that ends TLS, until the backend has answered."""

    def way(sock: socket.socket) -> Iterator[bytes]:
        client = Client(sock, version)
        if preread:
            yield header + preread
            assert sock.recv(1) == b"S"
            yield cut(client.hello())
        else:
            yield header + cut(client.hello())
        yield cut(client.finish())
        yield client.ask()
        client.check_answer()

    return way


V1, V2 = write_v1(CLIENT, SERVER), write_v2(CLIENT, SERVER, {}, checksum=True)
OLD, NEW = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
WAYS: dict[str, tuple[str, Way]] = {
    "routed, v1": ("routed", routed(V1)),
    "routed, v2": ("routed", routed(V2)),
    "TLS 1.2, v2": ("secure", secure(OLD, V2)),
    "TLS 1.3, v1": ("secure", secure(NEW, V1)),
    "TLS 1.3, postgres": ("postgres", secure(NEW, preread=SSL_REQUEST)),
    "TLS 1.2, records of one byte": ("secure", secure(OLD, V1, in_records_of_one_byte)),
    "TLS 1.3, records of one byte": ("secure", secure(NEW, V2, in_records_of_one_byte)),
}
SMALL = {name for name in WAYS if "records" in name}
AT_ONCE = 400  # clients


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FileBalancer, dict[str, Address]]]:
    """A balancer, and the addresses of its listeners."""
    certificate = Renewable(tmp_path_factory.mktemp("cut")).path
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        common: dict[str, object] = {"bind": "127.0.0.1:0", "preread_timeout": "120s"}
        proxied = common | {"proxy_protocol": "yes", "proxy_trusted": "127.0.0.0/8"}
        tls = {"pool": "a", "tls_cert": certificate, "tls_handshake_timeout": "120s"}
        text = ini_section("listener routed", **proxied, route=["sni a.example -> a"])
        text += ini_section("listener secure", **proxied, **tls)
        text += ini_section("listener postgres", **common, **tls, preread="postgres")
        text += ini_section("pool a", upstream=text_of(backend.address), check="none")
        lb = stack.enter_context(FileBalancer(text))
        listeners = {one["name"]: one["addresses"][0] for one in lb.status()["listeners"]}
        yield lb, {name: ("127.0.0.1", int(at.rpartition(":")[2])) for name, at in listeners.items()}


@pytest.fixture
def lb(sides: tuple[FileBalancer, dict[str, Address]]) -> FileBalancer:
    return sides[0]


@pytest.fixture
def addresses(sides: tuple[FileBalancer, dict[str, Address]]) -> dict[str, Address]:
    return sides[1]


def connect(address: Address, stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.create_connection(address, 60))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def send_all(clients: list[tuple[socket.socket, Iterator[bytes]]]) -> None:
    """Send the pieces of each client to its end: one of each at a time, once all that was sent before is read."""
    ports = {sock.getpeername()[1] for sock, _ in clients}
    while clients:
        wait_for(lambda: all_read(*ports), "every byte read", 20, every=0.001)
        going = []
        for sock, pieces in clients:
            piece = next(pieces, None)
            if piece is not None:
                sock.sendall(piece)
                going.append((sock, pieces))
        clients = going


def in_two(flights: Iterator[bytes], place: int) -> Iterator[bytes]:
    """Each of them cut at a place of its own."""
    for flight in flights:
        cut = place % (len(flight) - 1) + 1
        yield flight[:cut]
        yield flight[cut:]


def in_bytes(flights: Iterator[bytes]) -> Iterator[bytes]:
    for flight in flights:
        for byte in flight:
            yield bytes([byte])


def sizes_of(address: Address, way: Way) -> list[int]:
    """Of the flights of a way."""
    found = []
    with ExitStack() as stack:
        for flight in way(sock := connect(address, stack)):
            found.append(len(flight))
            sock.sendall(flight)
    return found


@pytest.mark.parametrize("name", WAYS)
def test_cut_at_every_byte(lb: FileBalancer, addresses: dict[str, Address], name: str) -> None:
    """Each client cuts its flights at another byte; where a byte is a record, in every kind of place."""
    listener, way = WAYS[name]
    places = range(0, max(sizes_of(addresses[listener], way)) - 1, 7 if name in SMALL else 1)
    for first in range(0, len(places), AT_ONCE):
        with ExitStack() as stack:
            clients = []
            for place in places[first : first + AT_ONCE]:
                sock = connect(addresses[listener], stack)
                clients.append((sock, in_two(way(sock), place)))
            send_all(clients)
    lb.wait_idle(10)


def test_byte_by_byte(lb: FileBalancer, addresses: dict[str, Address]) -> None:
    with ExitStack() as stack:
        clients = []
        for name in set(WAYS) - SMALL:
            listener, way = WAYS[name]
            sock = connect(addresses[listener], stack)
            clients.append((sock, in_bytes(way(sock))))
        send_all(clients)
    lb.wait_idle(10)


@pytest.mark.parametrize("name", sorted(set(WAYS) - SMALL))
def test_ended_behind_every_byte(lb: FileBalancer, addresses: dict[str, Address], name: str) -> None:
    """Of header and handshake: each client gets its end at once, and no backend is dialled."""
    listener, way = WAYS[name]
    sizes = sizes_of(addresses[listener], way)
    total = sum(sizes if listener == "routed" else sizes[:-1])
    before = lb.wait_idle(10)
    for count in range(total):
        with ExitStack() as stack:
            sock, left = connect(addresses[listener], stack), count
            for flight in way(sock):
                sock.sendall(flight[:left])
                left -= len(flight)
                if left < 0:
                    break
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    after = lb.wait_idle(10)
    ends = {end: many - before["totals"]["ends"][end] for end, many in after["totals"]["ends"].items()}
    assert {end: many for end, many in ends.items() if many} == {"CC": total}
    assert after["backends"][0]["sessions_total"] == before["backends"][0]["sessions_total"]


def test_records_that_come_one_by_one_are_refused_after_the_most_looks(
    lb: FileBalancer, addresses: dict[str, Address]
) -> None:
    """In one go a hello may have as many records as it likes; each that comes alone is another look."""
    hello = in_records_of_one_byte(Client(socket.socket(), NEW).hello())
    pieces = (hello[at : at + 6] for at in range(0, len(hello), 6))
    with ExitStack() as stack:
        sock = connect(addresses["secure"], stack)
        sock.sendall(V1)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_all([(sock, pieces)])
    lb.wait_line(r' refuse client=192\.0\.2\.7:56324 .*reason="a hello in more than 64 pieces"')
    lb.wait_idle(10)
