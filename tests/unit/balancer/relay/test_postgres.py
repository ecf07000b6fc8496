"""PostgreSQL clients routed by name: what they and their backends are asked and told, and what is refused."""

import errno
import socket
import ssl
from typing import Any

import pytest

from balancer.edge.proxy_protocol import SendProxy
from balancer.edge.route import Route
from balancer.relay.postgres import GSS_REQUEST, SSL_REQUEST
from tests.unit.balancer.relay.simulation import (
    OWN,
    FarElector,
    Make,
    WorkerSimulation,
    heard,
    read_all,
)


def hello(name: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sent = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


HELLO = hello("a.example")


def connect(worker: WorkerSimulation) -> socket.socket:
    """A client whose segments leave at once."""
    client = worker.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


@pytest.fixture(name="build", params=["near", "far"])
def near_and_far(make: Make, request: pytest.FixtureRequest) -> Make:
    def build(**options: Any) -> WorkerSimulation:
        worker = make(preread="postgres", routes=(Route("main", name="a.example"),), **options)
        if request.param == "far":
            worker.lane.elector = FarElector(worker.board, worker.pool, OWN)
        return worker

    return build


def client_of(worker: WorkerSimulation, first: bytes = HELLO) -> socket.socket:
    """A client that has been told that there is TLS, and has sent these bytes then."""
    client = connect(worker)
    client.send(SSL_REQUEST)
    worker.settle()
    assert client.recv(10) == b"S"
    client.send(first)
    worker.settle()
    return client


def next_asked(worker: WorkerSimulation, servers: set[int]) -> socket.socket:
    """The connection of the one of these servers that was dialled; it has been asked, and nothing else."""
    for server in list(servers):
        try:
            backend = worker.accept(server)
        except BlockingIOError:
            continue
        assert backend.recv(9999) == SSL_REQUEST
        servers.remove(server)
        return backend
    raise AssertionError("none was dialled")


def served(worker: WorkerSimulation, client: socket.socket, backend: socket.socket) -> None:
    client.send(b"more")
    backend.send(b"answer")
    worker.settle()
    assert (heard(client), heard(backend)) == ("answer|open", "more|open")
    client.shutdown(socket.SHUT_WR)
    worker.settle()
    assert heard(backend) == "|end"
    backend.close()
    worker.settle()
    assert worker.ends == ["--"]


@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize("asks", [SSL_REQUEST, GSS_REQUEST + SSL_REQUEST])
def test_the_backend_is_asked_before_it_gets_the_hello(build: Make, asks: bytes, cut: int) -> None:
    worker = build()
    client = connect(worker)
    for at, answer in zip(range(0, len(asks), 8), b"NS"[-len(asks) // 8 :], strict=True):
        client.send(asks[at : at + cut])
        worker.settle()
        client.send(asks[at + cut : at + 8])
        worker.settle()
        assert client.recv(10) == bytes((answer,))
    client.send(HELLO[:50])
    worker.settle()
    with pytest.raises(BlockingIOError):
        worker.accept()
    client.send(HELLO[50:])
    worker.settle()
    backend = worker.accept()
    assert backend.recv(9999) == SSL_REQUEST
    worker.settle()
    assert heard(backend) == "|open", "nothing before its answer"
    backend.send(b"S")
    worker.settle()
    assert backend.recv(9999) == HELLO
    assert heard(client) == "|open", "its answer is not the client's"
    served(worker, client, backend)
    (line,) = worker.lines.sessions
    assert f" in={len(HELLO) + 4} out=6 " in line


def test_tls_at_once_is_passed_on_as_it_is(build: Make) -> None:
    worker = build()
    client = connect(worker)
    for piece in (HELLO[:1], HELLO[1:12], HELLO[12:] + b"behind"):
        client.send(piece)
        worker.settle()
    backend = worker.accept()
    assert read_all(backend) == HELLO + b"behind"
    served(worker, client, backend)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([b"\0\0\0\x54\0\3\0\0user"], r"no SSLRequest: begins with b'\x00\x00\x00T\x00\x03\x00\x00'"),
        ([b"GET / HTTP"], "no SSLRequest: begins with b'GET / HT'"),
        ([b"\0\0\0\x08\x04\xd2\x16", b"\x2e"], "no SSLRequest"),
        ([SSL_REQUEST + HELLO], "bytes behind the SSLRequest, before its answer"),
        ([GSS_REQUEST + SSL_REQUEST], "bytes behind the SSLRequest, before its answer"),
        ([GSS_REQUEST, GSS_REQUEST], "no SSLRequest"),
        ([GSS_REQUEST, b"\0\0\0\x54\0\3\0\0user"], "no SSLRequest"),
        ([GSS_REQUEST, HELLO], "no SSLRequest"),
        ([SSL_REQUEST, SSL_REQUEST], "no TLS: begins with"),
        ([SSL_REQUEST, b"\0\0\0\x54\0\3\0\0user"], "no TLS: begins with"),
        ([SSL_REQUEST, hello("b.example")], "no-route"),
    ],
    ids=range(11),
)
def test_what_is_refused(make: Make, pieces: list[bytes], reason: str) -> None:
    worker = make(preread="postgres", routes=(Route("main", name="a.example"),))
    client = connect(worker)
    for piece in pieces:
        client.send(piece)
        worker.settle()
    (end,) = worker.ends
    assert end.replace("\\\\", "\\").startswith(f"PR {reason}")
    with pytest.raises(BlockingIOError):
        worker.accept()


@pytest.mark.parametrize(
    "said",
    [b"", SSL_REQUEST[:5], SSL_REQUEST, SSL_REQUEST + HELLO[:50]],
    ids=["nothing", "half", "request", "half a hello"],
)
def test_who_stops_is_closed_in_time(make: Make, said: bytes) -> None:
    worker = make(preread="postgres", routes=(Route("main", name="a.example"),), preread_timeout=3.0)
    client = connect(worker)
    client.send(said[:8])
    worker.settle()
    client.send(said[8:])
    worker.settle()
    worker.pass_time(2.5, 0.5)
    assert worker.ends == []
    worker.pass_time(1.5, 0.5)
    assert worker.ends == ["cR preread-timeout"]


@pytest.mark.parametrize("answer", [b"N", b"E", b"end", b"reset"])
def test_a_backend_without_tls_is_a_failed_dial(build: Make, answer: bytes) -> None:
    """The next one is asked anew."""
    worker = build(backends=2)
    client, servers = client_of(worker), {0, 1}
    first = next_asked(worker, servers)
    if answer == b"reset":
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if len(answer) == 1:
        first.send(answer)
    else:
        first.close()
    worker.settle()
    second = next_asked(worker, servers)
    second.send(b"S")
    worker.settle()
    assert second.recv(9999) == HELLO
    served(worker, client, second)
    assert " retries=1" in worker.lines.sessions[0]


def test_no_backend_with_tls(build: Make) -> None:
    worker = build(retries=0)
    client = client_of(worker)
    worker.accept().send(b"N")
    worker.settle()
    assert worker.ends == [f"SC {errno.errorcode[errno.EPROTO]}"] and heard(client) == "|end"


def test_a_backend_that_does_not_answer_in_time(build: Make) -> None:
    worker = build(backends=2)
    client, servers = client_of(worker), {0, 1}
    first = next_asked(worker, servers)
    worker.pass_time(0.5, 0.25)
    assert heard(first) == "|open"
    worker.pass_time(0.75, 0.25)
    second = next_asked(worker, servers)
    second.send(b"S")
    worker.settle()
    assert second.recv(9999) == HELLO
    served(worker, client, second)


def test_a_client_that_leaves_while_its_backend_is_asked(build: Make) -> None:
    worker = build()
    client = client_of(worker)
    backend = worker.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    worker.settle()
    assert worker.ends == ["CC"] and read_all(backend) == SSL_REQUEST
    assert not worker.lane.dialling


@pytest.mark.parametrize("asks", [True, False])
def test_a_proxy_header_goes_before_the_question(make: Make, asks: bool) -> None:
    worker = make(
        preread="postgres", routes=(Route("main", name="a.example"),), send_proxy=SendProxy(1)
    )  # fmt: skip
    if asks:
        client = client_of(worker)
    else:
        client = connect(worker)
        client.send(HELLO)
        worker.settle()
    backend = worker.accept()
    header, _, rest = backend.recv(9999).partition(b"\r\n")
    assert header.startswith(b"PROXY TCP4 127.0.0.1 ") and rest == (SSL_REQUEST if asks else HELLO)
    if asks:
        backend.send(b"S")
        worker.settle()
        assert backend.recv(9999) == HELLO
    served(worker, client, backend)
    assert f" in={len(HELLO) + 4} out=6 " in worker.lines.sessions[0]
