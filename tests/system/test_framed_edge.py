"""What stands before and behind framed mode in real processes: certificates, names, claimed addresses, limits, drains,
upgrades, other TLS servers, and what a client that stops costs."""

import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from balancer.edge.proxy_protocol import write_v2
from scripts.lab.kernel import dialled
from scripts.lab.network import Address, free_port, text_of
from scripts.lab.waiting import wait_for
from tests.system.fake_resizer import picture
from tests.system.faults import report
from tests.system.framed_peer import FramedBackend, OwningClient, Visitors, reply_to, request, run_together
from tests.system.harness import Balancer, FileBalancer, Resizer, ini_section
from tests.system.resizer_peer import Peer
from tests.system.services import program, serving
from tests.system.test_backend_tls import Files
from tests.system.test_tls import context
from tests.system.upgradable import UpgradableBalancer, status_or_none, subreaper

FRAMED = {"mode": "framed", "frame": "gowork", "idle_backend_timeout": "2s"}
SERVER = ("198.51.100.9", 443)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def wrapping(
    files: Files, name: str = "a.example", with_certificate: bool = False, claim: str = ""
) -> Callable[[socket.socket], socket.socket]:
    """What a client does with its connection: the PROXY header of a claimed address, then TLS."""
    trusting = context(files, with_certificate)

    def wrap(sock: socket.socket) -> socket.socket:
        if claim:
            sock.sendall(write_v2((claim, 56324), SERVER))
        return trusting.wrap_socket(sock, server_hostname=name)

    return wrap


def is_served(address: Address, wrap: Callable[[socket.socket], socket.socket]) -> bool:
    """Whether a client gets the reply to its request; nothing of one otherwise."""
    try:
        with socket.create_connection(address, 30) as sock, wrap(sock) as stream:
            stream.sendall(request(1, 1, 10, 4))
            got = stream.recv(1000)
    except (ssl.SSLError, ConnectionError):
        return False
    assert not got or len(got) == 16 + 12 + 4
    return bool(got)


def check_nothing_left(lb: Balancer) -> None:
    """No client, no request, and no kept connection once its time is over."""
    lb.wait_idle(10)
    lb.check_descriptors(20)


# -- before the frames


def test_clients_without_a_certificate_reach_no_backend(files: Files) -> None:
    words = (f"--tls-cert={files.certificate}", f"--tls-client-ca={files.clients_ca}")
    with FramedBackend(0) as backend, Balancer(*words, upstreams=[backend.address], **FRAMED) as lb:
        run_together([OwningClient(lb.address, 1, wrap=wrapping(files, with_certificate=True))], 30)
        assert not is_served(lb.address, wrapping(files))
        assert backend.requests == 30
        assert lb.wait_idle(10)["listeners"][0]["tls"]["failures"]["certificate"] == 1


def test_the_name_that_a_client_asks_for_decides_its_pool(files: Files) -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(FramedBackend(n)) for n in range(2)]
        routes = ["sni a.example -> a", "sni b.example -> b", "-> reject"]
        text = ini_section(
            "listener web", bind="127.0.0.1:0", route=routes, tls_cert=[files.certificate, files.other]
        )
        for name, order, backend in zip("ab", ("strict", "any"), backends, strict=True):
            text += ini_section(f"pool {name}", upstream=text_of(backend.address), order=order, **FRAMED)
        lb = stack.enter_context(FileBalancer(text))
        clients = [
            OwningClient(lb.address, n, "any" if n % 2 else "strict", wrap=wrapping(files, f"{'ab'[n % 2]}.example"))
            for n in range(4)
        ]  # fmt: skip
        run_together(clients, 25)
        assert [set(client.by_backend) for client in clients] == [{0}, {1}] * 2
        assert not is_served(lb.address, wrapping(files, "localhost"))
        check_nothing_left(lb)


def test_access_limits_and_log_go_by_the_address_that_a_header_claims(files: Files) -> None:
    limits = {"source_maxconn": 2, "source_rate": "4/1h", "deny": "192.0.2.66"}
    proxied = {"proxy_protocol": "yes", "proxy_trusted": "127.0.0.0/8", "tls_cert": files.certificate}
    with FramedBackend(0) as backend, ExitStack() as stack:
        text = ini_section("balancer", workers=1)
        text += ini_section("listener web", bind="127.0.0.1:0", pool="web", **proxied, **limits)
        text += ini_section("pool web", upstream=text_of(backend.address), **FRAMED)
        lb = stack.enter_context(FileBalancer(text, loglevel=1, workers=1))
        lb.expect("refuse")
        seven, eight, denied = (wrapping(files, claim=f"192.0.2.{n}") for n in (7, 8, 66))
        held = [seven(stack.enter_context(socket.create_connection(lb.address, 30))) for _ in range(2)]
        for one in held:
            one.sendall(request(1, 1, 10, 4))
            assert one.recv(1000)
        assert not is_served(lb.address, seven), "a third client of one source"
        assert [is_served(lb.address, eight) for _ in range(6)] == [True] * 4 + [False] * 2
        assert not is_served(lb.address, denied)
        for one in held:
            one.close()
        lb.wait_idle(10)
        log = lb.log()
        assert re.search(r" request client=192\.0\.2\.7:56324 .*end=--", log)
        assert re.search(r" session client=192\.0\.2\.8:56324 .*requests=1 end=--", log)
        assert re.search(r" refuse client=192\.0\.2\.7:56324 .*reason=source-maxconn=2/2", log)
        assert re.search(r" refuse client=192\.0\.2\.8:56324 .*reason=source-rate", log)
        assert re.search(r" refuse client=192\.0\.2\.66:56324 .*deny", log)
        assert backend.requests == 6


# -- drains, reloads, upgrades


def test_a_backend_in_drain_ends_what_it_has_and_gets_nothing_new(files: Files) -> None:
    release, held = threading.Event(), list[int]()

    def answer_when_released(backend: FramedBackend, conn: socket.socket, payload: bytes) -> bool:
        if payload[:4] == b"\0\0\0\x63":  # client 99
            held.append(backend.name_number)
            release.wait(120)
        conn.sendall(reply_to(payload, backend.name_number))
        return True

    with ExitStack() as stack:
        backends = [stack.enter_context(FramedBackend(n, answer_when_released)) for n in range(2)]
        stack.callback(release.set)
        upstreams = [f"{text_of(one.address)} name=r{one.name_number}" for one in backends]
        words = (f"--tls-cert={files.certificate}",)
        options = {"balance": "roundrobin", "check": "none", "workers": 1} | FRAMED
        options["idle_backend_timeout"] = "10m"
        lb = stack.enter_context(Balancer(*words, upstreams=upstreams, **options))
        wrap = wrapping(files)
        run_together([OwningClient(lb.address, n, wrap=wrap) for n in range(6)], 20)
        ports = [one.address[1] for one in backends]
        waiting = [wrap(stack.enter_context(socket.create_connection(lb.address, 60))) for _ in range(2)]
        for one in waiting:
            one.sendall(request(99, 1, 10, 4))
        wait_for(lambda: sorted(held) == [0, 1], "a request at each", 20)
        assert len(dialled(ports[0])) > 1, "connections rest there"
        assert lb.ctl("drain", "r0").returncode == 0
        wait_for(lambda: len(dialled(ports[0])) == 1, "only the busy connection left", 20)
        before = backends[0].requests
        run_together([OwningClient(lb.address, n, wrap=wrap) for n in range(6, 9)], 20)
        assert backends[0].requests == before
        release.set()
        assert sorted(one.recv(1000)[24:28] for one in waiting) == [b"\0\0\0\0", b"\0\0\0\1"]
        for one in waiting:
            one.close()
        wait_for(lambda: not dialled(ports[0]), "no connection left", 20)
        assert lb.ctl("ready", "r0").returncode == 0
        again = OwningClient(lb.address, 9, wrap=wrap)
        run_together([again], 20)
        assert again.by_backend[0] >= 5


def test_reloads_and_an_upgrade_fail_no_request(files: Files, tmp_path: Path) -> None:
    with subreaper(), ExitStack() as stack:
        backends = [stack.enter_context(FramedBackend(n)) for n in range(2)]
        options = {"drain_timeout": "30s"} | FRAMED
        lb = UpgradableBalancer(tmp_path, upstreams=[one.address for one in backends], **options)
        lb.arguments.append(f"--tls-cert={files.certificate}")
        stack.enter_context(lb.with_file())
        visitors = Visitors([OwningClient(lb.address, n, wrap=wrapping(files)) for n in range(6)])
        stack.callback(visitors.stop)
        for generation in (2, 3):
            visitors.wait_more(100)
            lb.change_file()
            lb.signal(signal.SIGHUP)
            wait_for(lambda wanted=generation: lb.status()["generation"] >= wanted, "the next generation", 20)
        visitors.wait_more(100)
        lb.new_version("9.1")
        lb.upgrade()
        assert lb.old.wait(90) == 0
        status = wait_for(lambda: status_or_none(lb), "a status of the new version", 20)
        assert status["version"] == "9.1"
        visitors.wait_more(200)
        visitors.stop()
        visitors.check_nothing_failed()
        check_nothing_left(lb)


# -- TLS servers of others before the resizers


@contextmanager
def nginx(files: Files, directory: Path, behind: Address) -> Iterator[Address]:
    command, address = program("nginx"), ("127.0.0.1", free_port())
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    config = directory / "nginx.conf"
    config.write_text(f"""
        {f"load_module {module};" if module.exists() else ""}
        daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx.log; events {{}}
        stream {{ server {{ listen 127.0.0.1:{address[1]} ssl; proxy_pass {text_of(behind)};
            ssl_certificate {files.backend}; ssl_certificate_key {files.backend}; ssl_protocols TLSv1.2 TLSv1.3; }} }}
    """)
    with serving([command, "-c", str(config), "-p", str(directory)], directory, address):
        yield address


@contextmanager
def haproxy(files: Files, directory: Path, behind: Address) -> Iterator[Address]:
    """It demands a certificate of ours."""
    command, address = program("haproxy"), ("127.0.0.1", free_port())
    config = directory / "haproxy.cfg"
    config.write_text(f"""
defaults
    mode tcp
    timeout client 60s
    timeout server 60s
    timeout connect 10s
listen l
    bind 127.0.0.1:{address[1]} ssl crt {files.backend} ca-file {files.own_ca} verify required
    server r {text_of(behind)}
""")
    with serving([command, "-db", "-q", "-f", str(config)], directory, address):
        yield address


def test_resizers_behind_nginx_and_haproxy(files: Files, tmp_path: Path) -> None:
    sizes = [(20 + n, 30) for n in range(60)]
    with ExitStack() as stack:
        resizers = [stack.enter_context(Resizer(name=f"r{n}", cpus=1)) for n in range(2)]
        servers = []
        for start, resizer in zip((nginx, haproxy), resizers, strict=True):
            directory = tmp_path / start.__name__
            directory.mkdir()
            servers.append(stack.enter_context(start(files, directory, resizer.address)))
        text = ini_section("listener main", bind="127.0.0.1:0", pool="a", tls_cert=files.certificate)
        text += ini_section(
            "pool a", upstream=[text_of(one) for one in servers], tls="yes", tls_ca=files.backends_ca,
            tls_cert=files.own, check_interval="500ms", **FRAMED,
        )  # fmt: skip
        lb = stack.enter_context(FileBalancer(text))
        for one in servers:
            lb.wait_backend(text_of(one), "up", 20)
        with Peer(lb.address) as peer:
            peer.sock = wrapping(files)(peer.sock)
            for width, height in sizes:
                peer.say(data=picture(64, 48), original_name="p", target_width=width, target_height=height)
            replies = peer.hear_all(len(sizes))
        assert [(one.resized_width, one.resized_height) for one in replies] == sizes
        shares = [backend["sessions_total"] for backend in lb.status()["backends"]]
        assert sum(shares) == len(sizes) and min(shares) > 0, shares
        assert [backend["connect_failures_total"] for backend in lb.status()["backends"]] == [0, 0]


# -- clients that stop


class Stopped:
    """A TLS client whose records pass through this process, to be cut anywhere."""

    def __init__(self, address: Address, trusting: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(address, 60)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting.wrap_bio(self.incoming, self.outgoing, server_hostname="a.example")
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                self.incoming.write(self.sock.recv(65536))
        self.sock.sendall(self.outgoing.read())

    def send(self, data: bytes, cut: int = 0) -> None:
        """Send records, but for the last `cut` bytes."""
        self.tls.write(data)
        records = self.outgoing.read()
        self.sock.sendall(records[: len(records) - cut])


def send_nothing(client: Stopped) -> None:
    pass


def stop_in_a_header(client: Stopped) -> None:
    client.send(request(1, 1, 10, 4)[:7])


def stop_in_a_small_frame(client: Stopped) -> None:
    client.send(request(1, 1, 10_000, 4)[:9000])


def stop_in_a_record(client: Stopped) -> None:
    client.send(request(1, 1, 10_000, 4), cut=1)


def stop_in_a_big_frame(client: Stopped) -> None:
    """Its backend has been elected."""
    client.send(request(1, 1, 400_000, 4)[:17_000])


def read_no_reply(client: Stopped) -> None:
    """More than the sockets on its way hold."""
    client.send(request(1, 1, 10, 1 << 20))


# Bytes of a worker's memory. A TLS session at rest has 13 KB; then there are what it has read, the memory BIO that this
# came through, OpenSSL's buffer for a record that is not whole, and what a client does not take of its reply.
COSTS = {
    send_nothing: 20_000,
    stop_in_a_header: 20_000,
    stop_in_a_small_frame: 42_000,
    stop_in_a_record: 52_000,
    stop_in_a_big_frame: 75_000,
    read_no_reply: 105_000,
}


def test_what_a_stopped_client_costs_at_each_place(files: Files) -> None:
    each = 100
    trusting = context(files)
    words = (f"--tls-cert={files.certificate}",)
    options = {"workers": 1, "frame_timeout": "120s", "check": "none"} | FRAMED
    with FramedBackend(0) as backend, Balancer(*words, upstreams=[backend.address], **options) as lb:
        run_together([OwningClient(lb.address, n, wrap=wrapping(files)) for n in range(4)], 20)
        worker = lb.worker_pids()
        lb.wait_idle(10)
        clients: list[Stopped] = []

        def cost_of(stop: Callable[[Stopped], None]) -> int:
            """Of each of a hundred more clients."""
            before = lb.memory(worker)
            for _ in range(each):
                clients.append(Stopped(lb.address, trusting))
                stop(clients[-1])
            count = len(clients)
            wait_for(lambda: lb.status()["totals"]["sessions"] == count, "every client there", 20)
            return (lb.memory(worker) - before) // each

        costs = {}
        for stop, most in COSTS.items():
            costs[stop] = cost_of(stop)
            if costs[stop] > most:  # how replies and their readers took turns may have grown the heap; once
                costs[stop] = cost_of(stop)
        for client in clients:
            client.sock.close()
        report("stopped TLS clients", **{stop.__name__: cost for stop, cost in costs.items()})
        too_many = {stop.__name__: cost for stop, cost in costs.items() if cost > COSTS[stop]}
        assert not too_many
        check_nothing_left(lb)
