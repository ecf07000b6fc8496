"""Renewed certificates: `balancerctl reload certificates` loses no session, forks nothing, and refuses as a whole."""

import contextlib
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import Address
from scripts.lab.waiting import wait_for
from tests.authority import Authority
from tests.system.harness import Balancer

AUTHORITY = Authority()
SESSIONS = 200


class Renewable:
    """A certificate on disk that is renewed."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "a.pem"
        self.issue()

    def issue(self, *names: str, days: int = 30) -> int:
        """Write a new one, and return its serial number."""
        self.path.write_bytes(AUTHORITY.issue(*(names or ("a.example",)), ends=timedelta(days=days)))
        return AUTHORITY.serials[names[0] if names else "a.example"]


@pytest.fixture
def certificate(tmp_path: Path) -> Renewable:
    return Renewable(tmp_path)


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=AUTHORITY.pem.decode())
    return context


def connect(address: Address, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(address, 30), server_hostname="a.example")


def serial_of(sock: ssl.SSLSocket) -> int:
    found = sock.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def echoes(sock: ssl.SSLSocket, data: bytes = b"hello") -> bool:
    sock.sendall(data)
    got = b""
    while len(got) < len(data):
        got += sock.recv(65536)
    return got == data


@contextlib.contextmanager
def newcomers(address: Address) -> Iterator[list[str]]:
    """Two threads of clients that come, ask and go until the end; what has failed."""
    failures: list[str] = []
    is_over = threading.Event()

    def come() -> None:
        context = client_context()
        while not is_over.is_set():
            try:
                with connect(address, context) as sock:
                    if not echoes(sock):
                        failures.append("other bytes")
            except OSError as error:
                failures.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_a_renewal_under_two_hundred_sessions_and_new_ones(certificate: Renewable) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        lb = stack.enter_context(
            Balancer(f"--tls-cert={certificate.path}", upstreams=[backend.address], workers=2)
        )
        pids, context = lb.worker_pids(), client_context()
        with ExitStack() as clients:
            held = [clients.enter_context(connect(lb.address, context)) for _ in range(SESSIONS)]
            failures = clients.enter_context(newcomers(lb.address))
            for days in (60, 90, 120):
                serial = certificate.issue(days=days)
                told = lb.ctl("reload", "certificates")
                assert (told.returncode, told.stdout) == (0, "1 certificate renewed\n")

                def is_presented(serial: int = serial) -> bool:
                    """By every worker, as far as ten handshakes tell."""
                    found = []
                    for _ in range(10):
                        with connect(lb.address, context) as sock:
                            found.append(serial_of(sock))
                    return set(found) == {serial}

                wait_for(is_presented, "the new certificate", 5)
                assert all(echoes(sock) for sock in held)
            assert not failures
        assert lb.worker_pids() == pids
        assert lb.log().count(' reload generation=1 result="1 certificate renewed"') == 3
        assert lb.ctl("reload", "certificates").stdout == "no certificate has changed\n"
        lb.check_at_rest()


def test_what_cannot_be_taken_leaves_the_old_one(certificate: Renewable) -> None:
    with Echo() as backend, Balancer(f"--tls-cert={certificate.path}", upstreams=[backend.address]) as lb:
        lb.expect(r"error=")
        context = client_context()
        with connect(lb.address, context) as sock:
            old = serial_of(sock)
        for names, days, sentence in (
            (("a.example",), -1, "has expired"),
            (("b.example",), 30, "is another one"),
        ):
            certificate.issue(*names, days=days)
            told = lb.ctl("reload", "certificates")
            assert told.returncode == 1
            assert "the old configuration stays" in told.stderr and sentence in told.stderr
            with connect(lb.address, context) as sock:
                assert serial_of(sock) == old and echoes(sock)


def test_a_worker_that_is_replaced_presents_the_renewed_one(certificate: Renewable) -> None:
    with (
        Echo() as backend,
        Balancer(f"--tls-cert={certificate.path}", upstreams=[backend.address], workers=1) as lb,
    ):
        lb.expect(r"\breap\b|signal")
        serial = certificate.issue(days=60)
        assert lb.ctl("reload", "certificates").returncode == 0
        (pid,) = lb.worker_pids()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: lb.worker_pids() not in ([pid], []), "another worker", 10)
        with connect(lb.address, client_context()) as sock:
            assert serial_of(sock) == serial and echoes(sock)


def test_its_expiry_is_told(certificate: Renewable) -> None:
    """In status, table and metrics, and in the log from 14 days on; the console learns of a renewal."""
    certificate.issue(days=9)
    with Echo() as backend, Balancer(f"--tls-cert={certificate.path}", upstreams=[backend.address]) as lb:
        lb.wait_line(
            rf" warning console pid=\d+ certificate path={certificate.path} listener=main expires_in=8d"
        )
        [found] = lb.status()["listeners"][0]["tls"]["certificates"]
        assert found["path"] == str(certificate.path) and 8 * 86_400 < found["expires_in_s"] < 9 * 86_400
        assert f"certificate {certificate.path} of main expires in 8d" in lb.ctl("status").stdout
        certificate.issue(days=90)
        assert lb.ctl("reload", "certificates").returncode == 0
        [found] = json.loads(lb.ctl("status", "--json").stdout)["listeners"][0]["tls"]["certificates"]
        assert found["expires_in_s"] > 89 * 86_400
        assert "expires in" not in lb.ctl("status").stdout


def test_without_tls_there_is_nothing_to_renew() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb:
        assert lb.ctl("reload", "certificates").stdout == "no certificate has changed\n"
