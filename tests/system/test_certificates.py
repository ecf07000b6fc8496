"""Renewed certificates: `balancerctl reload certificates` forks nothing, refuses as a whole and is told; that it loses no
session is in test_tls_changes."""

import json
import os
import signal
from pathlib import Path

import pytest

from scripts.lab.backends import Echo
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer
from tests.system.tls_clients import Renewable, client_context, connect, echoes, serial_of


@pytest.fixture
def certificate(tmp_path: Path) -> Renewable:
    return Renewable(tmp_path)


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
        assert lb.ctl("reload", "certificates").stdout == "no certificate has changed\n"
        (pid,) = lb.worker_pids()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: lb.worker_pids() not in ([pid], []), "another worker", 10)
        with connect(lb.address, client_context()) as sock:
            assert serial_of(sock) == serial and echoes(sock)


def test_its_expiry_is_told(certificate: Renewable) -> None:
    """In status, table and metrics, and in the log from 14 days on; the console learns of a renewal."""
    certificate.issue(days=8.5)
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
