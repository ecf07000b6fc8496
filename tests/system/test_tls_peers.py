"""A browser whose TLS ends here, and redis-cli whose TLS passes, routed by the name that it asks for."""

import base64
import hashlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from balancer.edge.proxy_protocol import ALPN, AUTHORITY, ProxyClaim, parse
from scripts.lab.backends import Scripted
from scripts.lab.network import Address, free_port, text_of
from tests.authority import Authority
from tests.system.harness import FileBalancer, ini_section
from tests.system.services import program, serving

TLS_PROXY = "v2 authority alpn ssl"
BROWSER = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
IMAGES = 12  # of a page: a browser opens six connections for them


class Website(Scripted):
    """An HTTP/1.1 server behind the balancer: a page with images, whose script counts those that have come. `claims` are
    the PROXY headers of its connections."""

    PAGE = (
        "<html><body><p id=done>waiting</p>"
        + "".join(f'<img src="/{number}.svg" onload="n++">' for number in range(IMAGES))
        + "<script>let n = 0; onload = () => done.textContent = `${n} images over ` + "
        "performance.getEntriesByType('navigation')[0].nextHopProtocol</script></body></html>"
    )
    IMAGE = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>' + " " * 100_000

    def __init__(self) -> None:
        self.claims: list[ProxyClaim] = []
        self._lock = threading.Lock()
        super().__init__(self._serve)

    def _serve(self, conn: socket.socket) -> None:
        data = b""
        while (claim := parse(data)) is None:
            if not (more := conn.recv(65536)):
                return
            data += more
        data = data[claim.size :]
        with self._lock:
            self.claims.append(claim)
        while True:
            while b"\r\n\r\n" not in data:
                if not (more := conn.recv(65536)):
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            is_page = head.startswith(b"GET / ")
            body = (self.PAGE if is_page else self.IMAGE).encode()
            kind = "text/html" if is_page else "image/svg+xml"
            conn.sendall(
                f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )


def key_hash(pem: bytes) -> str:
    """The SHA-256 of a certificate's public key, as browsers pin it."""
    key = x509.load_pem_x509_certificate(pem).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def test_a_browser_is_served_its_page_and_images(tmp_path: Path) -> None:
    """Chromium's hello has GREASE, shuffled extensions and a key share beyond one segment."""
    chromium = program("chromium", "/snap/bin")
    pem = Authority().issue("a.example")
    (tmp_path / "a.pem").write_bytes(pem)
    with Website() as website:
        text = ini_section("balancer", workers=2, tls_cert=tmp_path / "a.pem", tls_alpn="http/1.1")
        text += ini_section("listener web", bind="127.0.0.1:0", pool="web")
        text += ini_section("pool web", upstream=text_of(website.address), send_proxy=TLS_PROXY, check="none")
        with FileBalancer(text, loglevel=1) as lb:
            command = [
                chromium, *BROWSER, f"--user-data-dir={tmp_path}/profile", "--dump-dom",
                f"--host-resolver-rules=MAP a.example:443 {text_of(lb.address)}",
                f"--ignore-certificate-errors-spki-list={key_hash(pem)}", "https://a.example/",
            ]  # fmt: skip
            shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert f">{IMAGES} images over http/1.1<" in shown.stdout, (
                shown.stdout[:300] + shown.stderr[-2000:]
            )
            lb.wait_line(r" session client=\S+ sni=a\.example tls=TLSv1\.3 .*listener=web .*end=(--|CD|cD) ")
            lb.check_at_rest(seconds=10.0)
            totals = lb.status()["listeners"][0]["tls"]
            assert sum(totals["failures"].values()) == 0
            assert totals["handshakes_total"] >= len(website.claims) >= 2, "several connections"
        for claim in website.claims:
            assert (claim.records[AUTHORITY], claim.records[ALPN]) == (b"a.example", b"http/1.1")


@contextmanager
def redis_server(directory: Path, authority: Authority, name: str) -> Iterator[Address]:
    """Redis over TLS only, which knows its own name."""
    directory.mkdir()
    pem, ca, address = directory / "server.pem", directory / "ca.pem", ("127.0.0.1", free_port())
    pem.write_bytes(authority.issue(name))
    ca.write_bytes(authority.pem)
    command = [
        program("redis-server"), "--port", "0", "--tls-port", str(address[1]), "--bind", "127.0.0.1", "--save", "",
        "--tls-cert-file", str(pem), "--tls-key-file", str(pem), "--tls-ca-cert-file", str(ca),
        "--tls-auth-clients", "no", "--dir", str(directory),
    ]  # fmt: skip
    with serving(command, directory, address):
        yield address


def test_redis_servers_behind_one_port_by_their_names(tmp_path: Path) -> None:
    """Each client sees the certificate of its own server: nothing is decrypted on the way."""
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    redis_cli = program("redis-cli")
    with ExitStack() as stack:
        redis = {
            name: stack.enter_context(redis_server(tmp_path / name, authority, f"{name}.redis.example"))
            for name in ("a", "b")
        }
        text = ini_section(
            "listener tls",
            bind="127.0.0.1:0",
            route=["sni a.redis.example -> a", "sni *.redis.example -> b", "-> reject"],
        )
        for name, address in redis.items():
            text += ini_section(f"pool {name}", upstream=f"{text_of(address)} name={name}", check="tcp")
        lb = stack.enter_context(FileBalancer(text, loglevel=1))

        def say(name: str, *words: str) -> subprocess.CompletedProcess[str]:
            command = [redis_cli, "-h", lb.address[0], "-p", str(lb.address[1]), "--tls", "--sni", name]
            return subprocess.run(
                [*command, "--cacert", str(tmp_path / "ca.pem"), *words],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip

        big = "x" * 100_000
        for name in redis:
            assert say(f"{name}.redis.example", "set", "name", f"{name} {big}").stdout == "OK\n"
        for name in redis:
            assert say(f"{name}.redis.example", "get", "name").stdout == f"{name} {big}\n"
            lb.wait_line(rf" session client=\S+ sni={name}\.redis\.example listener=tls pool={name} ")
        assert say("other.example", "ping").returncode != 0
        lb.wait_line(r' session client=\S+ sni=other\.example .*end=PR .* reason="no-route"')
        lb.check_at_rest(seconds=10.0)
