"""A boot that fails: one sentence that names the cause, the documented exit code, no traceback. And the precedence of
sources."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import run_load
from scripts.lab.network import free_port
from scripts.lab.process import ROOT, clean_environment
from tests.system.harness import Balancer, Daemon

USAGE, CANNOT_BIND = 2, 3


def run(words: Sequence[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "balancer", *words]
    env = clean_environment(environment)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, env=env)


def ini(directory: Path, text: str) -> str:
    path = directory / "b.ini"
    path.write_text(text)
    return str(path)


BAD_INPUT = {
    "no upstream": (["-p", "0"], "upstream"),
    "unknown option": (["-p", "0", "-u", "a:1", "--conect-timeout", "5s"], "conect-timeout"),
    "bad duration": (["-p", "0", "-u", "a:1", "--connect-timeout", "soon"], "connect-timeout"),
    "bad port": (["-p", "70000", "-u", "a:1"], "70000"),
    "bad upstream": (["-p", "0", "-u", "a:1 weigth=2"], "weigth"),
    "bad choice": (["-p", "0", "-u", "a:1", "--balance", "fair"], "fair"),
    "missing file": (["-c", "/nonexistent/b.ini"], "/nonexistent/b.ini"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_ends_with_a_sentence_and_exit_code_two(kind: str) -> None:
    words, culprit = BAD_INPUT[kind]
    result = run(words)
    assert result.returncode == USAGE, result
    assert culprit in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert len([line for line in result.stderr.splitlines() if line.strip()]) <= 3, result.stderr


POOL = "[pool web]\nupstream = 127.0.0.1:1\n"
LISTENER = "[listener web]\nbind = 127.0.0.1:8080\npool = web\n"
BAD_FILES = {
    "unknown key": ("[balancer]\nupstream = a:1\nconect-timeout = 5s\n", "conect-timeout"),
    "unknown section": ("[balncer]\nupstream = a:1\n", "balncer"),
    "bad value": ("[balancer]\nupstream = a:1\nconnect-timeout = 100%\n", "connect-timeout"),
    "no section": ("upstream = a:1\n", "b.ini"),
    "unknown kind of section": (f"{LISTENER}[pol web]\nupstream = a:1\n", "b.ini:4: section [pol web]"),
    "route to no pool": (
        f"[listener web]\nport = 80\npool = wb\n{POOL}",
        "b.ini:3: [listener web] routes to pool wb",
    ),
    "the same address twice": (
        f"{LISTENER}[listener other]\nbind = 127.0.0.1:8080\npool = web\n{POOL}",
        "b.ini:5: [listener other] listens on 127.0.0.1:8080, as [listener web] does",
    ),
    "a route that is never reached": (
        f"[listener web]\nport = 80\nroute =\n    -> web\n    from 10.0.0.0/8 -> web\n{POOL}",
        "b.ini:5:",
    ),
    "upstream beside pools": (f"[balancer]\nupstream = a:1\n{LISTENER}{POOL}", "b.ini:2: upstream"),
    "port beside listeners": (f"[balancer]\nport = 80\n{LISTENER}{POOL}", "b.ini:2: port"),
    "a key of another section": (f"{LISTENER}balance = random\n{POOL}", "b.ini:4: balance"),
    "a listener without a pool": (f"[listener web]\nport = 80\n{POOL}", "b.ini:1: [listener web]"),
    "a pool without backends": (f"{LISTENER}[pool web]\nbalance = random\n", "b.ini:4: [pool web]"),
    "a section begun twice": (f"{LISTENER}{POOL}{POOL}", "b.ini:6: section [pool web]"),
    "a bad name": (f"{LISTENER}{POOL}[pool Web!]\nupstream = a:1\n", "b.ini:6:"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_with_the_place(kind: str, tmp_path: Path) -> None:
    text, culprit = BAD_FILES[kind]
    port = [] if "[listener" in text else ["-p", "0"]
    result = run([*port, "-c", ini(tmp_path, text)])
    assert result.returncode == USAGE, result
    assert culprit in result.stderr and "b.ini" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    result = run(["-c", str(tmp_path)])
    assert result.returncode == USAGE and str(tmp_path) in result.stderr and "Traceback" not in result.stderr


def test_a_bad_value_in_the_environment_names_the_variable() -> None:
    result = run(["-p", "0", "-u", "a:1"], {"BALANCER_CONNECT_TIMEOUT": "soon"})
    assert result.returncode == USAGE and "BALANCER_CONNECT_TIMEOUT" in result.stderr, result.stderr


def test_a_port_that_is_taken_is_exit_code_three() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(["-p", str(port), "--bind=127.0.0.1", "-u", "127.0.0.1:1"])
    assert result.returncode == CANNOT_BIND, result
    assert str(port) in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_a_second_instance_refuses_and_the_first_serves_on() -> None:
    with Digest() as backend, Balancer(upstreams=[backend.address]) as first:
        port = first.address[1]
        words = ["-p", str(port), "--bind=127.0.0.1", "-u", "127.0.0.1:1", f"--admin={first.directory}/other"]
        result = run(words)
        assert result.returncode == CANNOT_BIND and str(port) in result.stderr, result
        run_load(first.address, requests=50, clients=5).check_nothing_lost(50)
        first.check_at_rest()


def test_check_config_binds_nothing_and_print_config_names_every_source(tmp_path: Path) -> None:
    port = free_port()
    config = ini(tmp_path, "[balancer]\nupstream = 127.0.0.1:1\nretries = 7\nbalance = p2c\nmaxconns = 5\n")
    with socket.create_server(("127.0.0.1", port)):
        assert run(["-p", str(port), "-c", config, "--check-config"]).returncode == 0
    environment = {"BALANCER_BALANCE": "source", "BALANCER_MAXCONNS": "6"}
    result = run(["-c", config, "--maxconns", "8", "--print-config"], environment)
    assert result.returncode == 0, result.stderr
    shown = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    for name, value, source in (
        ("maxconns", "8", "command line"),
        ("balance", "source", "BALANCER_BALANCE"),
        ("retries", "7", "b.ini"),
        ("connect-timeout", "5s", "default"),
    ):
        assert value in shown[name] and source in shown[name], shown[name]


def test_the_strongest_source_is_the_one_in_force(tmp_path: Path) -> None:
    """Command line over environment over file over default, seen in what the daemon does."""
    with Echo() as backend:
        config = ini(tmp_path, "[balancer]\nmaxconns = 3\nbalance = random\n")
        environment = {"BALANCER_MAXCONNS": "2", "BALANCER_LOGLEVEL": "1", "BALANCER_RETRIES": ""}
        words = ("--bind=127.0.0.1", "-c", config, "--maxconns=1")
        with Balancer(*words, upstreams=[backend.address], environment=environment) as lb:
            with socket.create_connection(lb.address, 5) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                with socket.create_connection(lb.address, 5) as refused:
                    refused.settimeout(2)
                    assert not refused.recv(1)
            lb.wait_line(r"sessions=1/1")
            lb.wait_line(r"session client=\S+ backend=")  # loglevel 1, from the environment
            lb.wait_idle()


def test_the_pidfile_is_written_and_removed(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with Echo() as backend, Balancer(upstreams=[backend.address], pidfile=pidfile) as lb:
        assert pidfile.read_text().strip() == str(lb.pid)
    assert not pidfile.exists()


def test_the_admin_socket_is_the_owners_alone() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb:
        assert os.stat(lb.admin).st_mode & 0o777 == 0o600
        shown = lb.ctl("status")
        assert shown.returncode == 0 and backend.name in shown.stdout, shown
    assert not os.path.exists(lb.admin)


def test_profiles_are_left_in_the_debug_directory(tmp_path: Path) -> None:
    with Digest() as backend:
        with Balancer("--debug", f"--debug-dir={tmp_path}", upstreams=[backend.address]) as lb:
            run_load(lb.address, requests=20, clients=2).check_nothing_lost(20)
        names = {path.name.split("-")[0] for path in tmp_path.glob("*.pstats")}
    assert names == {"master", "worker", "prober", "console"}


def test_the_boot_says_which_machine_listeners_and_file_and_no_port_is_zero(tmp_path: Path) -> None:
    """The log, the status and balancerctl, also after a reload that adds an address."""
    with Echo() as backend:
        upstream = f"[pool web]\nupstream = {backend.address[0]}:{backend.address[1]}\n"
        head = "[balancer]\nworkers = 1\n[listener web]\npool = web\nbind = 127.0.0.1:0, 127.0.0.1:0"
        other = "[listener api]\npool = web\nbind = 127.0.0.2:0\n"
        path = ini(tmp_path, f"{head}\n{other}{upstream}")
        daemon = Daemon("balancer", "-c", path, f"--admin={tmp_path}/admin")
        with daemon:
            boot = daemon.wait_line(r' boot program="balancer [\d.]+" host=(\S+) config=(\S+)$')
            assert boot.groups() == (socket.gethostname(), path)
            first = bound(daemon)
            assert [name for name, _ in first] == ["web", "web", "api"]
            assert listed(tmp_path) == first
            Path(path).write_text(f"{head}, 127.0.0.3:0\n{other}{upstream}")
            assert ctl(tmp_path, "reload").returncode == 0
            after = listed(tmp_path)
            assert [one for one in after if not one[1].startswith("127.0.0.3:")] == first
            assert len(after) == 4 and not [one for one in after if one[1].endswith(":0")]
            for _, address in after:
                host, _, port = address.rpartition(":")
                with socket.create_connection((host, int(port)), 10) as client:
                    client.sendall(b"hello")
                    assert client.recv(5) == b"hello"


def bound(daemon: Daemon) -> list[tuple[str, str]]:
    """Listener and address by the lines of the log."""
    found = re.findall(r" bind address=(\S+) .*listener=(\S+)", daemon.log())
    return [(name, address) for address, name in found]


def listed(directory: Path) -> list[tuple[str, str]]:
    """Listener and address by the status."""
    status = json.loads(ctl(directory, "status", "--json").stdout)
    return [(one["name"], address) for one in status["listeners"] for address in one["addresses"]]


def ctl(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "balancer.ctl", f"--admin={directory}/admin", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=clean_environment()
    )
