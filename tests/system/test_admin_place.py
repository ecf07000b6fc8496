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


def test_a_balancer_whose_port_the_kernel_chose_is_found_by_that_port() -> None:
    with Echo() as backend:
        upstream = f"--upstream={text_of(backend.address)}"
        with (
            balancer(in_namespace(FRESH_RUN), 0, upstream) as first,
            balancer(beside(first), 0, upstream) as second,
        ):
            for daemon in (first, second):
                port = daemon.wait_line(r" bind address=127\.0\.0\.1:(\d+) ")[1]
                code, text = ctl(first, "-p", port, "status")
                assert code == 0 and f"listening on 127.0.0.1:{port} " in text, text


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
    mounts = READ_ONLY + "mount -t tmpfs none /dev/shm;"  # which takes the profiles with it
    done = run(in_namespace(mounts), "balancer", *words)
    [line] = [each for each in done.stderr.splitlines() if not re.search(" (warning|info) ", each)]
    assert done.returncode == (3 if option == "pidfile" and "check" not in question else 2), done
    assert "[Errno" not in line
    assert "/run" in line and "read-only" in line.lower() and option in line.replace("pid file", "pidfile"), (
        line
    )


@pytest.mark.parametrize(
    ("mounts", "why"),
    [
        (f"mkdir /run/other; ln -s /run/other {HOME};", f"{HOME} is a symbolic link"),
        (f"touch {HOME};", f"{HOME} is no directory"),
        (f"mkdir -m 700 {HOME}; chown 1:1 {HOME};", f"{HOME} belongs to user "),
        (f"mkdir -m 700 {HOME}; touch {HOME}/SOCKET;", f"{HOME}/SOCKET is there and is no socket"),
        (f"mkdir -m 700 {HOME}; mkdir {HOME}/SOCKET;", f"{HOME}/SOCKET is there and is no socket"),
        ("mount -t tmpfs -o mode=755,nr_inodes=1 none /run;", f"{HOME} cannot be made: /run is full"),
        (f"mount -t tmpfs -o mode=755,nr_inodes=2 none /run; mkdir -m 700 {HOME};", f"{HOME} is full"),
    ],
)
def test_what_stands_in_the_way_of_the_default_stops_nobody(mounts: str, why: str) -> None:
    port = free_port()
    mounts, why = (text.replace("SOCKET", f"127.0.0.1:{port}.sock") for text in (mounts, why))
    only = "mount --bind /tmp /tmp; mount -o remount,ro,bind /tmp;"  # no other place
    with (
        Digest() as backend,
        balancer(
            in_namespace(FRESH_RUN + mounts + only), port, f"--upstream={text_of(backend.address)}"
        ) as daemon,
    ):
        daemon.wait_line(
            rf'note="the admin socket is off: {re.escape(why)}.*; --admin PATH puts it elsewhere"'
        )
        run_load(("127.0.0.1", port), requests=10, clients=2).check_nothing_lost(10)
        assert os.listdir(f"/proc/{daemon.pid}/root/run") != [] or "nr_inodes" in mounts
        assert not os.path.exists(f"/proc/{daemon.pid}/root/run/other/127.0.0.1:{port}.sock")


def test_two_balancers_of_two_networks_on_the_same_port_share_a_run_directory() -> None:
    """As with `ip netns exec`: the second cannot have the socket that the first serves."""
    with Echo() as backend:
        words = free_port(), f"--upstream={text_of(backend.address)}"
        with balancer(in_namespace(FRESH_RUN), *words) as first:
            apart = [*beside(first), "unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
            with balancer(apart, *words) as second:
                path = f"{HOME}/127.0.0.1:{words[0]}.sock"
                second.wait_line(rf'note="the admin socket is off: {path} is served by another process;')
            assert ctl(first, "status")[0] == 0


@pytest.mark.parametrize("module", ["balancer", "workers.resizer"])
def test_a_user_without_a_name_in_a_container_of_which_nothing_can_be_written(module: str) -> None:
    mounts = READ_ONLY + "mount -t tmpfs -o ro none /dev/shm; mount --bind /dev/null /etc/passwd;"
    user = [*in_namespace(mounts), "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    if subprocess.run(
        [*user, sys.executable, "-c", "import balancer"], cwd=ROOT, capture_output=True
    ).returncode:
        pytest.skip("other users may not read the programs")
    if module == "balancer":
        with Digest() as backend:
            port = free_port()
            with balancer(user, port, f"--upstream={text_of(backend.address)}") as daemon:
                run_load(("127.0.0.1", port), requests=10, clients=2).check_nothing_lost(10)
                assert "Traceback" not in daemon.log()
    done = run(user, module, *(["-u", "127.0.0.1:1"] if module == "balancer" else []), "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(": configuration OK\n")


@pytest.mark.parametrize("module", ["balancer", "workers.resizer"])
@pytest.mark.parametrize("option", ["log", "pidfile", "admin"])
@pytest.mark.parametrize("question", ["--check-config", "--port=0"])
def test_a_working_directory_that_was_removed_is_one_sentence(
    module: str, option: str, question: str
) -> None:
    if module != "balancer" and option == "admin":
        pytest.skip("the resizer has no admin socket")
    place = 'cd "$(mktemp -d)" && rmdir "$PWD" && exec "$@"'
    words = ["--upstream=127.0.0.1:1"] if module == "balancer" else []
    command = [sys.executable, "-m", module, *words, f"--{option}=place", question]
    env = clean_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        ["sh", "-c", place, "sh", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    [line] = [each for each in done.stderr.splitlines() if not re.search(" (warning|info) ", each)]
    assert done.returncode in (2, 3) and "place" in line and "[Errno" not in line, done
    assert "the working directory is missing" in line or "No such file or directory" in line
