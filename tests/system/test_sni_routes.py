"""Routes by the name that a TLS client asks for, without ending its TLS: real clients, real servers, all in pieces."""

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from balancer.edge.proxy_protocol import AUTHORITY, parse, write_v2
from scripts.lab.backends import Scripted
from scripts.lab.network import Address, text_of
from scripts.lab.waiting import wait_for
from tests.system.certificates import make_certificate
from tests.system.harness import FileBalancer, ini_section

ROUTES = ("sni a.example -> a", "sni *.b.example -> b", "sni closed.example -> reject")


class TlsServer(Scripted):
    """Ends TLS, says its own name and echoes. `client_names` are those that clients have asked for."""

    def __init__(self, own: str, certificate: Path) -> None:
        super().__init__(self._serve)
        self.own = own
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)

    def _serve(self, conn: socket.socket) -> None:
        try:
            with self.context.wrap_socket(conn, server_side=True) as tls:
                tls.sendall(f"{self.own}\n".encode())
                while data := tls.recv(65536):
                    tls.sendall(data)
        except ssl.SSLError:
            return  # a check, which connects and goes


@pytest.fixture
def lb(tmp_path: Path) -> Iterator[FileBalancer]:
    certificate = make_certificate(tmp_path, "a.example", "x.b.example", "c.example")
    with ExitStack() as stack:
        servers = [stack.enter_context(TlsServer(name, certificate)) for name in ("a", "b", "rest")]
        text = ini_section(
            "listener web", bind="127.0.0.1:0", route=[*ROUTES, "-> rest"], preread_timeout="600ms"
        )
        for server in servers:
            text += ini_section(f"pool {server.own}", upstream=f"{text_of(server.address)} name={server.own}")
        yield stack.enter_context(FileBalancer(text, loglevel=1))


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def served_by(address: Address, name: str | None) -> str:
    try:
        with (
            socket.create_connection(address, 15) as raw,
            context().wrap_socket(raw, server_hostname=name) as tls,
        ):
            first = tls.recv(100).decode().strip()
            tls.sendall(b"x" * 100_000)
            got = 0
            while got < 100_000:
                got += len(tls.recv(65536))
            return first
    except ConnectionResetError:
        return "reset"


def hello(name: str) -> bytes:
    sent = ssl.MemoryBIO()
    tls = context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


def test_the_name_decides(lb: FileBalancer) -> None:
    asked = {
        "a.example": "a",
        "A.EXAMPLE": "a",
        "x.b.example": "b",
        "x.y.b.example": "b",
        "b.example": "rest",
        "other.example": "rest",
        None: "rest",
        "closed.example": "reset",
    }
    assert {name: served_by(lb.address, name) for name in asked} == asked
    lb.wait_line(r" session client=\S+ sni=x\.b\.example listener=web pool=b backend=b end=--")
    lb.wait_line(r" session client=\S+ sni=- listener=web pool=rest ")
    lb.wait_line(
        r' session client=\S+ sni=closed\.example listener=web backend=<NOSRV> end=PR .* reason="no-route"'
    )
    lb.check_at_rest()


@pytest.mark.parametrize("pieces", ["bytes", "records"])
def test_a_hello_in_pieces_reaches_its_server_whole(lb: FileBalancer, pieces: str) -> None:
    """Over segments, as when a hello has grown beyond one; over records, as some clients cut it."""
    with socket.create_connection(lb.address, 15) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context().wrap_bio(incoming, outgoing, server_hostname="x.b.example")

        def step() -> None:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                pass

        step()
        data = outgoing.read()
        if pieces == "records":
            message = data[5:]
            data = b"".join(
                b"\x16\3\1" + len(message[at : at + 40]).to_bytes(2) + message[at : at + 40]
                for at in range(0, len(message), 40)
            )
            raw.sendall(data)
        else:
            for at in range(len(data)):
                raw.sendall(data[at : at + 1])
        while True:
            incoming.write(raw.recv(65536))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
        raw.sendall(outgoing.read())
        answer = b""
        while not answer:
            try:
                answer = tls.read(100)
            except ssl.SSLWantReadError:
                incoming.write(raw.recv(65536))
        assert answer == b"b\n"


@pytest.mark.parametrize(
    ("data", "end", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "PR", "no TLS: begins with b'GET /'"),
        (b"", "cR", "preread-timeout"),
        (hello("a.example")[:100], "cR", "preread-timeout"),
        (b"\x16\3\1\0\5\1\0\1\0\0", "cR", "preread-timeout"),
        (b"\x16\3\1\0\1\2", "PR", "a handshake message of type 2, not a ClientHello"),
    ],
    ids=["plain", "nothing", "half", "a byte of the message", "another message"],
)
def test_who_sends_no_hello_is_turned_away(lb: FileBalancer, data: bytes, end: str, reason: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionResetError), socket.create_connection(lb.address, 15) as client:
        client.sendall(data)
        client.recv(1)
    if end == "cR":
        assert time.monotonic() - began >= 0.5
    lb.wait_line(rf' session client=\S+ .*end={end} .* reason="{reason}"')
    lb.check_at_rest()


def test_openssl_and_curl_are_routed(lb: FileBalancer) -> None:
    """Two more libraries' hellos."""
    tried = 0
    if shutil.which("openssl"):
        tried += 1
        words = [
            "openssl",
            "s_client",
            "-connect",
            text_of(lb.address),
            "-servername",
            "x.b.example",
        ]
        subprocess.run([*words, "-max_send_frag", "512"], input=b"", capture_output=True, timeout=60)
        wait_for(lambda: " sni=x.b.example " in lb.log(), "openssl's session")
    if shutil.which("curl"):
        tried += 1
        words = ["curl", "-sk", "--http0.9", "-m", "5", "--resolve", f"a.example:{lb.address[1]}:127.0.0.1"]
        subprocess.run([*words, f"https://a.example:{lb.address[1]}/"], capture_output=True, timeout=60)
        wait_for(lambda: " sni=a.example " in lb.log(), "curl's session")
    if not tried:
        pytest.skip("neither openssl nor curl is installed")


def test_a_proxy_header_before_the_hello(tmp_path: Path) -> None:
    """The claimed address and the name decide together; the backend gets the name as the header's authority."""
    seen: list[Any] = []

    def serve(conn: socket.socket) -> None:
        data = conn.recv(65536)
        claim = parse(data) if data else None
        if claim is not None:
            seen.append((claim.source, claim.records.get(AUTHORITY), data[claim.size :]))
            conn.sendall(b"!")

    with Scripted(serve) as backend:
        text = ini_section(
            "listener web",
            bind="127.0.0.1:0",
            route=["sni a.example and from 192.0.2.0/24 -> a"],
            proxy_protocol="yes",
            proxy_trusted="127.0.0.0/8",
        )
        text += ini_section(
            "pool a", upstream=text_of(backend.address), send_proxy="v2 authority", check="none"
        )
        with FileBalancer(text, loglevel=1) as lb:
            for source, is_served in (("192.0.2.7", True), ("198.51.100.7", False)):
                with socket.create_connection(lb.address, 15) as client:
                    client.sendall(write_v2((source, 5), ("127.0.0.1", 6)) + hello("a.example"))
                    try:
                        assert (client.recv(1) == b"!") == is_served
                    except ConnectionResetError:
                        assert not is_served
        assert [one[:2] for one in seen] == [(("192.0.2.7", 5), b"a.example")]
        assert seen[0][2].startswith(b"\x16\3\1")
