"""TLS to real backends: nginx, HAProxy, OpenSSL's server; and what becomes of those whose certificates do not hold."""

import contextlib
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lab.backends import Scripted
from scripts.lab.network import Address, text_of
from scripts.lab.waiting import wait_for
from tests.authority import Authority
from tests.system.harness import FileBalancer, ini_section
from tests.system.test_tls import REQUEST, RawTls, context, tool
from tests.system.test_tls import Files as ClientFiles

AUTHORITY = Authority("Authority of backends")
OWN = Authority("Authority of balancers")


class Files(ClientFiles):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.backends_ca = self.write("backends.pem", AUTHORITY.pem)
        self.backend = self.write("backend.pem", AUTHORITY.issue("127.0.0.1", "backend.example"))
        self.own_ca = self.write("own-ca.pem", OWN.pem)
        self.own = self.write("own.pem", OWN.issue(common_name="balancer"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def is_open(address: Address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, 1):
        return True
    return False


@contextlib.contextmanager
def running(command: list[object], address: Address) -> Iterator[Address]:
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stdin=subprocess.PIPE
    ) as process:
        try:
            wait_for(lambda: is_open(address), f"{command[0]} at {address}", 20.0)
            yield address
        finally:
            process.kill()


@contextlib.contextmanager
def nginx(files: Files, name: str, more: str = "") -> Iterator[Address]:
    program, address = tool("nginx"), ("127.0.0.1", free_port())
    path = files.write(
        f"nginx-{address[1]}.conf",
        f"""
        daemon off; pid {files.directory}/nginx-{address[1]}.pid; error_log {files.directory}/error.log; events {{}}
        http {{ access_log off; client_body_temp_path {files.directory}/body; proxy_temp_path {files.directory}/proxy;
            fastcgi_temp_path {files.directory}/f; uwsgi_temp_path {files.directory}/u;
            scgi_temp_path {files.directory}/s;
            server {{ listen 127.0.0.1:{address[1]} ssl {more.partition("|")[0]}; ssl_certificate {files.backend};
            ssl_certificate_key {files.backend}; ssl_protocols TLSv1.2 TLSv1.3; {more.partition("|")[2]}
            location / {{ return 200 "{name}"; }} }} }}
        """.encode(),
    )
    with running([program, "-c", path, "-p", files.directory], address) as found:
        yield found


@contextlib.contextmanager
def haproxy(files: Files, name: str) -> Iterator[Address]:
    """With a PROXY header before TLS, and a certificate of ours demanded."""
    program, address = tool("haproxy"), ("127.0.0.1", free_port())
    path = files.write(
        f"haproxy-{address[1]}.cfg",
        f"""
defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 10s
frontend f
    bind 127.0.0.1:{address[1]} accept-proxy ssl crt {files.backend} ca-file {files.own_ca} verify required
    http-request return status 200 content-type text/plain lf-string "{name} %[src] %[ssl_c_s_dn(cn)]"
""".encode(),
    )
    with running([program, "-f", path], address) as found:
        yield found


def pool(files: Files, *backends: Address, ends_tls: bool = False, **more: object) -> str:
    listener = {"tls_cert": files.certificate} if ends_tls else {}
    upstream = [text_of(one) for one in backends]
    return (
        ini_section("listener main", bind="127.0.0.1:0", pool="a", **listener)
        + ini_section("pool a", upstream=upstream, tls="yes", tls_ca=files.backends_ca, check_interval="200ms", **more)
    )  # fmt: skip


def ask(address: Address) -> str:
    with socket.create_connection(address, 20) as sock:
        sock.sendall(REQUEST)
        data = b""
        while part := sock.recv(65536):
            data += part
    return data.partition(b"\r\n\r\n")[2].decode()


def test_nginx_and_openssl_as_backends(files: Files) -> None:
    with nginx(files, "nginx") as one, FileBalancer(pool(files, one), loglevel=1) as lb:
        assert [ask(lb.address) for _ in range(3)] == ["nginx"] * 3
        assert lb.backend(text_of(one))["state"] == "up"
    address = ("127.0.0.1", free_port())
    command: list[object] = [
        tool("openssl"),
        "s_server",
        "-accept",
        address[1],
        "-cert",
        files.backend,
        "-www",
        "-quiet",
    ]
    with running(command, address), FileBalancer(pool(files, address, check="none"), loglevel=1) as lb:
        pages = [ask(lb.address) for _ in range(4)]  # of two workers, each of which keeps its sessions
        assert "New, TLSv1.3" in pages[0] and any("Reused, TLSv1.3" in page for page in pages)


def test_haproxy_takes_a_proxy_header_then_tls_with_our_certificate(files: Files) -> None:
    with haproxy(files, "haproxy") as one:
        text = pool(files, one, send_proxy="v2", tls_cert=files.own)
        with FileBalancer(text, loglevel=1) as lb:
            assert [ask(lb.address) for _ in range(3)] == ["haproxy 127.0.0.1 balancer"] * 3
            wait_for(lambda: lb.backend(text_of(one))["state"] == "up", "the check of it", 10.0)


def test_a_backend_whose_certificate_does_not_hold_is_down_and_no_session_goes_there(files: Files) -> None:
    with nginx(files, "right") as right, nginx(files, "wrong") as wrong:
        text = pool(files, right, wrong, tls_sni="backend.example")
        with FileBalancer(text, loglevel=1) as lb:
            assert {ask(lb.address) for _ in range(4)} == {"right", "wrong"}
            lb.write(pool(files, right, wrong, tls_sni="other.example"))
            lb.reload(2)
            for one in (right, wrong):
                wait_for(lambda one=one: lb.backend(text_of(one))["state"] == "down", "it to be down", 15.0)
            lb.wait_line(r" warning prober pid=\d+ down pool=a backend=\S+ .*check=tls .*Hostname mismatch")
            lb.expect(r"all-down")


def test_sessions_say_why_a_backend_was_refused(files: Files) -> None:
    with nginx(files, "x") as one:
        text = pool(files, one, tls_sni="other.example", check="none", retries=0)
        with FileBalancer(text, loglevel=1) as lb:
            with contextlib.suppress(ConnectionResetError):
                assert ask(lb.address) == ""
            lb.wait_line(
                r' session client=\S+ pool=a backend=\S+ end=SC .* reason="certificate: Hostname mismatch'
            )
            lb.wait_line(
                r' warning worker \d pid=\d+ connect backend=\S+ error="certificate: Hostname mismatch'
            )


def test_a_megabyte_through_tls_on_both_sides(files: Files) -> None:
    data, answer = random.Random(3).randbytes(1 << 20), random.Random(4).randbytes(1 << 20)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.backend)
    received: list[bytes] = []

    def serve(conn: socket.socket) -> None:
        try:
            tls = server.wrap_socket(conn, server_side=True, suppress_ragged_eofs=False)
        except OSError:
            return  # a check
        parts = []
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while part := tls.recv(65536):
                parts.append(part)
        received.append(b"".join(parts))
        with contextlib.suppress(OSError):
            tls.sendall(answer)
            tls.unwrap()

    with Scripted(serve) as backend:
        text = pool(files, backend.address, ends_tls=True, check="none")
        with FileBalancer(text, loglevel=1) as lb:
            client = RawTls(lb.address, context(files))
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            sender.join()
            client.end()
            assert client.read_all() == answer and received == [data]
            client.sock.close()
            lb.check_at_rest()
            totals = lb.status()["totals"]
            assert (totals["bytes_in_total"], totals["bytes_out_total"]) == (1 << 20, 1 << 20)
