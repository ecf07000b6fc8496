"""Backends given by names: several addresses, of which some do not answer; answers that come late, or never; changes.

Each balancer has /etc/hosts and /etc/resolv.conf of its own, in a mount namespace.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from scripts.lab.backends import Echo, Stuck
from scripts.lab.network import has_ipv6
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, FileBalancer, ini_section

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1)"
)

NAME = "backend.test"
PATIENCE = 20.0  # seconds; a passing run does not wait for them

AnyBalancer = TypeVar("AnyBalancer", bound=Balancer)
Prepare = Callable[[AnyBalancer], AnyBalancer]


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

    def prepare(self, lb: AnyBalancer) -> AnyBalancer:
        """Give a balancer that is not started yet a mount namespace with these files."""
        mounts = f"mount --bind {self.hosts} /etc/hosts && mount --bind {self.servers} /etc/resolv.conf"
        lb.wrapper = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
        lb.expect("all-down")
        return lb


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(tmp_path)


def ask(lb: Balancer) -> bytes:
    """The echo of two bytes, b"" when the client is refused."""
    with socket.create_connection(lb.address, PATIENCE) as client:
        client.sendall(b"hi")
        try:
            return client.recv(10)
        except ConnectionResetError:
            return b""


def wait_in_use(lb: Balancer, host: str) -> None:
    """Wait until the status and the table show that address."""
    shown = f"[{host}]:" if ":" in host else f"{host}:"
    wait_for(
        lambda: str(lb.status()["backends"][0]["address_in_use"]).startswith(shown),
        f"{host} in use",
        PATIENCE,
        every=0.02,
    )
    assert f" at {shown}" in lb.ctl("status").stdout


def common_port(*hosts: str) -> int:
    """A port that nobody has on any of these addresses, and that no connect is given as its own."""
    for _ in range(200):
        port = random.randrange(10_000, 32_000)
        with ExitStack() as stack, contextlib.suppress(OSError):
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                stack.enter_context(socket.socket(family)).bind((host, port))
            return port
    raise AssertionError(f"no common port on {hosts}")


CASES = [
    pytest.param("::1", ["127.0.0.1", "::1"], id="v6-only server, v4 first"),
    pytest.param("::1", ["::1", "127.0.0.1"], id="v6-only server, v6 first"),
    pytest.param("127.0.0.1", ["::1", "127.0.0.1"], id="v4-only server, v6 first"),
    pytest.param("127.0.0.1", ["127.0.0.1", "::1"], id="v4-only server, v4 first"),
    pytest.param("127.0.0.77", ["127.0.0.77", "127.0.0.1"], id="the first record"),
    pytest.param("127.0.0.1", ["127.0.0.77", "127.0.0.1"], id="the second record"),
    pytest.param("127.0.0.9", [f"127.0.0.{number}" for number in range(2, 10)], id="one of eight"),
]


@pytest.mark.parametrize("check", ["tcp", "none"])
@pytest.mark.parametrize(("alive", "addresses"), CASES)
def test_whichever_address_answers_the_first_client_is_served(
    names: Names, alive: str, addresses: list[str], check: str
) -> None:
    if any(":" in address for address in addresses) and not has_ipv6():
        pytest.skip("no ::1 on this machine")
    names.know(*addresses)
    with Echo(alive, common_port(*addresses)) as backend:
        upstream = f"{NAME}:{backend.address[1]}"
        with names.prepare(Balancer(upstreams=[upstream], check=check, check_interval="200ms")) as lb:
            assert [ask(lb) for _ in range(6)] == [b"hi"] * 6
            # Sessions have found it; the prober finds it by its checks, or because sessions have failed at another.
            wait_in_use(lb, alive)
            totals = lb.status()["totals"]
            assert totals["failed_total"] == totals["refused_total"] == totals["retries_total"] == 0
            shown = lb.status()["backends"][0]
            assert (shown["state"], shown["connect_failures_total"]) == ("up", 0)
            assert not [line for line in lb.log().splitlines() if " down " in line]


@pytest.mark.parametrize("check", ["tcp", "none"])
def test_an_address_that_is_silent_costs_the_first_client_a_timeout_and_no_other(
    names: Names, check: str
) -> None:
    names.know("127.0.0.77", "127.0.0.1")
    with (
        Echo("127.0.0.1", common_port("127.0.0.1", "127.0.0.77")) as backend,
        Stuck("127.0.0.77", backend.address[1]),
    ):
        upstream = f"{NAME}:{backend.address[1]}"
        options = {"check": check, "check_interval": "2s", "connect_timeout": "1s"}
        with names.prepare(Balancer(upstreams=[upstream], **options)) as lb:
            assert [ask(lb) for _ in range(4)] == [b"hi"] * 4
            wait_in_use(lb, "127.0.0.1")
            assert lb.status()["totals"]["failed_total"] == 0
            assert lb.backend(upstream)["state"] == "up"


@pytest.mark.parametrize("check", ["tcp", "none"])
def test_when_the_address_in_use_dies_and_another_has_come_up_clients_do_not_notice(
    names: Names, check: str
) -> None:
    names.know("127.0.0.1", "127.0.0.77")
    with ExitStack() as stack:
        port = common_port("127.0.0.1", "127.0.0.77")
        first = stack.enter_context(Echo("127.0.0.77", port))
        lb = Balancer(upstreams=[f"{NAME}:{port}"], check=check, check_interval="200ms")
        stack.enter_context(names.prepare(lb))
        assert ask(lb) == b"hi"
        wait_in_use(lb, "127.0.0.77")
        stack.enter_context(Echo("127.0.0.1", port))
        first.close()
        assert [ask(lb) for _ in range(6)] == [b"hi"] * 6
        wait_in_use(lb, "127.0.0.1")
        assert lb.status()["totals"]["failed_total"] == 0


@pytest.mark.parametrize("back", ["127.0.0.1", "127.0.0.77"])
def test_when_no_address_answers_the_backend_is_down_and_whichever_comes_back_serves(
    names: Names, back: str
) -> None:
    names.know("127.0.0.1", "127.0.0.77")
    with ExitStack() as stack:
        port = common_port("127.0.0.1", "127.0.0.77")
        first = stack.enter_context(Echo("127.0.0.77", port))
        lb = Balancer(upstreams=[f"{NAME}:{port}"], check_interval="200ms")
        stack.enter_context(names.prepare(lb))
        wait_in_use(lb, "127.0.0.77")
        first.close()
        lb.wait_line(r"\bdown backend=\S+ address=backend\.test:\d+ at=127\.0\.0\.\d+:\d+ check=", PATIENCE)
        lb.wait_line(r"\ball-down\b", PATIENCE)
        assert ask(lb) == b""
        stack.enter_context(Echo(back, port))
        lb.wait_line(r"\bsome-up\b", PATIENCE)
        assert [ask(lb) for _ in range(4)] == [b"hi"] * 4
        wait_in_use(lb, back)


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "::", "::ffff:0.0.0.0", "169.254.9.9", "fe80::1", "224.0.0.1"]
)
@pytest.mark.parametrize("check", ["tcp", "none"])
def test_an_answer_that_is_no_machine_s_address_is_said_and_not_dialled(
    names: Names, address: str, check: str
) -> None:
    """A connect to 0.0.0.0 leads to this machine, where something else may listen."""
    names.know(address)
    with Echo("::" if has_ipv6() else "0.0.0.0") as other:
        upstream = f"{NAME}:{other.address[1]}"
        options = {"check": check, "check_interval": "200ms", "resolver_refresh": "500ms"}
        with names.prepare(Balancer(upstreams=[upstream], **options)) as lb:
            lb.wait_line(rf'resolve name={NAME} error="no address to dial among \S+" then=', PATIENCE)
            lb.wait_line("all-down", PATIENCE)
            assert ask(lb) == b"" and lb.backend(upstream)["state"] == "unresolved"
            assert other.ever == 0
            assert [event for event in lb.status()["events"] if event["verb"] == "resolve"]
            names.know(address, "127.0.0.1")
            wait_in_use(lb, "127.0.0.1")
            wait_for(lambda: lb.status()["serving"], "to serve", PATIENCE)
            assert ask(lb) == b"hi"
            assert lb.log().count("no address to dial among") == 1


def test_a_name_is_asked_by_its_refresh_and_its_new_address_is_used(names: Names) -> None:
    names.know("127.0.0.1")
    with Echo("127.0.0.77") as moved:
        options = {"check_interval": "60s", "resolver_refresh": "300ms"}
        with names.prepare(Balancer(upstreams=[f"{NAME}:{moved.address[1]}"], **options)) as lb:
            names.know("127.0.0.77")
            wait_in_use(lb, "127.0.0.77")
            assert ask(lb) == b"hi"


def test_a_name_that_is_unknown_is_said_and_served_once_it_is_known(names: Names) -> None:
    with Echo() as backend:
        upstream = f"{NAME}:{backend.address[1]}"
        with names.prepare(Balancer(upstreams=[upstream], check_interval="200ms")) as lb:
            lb.wait_line(rf"warning prober pid=\d+ resolve name={NAME} error=.* then=", PATIENCE)
            lb.wait_line("all-down", PATIENCE)
            names.know("127.0.0.1")
            lb.wait_line("some-up", PATIENCE)
            assert ask(lb) == b"hi"


@pytest.fixture
def silent_server(names: Names) -> Iterator[None]:
    """A name server that takes questions and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        for last in range(1, 255):  # others may serve names on this machine
            with contextlib.suppress(OSError):
                server.bind((f"127.0.53.{last}", 53))
                break
        names.servers.write_text(f"nameserver {server.getsockname()[0]}\noptions timeout:30 attempts:1\n")
        yield


@pytest.mark.usefixtures("silent_server")
def test_a_silent_name_server_does_not_hold_the_start_up(names: Names) -> None:
    """It is ready after connect-timeout, long before the lookup ends."""
    with Echo() as backend:
        upstreams = [f"{NAME}:{backend.address[1]}", backend.name]
        with names.prepare(Balancer(upstreams=upstreams, connect_timeout="1s")) as lb:
            assert ask(lb) == b"hi"
            assert " resolve " not in lb.log()


@pytest.mark.usefixtures("silent_server")
def test_clients_that_come_before_the_answer_wait_for_it_as_in_the_queue(names: Names) -> None:
    with Echo() as backend, ExitStack() as stack:
        upstream = f"{NAME}:{backend.address[1]}"
        lb = names.prepare(Balancer(upstreams=[upstream], connect_timeout="8s", queue_timeout="60s"))
        stack.callback(shutil.rmtree, lb.directory, ignore_errors=True)
        stack.callback(lb.kill_everything)
        lb.start()
        lb.wait_line(r"\bbudget sessions=", PATIENCE)
        client = stack.enter_context(socket.create_connection(lb.address, 60.0))
        wait_for(lambda: lb.status()["totals"]["queued"] == 1, "the client in the queue", PATIENCE)
        assert "master pid" in lb.log() and " ready " not in lb.log()
        assert client.recv(1) == b""  # refused, because nothing has come
        lb.wait_ready()
        assert lb.stop() == 0


def test_a_reload_from_a_name_and_to_a_name_serves_every_client(names: Names) -> None:
    """Workers of the old configuration accept until the new ones are ready: the words on the board are by then about the
    new address of the same backend."""
    names.know("127.0.0.77", "127.0.0.1")
    with Echo() as backend:
        port = backend.address[1]
        lb = names.prepare(FileBalancer(section(f"{backend.name} name=a")))
        with lb:
            outcomes = []
            for upstream in (
                f"{NAME}:{port} name=a",
                f"{backend.name} name=a",
                f"{NAME}:{port} name=a",
                f"localhost:{port} name=a",
                f"{NAME}:{port}",
            ):
                outcomes += asked_over_reload(lb, upstream)
            assert set(outcomes) == {b"hi"}, outcomes
            assert lb.status()["totals"]["queued"] == 0


def section(upstream: str) -> str:
    return ini_section("balancer", port=0, upstream=upstream, check_interval="200ms", connect_timeout="2s")


def asked_over_reload(lb: FileBalancer, upstream: str) -> list[bytes]:
    """What clients get, one after another, until the configuration with this backend is in force, and five after it."""
    outcomes = []
    lb.write(section(upstream))
    before = lb.generation
    lb.signal(signal.SIGHUP)
    while lb.generation == before:
        outcomes.append(ask(lb))
    return outcomes + [ask(lb) for _ in range(5)]


@pytest.mark.usefixtures("silent_server")
@pytest.mark.parametrize("before", ["an address", "a name"])
def test_while_the_name_of_a_reload_is_not_answered_the_old_configuration_serves(
    names: Names, before: str
) -> None:
    names.know("127.0.0.1")
    with Echo() as backend:
        port = backend.address[1]
        first = f"127.0.0.1:{port}" if before == "an address" else f"{NAME}:{port}"
        with names.prepare(FileBalancer(section(f"{first} name=a"))) as lb:
            assert ask(lb) == b"hi"
            lb.write(section(f"silent.test:{port} name=a"))
            generation = lb.generation
            lb.signal(signal.SIGHUP)
            outcomes = [ask(lb)]
            while lb.generation == generation:
                outcomes.append(ask(lb))
            last = outcomes.pop()  # of either configuration
            assert len(outcomes) > 1 and set(outcomes) == {b"hi"}, outcomes
            assert last in (b"hi", b"") and ask(lb) == b""  # connect-timeout has passed without an answer
            lb.wait_line(r"all-down .*reason=\"names not resolved yet\"", PATIENCE)
