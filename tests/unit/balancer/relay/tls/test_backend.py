"""TLS to the backends: the handshake as a part of the dial, verification, and both sides in TLS at once."""

import contextlib
import socket
import ssl
from typing import Any

import pytest

from balancer.edge.backend_tls import BackendTls, make_backend_tls
from balancer.edge.certificates import CertificateFile, TrustFile, read_certificate
from balancer.edge.proxy_protocol import SendProxy
from balancer.edge.tls import ContextTable, ListenerTls, make_context
from balancer.pool.board import B_CONNECT_FAILURES, L_BYTES_IN, L_BYTES_OUT, L_RETRIES
from balancer.relay.context import TlsContexts
from tests.authority import Authority
from tests.unit.balancer.relay.simulation import Make, WorkerSimulation, heard, read_all, reset
from tests.unit.balancer.relay.tls.peers import TlsPeer, size_of
from tests.unit.balancer.relay.tls.test_session import FILES, TlsClient

AUTHORITY = Authority("Authority of backends")
TRUST = TrustFile("ca.pem", AUTHORITY.pem)
OTHER = Authority("Another authority")


def file_of(authority: Authority, *names: str) -> CertificateFile:
    return read_certificate("backend.pem", authority.issue(*names), 0.0)


RIGHT = file_of(AUTHORITY, "127.0.0.1")
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
both = pytest.mark.parametrize("version", VERSIONS)


def server_context(file: CertificateFile = RIGHT, version: str = "1.3") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    file.load_into(context)
    context.maximum_version = VERSIONS[version]
    return context


class TlsBackend(TlsPeer):
    """The other end of a dial."""

    def __init__(
        self, worker: WorkerSimulation, context: ssl.SSLContext | None = None, server: int = 0
    ) -> None:
        super().__init__(worker, worker.accept(server))
        self.tls = (context or server_context()).wrap_bio(self.incoming, self.outgoing, server_side=True)

    def end(self) -> None:
        """close_notify and FIN."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.exchange()
        self.sock.shutdown(socket.SHUT_WR)
        self.worker.settle()


def make_worker(make: Make, tls: BackendTls | None = None, **options: Any) -> WorkerSimulation:
    return made_with(make, TlsContexts(pools={"main": tls or make_backend_tls(True, TRUST)}), **options)


def dialled(worker: WorkerSimulation) -> int:
    """Which of two backends the only session has dialled."""
    [session] = worker.sessions
    assert session.backend is not None
    return worker.backends.index(session.backend)


def made_with(make: Make, contexts: TlsContexts, **options: Any) -> WorkerSimulation:
    worker = make(contexts=contexts, tls=True, **options)
    worker.listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return worker


@both
def test_a_plain_client_and_a_backend_with_tls(make: Make, version: str) -> None:
    worker = make_worker(make)
    client = worker.connect()
    client.send(b"question")
    worker.settle()
    backend = TlsBackend(worker, server_context(version=version)).shake_hands()
    assert backend.heard() == "question|open"
    backend.say(b"answer")
    assert heard(client) == "answer|open"
    [session] = worker.sessions
    assert session.splicing is None, "still on the fast path"
    client.shutdown(socket.SHUT_WR)
    worker.settle()
    assert backend.heard() == "|close_notify"
    backend.say(b"last")
    backend.end()
    assert heard(client) == "last|end"
    assert worker.ends == ["--"]
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (8, 10)


@both
def test_a_backend_that_speaks_first(make: Make, version: str) -> None:
    worker = make_worker(make)
    client = worker.connect()
    worker.settle()
    backend = TlsBackend(worker, server_context(version=version))
    backend.shake_hands()
    backend.say(b"220 ready")
    assert heard(client) == "220 ready|open"


def test_its_last_words_in_the_segment_of_its_finished(make: Make) -> None:
    """Handshake, bytes and close_notify at once: no event comes for what is behind the handshake."""
    worker = make_worker(make)
    client = worker.connect()
    worker.settle()
    backend = TlsBackend(worker, server_context(version="1.2"))
    for _ in range(2):
        with contextlib.suppress(ssl.SSLWantReadError):
            backend.tls.do_handshake()
            break
        backend.exchange()
    backend.tls.do_handshake()
    backend.tls.write(b"banner")
    with contextlib.suppress(ssl.SSLError):
        backend.tls.unwrap()
    backend.exchange()
    assert heard(client) == "banner|end"


@both
@pytest.mark.parametrize("amount", [1, 100_000, 1_000_000])
def test_tls_on_both_sides_with_half_closes(make: Make, version: str, amount: int) -> None:
    table = ContextTable(ListenerTls(tls_cert=FILES), make_context)
    contexts = TlsContexts({"main": table}, {"main": make_backend_tls(True, TRUST)})
    worker = made_with(make, contexts, tls_cert=FILES)
    client = TlsClient(worker, version=version).shake_hands()
    backend = TlsBackend(worker, server_context(version=version)).shake_hands()
    data = b"x" * amount

    def pass_on(source: Any, sink: Any) -> None:
        source.tls.write(data)
        with contextlib.suppress(ssl.SSLError):
            source.tls.unwrap()
        out, got, text = source.outgoing.read(), 0, ""
        while not text.endswith("close_notify"):
            if out:
                with contextlib.suppress(BlockingIOError):
                    out = out[source.sock.send(out) :]
            worker.settle(1)
            text = sink.heard()
            got += size_of(text)
        assert got == amount

    pass_on(client, backend)
    pass_on(backend, client)
    assert worker.ends == ["--"]
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (amount, amount)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (file_of(OTHER, "127.0.0.1"), "certificate: unable to get local issuer certificate"),
        (file_of(AUTHORITY, "b.example"), "certificate: IP address mismatch, certificate is not valid for '127.0.0.1'."),
    ],
    ids=["untrusted", "wrong name"],
)  # fmt: skip
def test_a_certificate_that_does_not_hold_is_a_failed_dial(
    make: Make, file: CertificateFile, reason: str
) -> None:
    worker = make_worker(make, backends=2)
    client = worker.connect()
    client.send(b"question")
    worker.settle()
    first = dialled(worker)
    wrong = TlsBackend(worker, server_context(file), first)
    with pytest.raises(ssl.SSLError):
        wrong.shake_hands()
        wrong.tls.read(1)
    right = TlsBackend(worker, server=1 - first).shake_hands()
    assert right.heard() == "question|open", "nothing of it has gone to the first one"
    assert (worker.backend_cell(B_CONNECT_FAILURES, first), worker.cell(L_RETRIES)) == (1, 1)
    [line] = [line for line in worker.lines.others if line.startswith("connect backend=") and "then=" in line]
    assert reason.split(",")[0] in line


def test_the_session_line_says_why_when_no_backend_holds(make: Make) -> None:
    worker = make_worker(make, retries=0)
    worker.connect()
    worker.settle()
    with pytest.raises(ssl.SSLError):
        wrong = TlsBackend(worker, server_context(file_of(AUTHORITY, "b.example")))
        wrong.shake_hands()
        wrong.tls.read(1)
    worker.settle()
    [end] = worker.ends
    assert end.startswith("SC certificate: IP address mismatch")


def test_without_verification_any_certificate_will_do(make: Make) -> None:
    worker = make_worker(make, make_backend_tls(False))
    client = worker.connect()
    client.send(b"question")
    worker.settle()
    backend = TlsBackend(worker, server_context(file_of(OTHER, "z.example"))).shake_hands()
    assert backend.heard() == "question|open"


def test_the_name_that_is_asked_for_is_the_name_that_counts(make: Make) -> None:
    worker = make_worker(make, make_backend_tls(True, TRUST, name="b.example"))
    client = worker.connect()
    client.send(b"question")
    worker.settle()
    context, asked = server_context(file_of(AUTHORITY, "b.example")), []
    context.sni_callback = lambda tls, name, used: asked.append(name)
    assert TlsBackend(worker, context).shake_hands().heard() == "question|open"
    assert asked == ["b.example"]


@pytest.mark.parametrize("name", ["api.internal", "api.internal."])
def test_a_name_with_a_dot_at_its_end_is_the_name_without(name: str) -> None:
    """The dot is for name servers: a certificate never has it, and SNI must not."""
    assert make_backend_tls(True, TRUST).name_for(name) == "api.internal"
    assert make_backend_tls(True, TRUST, name=name).name_for("10.0.0.1") == "api.internal"
    assert make_backend_tls(True, TRUST).name_for("") is None


@pytest.mark.parametrize("spoken", [b"", b"question"])
def test_the_proxy_header_comes_first_and_in_the_clear(make: Make, spoken: bytes) -> None:
    worker = make_worker(make, send_proxy=SendProxy(1))
    client = worker.connect()
    client.send(spoken)
    worker.settle()
    backend = TlsBackend(worker)
    line, _, hello = read_all(backend.sock).partition(b"\r\n")
    assert line.startswith(b"PROXY TCP4 127.0.0.1 ") and hello[:2] == b"\x16\x03"
    backend.incoming.write(hello)
    backend.shake_hands()
    assert backend.heard() == f"{spoken.decode()}|open"
    client.close()
    worker.settle()
    backend.end()
    assert worker.cell(L_BYTES_IN) == len(spoken)


@pytest.mark.parametrize("sent", [0, 1, 5, 100])
def test_a_backend_that_stops_in_the_handshake_is_a_failed_dial(make: Make, sent: int) -> None:
    worker = make_worker(make, backends=2, connect_timeout=1.0)
    client = worker.connect()
    client.send(b"question")
    worker.settle()
    first = dialled(worker)
    stuck = TlsBackend(worker, server=first)
    stuck.incoming.write(read_all(stuck.sock))
    with contextlib.suppress(ssl.SSLWantReadError):
        stuck.tls.do_handshake()
    stuck.sock.send(stuck.outgoing.read()[:sent])
    worker.pass_time(0.9)
    assert not worker.cell(L_RETRIES)
    worker.pass_time(0.3)
    assert TlsBackend(worker, server=1 - first).shake_hands().heard() == "question|open"
    assert worker.cell(L_RETRIES) == 1


@pytest.mark.parametrize("how", ["end", "reset", "no TLS"])
def test_a_backend_that_goes_in_the_handshake_is_a_failed_dial(make: Make, how: str) -> None:
    worker = make_worker(make, backends=2)
    client = worker.connect()
    client.send(b"question")
    worker.settle()
    elected = dialled(worker)
    first = worker.accept(elected)
    if how == "no TLS":
        first.send(b"220 ready\r\n")
    elif how == "reset":
        reset(first)
    else:
        read_all(first)  # what is unread would make the close a reset
        first.close()
    worker.settle()
    assert TlsBackend(worker, server=1 - elected).shake_hands().heard() == "question|open"


def test_a_client_that_leaves_in_the_backends_handshake(make: Make) -> None:
    worker = make_worker(make)
    client = worker.connect()
    worker.settle()
    backend = worker.accept()
    reset(client)
    worker.settle()
    assert [end[:2] for end in worker.ends] == ["CC"] and heard(backend).endswith(("|end", "|reset"))
    worker.pass_time(2.0)


@both
def test_sessions_are_resumed_for_each_backend(make: Make, version: str) -> None:
    worker = make_worker(make)
    context = server_context(version=version)
    for is_resumed in (False, True, True):
        client = worker.connect()
        client.send(b"question")
        worker.settle()
        backend = TlsBackend(worker, context).shake_hands()
        backend.say(b"answer")
        assert backend.tls.session_reused == is_resumed
        assert heard(client) == "answer|open"
        backend.end()
        client.close()
        worker.settle()
    assert worker.ends == ["--"] * 3


@both
def test_our_certificate(make: Make, version: str) -> None:
    own = read_certificate("own.pem", OTHER.issue(common_name="balancer"), 0.0)
    for certificate in (own, None):
        worker = make_worker(make, make_backend_tls(True, TRUST, certificate), retries=0)
        client = worker.connect()
        worker.settle()
        context = server_context(version=version)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=OTHER.pem.decode())
        backend = TlsBackend(worker, context)
        if certificate:
            peer = backend.shake_hands().tls.getpeercert()
            assert peer and peer["subject"] == ((("commonName", "balancer"),),)
        else:
            with pytest.raises(ssl.SSLError):
                backend.shake_hands()
            assert heard(client).startswith("|")
            assert worker.ends and worker.ends[0].startswith(("SC", "SD")), worker.ends


def test_a_backends_reset_is_passed_on_as_one(make: Make) -> None:
    worker = make_worker(make)
    client = worker.connect()
    client.send(b"question")
    worker.settle()
    backend = TlsBackend(worker).shake_hands()
    assert backend.heard() == "question|open"
    backend.say(b"half")
    assert heard(client) == "half|open"
    reset(backend.sock)
    worker.settle()
    assert heard(client) == "|reset" and worker.ends == ["SD ECONNRESET"]
