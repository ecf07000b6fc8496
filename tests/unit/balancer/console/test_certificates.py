"""What is told of certificates: each once, with those that present it, and a line for those that expire."""

from dataclasses import replace
from pathlib import Path

import pytest

from balancer.console.certificates import describe_certificates, warn_of_expiry
from balancer.console.status import describe_expiry
from balancer.console.views import certificates_text
from balancer.edge.certificates import CertificateFile, read_certificate
from balancer.edge.renewal import CertificateHandover
from balancer.eventloop.log import Log
from balancer.options import Listener, Pool
from tests.authority import Authority
from tests.unit.balancer.pool.boards import make_board

NOW = 1_800_000_000.0
DAY = 86_400.0
FILE = CertificateFile(
    "/a.pem", "/a.pem", b"", ("a.example", "b.example"), "EC", 0.0, NOW + 9.5 * DAY, "CN=a", "CN=Authority", NOW - DAY
)  # fmt: skip
LATER = replace(FILE, path="/b.pem", key_path="/b.key", not_after=NOW + 90 * DAY)


def test_each_certificate_is_told_once_with_all_that_present_it() -> None:
    board = make_board()
    handovers = {name: CertificateHandover(files) for name, files in (("x", (LATER, FILE)), ("y", (FILE,)))}
    board.certificates = handovers
    listeners = [Listener("x"), Listener("y"), Listener("plain")]
    pools = [Pool("p", (), tls_cert=replace(FILE, read_at=NOW)), Pool("q", ())]
    found = describe_certificates(board, listeners, pools, NOW)
    assert [(one["path"], one["listeners"], one["pools"]) for one in found] == [
        ("/a.pem", ["x", "y"], []),
        ("/a.pem", [], ["p"]),
        ("/b.pem", ["x"], []),
    ]
    assert found[0]["expires_in_days"] == 9 and found[0]["loaded_at"] == "2027-01-14T08:00:00.000Z"
    handovers["y"].write([replace(FILE, not_after=NOW + 60 * DAY, read_at=NOW)])
    again = [
        (one["listeners"], one["expires_in_days"]) for one in describe_certificates(board, listeners, (), NOW)
    ]
    assert again == [(["x"], 9), (["y"], 60), (["x"], 90)]
    for handover in handovers.values():
        handover.close()


@pytest.mark.parametrize("gap", [0.0, 0.002, 1.5, 60.0])
def test_a_file_that_several_sections_name_or_one_names_twice_is_told_once(gap: float) -> None:
    board = make_board()
    read = [replace(FILE, read_at=NOW - 59.9 + at * gap / 4) for at in range(5)]
    board.certificates = {
        "x": CertificateHandover((read[3], read[4], LATER)),
        "y": CertificateHandover((read[0],)),
    }
    listeners, pools = [Listener("x"), Listener("y")], [Pool("p", (), tls_cert=read[1]), Pool("q", ())]
    found = describe_certificates(board, listeners, pools, NOW)
    assert [(one["path"], sorted(one["listeners"]), one["pools"]) for one in found] == [
        ("/a.pem", ["x", "y"], ["p"]), ("/b.pem", ["x"], []),
    ]  # fmt: skip
    assert [one["path"] for one in describe_expiry(board, listeners[0], NOW)] == ["/a.pem", "/b.pem"]
    for handover in board.certificates.values():
        handover.close()


def test_text_says_what_matters() -> None:
    board = make_board()
    board.certificates = {"x": CertificateHandover((FILE, replace(LATER, not_after=NOW - 1)))}
    text = certificates_text({"certificates": describe_certificates(board, [Listener("x")], (), NOW)})
    assert text.splitlines()[1].split()[:1] == ["/b.pem"] and "EXPIRED" in text and " 9d " in text
    assert certificates_text({"certificates": []}) == "nothing here presents a certificate"


@pytest.mark.parametrize(("days", "told"), [(13.9, "13d"), (14.1, ""), (-1.0, "expired")])
def test_a_warning_names_the_file_and_what_to_do(tmp_path: Path, days: float, told: str) -> None:
    log = Log("console", str(tmp_path / "log"))
    pool = Pool("p", (), tls_cert=replace(FILE, not_after=NOW + days * DAY))
    warn_of_expiry(log, describe_certificates(make_board(), (), [pool], NOW))
    line = (tmp_path / "log").read_text()
    said = f" certificate path=/a.pem pool=p expires_in={told} then=renew it, then balancerctl reload\n"
    assert line.endswith(said) if told else line == ""


def test_who_issued_it_is_read_from_the_file() -> None:
    found = read_certificate("/a.pem", Authority("Root of tests").issue("a.example"), NOW - 365 * DAY)
    assert (found.issuer, found.read_at) == ("CN=Root of tests", NOW - 365 * DAY)
    assert "a.example" in found.subject
