"""Changes of a balancer that ends TLS, under kept sessions and a stream of new clients: no session is lost but those that
a killed worker held, and nobody gets in whom the new trust keeps out."""

import contextlib
import re
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import Address, text_of
from scripts.lab.waiting import wait_for
from tests.authority import Authority
from tests.system.faults import REAPED, kill_counted, ready_pids, report, wait_whole
from tests.system.harness import FileBalancer, ini_section
from tests.system.tls_clients import Renewable, client_context, connect, echoes, serial_of
from tests.system.upgradable import UpgradableBalancer, status_or_none, subreaper

KEPT = 200  # sessions that live through a change
RATE = 200  # new clients a second, where the machine has room for them
THREADS = 8  # which share them
SERVED = 100  # new clients that have to be served after a change, before the next one


class NewClients:
    """Threads of clients that come, ask once and go, RATE a second in all. `failures` are those without an answer."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.served = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    @contextlib.contextmanager
    def coming(self) -> Iterator["NewClients"]:
        threads = [threading.Thread(target=self._come, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def wait_served(self) -> None:
        """Until SERVED more are served."""
        wanted = self.served + SERVED
        wait_for(lambda: self.served >= wanted, f"{SERVED} new clients served", 10)

    def _come(self, number: int) -> None:
        context = client_context()
        due = time.monotonic() + number / RATE
        while not self._is_over.wait(max(0.0, due - time.monotonic())):
            due += THREADS / RATE
            error = self._ask(context)
            with self._lock:
                if error:
                    self.failures.append(error)
                else:
                    self.served += 1

    def _ask(self, context: ssl.SSLContext) -> str:
        try:
            with connect(self.address, context) as sock:
                return "" if echoes(sock) else "an end in place of the answer"
        except OSError as error:
            return repr(error)


class Site:
    """A balancer that ends TLS, with its kept sessions and its stream of new ones."""

    def __init__(self, lb: UpgradableBalancer, certificate: Renewable, new: NewClients) -> None:
        self.lb, self.certificate, self.new = lb, certificate, new
        self.kept: list[ssl.SSLSocket] = []
        self.lost = 0
        self.held_by_the_killed = 0
        self._context = client_context()

    def fill(self) -> None:
        """Have KEPT sessions, each of which has had an answer."""
        while len(self.kept) < KEPT:
            self.kept.append(connect(self.lb.address, self._context))
            assert echoes(self.kept[-1])

    def count_lost(self) -> None:
        """Ask in all kept sessions; leave out and count those that do not answer."""
        living = [sock for sock in self.kept if answers(sock)]
        self.lost += len(self.kept) - len(living)
        for sock in set(self.kept).difference(living):
            sock.close()
        self.kept = living

    def close(self) -> None:
        for sock in self.kept:
            sock.close()
        self.kept = []


def answers(sock: ssl.SSLSocket) -> bool:
    try:
        return echoes(sock)
    except OSError:
        return False


def reload(site: Site) -> None:
    generation = site.lb.status()["generation"] + 1
    site.lb.change_file()
    site.lb.signal(signal.SIGHUP)
    wait_for(lambda: site.lb.status()["generation"] == generation, "the next generation", 15)


def upgrade(site: Site) -> None:
    site.lb.new_version("9.1")
    site.lb.upgrade()
    wait_for(
        lambda: (status_or_none(site.lb) or {}).get("version") == "9.1", "a status of the new version", 5
    )


def kill_each_worker(site: Site) -> None:
    for pid in ready_pids(site.lb).values():
        site.fill()
        site.held_by_the_killed += kill_counted(pid, site.lb.address[1])
        wait_whole(site.lb, 2, {pid})
        site.count_lost()


def renew_certificate(site: Site) -> None:
    pids, serial = site.lb.worker_pids(), site.certificate.issue(days=60)
    at = len(site.lb.log())
    told = site.lb.ctl("reload", "certificates")
    assert (told.returncode, told.stdout) == (0, "1 certificate renewed\n")

    def is_presented() -> bool:
        """By every worker, as far as ten handshakes tell."""
        found = set()
        for _ in range(10):
            with connect(site.lb.address, client_context()) as sock:
                found.add(serial_of(sock))
        return found == {serial}

    wait_for(is_presented, "the new certificate", 5)
    assert site.lb.worker_pids() == pids
    site.lb.wait_line(r' reload generation=1 result="1 certificate renewed"', after=at)


@pytest.mark.parametrize(
    ("change", "times"), [(reload, 2), (upgrade, 1), (kill_each_worker, 1), (renew_certificate, 2)]
)
def test_a_change_under_kept_and_new_sessions_loses_none(
    tmp_path: Path, change: Callable[[Site], None], times: int
) -> None:
    certificate = Renewable(tmp_path)
    with subreaper(), ExitStack() as stack:
        backend = stack.enter_context(Echo())
        options = {"tls_cert": certificate.path, "workers": 2, "drain_timeout": "60s"}
        lb = UpgradableBalancer(tmp_path, upstreams=[backend.address], **options).with_file()
        if change is kill_each_worker:
            lb.expect(REAPED)
        stack.enter_context(lb)
        site = Site(lb, certificate, NewClients(lb.address))
        stack.callback(site.close)
        began = time.monotonic()
        with site.new.coming():
            for _ in range(times):
                site.fill()
                site.new.wait_served()
                change(site)
                site.new.wait_served()
                site.count_lost()
            served, seconds = site.new.served, time.monotonic() - began
        lost = site.lost + len(site.new.failures)
        report(f"TLS, {change.__name__}", lost=lost, served=served, per_second=round(served / seconds))
        assert lost <= site.held_by_the_killed, site.new.failures
        if change is kill_each_worker:
            assert site.lost, "the killed held kept sessions"
        site.close()
        if change is upgrade:
            assert lb.old.wait(10) == 0
        lb.check_at_rest(workers=2, seconds=10)


# -- a change of trust

OLD = Authority("Clients of yesterday")
NEW = Authority("Clients of today")
TRIES = 4  # rounds of intruders


class Intruder:
    """A client that gets in until the trust changes. It tries its certificate, none, and the tickets that it got."""

    def __init__(self, address: Address, certificate: Path | None) -> None:
        self.address = address
        self.certificate = certificate
        self.admitted: list[float] = []  # when those that got in had begun
        self.rounds: list[float] = []  # when each round had begun
        self._with_tickets: list[tuple[ssl.SSLContext, ssl.SSLSession]] = []

    def collect_tickets(self) -> None:
        """Be served with each version of TLS."""
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = known_context(self.certificate)
            context.maximum_version = version
            with connect(self.address, context) as sock:
                assert echoes(sock) and sock.session is not None
                self._with_tickets.append((context, sock.session))
            with connect(self.address, *self._with_tickets[-1]) as sock:
                assert echoes(sock) and sock.session_reused, "the ticket holds until the trust changes"

    def go_round(self) -> None:
        began = time.monotonic()
        for context, session in (
            *self._with_tickets,
            (known_context(self.certificate), None),
            (known_context(None), None),
        ):
            self._try(context, session)
        self.rounds.append(began)

    def _try(self, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError), connect(self.address, context, session) as sock:
            if echoes(sock):
                self.admitted.append(began)


def known_context(certificate: Path | None) -> ssl.SSLContext:
    context = client_context()
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


@contextlib.contextmanager
def trying(intruders: dict[str, Intruder]) -> Iterator[None]:
    """All of them come again and again, in a thread each."""
    is_over = threading.Event()

    def come(intruder: Intruder) -> None:
        while not is_over.wait(0.02):
            intruder.go_round()

    threads = [threading.Thread(target=come, args=(one,)) for one in intruders.values()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_after_a_change_of_trust_nobody_gets_in_by_the_old_one(tmp_path: Path) -> None:
    """Listeners that change in different ways with one reload: who got in before stays out, with an old ticket too."""

    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    old, known = (
        write("old.pem", OLD.issue(common_name="old")),
        write("new.pem", NEW.issue(common_name="new")),
    )
    old_ca, new_ca = write("old-ca.pem", OLD.pem), write("new-ca.pem", NEW.pem)
    both_ca = write("both-ca.pem", OLD.pem + NEW.pem)
    replaced_ca = write("replaced-ca.pem", OLD.pem)
    OLD.revoked.append(OLD.serials["old"])
    revoked = write("revoked.pem", OLD.revocations() + NEW.revocations())
    # before the reload, the certificate of who gets in by it, and what the reload changes
    changes: dict[str, tuple[dict[str, object], Path | None, dict[str, object]]] = {
        "anybody": ({}, None, {"tls_client_ca": new_ca}),
        "optional": (
            {"tls_client_ca": new_ca, "tls_client": "optional"},
            None,
            {"tls_client": "required"},
        ),
        "other": ({"tls_client_ca": old_ca}, old, {"tls_client_ca": new_ca}),
        "replaced": ({"tls_client_ca": replaced_ca}, old, {}),
        "revoked": ({"tls_client_ca": both_ca}, old, {"tls_client_crl": revoked}),
    }
    certificate = Renewable(tmp_path)

    def text(is_changed: bool) -> str:
        parts = [ini_section("pool a", upstream=text_of(backend.address))]
        for name, (before, _, change) in changes.items():
            keys = {"bind": "127.0.0.1:0", "pool": "a", "tls_cert": certificate.path} | before
            parts.append(ini_section(f"listener {name}", **(keys | change if is_changed else keys)))
        return "\n".join(parts)

    with Echo() as backend, FileBalancer(text(False), workers=2) as lb:
        addresses = {one["name"]: address_of(one["addresses"][0]) for one in lb.status()["listeners"]}
        intruders = {
            name: Intruder(addresses[name], certificate) for name, (_, certificate, _) in changes.items()
        }
        for intruder in intruders.values():
            intruder.collect_tickets()
        with trying(intruders):
            wait_for(lambda: all(one.admitted for one in intruders.values()), "all of them in", 10)
            replaced_ca.write_bytes(NEW.pem)
            lb.write(text(True))
            lb.reload(2)
            wait_for(lambda: len(re.findall(r" drain sessions=", lb.log())) >= 2, "no old worker accepts", 10)
            since = time.monotonic()

            def rounds() -> int:
                return min(sum(began > since for began in one.rounds) for one in intruders.values())

            wait_for(lambda: rounds() >= TRIES, f"{TRIES} rounds of each", 20)
            for address in addresses.values():
                with connect(address, known_context(known)) as sock:
                    assert echoes(sock), "who is trusted now gets in"
        late = {name: sum(began > since for began in one.admitted) for name, one in intruders.items()}
        assert not any(late.values()), late
        lb.check_at_rest(workers=2, seconds=10)


def address_of(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)
