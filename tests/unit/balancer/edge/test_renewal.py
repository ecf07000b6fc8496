"""Renewed certificates: read, tried, presented by living contexts in every process, or refused as a whole."""

import gc
import os
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from balancer.edge.certificates import CertificateFile, parse_certificate, parse_trust
from balancer.edge.renewal import CertificateHandover
from balancer.edge.tls import TICKETS_LAST, ContextTable, ListenerTls, ServerContexts, make_context, renew
from tests.authority import Authority
from tests.unit.balancer.edge.handshakes import client_context, shake_hands

AUTHORITY = Authority()
CLIENTS = Authority("Authority of clients")


class OnDisk:
    """Certificates in a directory, and contexts made of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.time = 0.0
        self.contexts = ServerContexts(lambda: self.time)
        self.issue("a", "a.example")
        self.issue("b", "b.example")

    def issue(self, name: str, *names: str, key: str = "EC", days: int = 30) -> None:
        path = self.directory / f"{name}.pem"
        path.write_bytes(AUTHORITY.issue(*names, key=key, ends=timedelta(days=days)))

    def settings(self, **more: object) -> ListenerTls:
        files = tuple(parse_certificate(str(self.directory / f"{name}.pem")) for name in "ab")
        return ListenerTls(tls_cert=files, **more)  # type: ignore[arg-type]

    def table(self, generation: int = 1, **more: object) -> ContextTable:
        return self.contexts.tables([("web", self.settings(**more))], generation)["web"]


@pytest.fixture
def disk(tmp_path: Path) -> OnDisk:
    return OnDisk(tmp_path)


def serial_of(table: ContextTable, name: str) -> int:
    found = shake_hands(table.choose(name), client_context(AUTHORITY), name).client.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def test_a_living_context_presents_what_is_on_disk_now_and_resumes_what_it_gave_out(disk: OnDisk) -> None:
    table = disk.table()
    client = client_context(AUTHORITY)
    session = shake_hands(table.choose("a.example"), client, "a.example").client.session
    old = serial_of(table, "a.example"), serial_of(table, "b.example")
    disk.issue("a", "a.example", days=90)
    assert renew([table]) == 1
    assert serial_of(table, "a.example") != old[0] and serial_of(table, "b.example") == old[1]
    assert shake_hands(table.choose("a.example"), client, "a.example", session).server.session_reused
    assert renew([table]) == 0
    assert disk.table() is table, "the next reload keeps the context"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda disk: disk.issue("b", "b.example", days=-1), "has expired"),
        (
            lambda disk: disk.issue("b", "c.example"),
            "is another one (EC for c.example, before: EC for b.example)",
        ),
        (
            lambda disk: disk.issue("b", "b.example", key="RSA"),
            "takes new contexts, and so `balancerctl reload`",
        ),
        (lambda disk: (disk.directory / "b.pem").unlink(), "cannot read"),
        (lambda disk: (disk.directory / "b.pem").write_text("x"), "holds no certificate"),
        (
            lambda disk: (disk.directory / "b.pem").write_bytes(
                AUTHORITY.issue("b.example", with_key=False)
                + AUTHORITY.issue("b.example").partition(b"-----END CERT")[2]
            ),
            "the key does not belong to the certificate",
        ),
        (
            lambda disk: (disk.directory / "clients.pem").write_bytes(Authority("Another one").pem),
            "clients.pem has changed: that takes new contexts",
        ),
    ],
    ids=range(7),
)
def test_what_living_contexts_cannot_take_changes_nothing(
    disk: OnDisk, change: Callable[[OnDisk], object], sentence: str
) -> None:
    """Not even the certificate that is right."""
    (disk.directory / "clients.pem").write_bytes(CLIENTS.pem)
    trust = parse_trust(str(disk.directory / "clients.pem"))
    table = disk.table(tls_client_ca=trust, tls_client="optional")
    old = serial_of(table, "a.example"), serial_of(table, "b.example")
    disk.issue("a", "a.example", days=90)
    change(disk)
    with pytest.raises(ValueError) as refused:
        renew([table])
    assert sentence in str(refused.value)
    assert (serial_of(table, "a.example"), serial_of(table, "b.example")) == old
    assert table.handover.read() is None


def test_another_process_takes_what_was_handed_over_once(disk: OnDisk) -> None:
    table = disk.table()
    console = twin(table.handover)
    before = [file.not_after for file in console.files()]
    disk.issue("b", "b.example", days=90)
    worker = ContextTable(table.settings, make_context)
    worker.handover = twin(table.handover)
    assert not worker.take_renewed()
    renew([table])
    assert worker.take_renewed() and not worker.take_renewed()
    assert serial_of(worker, "b.example") == serial_of(table, "b.example")
    assert serial_of(worker, "a.example") == serial_of(table, "a.example")
    after = [file.not_after for file in console.files()]
    assert after == [file.not_after for file in table.handover.files()]
    assert after[0] == before[0] and after[1] > before[1] + 59 * 86_400


def test_what_a_process_could_not_load_is_tried_again(disk: OnDisk) -> None:
    """As when it is out of descriptors: else it would present the old certificate until it expires."""
    table = disk.table()
    worker = ContextTable(table.settings, make_context)
    worker.handover = twin(table.handover)
    good = table.files
    table.handover.write([replace(good[0], pem=b"cut"), good[1]])
    for _ in range(2):
        with pytest.raises(ssl.SSLError):
            worker.take_renewed()
    table.handover.write(good)
    assert worker.take_renewed() and not worker.take_renewed()


def test_contexts_that_are_replaced_leave_no_descriptor(disk: OnDisk) -> None:
    """A process forked later would inherit it, and each reload one more."""
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    for generation, version in enumerate(("1.2", "1.3", "1.2")):
        table = disk.table(generation, tls_min=version)
        disk.contexts.retire(generation - 1)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert table.handover.read() is None and len(table.handover.files()) == 2


@pytest.mark.parametrize(
    "later, more", [(TICKETS_LAST, {}), (0.0, {"tls_min": "1.3"})], ids=["old", "changed"]
)
def test_a_reload_that_is_not_taken_leaves_the_contexts_that_serve(
    disk: OnDisk, later: float, more: dict[str, object]
) -> None:
    """Its plan is refused, or equal to the one that serves: it has made tables of its own, which no worker has."""
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    serving = disk.table()
    worker = ContextTable(serving.settings, make_context)
    worker.handover = twin(serving.handover)
    disk.time = later
    assert disk.table(2, **more) is not serving
    disk.contexts.retire(2)
    disk.issue("a", "a.example", days=90)
    assert renew([serving]) == 1
    assert worker.take_renewed()
    assert serial_of(worker, "a.example") == serial_of(serving, "a.example")
    disk.time = 0.0
    assert disk.table(3) is serving, "and the next plan finds them"
    disk.contexts.retire(1)
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_a_forked_process_keeps_what_its_generation_has(disk: OnDisk) -> None:
    others, own = disk.table(1), disk.table(2, tls_min="1.3")
    disk.contexts.keep_only([own])
    assert os.fstat(own.handover.fileno())
    with pytest.raises(ValueError, match="closed"):
        others.handover.fileno()


def twin(handover: CertificateHandover) -> CertificateHandover:
    """What a forked process has of it: the same memory, and a state of its own."""
    other = object.__new__(CertificateHandover)
    vars(other).update(vars(handover))
    return other


def test_what_is_half_written_is_read_later(disk: OnDisk) -> None:
    files: tuple[CertificateFile, ...] = disk.settings().tls_cert
    writer = CertificateHandover(files)
    reader = twin(writer)
    writer.write([replace(file, issuer="CN=New") for file in files])
    whole = os.pread(reader.fileno(), 1 << 20, 0)
    for wrong in (whole[:-20], b"", whole.replace(b'"version": 1', b'"version": 2')):
        os.ftruncate(reader.fileno(), 0)
        os.pwrite(reader.fileno(), wrong, 0)
        assert reader.read() is None and reader.files() == files
    os.ftruncate(reader.fileno(), 0)
    os.pwrite(reader.fileno(), whole, 0)
    assert reader.read() == [file.pem for file in files]
    assert reader.read() is None
    assert {file.issuer for file in reader.files()} == {"CN=New"}


def test_a_client_without_a_certificate_stays_out_after_a_renewal(disk: OnDisk) -> None:
    (disk.directory / "clients.pem").write_bytes(CLIENTS.pem)
    table = disk.table(tls_client_ca=parse_trust(str(disk.directory / "clients.pem")))
    disk.issue("a", "a.example", days=90)
    assert renew([table]) == 1
    shake_hands(table.choose("a.example"), client_context(AUTHORITY, CLIENTS), "a.example")
    with pytest.raises(ssl.SSLError):
        shake_hands(table.choose("a.example"), client_context(AUTHORITY), "a.example")
