"""A backend that is the balancer itself: refused at the start where that can be told, noticed while it runs else. What
only looks like it is left alone.

Each balancer has a network and an /etc/hosts of its own, with an address 10.9.8.7 on its loopback device.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.lab.network import free_port
from scripts.lab.process import ROOT, clean_environment
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a network namespace takes root"
)

OWN = "10.9.8.7"
PORT = 9090  # of a network where nobody else listens
NETWORK = f"ip link set lo up; ip addr add {OWN}/32 dev lo; ip addr add 2001:db8::7/128 dev lo nodad"
PATIENCE = 20.0
# A client in the balancer's network that connects, sends a word, and prints what it gets.
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as client:
    try:
        client.sendall(b"hello")
        print(client.recv(100).decode() or "closed")
    except ConnectionError:
        print("closed")
"""
# A server that greets.
SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    client, _ = listener.accept()
    client.sendall(b"greeting")
    client.close()
"""


class Machine:
    """The network and the names of one balancer."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.hosts = directory / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} me.test\n" for address in names))
        self.lb: Balancer | None = None

    def balancer(self, *words: str, **options: object) -> Balancer:
        lb = Balancer(*words, port=PORT, **options)
        mounts = f"mount --bind {self.hosts} /etc/hosts; {NETWORK}"
        lb.wrapper = ["unshare", "--mount", "--net", "sh", "-c", f'{mounts}; exec "$@"', "sh"]
        lb.expect("all-down")
        self.lb = lb
        return lb

    def inside(self, *command: str) -> list[str]:
        assert self.lb
        return ["nsenter", f"--net=/proc/{self.lb.pid}/ns/net", *command]

    def ask(self, host: str = "127.0.0.1", port: int = PORT) -> str:
        """What a client gets."""
        command = self.inside(sys.executable, "-c", CLIENT, host, str(port))
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def wait_itself(lb: Balancer, name: str) -> None:
    lb.wait_line(
        rf"warning prober pid=\d+ down backend={re.escape(name)} .*check=itself reason=.*listens there",
        PATIENCE,
    )
    events = lb.ctl("events").stdout
    assert len(re.findall(r" down .*check=itself ", events)) == 1, events


@pytest.mark.parametrize("bind", ["0.0.0.0", OWN])
@pytest.mark.parametrize("check", ["tcp", "none"])
@pytest.mark.parametrize("names", [(OWN,), (OWN, OWN), ("::ffff:10.9.8.7",)])
def test_a_name_of_the_balancer_itself_gets_no_session(
    tmp_path: Path, bind: str, check: str, names: Sequence[str]
) -> None:
    machine = Machine(tmp_path, names)
    with machine.balancer(
        f"--bind={bind}", upstreams=[f"me.test:{PORT}"], check=check, check_interval="200ms"
    ) as lb:
        wait_itself(lb, f"me.test:{PORT}")
        assert [machine.ask(OWN) for _ in range(3)] == ["closed"] * 3
        status = lb.status()
        assert status["totals"]["accepted_total"] == 3 and not status["serving"]
        [backend] = status["backends"]
        assert (backend["state"], backend["sessions"], backend["check"]) == ("down", 0, "itself")
        assert lb.ctl("ready", f"me.test:{PORT}").returncode == 0
        assert machine.ask(OWN) == "closed" and lb.status()["totals"]["accepted_total"] == 4


@pytest.mark.parametrize("names", [("2001:db8::7",), ("127.0.0.1", "2001:db8::7"), ("127.9.9.9", OWN)])
def test_every_kind_of_address_counts(tmp_path: Path, names: Sequence[str]) -> None:
    machine = Machine(tmp_path, names)
    with machine.balancer("--bind=0.0.0.0,[::]", upstreams=[f"me.test:{PORT}"]) as lb:
        wait_itself(lb, f"me.test:{PORT}")
        assert machine.ask() == "closed"
        assert lb.status()["totals"]["accepted_total"] == 1


def test_of_a_name_with_several_addresses_the_others_serve(tmp_path: Path) -> None:
    machine = Machine(tmp_path, (OWN, "127.0.0.9"))
    with machine.balancer(f"--bind={OWN}", upstreams=[f"me.test:{PORT}"]) as lb:
        server = subprocess.Popen(machine.inside(sys.executable, "-c", SERVER, "127.0.0.9", str(PORT)))
        try:
            wait_for(lambda: machine.ask(OWN) == "greeting", "the other address serves", PATIENCE)
            assert "check=itself" not in lb.log()
            [backend] = lb.status()["backends"]
            assert backend["address_in_use"] == f"127.0.0.9:{PORT}"
        finally:
            server.kill()
            server.wait()


def test_an_address_that_moves_to_this_machine_while_it_runs(tmp_path: Path) -> None:
    """As a virtual address does when its machine fails: what answers the check from then on is the balancer."""
    machine = Machine(tmp_path, ())
    with machine.balancer("--bind=0.0.0.0", upstreams=[f"10.9.8.8:{PORT}"], check_interval="200ms") as lb:
        lb.wait_line(r"down backend=10\.9\.8\.8:9090 .*check=unreachable", PATIENCE)
        subprocess.run(machine.inside("ip", "addr", "add", "10.9.8.8/32", "dev", "lo"), check=True)
        wait_itself(lb, f"10.9.8.8:{PORT}")
        assert machine.ask() == "closed"
        assert lb.status()["totals"]["accepted_total"] == 1
        subprocess.run(machine.inside("ip", "addr", "del", "10.9.8.8/32", "dev", "lo"), check=True)
        wait_for(lambda: lb.status()["backends"][0]["check"] == "unreachable", "no longer itself", PATIENCE)


def test_a_second_balancer_of_the_same_machine_is_a_backend_as_any_other(tmp_path: Path) -> None:
    """On the same port of another address; it points to a server. One that pointed back could not be told from it."""
    machine = Machine(tmp_path, ("127.0.0.8",))
    with machine.balancer(f"--bind={OWN}", upstreams=[f"me.test:{PORT}"]) as lb:
        second = Balancer("--bind=127.0.0.8", upstreams=[f"127.0.0.9:{PORT}"], port=PORT)
        second.wrapper = machine.inside()
        server = subprocess.Popen(machine.inside(sys.executable, "-c", SERVER, "127.0.0.9", str(PORT)))
        try:
            with second:
                wait_for(lambda: machine.ask(OWN) == "greeting", "the way through both", PATIENCE)
                assert "check=itself" not in lb.log() + second.log()
        finally:
            server.kill()
            server.wait()


@pytest.mark.parametrize(
    "upstream",
    ["127.0.0.1", "127.0.0.2", "0.0.0.0", "*", "localhost", OWN, "[::ffff:10.9.8.7]"],
)
def test_an_address_of_the_balancer_itself_is_refused_at_the_start(upstream: str, tmp_path: Path) -> None:
    command = [
        "unshare",
        "--net",
        "sh",
        "-c",
        f'{NETWORK}; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "balancer",
    ]
    done = subprocess.run(
        [*command, f"--port={PORT}", f"--upstream={upstream}:{PORT}", "--admin=off"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert re.search(r"is where the balancer itself listens \(0\.0\.0\.0:9090\)", done.stderr), done


def test_its_own_unix_socket_by_a_hard_link_is_refused_by_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    file = tmp_path / "b.ini"
    file.write_text(f"[balancer]\nbind = unix:{path}\nupstream = 127.0.0.1:{free_port()}\n")
    lb = Balancer("-c", str(file), port=None)
    lb.expect("all-down")
    lb.expect("reload")
    with lb:
        os.link(path, tmp_path / "other.sock")
        file.write_text(f"[balancer]\nbind = unix:{path}\nupstream = unix:{tmp_path}/other.sock\n")
        done = lb.ctl("reload")
        assert done.returncode == 1 and "is where the balancer itself listens" in done.stderr, done
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
