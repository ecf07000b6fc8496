"""Sessions whose clients speak TLS, in a worker without a process: the plaintext reaches the backend, and every end."""

import contextlib
import os
import socket
import ssl
import sys
from _socket import socket as Socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from balancer.edge.certificates import TrustFile, read_certificate
from balancer.edge.proxy_protocol import SSL, SendProxy, parse
from balancer.edge.route import Route
from balancer.edge.tls import ContextTable, ListenerTls, make_context
from balancer.pool.board import (
    L_BYTES_IN,
    L_BYTES_OUT,
    L_TLS_FAILURES,
    L_TLS_HANDSHAKES,
    L_TLS_RESUMED,
    L_TLS_TRUNCATED,
    TLS_FAILURES,
)
from balancer.relay.context import TlsContexts
from balancer.relay.half import LIMIT
from balancer.relay.tls import handshakes
from balancer.relay.tls.session import TlsSession
from tests.authority import Authority
from tests.unit.balancer.edge.handshakes import client_context
from tests.unit.balancer.relay.simulation import Make, WorkerSimulation, heard, read_all, reset
from tests.unit.balancer.relay.tls.peers import TlsPeer, size_of

AUTHORITY = Authority()
CLIENTS = Authority("Authority of clients")
FILES = tuple(
    read_certificate(f"{name}.pem", AUTHORITY.issue(name), 0.0) for name in ("a.example", "b.example")
)
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsClient(TlsPeer):
    """A client of the simulation that speaks TLS; every step lets the worker do its part."""

    def __init__(
        self,
        worker: WorkerSimulation,
        name: str = "a.example",
        version: str = "1.3",
        own: Authority | None = None,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        super().__init__(worker, worker.connect())
        self.context = context or client_context(AUTHORITY, own)
        self.context.maximum_version = VERSIONS[version]
        self.tls = self.context.wrap_bio(self.incoming, self.outgoing, server_hostname=name, session=session)

    def end(self) -> None:
        """close_notify, without FIN."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.exchange()


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[WorkerSimulation] = []

    def build(**options: Any) -> WorkerSimulation:
        settings = ListenerTls(
            tls_cert=FILES,
            **{
                name: options[name]
                for name in options
                if name.startswith("tls_") and name != "tls_handshake_timeout"
            },
        )
        table = ContextTable(settings, make_context)
        made.append(WorkerSimulation(contexts=TlsContexts({"main": table}), tls_cert=FILES, **options))
        made[-1].listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as all of ours
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def worker(make: Make) -> WorkerSimulation:
    return make()


def pair(worker: WorkerSimulation, version: str = "1.3") -> tuple[TlsClient, socket.socket]:
    client = TlsClient(worker, version=version).shake_hands()
    return client, worker.accept()


def segments_in(sock: socket.socket) -> int:
    """tcpi_segs_in of a TCP connection."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[140:144], sys.byteorder)


both = pytest.mark.parametrize("version", VERSIONS)


@both
def test_an_answer_with_the_end_behind_it_stays_on_the_fast_path(
    worker: WorkerSimulation, version: str
) -> None:
    client, backend = pair(worker, version)
    client.say(b"question")
    assert heard(backend) == "question|open"
    [session] = worker.sessions
    before = segments_in(client.sock)
    backend.send(b"answer")
    backend.close()
    worker.settle()
    assert client.heard() == "answer|close_notify"
    assert segments_in(client.sock) - before == 1, "answer, close_notify and FIN in one"
    assert session.over and session.splicing is None
    client.end()
    assert worker.ends == ["--"] and worker.cell(L_BYTES_OUT) == 6


class RoomySocket(Socket):
    """Takes more than one read before the worker's turn."""

    def connect_ex(self, address: object) -> int:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        return super().connect_ex(address)


@pytest.mark.parametrize("amount", [LIMIT - 1, LIMIT, LIMIT + 1, 3 * LIMIT])
def test_an_answer_of_several_reads_with_the_end_behind_it(make: Make, amount: int) -> None:
    worker = make(new_socket=RoomySocket)
    client, backend = pair(worker)
    client.say(b"question")
    backend.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    assert backend.send(bytes(amount)) == amount
    backend.shutdown(socket.SHUT_WR)
    worker.settle()
    assert client.heard() == f"{amount}|close_notify"
    client.end()
    assert worker.ends == ["--"] and worker.cell(L_BYTES_OUT) == amount


@both
def test_bytes_both_ways(worker: WorkerSimulation, version: str) -> None:
    client, backend = pair(worker, version)
    client.say(b"question")
    assert heard(backend) == "question|open"
    backend.send(b"answer")
    worker.settle()
    assert client.heard() == "answer|open"
    [session] = worker.sessions
    assert type(session) is TlsSession and session.splicing is None, "still on the fast path"
    backend.close()
    worker.settle()
    assert client.heard() == "|close_notify"
    client.end()
    assert worker.ends == ["--"]
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (8, 6)
    assert (worker.cell(L_TLS_HANDSHAKES), worker.cell(L_TLS_TRUNCATED)) == (1, 0)
    assert f" sni=a.example tls=TLSv{version} cipher=" in worker.lines.sessions[0]


def test_the_name_chooses_the_certificate(worker: WorkerSimulation) -> None:
    TlsClient(worker, "b.example").shake_hands()
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsClient(worker, "unknown.example").shake_hands()
    assert worker.cell(L_TLS_HANDSHAKES) == 1


def test_a_request_in_the_segment_of_the_clients_finished(worker: WorkerSimulation) -> None:
    """And its close_notify with it: no event comes for either."""
    client = TlsClient(worker)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.exchange()
    client.tls.do_handshake()
    client.tls.write(b"question")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.exchange()
    backend = worker.accept()
    assert heard(backend) == "question|end"
    backend.send(b"answer")
    backend.close()
    worker.settle()
    assert client.heard() == "answer|close_notify"
    assert worker.ends == ["--"]


@pytest.mark.parametrize("spoken", [b"", b"question"])
def test_a_broken_record_in_the_segment_of_the_clients_finished(
    worker: WorkerSimulation, spoken: bytes
) -> None:
    client = TlsClient(worker)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.exchange()
    client.tls.do_handshake()
    if spoken:
        client.tls.write(spoken)
    said = client.outgoing.read()
    client.tls.write(b"broken")
    client.sock.send(said + client.outgoing.read()[:-1] + b"?")
    worker.settle()
    if spoken:
        assert heard(worker.accept()).endswith("|reset")
    assert worker.ends == [f"{'CD' if spoken else 'CC'} TLS: DECRYPTION_FAILED_OR_BAD_RECORD_MAC"]


@both
@pytest.mark.parametrize("amount", [1, 16_384, 16_385, 1_000_000])
def test_half_closes_with_bytes_in_flight(worker: WorkerSimulation, version: str, amount: int) -> None:
    """The client ends first, then gets everything; exact counts, ends told apart."""
    client, backend = pair(worker, version)
    data = bytes(range(256)) * (amount // 256 + 1)
    client.tls.write(data[:amount])
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    received = b""
    out = client.outgoing.read()
    while out or len(received) < amount:
        with contextlib.suppress(BlockingIOError):
            out = out[client.sock.send(out) :]
        worker.settle(2)
        received += read_all(backend)
    assert received == data[:amount] and heard(backend) == "|end"
    sent = got = 0
    while got < amount:
        with contextlib.suppress(BlockingIOError):
            sent += backend.send(data[sent:amount])
        worker.settle(2)
        got += size_of(client.heard())
    backend.close()
    worker.settle()
    assert client.heard().endswith("|close_notify")
    client.sock.close()
    worker.settle()
    assert worker.ends == ["--"]
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (amount, amount)


@both
def test_the_backend_ends_first_and_the_client_goes_on(worker: WorkerSimulation, version: str) -> None:
    client, backend = pair(worker, version)
    backend.send(b"banner")
    backend.shutdown(socket.SHUT_WR)
    worker.settle()
    assert client.heard() == "banner|close_notify"
    client.say(b"x" * 50_000)
    assert len(read_all(backend)) == 50_000
    client.end()
    assert heard(backend) == "|end"
    assert worker.ends == ["--"]


@both
def test_a_reset_of_the_backend_is_no_end(worker: WorkerSimulation, version: str) -> None:
    client, backend = pair(worker, version)
    client.say(b"question")
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    backend.send(b"half an answer")
    worker.settle()
    assert client.heard() == "half an answer|open"
    reset(backend)
    worker.settle()
    worker.pass_time(0.1, 0.02)
    assert client.heard() == "|reset"
    assert worker.ends == ["SD ECONNRESET"]


def test_a_reset_of_the_client_reaches_the_backend(worker: WorkerSimulation) -> None:
    client, backend = pair(worker)
    client.say(b"question")
    reset(client.sock)
    worker.settle()
    assert heard(backend) == "question|reset" or heard(backend) == "|reset"
    assert [end[:2] for end in worker.ends] == ["CD"]


def test_truncation_is_an_end_and_is_counted(worker: WorkerSimulation) -> None:
    client, backend = pair(worker)
    client.say(b"question")
    client.sock.shutdown(socket.SHUT_WR)
    worker.settle()
    assert heard(backend) == "question|end"
    backend.send(b"answer")
    backend.close()
    worker.settle()
    assert client.heard() == "answer|close_notify"
    assert worker.ends == ["--"] and worker.cell(L_TLS_TRUNCATED) == 1


def test_a_client_that_goes_after_our_end_is_not_truncated(worker: WorkerSimulation) -> None:
    client, backend = pair(worker)
    backend.close()
    worker.settle()
    assert client.heard() == "|close_notify"
    client.sock.close()
    worker.settle()
    assert worker.ends == ["--"] and worker.cell(L_TLS_TRUNCATED) == 0


def test_a_broken_record_ends_the_session_with_the_reason(worker: WorkerSimulation) -> None:
    client, backend = pair(worker)
    client.tls.write(b"x" * 100)
    record = bytearray(client.outgoing.read())
    record[40] ^= 1
    client.sock.send(record)
    worker.settle()
    assert heard(backend) == "|reset"
    assert worker.ends == ["CD TLS: DECRYPTION_FAILED_OR_BAD_RECORD_MAC"]


@both
@pytest.mark.parametrize("is_reset_first", [True, False], ids=["backend-resets", "both-end"])
def test_a_client_that_goes_while_bytes_wait_for_it_leaves_nothing(
    worker: WorkerSimulation, version: str, is_reset_first: bool
) -> None:
    """Both directions are over but for bytes that nobody is going to take."""
    client, backend = pair(worker, version)
    if not is_reset_first:
        client.end()
        client.sock.shutdown(socket.SHUT_WR)
        worker.settle()
    [session] = worker.sessions
    with socket.socket(fileno=os.dup(session.client_fd)) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    while session.splicing is None or not session.splicing.down.pending:
        backend.send(bytes(65_536))
        worker.settle(1)
    (reset if is_reset_first else socket.socket.close)(backend)
    down = session.splicing.down
    for _ in range(100_000):
        if down.source:
            break
        with contextlib.suppress(BlockingIOError):
            client.sock.recv(1024)
        worker.settle(1)
    assert down.source and down.pending and not session.closed
    reset(client.sock)
    worker.settle()
    worker.pass_time(0.1, 0.02)
    assert session.closed and not worker.sessions
    assert [end[:2] for end in worker.ends] == ["CD"]


@both
def test_a_slow_client_stops_the_backend_and_loses_nothing(worker: WorkerSimulation, version: str) -> None:
    client, backend = pair(worker, version)
    sent = 0
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            sent += backend.send(bytes(65536))
        worker.settle(1)
    [session] = worker.sessions
    assert session.splicing is not None and session.splicing.down.paused
    assert session.splicing.down.pending <= 65_536
    backend.close()
    got = 0
    for _ in range(100_000):
        text = client.heard()
        got += size_of(text)
        if text.endswith("close_notify"):
            break
        worker.settle(1)
    assert got == sent
    client.end()
    assert worker.ends == ["--"]


def test_a_slow_backend_stops_the_client_although_its_bytes_wait_in_the_stream(
    worker: WorkerSimulation,
) -> None:
    client, backend = pair(worker)
    client.tls.write(bytes(8_000_000))
    out, received = client.outgoing.read(), 0
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            out = out[client.sock.send(out) :]
        worker.settle(1)
    [session] = worker.sessions
    assert session.splicing is not None and session.splicing.up.paused
    for _ in range(100_000):
        if out:
            with contextlib.suppress(BlockingIOError):
                out = out[client.sock.send(out) :]
        received += len(read_all(backend))
        worker.settle(1)
        if received == 8_000_000:
            break
    assert received == 8_000_000


def failures(worker: WorkerSimulation) -> dict[str, int]:
    counts = {name: worker.cell(L_TLS_FAILURES + place) for place, name in enumerate(TLS_FAILURES)}
    return {name: count for name, count in counts.items() if count}


def test_a_client_without_tls_gets_the_deny_action(worker: WorkerSimulation) -> None:
    client = worker.connect()
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    worker.settle()
    assert heard(client) == "|reset"
    assert worker.ends == ["PR no TLS: begins with b'GET /'"] and failures(worker) == {"not-tls": 1}


def test_no_version_in_common(make: Make) -> None:
    worker = make(tls_min="1.3")
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        TlsClient(worker, version="1.2").shake_hands()
    assert worker.ends == ["PR no version of TLS in common"] and failures(worker) == {"protocol": 1}


@both
def test_client_certificates(make: Make, version: str) -> None:
    worker = make(tls_client_ca=TrustFile("ca.pem", CLIENTS.pem))
    TlsClient(worker, version=version, own=CLIENTS).shake_hands()
    [session] = worker.sessions
    assert session.peer.tls.common_name == "client"  # type: ignore[attr-defined]
    for own, end in (
        (None, "PR no client certificate"),
        (AUTHORITY, "PR client certificate: self-signed certificate in certificate chain"),
    ):
        with contextlib.suppress(ssl.SSLError):  # in 1.3 its handshake has succeeded by then
            refused = TlsClient(worker, version=version, own=own)
            refused.shake_hands()
            raise AssertionError(refused.heard())
        assert worker.ends[-1] == end
    assert failures(worker) == {"certificate": 2}


def test_a_client_that_refuses_our_certificate(worker: WorkerSimulation) -> None:
    client = TlsClient(worker, context=client_context(CLIENTS))
    with pytest.raises(ssl.SSLCertVerificationError):
        client.shake_hands()
    assert worker.ends == ["CC the client refuses: unknown ca"] and failures(worker) == {"alert": 1}


def test_tickets_resume(worker: WorkerSimulation) -> None:
    first = TlsClient(worker).shake_hands()
    backend = worker.accept()
    backend.send(b"x")
    worker.settle()
    assert first.heard() == "x|open"
    again = TlsClient(worker, context=first.context, session=first.tls.session).shake_hands()
    assert again.tls.session_reused and worker.cell(L_TLS_RESUMED) == 1


def stopped(worker: WorkerSimulation, sent: int) -> socket.socket:
    """A client that stops behind so many bytes of its part of the handshake."""
    client = TlsClient(worker)
    spoken = 0
    for _ in range(4):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        data = client.outgoing.read()[: sent - spoken]
        if data:
            client.sock.send(data)
        spoken += len(data)
        worker.settle()
        client.incoming.write(read_all(client.sock))
    return client.sock


def test_a_client_that_stops_anywhere_in_the_handshake_is_cut_at_its_limit(make: Make) -> None:
    worker = make(tls_handshake_timeout=2.0)
    whole = len(handshake_bytes(make()))
    places = sorted({*range(12), *range(0, whole, 7), *range(whole - 12, whole)})
    clients = [stopped(worker, place) for place in places]
    assert len(worker.sessions) == len(places) == worker.relay.handshakes.unfinished
    worker.pass_time(1.9)
    assert not worker.ends
    worker.pass_time(0.2)
    assert worker.ends == ["cR tls-handshake-timeout"] * len(places)
    assert failures(worker) == {"incomplete": len(places)}
    assert worker.relay.handshakes.unfinished == 0 and not worker.sessions
    for client in clients:
        assert heard(client).endswith("|reset")


def handshake_bytes(worker: WorkerSimulation) -> bytes:
    client = TlsClient(worker)
    said = b""
    for _ in range(4):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        data = client.outgoing.read()
        said += data
        client.sock.send(data)
        worker.settle()
        client.incoming.write(read_all(client.sock))
    return said


def test_clients_that_leave_in_the_handshake(worker: WorkerSimulation) -> None:
    for sent in (0, 3, 100, 550):
        sock = stopped(worker, sent)
        sock.shutdown(socket.SHUT_WR)
        worker.settle()
    assert [end[:2] for end in worker.ends] == ["CC"] * 4 and failures(worker) == {"incomplete": 4}
    assert worker.relay.handshakes.unfinished == 0


def test_no_more_than_so_many_unfinished_handshakes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make(tls_handshake_timeout=2.0)
    worker.relay.handshakes.most = 5
    clients = [worker.connect() for _ in range(8)]
    worker.settle()
    assert len(worker.sessions) == 5 and not worker.acceptor.is_accepting
    worker.pass_time(2.1)
    worker.pass_time(0.5)
    assert len(worker.sessions) == 3 and len(clients) == 8


def test_the_proxy_header_tells_of_the_tls(make: Make) -> None:
    send = SendProxy(2, frozenset({"authority", "alpn", "ssl"}))
    worker = make(send_proxy=send, tls_alpn=("h2",), tls_client_ca=TrustFile("ca.pem", CLIENTS.pem))
    context = client_context(AUTHORITY, CLIENTS)
    context.set_alpn_protocols(["h2"])
    client = TlsClient(worker, context=context).shake_hands()
    client.say(b"question")
    backend = worker.accept()
    worker.settle()
    received = read_all(backend)
    claim = parse(received)
    assert claim is not None and received[claim.size :] == b"question"
    assert claim.source == client.sock.getsockname()
    assert (claim.records[2], claim.records[1]) == (b"a.example", b"h2")
    ssl_record = claim.records[SSL]
    assert ssl_record[:5] == b"\x07\0\0\0\0" and b"\x21\0\x07TLSv1.3" in ssl_record
    assert b"\x22\0\x06client" in ssl_record and b"TLS_AES" in ssl_record
    client.end()
    backend.close()
    worker.settle()
    assert worker.ends == ["--"] and worker.cell(L_BYTES_IN) == 8


def test_a_server_that_speaks_first_gets_the_header_at_once(make: Make) -> None:
    worker = make(send_proxy=SendProxy(1))
    client, backend = pair(worker)
    assert heard(backend).startswith("PROXY TCP4 ")
    backend.send(b"220 ready")
    worker.settle()
    assert client.heard() == "220 ready|open"


def test_routes_by_name_come_before_the_handshake(make: Make) -> None:
    routes = (Route("a", name="a.example"), Route("reject"))
    worker = make(backends=1, pools=("a",), routes=routes)
    TlsClient(worker, "a.example").shake_hands()
    worker.accept()
    with pytest.raises(ConnectionResetError):
        TlsClient(worker, "b.example").shake_hands()
    assert worker.ends == ["PR no-route"] and failures(worker) == {}
    assert worker.relay.handshakes.unfinished == 0


def test_a_client_waits_in_the_queue_with_its_request_read(make: Make) -> None:
    worker = make(upstream="maxconn=1")
    first, backend = pair(worker)
    second = TlsClient(worker).shake_hands()
    second.say(b"question")
    assert len(worker.sessions) == 2
    first.end()
    backend.close()
    worker.settle()
    backend = worker.accept()
    worker.settle()
    assert heard(backend) == "question|open"


def test_another_backend_is_tried_with_the_request_kept(make: Make) -> None:
    worker = make(backends=2)
    worker.servers[0].close()
    for _ in range(2):
        client = TlsClient(worker)
        client.shake_hands()
        client.say(b"question")
        backend = worker.accept(1)
        worker.settle()
        assert heard(backend) == "question|open"


def test_defer_connect_waits_for_the_first_byte_behind_the_handshake(make: Make) -> None:
    worker = make(defer_connect=True)
    client = TlsClient(worker).shake_hands()
    with pytest.raises(BlockingIOError):
        worker.accept()
    client.say(b"question")
    backend = worker.accept()
    worker.settle()
    assert heard(backend) == "question|open"


@pytest.mark.parametrize("has_fin", [True, False])
def test_defer_connect_sees_an_end_in_the_segment_of_the_clients_finished(make: Make, has_fin: bool) -> None:
    """As a check of the listener does: a handshake and no more. No event comes for what is read already."""
    worker = make(defer_connect=True)
    client = TlsClient(worker)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.exchange()
    client.tls.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.sock.send(client.outgoing.read())
    if has_fin:
        client.sock.shutdown(socket.SHUT_WR)
    worker.settle()
    assert heard(worker.accept()) == "|end"


def test_steps_of_handshakes_share_a_turn_with_the_sessions() -> None:
    """Nothing but TURN of each turn; the rest in later turns, first come first served."""

    class OneHandshake:
        fd = -1

        def advance(self) -> None:
            clock[0] += 0.0004
            order.append(self)

    class OneLoop:
        turns = 0
        on_error = None

        def __init__(self) -> None:
            self.acts: list[Callable[[], object]] = []

        def call_next_turn(self, act: Callable[[], object]) -> None:
            self.acts.append(act)

        def turn(self) -> None:
            self.turns += 1
            acts, self.acts = self.acts, []
            for act in acts:
                act()

    clock, loop = [0.0], OneLoop()
    order: list[OneHandshake] = []
    queue = handshakes.Handshakes(loop, lambda: clock[0])  # type: ignore[arg-type]
    many = [OneHandshake() for _ in range(10)]
    loop.turn()
    for one in many:
        queue.go_on(one)
    assert len(order) == 3, "0.4 ms each: the third begins within 1 ms"
    loop.turn()
    assert len(order) == 6
    queue.go_on(many[0])
    assert len(order) == 6, "behind those that wait"
    queue.forget(many[8])
    for _ in range(3):
        loop.turn()
    assert order == [*many[:8], many[9], many[0]] and not loop.acts


def test_a_fault_in_a_waiting_handshake_costs_that_one(worker: WorkerSimulation) -> None:
    class Slow:
        fd = 98

        def advance(self) -> None:
            worker.time += 1.0

    class Broken:
        fd = 99

        def advance(self) -> None:
            raise RuntimeError

    blamed: list[int] = []
    worker.loop.on_error = lambda fd, error: blamed.append(fd)
    queue = handshakes.Handshakes(worker.loop, lambda: worker.time, most=3)
    queue.go_on(Slow())  # takes the turn's time
    for _ in range(2):
        queue.go_on(Broken())
    worker.turn()
    worker.turn()
    assert blamed == [99, 99] and queue.room() == 3
