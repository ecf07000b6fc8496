"""Checks by TLS of real servers: by the name of the check, with the trust of the pool, in whatever protocol; sessions are
relayed as they come."""

import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from scripts.lab.network import Address, free_port, text_of
from scripts.lab.waiting import wait_for
from tests.system import services
from tests.system.harness import FileBalancer, ini_section
from tests.system.test_backend_tls import Files, nginx, running
from tests.system.test_tls import REQUEST, connect, tool

PATIENCE = 20.0  # seconds; a passing run does not wait for them


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@contextmanager
def s_server(files: Files, *words: object) -> Iterator[Address]:
    """OpenSSL's own server."""
    address = ("127.0.0.1", free_port())
    command = [tool("openssl"), "s_server", "-accept", address[1], "-cert", files.backend, "-www", *words]
    directory = files.directory / f"s_server-{address[1]}"
    directory.mkdir()
    with services.serving([str(word) for word in command], directory, address):
        yield address


@contextmanager
def redis(files: Files) -> Iterator[Address]:
    """A Redis server that speaks TLS only; its clients need no certificate."""
    address = ("127.0.0.1", free_port())
    command = [services.program("redis-server"), "--port", 0, "--tls-port", address[1], "--save", ""]
    command += ["--tls-cert-file", files.backend, "--tls-key-file", files.backend, "--tls-auth-clients", "no"]
    command += ["--tls-ca-cert-file", files.backends_ca]
    with running(command, address):
        yield address


def test_what_speaks_tls_is_checked_by_tls_and_told_apart(files: Files) -> None:
    with ExitStack() as stack:
        web = stack.enter_context(nginx(files, "web"))
        plain, _ = stack.enter_context(services.nginx(files.directory))
        verify = ("-Verify", 1, "-CAfile", files.own_ca, "-verify_return_error")
        strict = stack.enter_context(s_server(files, *verify))
        old = stack.enter_context(s_server(files, "-tls1_2"))
        pools: dict[str, tuple[Address, dict[str, object]]] = {
            "address": (web, {"check": "tls"}),
            "name": (web, {"check": "tls sni=backend.example"}),
            "pool-name": (web, {"check": "tls", "tls_sni": "backend.example"}),
            "http": (web, {"check": "http GET / sni=backend.example expect=200"}),
            "port": (plain, {"check": f"tls port={web[1]}"}),
            "unverified": (web, {"check": "tls sni=other.example", "tls_verify": "no"}),
            "old": (old, {"check": "tls sni=backend.example"}),
            "sessions": (web, {"check": "http GET /", "tls": "yes"}),
            "beside": (web, {"check": f"http GET /ready port={plain[1]}", "tls": "yes"}),
            "certificate": (strict, {"check": "tls", "tls_cert": files.own}),
            "without": (strict, {"check": "tls"}),
            "other": (web, {"check": "tls sni=other.example"}),
            "system": (web, {"check": "tls", "tls_ca": ""}),
            "no-tls": (plain, {"check": "tls"}),
            "in-plain": (web, {"check": "http GET / expect=200"}),
        }
        wanted = {
            "without": ("tls", r'"TLS: tlsv13 alert certificate required"'),
            "other": (
                "tls",
                r'"certificate: Hostname mismatch, certificate is not valid for \'other\.example\'\."',
            ),
            "system": ("tls", r'"certificate: unable to get local issuer certificate"'),
            "no-tls": ("tls", r'"TLS: wrong version number"'),
            "in-plain": ("status", r'"HTTP/1\.1 400 Bad Request"'),
        }
        text = ini_section("balancer", check_interval="200ms", connect_timeout="5s")
        text += ini_section("listener main", bind="127.0.0.1:0", pool="address")
        for name, (address, keys) in pools.items():
            upstream = f"{text_of(address)} name={name}"
            text += ini_section(f"pool {name}", upstream=upstream, **{"tls_ca": files.backends_ca} | keys)
        lb = FileBalancer(text)
        lb.expect("all-down")
        stack.enter_context(lb)

        def are_checked() -> bool:
            found = lb.status()["backends"]
            is_down = {each["name"] for each in found if each["state"] == "down"}
            return is_down >= wanted.keys() and all(each["checks_total"] >= 4 for each in found)

        wait_for(are_checked, "each is checked", PATIENCE)
        for each in lb.status()["backends"]:
            state = ("down", wanted[each["name"]][0]) if each["name"] in wanted else ("up", "ok")
            assert (each["state"], each["check"]) == state, each
            assert each["name"] in wanted or not each["check_failures_total"], each
        for name, (word, said) in wanted.items():
            lb.wait_line(rf" down .*\bbackend={name} .*\bcheck={word} .*\bgot={said} ")

        using = ssl.create_default_context(cafile=str(files.backends_ca))
        using.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with connect(lb.address, using, "backend.example") as client:  # the backend's own certificate
            client.sendall(REQUEST)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_redis_behind_tls_is_asked_for_its_role(files: Files) -> None:
    with redis(files) as one:
        text = ini_section("balancer", check_interval="200ms", connect_timeout="5s")
        text += ini_section("listener main", bind="127.0.0.1:0", pool="primary")
        for name in ("primary", "replica"):
            check = f"redis role={name} sni=backend.example"
            upstream = f"{text_of(one)} name={name}"
            text += ini_section(f"pool {name}", upstream=upstream, check=check, tls_ca=files.backends_ca)
        lb = FileBalancer(text)
        lb.expect("all-down")
        with lb:
            lb.wait_line(r' down .*\bbackend=replica .*\bcheck=reply .*\bgot="?master', PATIENCE)
            assert lb.backend("primary")["check"] == "ok" and lb.backend("primary")["state"] == "up"
