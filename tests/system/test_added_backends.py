"""Backends that an operator adds and removes: no client notices, and a reload puts back what the configuration says."""

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, FileBalancer, ini_section
from tests.system.hosts import PATIENCE, Clients, Hosts, connect
from tests.system.upgradable import UpgradableBalancer, subreaper


def act(lb: Balancer, *words: str) -> str:
    """What a command that has to succeed answers."""
    done = lb.ctl(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def names(lb: Balancer) -> dict[str, str]:
    """The address that each backend is dialled at, by its name."""
    return {one["name"]: one["address_in_use"] or one["address"] for one in lb.status()["backends"]}


def prober(lb: Balancer) -> int:
    (pid,) = [pid for pid, title in lb.titles().items() if "prober" in title]
    return pid


def is_open(client: socket.socket) -> bool:
    """Whether nothing has come from the balancer since, no end either."""
    client.setblocking(False)
    try:
        return bool(client.recv(1))
    except BlockingIOError:
        return True


def configuration(port: int, interval: str, **backends: str) -> str:
    upstream = [f"{address}:{port} name={name}" for name, address in backends.items()]
    text = ini_section("balancer", check_interval=interval)
    text += ini_section("listener web", bind="127.0.0.1:0", pool="web")
    return text + ini_section("pool web", upstream=upstream)


def session_with(lb: Balancer, wanted: str) -> socket.socket:
    """Raises WaitFailed."""

    def found() -> socket.socket | None:
        client, name = connect(lb)
        if name == wanted:
            return client
        client.close()
        return None

    return wait_for(found, f"a session of {wanted}", PATIENCE)


def test_backends_are_added_and_removed_under_load_and_a_reload_puts_things_back() -> None:
    with Hosts(5) as hosts, ExitStack() as stack:
        port, (a, b, c, d, e) = hosts.port, hosts.names
        lb = FileBalancer(configuration(port, "1s", a=a))
        lb.expect(r"reap|respawn|SIGKILL|signal|reload error=")
        stack.enter_context(lb)
        clients = stack.enter_context(Clients(lb))
        clients.wait_served(a)
        done = act(lb, "add", "web", f"{b}:{port}", "weight=2")
        assert done.startswith(f"web/spare-1 is {b}:{port} with weight 2 until the next reload"), done
        act(lb, "add", "web", f"{c}:{port}", "--reason", "sale")
        clients.wait_served(a, b, c)
        assert lb.backend("spare-1")["weight"] == 2
        held = stack.enter_context(session_with(lb, b))
        killed = prober(lb)
        os.kill(killed, signal.SIGKILL)
        lb.ctl("remove", "web", f"{b}:{port}")  # the answer may come before there is another prober
        clients.wait_served(a, c)
        assert prober(lb) != killed and is_open(held), "its sessions go on"
        assert names(lb)["spare-1"] == "spare", "and are shown until they end"
        held.close()
        with clients.between_sessions():
            os.kill(lb.worker_pids()[0], signal.SIGKILL)
        act(lb, "add", "web", f"{d}:{port}")
        clients.wait_served(a, c, d)
        refused = lb.ctl("remove", "web", "a")
        assert refused.returncode == 1 and "use drain or maint" in refused.stderr
        lb.write(configuration(port, "soon", a=a))
        assert lb.ctl("reload").returncode == 1
        clients.wait_served(a, c, d)
        lb.write(configuration(port, "1s", a=a, e=e))
        act(lb, "reload")
        clients.wait_served(a, e)
        act(lb, "add", "web", f"{c}:{port}")
        clients.wait_served(a, c, e)
        assert "nothing changed" in act(lb, "reload")
        clients.wait_served(a, e)
        wait_for(lambda: set(names(lb)) == {"a", "e"}, "no slot shown that has no backend", PATIENCE)
        assert not clients.failures, clients.failures[:3]
        assert clients.served.total() > 500


def test_an_upgrade_begins_with_what_the_configuration_says(tmp_path: Path) -> None:
    with Hosts(2) as hosts, ExitStack() as stack:
        stack.enter_context(subreaper())
        lb = UpgradableBalancer(tmp_path, upstreams=[f"{hosts.names[0]}:{hosts.port}"], check_interval="1s")
        lb.expect(r"upgrade")
        stack.enter_context(lb)
        clients = stack.enter_context(Clients(lb))
        act(lb, "add", "main", f"{hosts.names[1]}:{hosts.port}")
        clients.wait_served(*hosts.names)
        lb.new_version("9.1")
        lb.upgrade()
        assert lb.old.wait(30) == 0
        clients.wait_served(hosts.names[0])
        assert not clients.failures, clients.failures[:3]
