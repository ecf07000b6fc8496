"""Backends given by names: several addresses, of which some do not answer; answers that come late, or never; changes.

Each balancer has /etc/hosts and /etc/resolv.conf of its own, in a mount namespace.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.backends import Echo
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, FileBalancer, ini_section

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1)"
)

NAME = "backend.test"
Start = Callable[..., Balancer]


class Names:
    """What the balancer's machine knows."""

    def __init__(self, directory: Path) -> None:
        self.hosts, self.servers = directory / "hosts", directory / "resolv.conf"
        self.servers.write_text("nameserver 127.0.0.1\n")  # where nobody listens: an error at once
        self.know()

    def know(self, *addresses: str) -> None:
        """From now on the name has these addresses, the first preferred."""
        lines = ["127.0.0.1 localhost", *(f"{address} {NAME}" for address in addresses)]
        self.hosts.write_text("\n".join(lines) + "\n")

    def wrapper(self) -> list[str]:
        mounts = f"mount --bind {self.hosts} /etc/hosts && mount --bind {self.servers} /etc/resolv.conf"
        return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(tmp_path)


@pytest.fixture
def start(names: Names) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(lb: Balancer) -> Balancer:
            lb.wrapper = names.wrapper()
            lb.expect("all-down")
            stack.enter_context(lb)
            return lb

        yield begin


def ask(lb: Balancer, seconds: float = 5.0) -> bytes:
    with socket.create_connection(lb.address, seconds) as client:
        client.sendall(b"hi")
        return client.recv(10)


def echo_at(host: str, port: int = 0) -> Echo:
    return Echo(host, port)


CASES = [
    ("::1", ["127.0.0.1", "::1"]),  # a v6-only server
    ("127.0.0.1", ["::1", "127.0.0.1"]),  # localhost of most systems, a v4-only server
    ("127.0.0.77", ["127.0.0.77", "127.0.0.1"]),  # two A records, whichever comes first
    ("127.0.0.1", ["127.0.0.77", "127.0.0.1"]),
    ("127.0.0.9", [f"127.0.0.{number}" for number in range(2, 10)]),
]


@pytest.mark.parametrize("check", ["tcp", "none"])
@pytest.mark.parametrize(("alive", "addresses"), CASES)
def test_whichever_address_answers_the_first_client_is_served(
    names: Names, start: Start, alive: str, addresses: list[str], check: str
) -> None:
    names.know(*addresses)
    with echo_at(alive) as backend:
        port = backend.address[1]
        lb = start(Balancer(upstreams=[f"{NAME}:{port}"], check=check, check_interval="200ms"))
        assert [ask(lb) for _ in range(6)] == [b"hi"] * 6
        # Sessions have found it; the prober finds it by its checks, or because sessions have failed at another.
        if check == "tcp" or addresses[0] != alive:
            wait_for(
                lambda: f" address={alive} " in f"{lb.log()} ".replace("\n", " "), "the address in the log"
            )
        totals = lb.status()["totals"]
        assert totals["failed_total"] == totals["refused_total"] == totals["retries_total"] == 0
        assert lb.status()["backends"][0]["state"] == "up"
        assert lb.status()["backends"][0]["connect_failures_total"] == 0
        assert not [line for line in lb.log().splitlines() if " down " in line]


def test_when_the_address_in_use_dies_and_another_has_come_up_clients_do_not_notice(
    names: Names, start: Start
) -> None:
    names.know("127.0.0.1", "127.0.0.77")
    with ExitStack() as stack:
        first = stack.enter_context(echo_at("127.0.0.77"))
        port = first.address[1]
        lb = start(Balancer(upstreams=[f"{NAME}:{port}"], check_interval="200ms"))
        lb.wait_line(r"resolve backend=\S+ old=\S+ address=127\.0\.0\.77 addresses=2")
        stack.enter_context(echo_at("127.0.0.1", port))
        first.close()
        assert [ask(lb) for _ in range(6)] == [b"hi"] * 6
        lb.wait_line(r"resolve backend=\S+ old=127\.0\.0\.77 address=127\.0\.0\.1 addresses=2")
        assert lb.status()["totals"]["failed_total"] == 0


def test_a_name_is_asked_by_its_refresh_and_its_new_address_is_used(names: Names, start: Start) -> None:
    names.know("127.0.0.1")
    with echo_at("127.0.0.77") as moved:
        options = {"check_interval": "60s", "resolver_refresh": "300ms"}
        lb = start(Balancer(upstreams=[f"{NAME}:{moved.address[1]}"], **options))
        names.know("127.0.0.77")
        lb.wait_line(r"resolve backend=\S+ old=127\.0\.0\.1 address=127\.0\.0\.77", 3.0)
        assert ask(lb) == b"hi"


def test_a_name_that_is_unknown_is_said_and_served_once_it_is_known(names: Names, start: Start) -> None:
    with echo_at("127.0.0.1") as backend:
        lb = start(Balancer(upstreams=[f"{NAME}:{backend.address[1]}"], check_interval="200ms"))
        lb.wait_line(rf"warning prober pid=\d+ resolve name={NAME} error=.* then=asked again in 1s")
        lb.wait_line("all-down")
        names.know("127.0.0.1")
        lb.wait_line("some-up", 5.0)
        assert ask(lb) == b"hi"


@pytest.fixture
def silent_server(names: Names) -> Iterator[None]:
    """A name server that takes questions and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.9", 53))
        names.servers.write_text("nameserver 127.0.0.9\noptions timeout:10 attempts:1\n")
        yield


@pytest.mark.usefixtures("silent_server")
def test_a_silent_name_server_holds_the_start_up_for_connect_timeout_only(names: Names, start: Start) -> None:
    with echo_at("127.0.0.1") as backend:
        began = time.monotonic()
        upstreams = [f"{NAME}:{backend.address[1]}", backend.name]
        lb = start(Balancer(upstreams=upstreams, connect_timeout="2s"))
        assert 2.0 <= time.monotonic() - began < 6.0
        assert ask(lb) == b"hi"


@pytest.mark.usefixtures("silent_server")
def test_clients_wait_for_the_answer_and_others_are_served_meanwhile(names: Names, start: Start) -> None:
    """The first clients come while no name is answered: they are accepted, wait as in the queue, and are refused when
    nothing comes."""
    with echo_at("127.0.0.1") as backend:
        lb = Balancer(upstreams=[f"{NAME}:{backend.address[1]}"], connect_timeout="2s", queue_timeout="10s")
        lb.wrapper = names.wrapper()
        lb.expect("all-down")
        try:
            lb.start()
            lb.wait_line("info budget")
            with socket.create_connection(lb.address, 5) as client:
                client.settimeout(1.0)
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(5.0)
                assert client.recv(1) == b""
            lb.wait_ready()
        finally:
            lb.stop()
            lb.kill_everything()
            shutil.rmtree(lb.directory, ignore_errors=True)


def test_a_reload_to_a_name_serves_every_client(names: Names, start: Start) -> None:
    names.know("127.0.0.77", "127.0.0.1")
    with echo_at("127.0.0.1") as backend:

        def text(upstream: str) -> str:
            return ini_section("balancer", port=0, upstream=upstream, check_interval="200ms")

        lb = FileBalancer(text(f"{backend.name} name=a"))
        start(lb)
        outcomes = []
        for upstream in (
            f"{NAME}:{backend.address[1]} name=a",
            f"{backend.name} name=a",
            f"{NAME}:{backend.address[1]}",
        ):
            lb.write(text(upstream))
            before = lb.generation
            os.kill(lb.pid, 1)
            while lb.generation == before:
                outcomes.append(ask(lb))
            outcomes += [ask(lb) for _ in range(5)]
        assert set(outcomes) == {b"hi"}, outcomes
