"""Checks by TLS: nothing is believed before the handshake is over and the backend has had its say behind it."""

import re
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from balancer.checks.check import parse_check_line
from balancer.checks.probe import Probe
from balancer.checks.protocols import dialogue_of
from balancer.edge.backend_tls import make_backend_tls
from balancer.edge.certificates import CertificateFile
from balancer.edge.proxy_protocol import SendProxy
from balancer.eventloop.loop import Loop
from balancer.prober import begin_tls
from tests.unit.balancer.relay.simulation import listening, read_all
from tests.unit.balancer.relay.tls.test_backend import (
    AUTHORITY,
    OTHER,
    TRUST,
    VERSIONS,
    TlsBackend,
    file_of,
    server_context,
)


class Prober:
    """One check under way; stands for a worker where a backend of the tests is concerned."""

    def __init__(self) -> None:
        self.time = 100.0
        self.loop = Loop(clock=lambda: self.time)
        self.server = listening()
        self.outcomes: list[tuple[str, str]] = []
        self._conns: list[socket.socket] = []

    def check(self, check: str = "tcp", send_proxy: SendProxy | None = None, verify: bool = True) -> None:
        target = (int(socket.AF_INET), self.server.getsockname())
        secure = partial(begin_tls, make_backend_tls(verify, TRUST), "127.0.0.1")
        dialogue = dialogue_of(parse_check_line(check), "host")  # type: ignore[arg-type]
        Probe(self.loop, target, 2.0, self.done, send_proxy, dialogue, secure=secure)  # type: ignore[arg-type]
        self.settle()

    def done(self, outcome: str, seconds: float, came: str) -> None:
        self.outcomes.append((outcome, came))

    def settle(self, turns: int = 12) -> None:
        for _ in range(turns):
            self.loop.run_once(0)

    def pass_time(self, seconds: float) -> None:
        self.time += seconds
        self.settle()

    def accept(self, server: int = 0) -> socket.socket:
        conn, _ = self.server.accept()
        conn.setblocking(False)
        self._conns.append(conn)
        return conn

    def close(self) -> None:
        for one in (self.server, *self._conns):
            one.close()
        self.loop.close()


@pytest.fixture
def prober() -> Iterator[Prober]:
    made = Prober()
    yield made
    made.close()


def backend_of(prober: Prober, context: ssl.SSLContext | None = None) -> TlsBackend:
    return TlsBackend(prober, context)  # type: ignore[arg-type]


both = pytest.mark.parametrize("version", VERSIONS)


@both
def test_a_backend_that_stays_behind_its_handshake_is_up(prober: Prober, version: str) -> None:
    prober.check()
    backend = backend_of(prober, server_context(version=version))
    backend.shake_hands()
    assert not prober.outcomes
    prober.pass_time(0.11)
    assert prober.outcomes == [("ok", "")] and backend.heard() == "|close_notify"


@pytest.mark.parametrize(
    ("file", "came"),
    [(file_of(OTHER, "127.0.0.1"), "local issuer"), (file_of(AUTHORITY, "b.example"), "IP address mismatch")],
)
def test_a_certificate_that_does_not_hold(prober: Prober, file: CertificateFile, came: str) -> None:
    prober.check()
    with pytest.raises(ssl.SSLError):
        backend = backend_of(prober, server_context(file))
        backend.shake_hands()
        backend.tls.read(1)
    [(outcome, words)] = prober.outcomes
    assert outcome == "tls" and words.startswith("certificate: ") and came in words


@both
def test_a_backend_that_wants_a_certificate_of_ours(prober: Prober, version: str) -> None:
    """In TLS 1.3 our side of the handshake has succeeded by the time it says so."""
    prober.check()
    context = server_context(version=version)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=OTHER.pem.decode())
    with pytest.raises(ssl.SSLError):
        backend_of(prober, context).shake_hands()
    prober.pass_time(0.11)
    [(outcome, words)] = prober.outcomes
    assert outcome == "tls" and re.fullmatch(r"TLS: [a-z0-9 ]{1,55}", words), words


@pytest.mark.parametrize("how", ["closes", "no TLS", "silent"])
def test_no_tls_there(prober: Prober, how: str) -> None:
    prober.check()
    conn = prober.accept()
    if how == "closes":
        conn.close()
    elif how == "no TLS":
        conn.send(b"220 ready\r\n")
    prober.settle()
    prober.pass_time(2.1)
    [(outcome, _)] = prober.outcomes
    assert outcome == {"closes": "closed", "no TLS": "tls", "silent": "timeout"}[how]


def test_a_talk_goes_through_tls_and_the_proxy_header_before_it(prober: Prober) -> None:
    prober.check("http GET /health", SendProxy(1))
    backend: Any = backend_of(prober)
    line, _, hello = read_all(backend.sock).partition(b"\r\n")
    assert line.startswith(b"PROXY TCP4 127.0.0.1 ")
    backend.incoming.write(hello)
    backend.shake_hands()
    assert backend.heard().startswith("GET /health HTTP/1.1")
    backend.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    prober.pass_time(1.1)
    assert prober.outcomes == [("ok", "")]
