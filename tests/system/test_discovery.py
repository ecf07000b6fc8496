"""Sets of backends that a name server knows: they come and go under load, and no client notices."""

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.rcode
import pytest

from balancer.discovery.dns_client import ATTEMPTS
from scripts.lab.backends import Scripted
from scripts.lab.network import has_ipv6
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, FileBalancer, ini_section
from tests.system.hosts import PATIENCE, Clients, Hosts, connect, tenants
from tests.system.name_server import NameServer
from tests.system.services import Dnsmasq
from tests.system.upgradable import UpgradableBalancer, subreaper

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture
def dns_server() -> Iterator[NameServer]:
    with NameServer() as server:
        yield server


def balancer(server: NameServer, upstream: str, **options: object) -> Balancer:
    options = {"resolver": server.text, "check_interval": "1s", "resolver_refresh": "2s"} | options
    return Balancer(upstreams=[upstream], **options)


def test_a_set_changes_under_load_and_nobody_notices(dns_server: NameServer) -> None:
    """Replaced in part and in whole; errors, silence and no such name keep the last set; a reload and a killed prober and
    worker too."""
    with Hosts() as hosts, ExitStack() as stack:
        a, b, c, d, e, f = hosts.names
        dns_server.know("web.test", a, b, c, ttl=1)
        lb = stack.enter_context(
            balancer(dns_server, f"dns:web.test:{hosts.port} slots=8 name=web").with_file()
        )
        clients = stack.enter_context(Clients(lb))
        clients.wait_served(a, b, c)
        dns_server.know("web.test", a, b, d, ttl=1)
        changed = time.monotonic()
        clients.wait_served(a, b, d)
        assert clients.first[d] - changed < 3 * 2.0, "clamp(TTL) + 1 s, on a machine three times slower"
        dns_server.know("web.test", d, e, f, ttl=600)
        clients.wait_served(d, e, f)
        for rcode in (dns.rcode.SERVFAIL, dns.rcode.NXDOMAIN, dns.rcode.REFUSED):
            dns_server.rcode = rcode
            lb.wait_line(
                rf" resolve set=dns:web\S* error={dns.rcode.to_text(rcode)} .*then=.?keeps 3 backends", 15.0
            )
        dns_server.rcode, dns_server.is_silent = None, True
        lb.wait_line(r" resolve set=\S+ error=timeout ", 25.0)
        (prober,) = [pid for pid, title in lb.titles().items() if "prober" in title]
        os.kill(prober, signal.SIGKILL)
        wait_for(
            lambda: any("prober" in t and str(prober) not in str(p) for p, t in lb.titles().items()),
            "a prober",
        )
        assert tenants(lb) == {d, e, f}
        dns_server.is_silent = False
        dns_server.know("web.test", a, e, f, ttl=0)
        clients.wait_served(a, e, f)
        generation = lb.status()["generation"]
        lb.change_file()
        lb.signal(signal.SIGHUP)
        wait_for(lambda: lb.status()["generation"] > generation, "a reload", PATIENCE)
        assert tenants(lb) == {a, e, f}
        dns_server.know("web.test", b, c, d, ttl=1)
        clients.wait_served(b, c, d)
        assert not clients.failures, clients.failures[:3]
        assert clients.served.total() > 500


def test_five_thousand_connections_of_a_set_that_dnsmasq_knows(tmp_path: Path) -> None:
    """It changes, over a reload, an upgrade, and kill -9 of the prober and of a worker; a service keeps its weights."""
    with Hosts() as hosts, ExitStack() as stack:
        a, b, c, d, e, f = hosts.names
        stack.enter_context(subreaper())
        server = Dnsmasq(tmp_path)
        server.services = [f"_db._tcp.test,{name}.test,{hosts.port},{priority},{weight}"
                           for name, priority, weight in (("one", 1, 1), ("two", 1, 3), ("three", 2, 1))]  # fmt: skip
        stack.enter_context(server)
        fixed = {"one": [a], "two": [b], "three": [c]}
        server.know(web=[a, b, c], **fixed)
        upstream = f"dns:web.test:{hosts.port} slots=12 name=web"
        options = {"resolver": server.text, "check_interval": "1s", "resolver_refresh": "2s"}
        lb = UpgradableBalancer(tmp_path, upstreams=[upstream], **options)
        lb.expect(r"reap|respawn|upgrade|SIGKILL|signal")
        stack.enter_context(lb)
        clients = stack.enter_context(Clients(lb))

        def serve(*names: str, enough: int) -> None:
            server.know(web=names, **fixed)
            clients.wait_served(*names)
            wait_for(lambda: clients.served.total() >= enough, f"{enough} connections", 120)

        serve(a, b, c, enough=1000)
        (prober,) = [pid for pid, title in lb.titles().items() if "prober" in title]
        os.kill(prober, signal.SIGKILL)
        serve(b, c, d, enough=2000)
        with clients.between_sessions():
            os.kill(lb.worker_pids()[0], signal.SIGKILL)
        serve(d, e, enough=3000)
        lb.new_version("9.1")
        lb.upgrade()
        assert lb.old.wait(30) == 0
        assert tenants(lb) == {d, e}
        serve(a, f, enough=4000)
        assert lb.ctl("reload").returncode == 0
        serve(e, f, enough=5000)
        assert not clients.failures, clients.failures[:3]
        service = Balancer(
            upstreams=["srv:_db._tcp.test slots=8 name=db"], balance="roundrobin", workers=1, **options
        )
        stack.enter_context(service)
        served: Counter[str] = Counter()
        for _ in range(400):
            client, name = connect(service)
            client.close()
            served[name] += 1
        assert served == {a: pytest.approx(100, rel=0.05), b: pytest.approx(300, rel=0.05)}, (
            "three is a backup"
        )


@pytest.mark.parametrize("cuts_records", [False, True])
def test_an_answer_that_does_not_fit_comes_over_tcp_and_the_rest_is_left_out(
    dns_server: NameServer, cuts_records: bool
) -> None:
    with Hosts(3) as hosts:
        many = [*hosts.names, *(f"127.0.1.{number}" for number in range(60))]
        dns_server.know("big.test", *many)
        dns_server.most_udp, dns_server.cuts_records = 10, cuts_records
        with balancer(dns_server, f"dns:big.test:{hosts.port} slots=40 name=big", check="none") as lb:
            lb.wait_line(r" resolve set=\S+ left_out=23 slots=40 ", PATIENCE)
            assert len(tenants(lb)) == 40
            assert dns_server.queries["big.test", "A", "tcp"]


def test_a_server_that_hides_its_cuts_is_asked_over_tcp(dns_server: NameServer) -> None:
    """As Consul: three records of many over UDP, others each time, without the TC bit."""
    with Hosts(6) as hosts:
        dns_server.know("web.test", *hosts.names, ttl=0)
        dns_server.most_udp, dns_server.hides_cuts = 3, True
        upstream = f"dns:web.test:{hosts.port} slots=16 name=web"
        with balancer(dns_server, upstream, resolver=f"{dns_server.text} tcp") as lb:
            wait_for(lambda: tenants(lb) == set(hosts.names), "all six", PATIENCE)
            before = dns_server.queries["web.test", "A", "tcp"]
            wait_for(
                lambda: dns_server.queries["web.test", "A", "tcp"] > before + 2, "further answers", PATIENCE
            )
            assert lb.log().count(" resolve ") == 1 and not dns_server.queries["web.test", "A", "udp"]


def test_obsolete_bridges_answers_that_leave_some_out(dns_server: NameServer) -> None:
    with Hosts(4) as hosts:
        dns_server.know("web.test", *hosts.names, ttl=0)
        dns_server.most_udp, dns_server.hides_cuts = 3, True
        with balancer(dns_server, f"dns:web.test:{hosts.port} slots=16 name=web obsolete=30") as lb:
            wait_for(lambda: tenants(lb) == set(hosts.names), "all four", PATIENCE)
            before = dns_server.queries["web.test", "A", "udp"]
            wait_for(
                lambda: dns_server.queries["web.test", "A", "udp"] > before + 4, "more answers", PATIENCE
            )
            assert tenants(lb) == set(hosts.names) and " removed=" not in lb.log()


@pytest.mark.parametrize(("transport", "obsolete"), [("tcp", 1), ("udp", 60)])
def test_consuls_file_finds_all_instances(dns_server: NameServer, transport: str, obsolete: int) -> None:
    """Consul's answers: TTL 0, three of six instances over UDP without the TC bit, other ones each time, and no such name
    when none is healthy. Its port is not 53."""
    with Hosts(6) as hosts:
        service = "_web._tcp.service.consul"
        nodes = {
            name: f"{int.from_bytes(socket.inet_aton(name)):08x}.addr.dc1.consul" for name in hosts.names
        }
        for name, node in nodes.items():
            dns_server.know(node, name, ttl=0)
        records = [f"1 10 {hosts.port} {node}." for node in nodes.values()]
        dns_server.know(service, *records, ttl=0, kind="SRV")
        dns_server.most_udp, dns_server.hides_cuts = 3, True
        text = (CONF / "consul" / "balancer.ini").read_text()
        for old, new in (
            ("127.0.0.1:8600 tcp", dns_server.text + " tcp" * (transport == "tcp")),
            ("port = 9090", "bind = 127.0.0.1:0"),
            ("metrics = 127.0.0.1:9091\n", ""),
            ("slots=64", f"slots=64 obsolete={obsolete}"),
        ):
            assert text.count(old) >= 1, old
            text = text.replace(old, new)
        with FileBalancer(text) as lb:
            wait_for(lambda: tenants(lb) == set(hosts.names), "all six", PATIENCE)
            before = dns_server.queries[service, "SRV", transport]
            wait_for(
                lambda: dns_server.queries[service, "SRV", transport] > before + 3, "more answers", PATIENCE
            )
            assert tenants(lb) == set(hosts.names)
            other = {"tcp": "udp", "udp": "tcp"}[transport]
            assert not dns_server.queries[service, "SRV", other]
            dns_server.forget(service)
            lb.wait_line(r" resolve .*error=NXDOMAIN .*then=.?keeps 6 backends", PATIENCE)
            client, name = connect(lb)
            client.close()
            assert name in hosts.names
            if obsolete == 1:
                dns_server.know(service, *records[:2], ttl=0, kind="SRV")
                wait_for(lambda: tenants(lb) == set(hosts.names[:2]), "the two that are left", PATIENCE)


FAMILIES = {  # of web.test, which has an address of either family, and of six.test
    "default": ("dns:web.test", {"127.0.0.2"}),
    "four": ("dns:web.test family=4", {"127.0.0.2"}),
    "six": ("dns:web.test family=6", {"[::1]"}),
    "both": ("dns:web.test family=both", {"127.0.0.2", "[::1]"}),
    "prefer": ("dns:web.test family=prefer-6", {"[::1]"}),
    "only": ("dns:six.test", {"[::1]"}),
    "service": ("srv:_db._tcp.test family=6", {"[::1]"}),
    "services": ("srv:_db._tcp.test family=both", {"127.0.0.2", "[::1]"}),
}


@pytest.mark.skipif(not has_ipv6(), reason="needs ::1")
def test_both_families_from_dnsmasq(tmp_path: Path) -> None:
    """Of a host that has both, of one that has IPv6 only, and when an address of one family goes."""
    with Hosts(1) as hosts, ExitStack() as stack:
        stack.enter_context(Scripted(lambda conn: conn.sendall(b"::1".ljust(12)), "::1", hosts.port))
        server = Dnsmasq(tmp_path)
        server.services = [f"_db._tcp.test,web.test,{hosts.port},1,1"]
        stack.enter_context(server)
        server.know(web=["127.0.0.2", "::1"], six=["::1"])
        text = ini_section("balancer", resolver=server.text, resolver_refresh="1s", check_interval="1s")
        for pool, (name, _) in FAMILIES.items():
            where, *words = name.split()
            at = where if where.startswith("srv:") else f"{where}:{hosts.port}"
            text += ini_section(f"listener {pool}", bind="127.0.0.1:0", pool=pool)
            text += ini_section(f"pool {pool}", upstream=" ".join([at, "slots=4", f"name={pool}", *words]))
        lb = stack.enter_context(FileBalancer(text))

        def found() -> dict[str, set[str]]:
            return {
                pool["name"]: {
                    one["address_in_use"].rpartition(":")[0]
                    for one in pool["backends"]
                    if one["address_in_use"]
                }
                for pool in lb.status()["pools"]
            }

        wanted = {pool: addresses for pool, (_, addresses) in FAMILIES.items()}
        wait_for(lambda: found() == wanted, f"{wanted}, not {found()}", PATIENCE)
        for listener in lb.status()["listeners"]:
            if listener["name"] in ("six", "only", "service"):
                host, _, port = listener["addresses"][0].rpartition(":")
                with socket.create_connection((host, int(port)), PATIENCE) as client:
                    assert client.recv(12, socket.MSG_WAITALL).strip() == b"::1"
        server.know(web=["127.0.0.2"], six=["::1"])
        after = wanted | {"both": {"127.0.0.2"}, "prefer": {"127.0.0.2"}, "services": {"127.0.0.2"}}
        wait_for(
            lambda: found() == after, f"{after} (an empty answer keeps the last), not {found()}", PATIENCE
        )
        server.know(web=["::1"], six=["::1"])
        last = {key: {"[::1]"} for key in after} | {"four": {"127.0.0.2"}}
        wait_for(lambda: found() == last, f"{last}, not {found()}", PATIENCE)


def test_a_service_has_ports_weights_and_priorities(dns_server: NameServer) -> None:
    with Hosts(2) as hosts, Hosts(1) as other:
        a, b = hosts.names
        dns_server.know("a.test", a)
        dns_server.know("b.test", b)
        records = [
            f"10 10 {hosts.port} a.test.",
            f"10 30 {hosts.port} b.test.",
            f"20 10 {other.port} a.test.",
        ]
        dns_server.know("_db._tcp.test", *records, kind="SRV")
        upstream = "srv:_db._tcp.test slots=8 name=db"
        with balancer(dns_server, upstream, balance="roundrobin", workers=1) as lb:
            served: Counter[str] = Counter()
            for _ in range(400):
                client, name = connect(lb)
                client.close()
                served[name] += 1
            assert served[b] == pytest.approx(300, rel=0.05), served
            dns_server.know("_db._tcp.test", f"10 10 {other.port} a.test.", kind="SRV")
            moved = {f"{a}:{other.port}"}
            wait_for(
                lambda: {each["address_in_use"] for each in lb.status()["backends"]} == moved,
                "the other port",
                PATIENCE,
            )
            client, name = connect(lb)
            client.close()
            assert name == a


def test_tenants_do_not_inherit_sessions(dns_server: NameServer) -> None:
    """20 full changes, and of each set long sessions are kept: every address has its share of new ones."""
    with Hosts(12) as hosts, ExitStack() as stack:
        sets = [hosts.names[number : number + 3] for number in (0, 3, 6, 9)]
        dns_server.know("web.test", *sets[0], ttl=0)
        lb = stack.enter_context(
            balancer(dns_server, f"dns:web.test:{hosts.port} slots=6 name=web", workers=1)
        )
        for turn in range(1, 21):
            for _ in range(3):
                client, _ = connect(lb)
                stack.callback(client.close)
            dns_server.know("web.test", *sets[turn % 4], ttl=0)
            wait_for(lambda wanted=set(sets[turn % 4]): tenants(lb) == wanted, "the next set", PATIENCE)
        served: Counter[str] = Counter()
        held = []
        for _ in range(300):
            client, name = connect(lb)
            held.append(client)
            served[name] += 1
        for client in held:
            client.close()
        assert all(80 <= served[name] <= 120 for name in sets[0]), served
        stack.close()


def test_a_start_waits_for_the_first_answer(dns_server: NameServer) -> None:
    """No client is refused although the server answers late, and empty slots are neither up nor down."""
    with Hosts(2) as hosts:
        dns_server.know("web.test", *hosts.names)
        dns_server.is_silent = True
        lb = balancer(dns_server, f"dns:web.test:{hosts.port} slots=16 name=web")
        try:
            lb.start()
            wait_for(lambda: dns_server.queries.total() > 0, "a query", PATIENCE)
            assert " ready workers=" not in lb.log()
            dns_server.is_silent = False
            lb.wait_ready()
            client, _ = connect(lb)
            client.close()
            status = lb.status()
            assert (status["pools"][0]["up"], len(status["backends"])) == (2, 2)
            assert " down " not in lb.log() and "all-down" not in lb.log()
            (row,) = status["pools"][0]["sets"]
            assert (row["name"], row["slots"], row["backends"], row["server"]) == (
                f"dns:web.test:{hosts.port}", 16, 2, "127.0.0.1",
            )  # fmt: skip
            assert row["ttl_s"] == 1.0 and row["queries_total"] >= 1
            dns_server.rcode = dns.rcode.SERVFAIL
            wait_for(lambda: "SERVFAIL" in lb.ctl("dns").stdout, "the error", PATIENCE)
            (found,) = json.loads(lb.ctl("dns", "--json").stdout)["dns"]
            assert {one["address"] for one in found["tenants"]} == {
                f"{name}:{hosts.port}" for name in hosts.names
            }
            assert (found["error"], found["ttl_left_s"] <= 1.0) == ("SERVFAIL", True)
            for text in (lb.ctl("dns").stdout, lb.ctl("status").stdout):
                assert f"dns:web.test:{hosts.port}" in text and "2/16 slots" in text
        finally:
            lb.stop()
            lb.kill_everything()


def test_five_hundred_names_are_asked_by_their_ttl(dns_server: NameServer) -> None:
    """And not by resolver-refresh, which is the same for all of them: queries are counted."""
    short, long = ([f"{word}-{number}.test" for number in range(250)] for word in ("short", "long"))
    for names, ttl in ((short, 1), (long, 500)):
        for name in names:
            dns_server.know(name, "127.0.0.2", ttl=ttl)
    text = ini_section("balancer", resolver=dns_server.text, resolver_refresh="10m", check="none")
    text += ini_section("listener a", bind="127.0.0.1:0", pool="a")
    text += ini_section("pool a", upstream=[f"dns:{name}:9 slots=1 name={name}" for name in (*short, *long)])
    began = time.monotonic()
    with FileBalancer(text) as lb:

        def asked(names: list[str]) -> list[int]:
            return [dns_server.queries[name, "A", "udp"] for name in names]

        wait_for(
            lambda: sum(bool(e["address_in_use"]) for e in lb.status()["backends"]) == 500,
            "all",
            3 * PATIENCE,
        )
        settled = asked(long)
        wait_for(lambda: min(asked(short)) >= 6, "six queries for each short TTL", 3 * PATIENCE)
        assert asked(long) == settled and max(settled) <= ATTEMPTS
        most = time.monotonic() - began + 1  # a second apart; one that is answered late is sent again
        assert max(asked(short)) <= ATTEMPTS * most
        assert {name for name, *_ in dns_server.queries} == {*short, *long}, "and nothing else is asked for"
