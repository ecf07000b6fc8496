"""TLS ended by real balancers: real clients, tickets over workers and reloads, half-closes, storms, hostile bytes."""

import contextlib
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.backends import Echo, Scripted, ThreadedBackend
from scripts.lab.network import Address, text_of
from scripts.lab.waiting import wait_for
from tests.authority import Authority
from tests.system.harness import Balancer, FileBalancer, ini_section
from tests.system.tls_clients import receive

AUTHORITY = Authority()
CLIENTS = Authority("Authority of clients")
REQUEST = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


class Files:
    """What a balancer and its clients read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = self.write("a.pem", AUTHORITY.issue("a.example", "127.0.0.1", "localhost"))
        self.rsa = self.write("rsa.pem", AUTHORITY.issue("a.example", "127.0.0.1", "localhost", key="RSA"))
        self.other = self.write("b.pem", AUTHORITY.issue("b.example"))
        self.ca = self.write("ca.pem", AUTHORITY.pem)
        self.clients_ca = self.write("clients.pem", CLIENTS.pem)
        self.client = self.write("client.pem", CLIENTS.issue(common_name="client"))

    def write(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def context(files: Files, with_certificate: bool = False) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(files.ca))
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if with_certificate:
        made.load_cert_chain(files.client)
    return made


def connect(address: Address, using: ssl.SSLContext, name: str = "a.example", **more: Any) -> ssl.SSLSocket:
    return using.wrap_socket(socket.create_connection(address, 20), server_hostname=name, **more)


def answer_http(conn: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := conn.recv(65536)):
            return
        data += part
    conn.sendall(ANSWER)


def tls_balancer(files: Files, backend: ThreadedBackend, *words: str, **options: object) -> Balancer:
    certificate = f"--tls-cert={files.certificate}"
    return Balancer(certificate, *words, upstreams=[backend.address], loglevel=1, **options)


@pytest.fixture
def lb(files: Files) -> Iterator[Balancer]:
    """HTTP behind TLS, on two workers."""
    with Scripted(answer_http) as backend:
        with tls_balancer(files, backend) as lb:
            yield lb


# -- real clients


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: object, stdin: bytes = b"") -> str:
    done = subprocess.run(
        [str(word) for word in command], input=stdin, capture_output=True, timeout=60, check=False
    )
    return (done.stdout + done.stderr).decode(errors="replace")


@contextlib.contextmanager
def killed_after(seconds: float, process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """A process that says nothing more must not hold the test up."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_curl_with_each_version_and_key(files: Files) -> None:
    curl = tool("curl")
    with Scripted(answer_http) as backend, tls_balancer(files, backend, f"--tls-cert={files.rsa}") as lb:
        url = f"https://127.0.0.1:{lb.address[1]}/"
        for more in (
            ["--tlsv1.3"],
            ["--tls-max", "1.2"],
            ["--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES128-GCM-SHA256"],
        ):
            assert run(curl, "-sS", "--cacert", files.ca, *more, url) == "hello"
        lb.wait_line(r" session client=\S+ sni=- tls=TLSv1\.2 cipher=ECDHE-RSA-AES128-GCM-SHA256 backend=")


def test_openssl_s_client_sees_the_end(files: Files, lb: Balancer) -> None:
    openssl = tool("openssl")
    for version in ("-tls1_2", "-tls1_3"):
        said = run(
            openssl, "s_client", "-connect", text_of(lb.address), "-servername", "a.example", "-CAfile", files.ca,
            "-verify_return_error", "-ign_eof", version, stdin=REQUEST,
        )  # fmt: skip
        assert "hello" in said and "Verification: OK" in said and "closed" in said
    lb.check_at_rest()


def test_openssl_renews_its_keys_in_a_session(files: Files) -> None:
    """K asks for new keys of both sides: the answer leaves although the backend says nothing."""
    openssl = tool("openssl")
    with (
        Echo() as backend,
        tls_balancer(files, backend) as lb,
    ):
        command = [
            openssl,
            "s_client",
            "-connect",
            text_of(lb.address),
            "-tls1_3",
            "-msg",
            "-CAfile",
            str(files.ca),
        ]
        with (
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as client,
            killed_after(30.0, client),
        ):
            assert client.stdin is not None and client.stdout is not None
            said = b""

            def until(text: bytes) -> None:
                nonlocal said
                while text not in said:
                    assert client.stdout is not None
                    part = client.stdout.read1(65536)  # type: ignore[union-attr]
                    assert part, said
                    said += part

            until(b"NewSessionTicket")
            for number in range(3):
                client.stdin.write(b"K\n")
                client.stdin.flush()
                until(b"KEYUPDATE")
                client.stdin.write(b"line %d\n" % number)
                client.stdin.flush()
                said = b""
                until(b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate")
                until(b"line %d" % number)
            client.stdin.close()
            client.wait(20)
        lb.check_at_rest()


def test_openssl_is_told_at_once_that_there_is_no_renegotiation(files: Files) -> None:
    """R asks for another handshake. Neither side says anything else, so no other bytes take the alert along."""
    openssl = tool("openssl")
    with Echo() as backend, tls_balancer(files, backend) as lb:
        command = [openssl, "s_client", "-connect", text_of(lb.address), "-tls1_2", "-CAfile", str(files.ca)]
        with (
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as client,
            killed_after(30.0, client),
        ):
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(b"a line\n")
            client.stdin.flush()
            said = b""
            for wanted in (b"a line", b"no renegotiation"):
                while wanted not in said:
                    part = client.stdout.read1(65536)  # type: ignore[union-attr]
                    assert part, said
                    said += part
                if wanted == b"a line":
                    client.stdin.write(b"R\n")
                    client.stdin.flush()
            client.stdin.close()
            client.wait(20)
        lb.check_at_rest()


def test_node(files: Files, lb: Balancer) -> None:
    node = tool("node")
    script = f"""
        require('https').get({{port: {lb.address[1]}, host: '127.0.0.1', servername: 'a.example',
            ca: require('fs').readFileSync('{files.ca}')}}, r => r.pipe(process.stdout));
    """
    assert run(node, "-e", script) == "hello"


def test_http_from_a_client_without_tls_is_refused_with_a_sentence(lb: Balancer) -> None:
    with socket.create_connection(lb.address, 20) as raw:
        raw.sendall(REQUEST)
        with pytest.raises(ConnectionResetError):
            raw.recv(100)
    lb.wait_line(r""" refuse client=\S+ reason="no TLS: begins with b'GET /'" then=reset""")


# -- tickets


def ask(
    address: Address, using: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLSession | None, bool | None]:
    """A request and its answer; returns the session, and whether it is resumed."""
    with connect(address, using, session=session) as tls:
        tls.sendall(REQUEST)
        data = b""
        while part := tls.recv(65536):
            data += part
        assert data == ANSWER
        return tls.session, tls.session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tickets_resume_on_every_worker_and_after_a_reload(files: Files, version: ssl.TLSVersion) -> None:
    with Scripted(answer_http) as backend:
        text = ini_section(
            "balancer", workers=2, port="0", bind="127.0.0.1", upstream=text_of(backend.address)
        )
        with FileBalancer(text + f"tls-cert = {files.certificate}\n", loglevel=1) as lb:
            using = context(files)
            using.maximum_version = version
            session = ask(lb.address, using)[0]
            for _ in range(20):
                assert ask(lb.address, using, session)[1]
            lb.write(text + f"tls-cert = {files.certificate}\nidle-timeout = 5m\n")
            lb.reload(2)
            lb.wait_one_generation()
            for _ in range(20):
                assert ask(lb.address, using, session)[1]
            assert len(set(re.findall(r"info worker (\d) pid=\d+ session ", lb.log()))) == 2, (
                "both have served"
            )
            totals = lb.status()["listeners"][0]["tls"]
            assert (totals["handshakes_total"], totals["resumed_total"]) == (41, 40)
            # A change of trust: no ticket counts any more, and a client without certificate stays out.
            lb.write(text + f"tls-cert = {files.certificate}\ntls-client-ca = {files.clients_ca}\n")
            lb.reload(3)
            lb.wait_one_generation()
            for _ in range(20):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    ask(lb.address, using, session)
            known = context(files, with_certificate=True)
            known.maximum_version = version
            assert not ask(lb.address, known)[1]
            failures = lb.status()["listeners"][0]["tls"]["failures"]
            assert failures["certificate"] == 20
            lb.check_at_rest()


# -- ends


class RawTls:
    """A client that can end its TLS and go on reading, and whose bytes can be touched."""

    def __init__(self, address: Address, using: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(address, 20)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = using.wrap_bio(self.incoming, self.outgoing, server_hostname="a.example")
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(self.sock.recv(65536))
                continue
            self.flush()
            return

    def flush(self) -> None:
        self.sock.sendall(self.outgoing.read())

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.flush()

    def end(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self.flush()

    def recv(self) -> bytes:
        return receive(self.sock, self.tls, self.incoming)

    def read_all(self) -> bytes:
        parts = []
        while data := self.recv():
            parts.append(data)
        return b"".join(parts)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("first", ["client", "backend"])
def test_half_closes_with_a_megabyte_in_flight(files: Files, version: ssl.TLSVersion, first: str) -> None:
    data, answer = random.Random(1).randbytes(1 << 20), random.Random(2).randbytes(1 << 20)
    received: list[bytes] = []

    def serve(conn: socket.socket) -> None:
        parts = []

        def read() -> None:
            while part := conn.recv(65536):
                parts.append(part)

        if first == "client":
            read()
            conn.sendall(answer)
        else:
            conn.sendall(answer)
            conn.shutdown(socket.SHUT_WR)
            read()
        received.append(b"".join(parts))

    with Scripted(serve) as backend, tls_balancer(files, backend) as lb:
        using = context(files)
        using.maximum_version = version
        for _ in range(3):
            client = RawTls(lb.address, using)
            if first == "client":
                sender = threading.Thread(target=client.send, args=(data,))
                sender.start()
                sender.join()
                client.end()
                assert client.read_all() == answer
            else:
                assert client.read_all() == answer
                client.send(data)
                client.end()
                client.sock.shutdown(socket.SHUT_WR)
            wait_for(lambda: received, "the backend to have everything", 20.0)
            assert received.pop() == data
            client.sock.close()
        lb.check_at_rest()
        totals = lb.status()["totals"]
        assert (totals["bytes_in_total"], totals["bytes_out_total"]) == (3 << 20, 3 << 20)
        assert totals["ends"]["--"] == totals["accepted_total"] == 3


def test_a_backends_reset_is_no_end(files: Files) -> None:
    def serve(conn: socket.socket) -> None:
        conn.recv(100)
        conn.sendall(b"half")
        time.sleep(0.05)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with Scripted(serve) as backend, tls_balancer(files, backend) as lb:
        client = RawTls(lb.address, context(files))
        client.send(b"question")
        assert client.recv() == b"half"
        with pytest.raises(ConnectionResetError):
            client.recv()
        lb.check_at_rest()
        assert lb.status()["totals"]["ends"]["SD"] == 1


# -- hostile clients


def test_clients_that_stop_in_the_handshake_are_cut_and_leave_no_memory(files: Files) -> None:
    with Echo() as backend, tls_balancer(files, backend, tls_handshake_timeout="1s", workers=1) as lb:
        hello = RawTls(lb.address, context(files))
        hello.sock.close()
        first = first_bytes(files)
        before = lb.memory()
        for _ in range(3):
            crowd = []
            for number in range(300):
                sock = socket.create_connection(lb.address, 20)
                sock.sendall(first[: number * len(first) // 280])
                crowd.append(sock)
            began = time.monotonic()
            for sock in crowd:
                sock.settimeout(20)
                with contextlib.suppress(ConnectionResetError):
                    while sock.recv(65536):
                        pass
                sock.close()
            assert time.monotonic() - began < 45
        lb.wait_idle(10.0)
        ends = lb.status()["totals"]["ends"]
        assert ends["cR"] == 900
        assert lb.memory() - before < 900 * 20_000
        lb.check_at_rest()


def first_bytes(files: Files) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = context(files).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_mutated_handshakes_and_records(files: Files) -> None:
    """Any byte of a client changed, in its hello or behind: an end of its own, no fault, and the next one is served."""
    rng = random.Random(11)
    with Echo() as backend, tls_balancer(files, backend, tls_handshake_timeout="1s") as lb:
        for number in range(300):
            client: RawTls | None = None
            if number % 3:
                data = bytearray(first_bytes(files))
                sock = socket.create_connection(lb.address, 20)
            else:
                client = RawTls(lb.address, context(files))
                client.tls.write(rng.randbytes(rng.randrange(1, 40_000)))
                data, sock = bytearray(client.outgoing.read()), client.sock
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with contextlib.suppress(OSError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            sock.close()
        with connect(lb.address, context(files)) as tls:
            tls.sendall(b"still here")
            assert tls.recv(100) == b"still here"
        lb.check_at_rest()


# -- storms and stops


def test_a_storm_of_handshakes_over_reloads_loses_no_session(files: Files) -> None:
    with Echo() as backend:
        text = ini_section(
            "balancer", workers=2, port="0", bind="127.0.0.1", upstream=text_of(backend.address)
        )
        text += f"tls-cert = {files.certificate}\n"
        with FileBalancer(text, loglevel=1) as lb:
            kept = [connect(lb.address, context(files)) for _ in range(20)]
            failed: list[Exception] = []
            counted = [0]
            stop = threading.Event()

            def storm() -> None:
                using = context(files)
                while not stop.is_set():
                    try:
                        with connect(lb.address, using) as tls:
                            tls.sendall(b"x")
                            assert tls.recv(10) == b"x"
                            counted[0] += 1
                    except (OSError, AssertionError) as error:
                        failed.append(error)

            threads = [threading.Thread(target=storm) for _ in range(4)]
            for thread in threads:
                thread.start()
            try:
                for generation in (2, 3):
                    lb.write(text + f"idle-timeout = {generation}m\n")
                    lb.reload(generation)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            assert not failed and counted[0] > 20
            for tls in kept:
                tls.sendall(b"kept")
                assert tls.recv(10) == b"kept"
                tls.close()
            lb.signal(signal.SIGHUP)
            lb.wait_idle(10.0)


def test_check_config_says_what_is_wrong_with_a_certificate(files: Files) -> None:
    expired = files.write("expired.pem", AUTHORITY.issue("a", ends=-timedelta(hours=1)))
    command = ["balancer", "-u", "127.0.0.1:9", "--check-config"]
    said = run_balancer(command, f"--tls-cert={expired}")
    assert "--tls-cert: the certificate in" in said and "has expired on" in said
    assert "configuration OK" in run_balancer(command, f"--tls-cert={files.certificate}")


def run_balancer(command: list[str], *more: str) -> str:
    return run(sys.executable, "-m", *command, *more)
