"""Where the admin socket lies without --admin, found by balancerctl; and what happens where nothing can be written.

Each balancer runs in a mount namespace of its own, with a /run that only the test sees."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import run_load
from scripts.lab.network import free_port, text_of
from scripts.lab.process import ROOT, clean_environment, is_running
from scripts.lab.waiting import wait_for
from tests.system.harness import Daemon
from tests.system.upgradable import UpgradableBalancer, subreaper

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace takes root")

HOME = "/run/prefork-balancer"
FRESH_RUN = "mount -t tmpfs -o mode=755 none /run;"
READ_ONLY = (
    "mount -t tmpfs -o ro none /run; mount -t tmpfs -o ro none /var/tmp; mount --bind /tmp /tmp;"
    "mount -o remount,ro,bind /tmp;"
)


def in_namespace(mounts: str) -> list[str]:
    return ["unshare", "-m", "sh", "-c", f'{mounts} exec "$@"', "sh"]


def beside(daemon: Daemon) -> list[str]:
    """In the namespace of that daemon."""
    return ["nsenter", f"--mount=/proc/{daemon.pid}/ns/mnt", f"--wd={ROOT}"]


def balancer(wrapper: list[str], port: int, *words: str) -> Daemon:
    daemon = Daemon(
        "balancer", f"--port={port}", "--bind=127.0.0.1", "--workers=1", "--drain-timeout=2s", *words
    )
    daemon.wrapper = wrapper
    return daemon


def run(wrapper: list[str], module: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-m", module, *words]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=30
    )


def ctl(daemon: Daemon, *words: str) -> tuple[int, str]:
    done = run(beside(daemon), "balancer.ctl", *words)
    return done.returncode, done.stdout + done.stderr


def test_each_balancer_is_found_by_its_port_and_the_only_one_without() -> None:
    with Echo() as backend:
        upstream = f"--upstream={text_of(backend.address)}"
        ports = free_port(), free_port()
        with balancer(in_namespace(FRESH_RUN), ports[0], upstream) as first:
            place = f"/proc/{first.pid}/root{HOME}"
            info = os.stat(place)
            assert (info.st_mode & 0o777, info.st_uid) == (0o700, 0)
            assert os.listdir(place) == [f"127.0.0.1:{ports[0]}.sock"]
            for words in ([], ["-p", str(ports[0])]):
                code, text = ctl(first, *words, "status")
                assert code == 0 and f"127.0.0.1:{ports[0]}" in text, text
            with balancer(beside(first), ports[1], upstream):
                code, text = ctl(first, "status")
                assert code == 1 and "several balancers run; choose with -p PORT or --admin PATH" in text
                for port in ports:
                    code, text = ctl(first, "-p", str(port), "status")
                    assert code == 0 and f"127.0.0.1:{port}" in text, text
                code, text = ctl(first, "-p", "1", "status")
                assert code == 1 and f"no balancer on port 1 has an admin socket in {HOME}" in text
            assert ctl(first, "status")[0] == 0


def test_a_balancer_that_has_become_another_user_keeps_its_place(tmp_path: Path) -> None:
    """Over a reload and an upgrade, neither of which could make it again."""
    with Echo() as backend, subreaper():
        lb = UpgradableBalancer(tmp_path, upstreams=[backend.address], port=free_port(), user="nobody")
        lb.wrapper, lb.cwd = in_namespace(FRESH_RUN), ROOT  # which every user may read
        lb.arguments = [word for word in lb.arguments if not word.startswith("--admin")]
        with lb:
            assert ctl(lb, "status")[0] == 0
            assert ctl(lb, "reload")[0] == 0
            assert ctl(lb, "status")[0] == 0
            old = lb.pid
            assert lb.upgrade() != old
            wait_for(lambda: not is_running(old), "the old master gone")
            code, text = ctl(lb, "reload")
            assert code == 0, text
            assert ctl(lb, "status")[0] == 0
            assert "the admin socket is" not in lb.log()


def test_where_nothing_can_be_written_it_serves_and_says_so_once() -> None:
    with Digest() as backend:
        port = free_port()
        upstream = f"--upstream={text_of(backend.address)}"
        with balancer(in_namespace(READ_ONLY), port, upstream) as daemon:
            run_load(("127.0.0.1", port), requests=10, clients=2).check_nothing_lost(10)
            notes = re.findall(r"warning master pid=\d+ config note=(.*)", daemon.log())
            sentence = f"{HOME} cannot be made: /run is read-only"
            assert notes == [f'"the admin socket is off: {sentence}; --admin PATH puts it elsewhere"']
            code, text = ctl(daemon, "status")
            assert code == 1 and "--admin PATH" in text and "Traceback" not in text


@pytest.mark.parametrize("module", ["balancer", "workers.resizer"])
def test_a_check_where_nothing_can_be_written(module: str) -> None:
    words = ["-u", "127.0.0.1:1"] if module == "balancer" else []
    done = run(in_namespace(READ_ONLY), module, *words, "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(": configuration OK\n")
    assert ("note: the admin socket is off: /run/" in done.stdout) == (module == "balancer")


@pytest.mark.parametrize("option", ["admin", "log", "pidfile", "debug-dir"])
@pytest.mark.parametrize("question", ["--check-config", "--workers=1"])
def test_a_place_that_was_asked_for_and_cannot_be_written_is_one_sentence(option: str, question: str) -> None:
    place = "/run" if option == "debug-dir" else "/run/place"
    words = [
        "-u",
        "127.0.0.1:1",
        "-p",
        "0",
        "--debug-dir=/dev/shm",
        "--debug",
        f"--{option}={place}",
        question,
    ]
    done = run(in_namespace(READ_ONLY), "balancer", *words)
    [line] = [each for each in done.stderr.splitlines() if " warning " not in each]
    assert done.returncode == (3 if option == "pidfile" and "check" not in question else 2), done
    assert "/run" in line and "read-only" in line.lower() and option in line.replace("pid file", "pidfile"), (
        line
    )


def test_a_link_in_the_place_of_the_directory_is_not_followed() -> None:
    mounts = f"{FRESH_RUN} mkdir /run/other; ln -s /run/other {HOME}; mount --bind /tmp /tmp;"
    mounts += "mount -o remount,ro,bind /tmp;"
    with Echo() as backend:
        with balancer(in_namespace(mounts), free_port(), f"--upstream={text_of(backend.address)}") as daemon:
            daemon.wait_line(rf"the admin socket is off: {HOME} is a symbolic link; --admin PATH")
            assert os.listdir(f"/proc/{daemon.pid}/root/run/other") == []
