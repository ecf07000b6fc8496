"""The balancer under a service manager: notifications, sockets, pid file, and the user that it becomes."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import Load, receive, run_load
from scripts.lab.network import free_port
from scripts.lab.process import ROOT, clean_environment
from scripts.lab.waiting import best_of, wait_for
from tests.system.harness import Balancer

CANNOT_BIND = 3
NOBODY = 65534


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + path[1:] if path.startswith("@") else path)
        self.heard: list[tuple[float, dict[str, str]]] = []

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def next(self, seconds: float = 30.0) -> dict[str, str]:
        """The next datagram, as a dictionary."""
        self.sock.settimeout(max(0.01, seconds))
        text = self.sock.recv(65536).decode()
        words = dict(line.split("=", 1) for line in text.splitlines())
        self.heard.append((time.monotonic(), words))
        return words

    def until(self, key: str, seconds: float = 30.0) -> dict[str, str]:
        """Datagrams up to the first with that key."""
        deadline = time.monotonic() + seconds
        while key not in (words := self.next(deadline - time.monotonic())):
            pass
        return words


@contextlib.contextmanager
def managed(
    path: str, *backends: tuple[str, int], watchdog: float = 0.0
) -> Iterator[tuple[Manager, Balancer]]:
    environment = {"NOTIFY_SOCKET": path}
    if watchdog:
        environment["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
    with Manager(path) as manager:
        with Balancer(upstreams=backends, environment=environment) as lb:
            yield manager, lb


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_is_said_when_clients_are_served_and_by_the_master(tmp_path: Path, kind: str) -> None:
    """Fails where READY is sent once the sockets are bound: no worker serves then."""
    path = str(tmp_path / "notify") if kind == "path" else f"@notify-{os.getpid()}-{free_port()}"
    with Echo() as backend, Manager(path) as manager, ExitStack() as stack:
        lb = Balancer(upstreams=[backend.address], environment={"NOTIFY_SOCKET": path})
        stack.push(lb)
        lb.start()
        first = manager.until("READY")
        assert len(lb.worker_pids()) == 2
        assert first["READY"] == "1" and first["MAINPID"] == str(lb.pid)
        assert "2 workers" in first["STATUS"]
        lb.signal(signal.SIGTTIN)
        assert "3 workers" in manager.until("STATUS")["STATUS"]
        lb.signal(signal.SIGTERM)
        assert manager.until("STOPPING")["STOPPING"] == "1"
        assert lb.wait_exit() == 0


def test_a_reload_is_framed_by_reloading_and_ready(tmp_path: Path) -> None:
    """RELOADING carries the monotonic time that `Type=notify-reload` compares with its own, READY comes after the new
    generation serves, and after a reload that failed too. Fails where a failed reload ends without READY."""
    config = tmp_path / "b.ini"
    with Echo() as backend, Manager(str(tmp_path / "notify")) as manager:
        good = f"[balancer]\nbind = 127.0.0.1\nupstream = {backend.name}\n"
        config.write_text(good)
        lb = Balancer("-c", config, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        lb.expect("reload error=")
        with lb:
            manager.until("READY")
            for text, word in ((good + "retries = 5\n", "generation 2"), (good + "retires = 5\n", "retires")):
                config.write_text(text)
                asked = time.monotonic()
                lb.signal(signal.SIGHUP)
                reloading = manager.until("RELOADING")
                assert asked <= int(reloading["MONOTONIC_USEC"]) / 1e6 <= time.monotonic()
                ready = manager.until("READY")
                assert word in ready["STATUS"] and ready["MAINPID"] == str(lb.pid)
            assert lb.status()["generation"] == 2
            wait_for(lambda: len(lb.status()["workers"]) == 2, "one generation")
            lb.check_at_rest()


def test_the_watchdog_is_fed_by_the_masters_own_turn(tmp_path: Path) -> None:
    """Half the asked interval, and nothing from a master that stands still. Fails at the whole interval."""
    with Echo() as backend, managed(str(tmp_path / "notify"), backend.address, watchdog=1.0) as (manager, lb):

        def two_beats() -> float:
            manager.until("WATCHDOG")
            began = time.monotonic()
            manager.until("WATCHDOG")
            manager.until("WATCHDOG")
            return time.monotonic() - began

        best_of(two_beats, 2 * 0.8, "two beats")
        os.kill(lb.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            while True:
                manager.next(1.2)
        os.kill(lb.pid, signal.SIGCONT)
        manager.until("WATCHDOG")
        assert all(set(words) <= {"WATCHDOG", "READY", "MAINPID", "STATUS"} for _, words in manager.heard)


def test_a_manager_that_does_not_read_delays_no_client(tmp_path: Path) -> None:
    """Fails with a notification that waits: the master then stands still as soon as the queue is full."""
    with (
        Echo() as backend,
        managed(str(tmp_path / "notify"), backend.address, watchdog=0.02) as (manager, lb),
    ):
        wait_for(lambda: is_full(manager), "the manager's queue full", 10)
        for count in (3, 2):
            assert lb.ctl("workers", str(count)).returncode == 0
            wait_for(lambda c=count: len(lb.worker_pids()) == c, f"{count} workers")
        lb.check_at_rest(more_descriptors=1)


def is_full(manager: Manager) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(manager.sock.getsockname())
            probe.send(b"STATUS=probe")
        except BlockingIOError:
            return True
        return False


# --- socket activation


class Activated(Balancer):
    """Started as by systemd: the sockets at descriptor 3 and on, LISTEN_PID naming the process that is executed."""

    def __init__(self, socks: list[socket.socket], *words: object, pid: str = "", **options: object) -> None:
        super().__init__(*words, **options)  # type: ignore[arg-type]
        self.pass_fds = tuple(sock.fileno() for sock in socks)
        listed = ",".join(map(str, self.pass_fds))
        named = f"'{pid}'" if pid else "str(os.getpid())"
        # First out of the way, then in order: a target may be one of the sources.
        code = (
            f"import os, sys; fds = [os.dup(fd) for fd in ({listed},)]; "
            "import fcntl; high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]; "
            "[os.dup2(fd, 3 + n) for n, fd in enumerate(high)]; "
            "[os.close(fd) for fd in high]; "
            f"os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID={named}); "
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.wrapper = [sys.executable, "-c", code]


def listeners(count: int, port: int = 0) -> list[socket.socket]:
    made: list[socket.socket] = []
    for _ in range(count):
        sock = socket.socket()
        if count > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", made[0].getsockname()[1] if made else port))
        sock.listen(64)
        made.append(sock)
    return made


@pytest.mark.parametrize("count", [1, 2])
def test_sockets_of_the_manager_are_served_with_what_waits_in_them(count: int) -> None:
    """One socket shared by all workers, or one for each. Fails where the program binds for itself: address in use."""
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        socks = listeners(count)
        port = socks[0].getsockname()[1]
        early = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        early.sendall(b"early")
        lb = Activated(socks, upstreams=[backend.address], port=port).with_file()
        for sock in socks:
            stack.callback(sock.close)
        stack.enter_context(lb)
        assert receive(early, 5) == b"early"
        early.close()
        for _ in range(40):
            with socket.create_connection(lb.address, 5) as client:
                client.sendall(b"x")
                assert receive(client, 1) == b"x"
        seen = {worker["slot"] for worker in lb.status()["workers"] if worker["accepted_total"]}
        assert seen == {0, 1} or count == 1
        lb.change_file()
        lb.signal(signal.SIGHUP)
        wait_for(lambda: lb.status()["generation"] == 2, "a reload with the manager's sockets")
        wait_for(lambda: len(lb.worker_pids()) == 2, "one generation")
        victim = lb.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(lb.worker_pids()) == 2 and victim not in lb.worker_pids(), "two workers")
        with socket.create_connection(lb.address, 5) as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
        lb.wait_idle()
        lb.stop()
        with socket.create_connection(("127.0.0.1", port), 5):
            pass  # the manager's own socket still listens: it must not have been shut down


def test_sockets_meant_for_another_process_are_left_alone() -> None:
    """Fails where LISTEN_PID is not compared: a child of the activated program would serve its parent's sockets."""
    with ExitStack() as stack:
        socks = listeners(1)
        stack.callback(socks[0].close)
        lb = Activated(socks, upstreams=["127.0.0.1:1"], port=socks[0].getsockname()[1], pid="1")
        lb.expect("cannot bind")
        lb.expected_exit = CANNOT_BIND
        stack.push(lb)
        lb.start()
        assert lb.wait_exit() == CANNOT_BIND


# --- the pid file


def test_a_stale_pid_file_is_taken_over_and_a_live_one_respected(tmp_path: Path) -> None:
    """Fails where the file's text decides: pid 1 lives, and holds nothing."""
    pidfile = tmp_path / "pid"
    pidfile.write_text("1\n")
    with Echo() as backend, Balancer(upstreams=[backend.address], pidfile=pidfile) as lb:
        assert pidfile.read_text() == f"{lb.pid}\n"
        words = ["-p", "0", "--bind=127.0.0.1", "-u", "127.0.0.1:1", f"--pidfile={pidfile}"]
        second = subprocess.run(
            [sys.executable, "-m", "balancer", *words, f"--admin={tmp_path}/other"],
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert second.returncode == CANNOT_BIND and str(lb.pid) in second.stderr, second
        assert pidfile.read_text() == f"{lb.pid}\n"
        lb.check_at_rest()
    assert not pidfile.exists()


def test_a_pid_file_that_was_replaced_is_not_removed(tmp_path: Path) -> None:
    """Fails where the path is unlinked at the end, whatever it is by then."""
    pidfile = tmp_path / "pid"
    with Echo() as backend, Balancer(upstreams=[backend.address], pidfile=pidfile) as lb:
        other = tmp_path / "other"
        other.write_text("4711\n")
        other.rename(pidfile)
        assert lb.stop() == 0
    assert pidfile.read_text() == "4711\n"


def test_a_pid_file_appears_whole(tmp_path: Path) -> None:
    """A reader that has the stale file open reads it to its end: the new one is renamed over it. Fails where the file is
    written in place: then there is an instant at which it is empty."""
    pidfile = tmp_path / "pid"
    pidfile.write_text("4711\n")
    with Echo() as backend, open(pidfile) as stale:
        with Balancer(upstreams=[backend.address], pidfile=pidfile) as lb:
            assert pidfile.read_text() == f"{lb.pid}\n"
            assert stale.read() == "4711\n"
            assert [path.name for path in tmp_path.iterdir()] == ["pid"]
            lb.check_at_rest()
        assert not pidfile.exists()


# --- privileges

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")


def identity(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    words = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key: words[key].strip() for key in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "NoNewPrivs")}


DROPPED = {
    "Uid": "\t".join([str(NOBODY)] * 4),
    "Gid": "\t".join([str(NOBODY)] * 4),
    "Groups": "",
    "CapEff": "0" * 16,
    "CapPrm": "0" * 16,
    "NoNewPrivs": "1",
}


@only_root
def test_root_becomes_nobody_and_everything_still_works(tmp_path: Path) -> None:
    """On a port only root may bind, with files only root may make: reload, respawn, and death with the master. Fails
    where groups are kept, where the death signal is asked for before the uid changes, and where the reload needs a file
    that the user `nobody` may read."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:  # one more where tests run in several processes
        parent.chmod(0o755)
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o755)
    config, log = directory / "b.ini", directory / "log"
    port = next(p for p in range(700, 1000) if is_free(p))
    with Digest() as backend, ExitStack() as stack:
        config.write_text(f"[balancer]\nbind = 127.0.0.1\nupstream = {backend.name}\nretries = 1\n")
        lb = Balancer(
            "-c",
            config,
            port=port,
            user="nobody",
            group="nogroup",
            log=log,
            pidfile=directory / "pid",
            drain_timeout="3s",
        )
        lb.directory.chmod(0o755)
        lb.log_path = log
        lb.expect("reap|reload|scale")
        stack.enter_context(lb)
        assert (directory / "pid").stat().st_uid == 0
        load = stack.enter_context(Load(lb.address, clients=4, pause=0.01))
        wait_for(lambda: lb.status()["totals"]["accepted_total"] > 20, "load", 10)

        def check() -> None:
            for process in lb.processes():
                assert identity(process.pid) == DROPPED, process.cmdline()

        check()
        victim = lb.worker_pids()[0]
        config.write_text(config.read_text().replace("retries = 1", "retries = 2"))
        lb.signal(signal.SIGHUP)
        wait_for(lambda: lb.status()["generation"] == 2, "generation 2", 10)
        wait_for(lambda: victim not in lb.worker_pids(), "the old generation gone", 8)
        lb.signal(
            signal.SIGTTIN
        )  # a third socket on a port of root's alone: refused aloud, and nothing else happens
        lb.wait_line(r"error master pid=\d+ scale error=.*Permission denied.* then=stay as we are")
        wait_for(lambda: len(lb.status()["workers"]) == 2, "one generation", 8)
        load.finish().check_nothing_lost(20)
        os.kill(lb.worker_pids()[0], signal.SIGKILL)
        lb.wait_line(r"reap role=\"?worker \d\"? .*signal=9")
        wait_for(lambda: len(lb.worker_pids()) == 2, "two workers again")
        check()
        run_load(lb.address, requests=10, clients=2).check_nothing_lost(10)
        children = [process.pid for process in lb.processes()[1:]]
        lb.expected_exit = None
        os.kill(lb.pid, signal.SIGKILL)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in children), "no orphan", 3)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_workers_are_as_many_as_the_cpus_that_may_be_used() -> None:
    """`auto` under an affinity of one CPU is one worker. Fails where the machine's CPUs are counted."""
    cpu = min(os.sched_getaffinity(0))
    with Echo() as backend:
        lb = Balancer(upstreams=[backend.address], workers="auto")
        lb.wrapper = ["taskset", "-c", str(cpu)]
        with lb:
            assert len(lb.worker_pids()) == 1
            lb.check_at_rest()


def test_a_wrong_user_is_a_sentence() -> None:
    command = [sys.executable, "-m", "balancer", "-p", "0", "-u", "127.0.0.1:1", "--user=no-such-user"]
    result = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 2 and "no-such-user" in result.stderr
    assert not re.search("Traceback", result.stderr)


@only_root
@pytest.mark.parametrize("kind", ["log", "admin"])
def test_what_a_service_user_has_planted_is_not_given_to_it(tmp_path: Path, kind: str) -> None:
    """A link in a directory of the user's, to a file of root's. Fails where the start follows it."""
    precious, directory = tmp_path / "precious", tmp_path / "of-nobody"
    precious.write_text("precious")
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    (directory / "planted").symlink_to(precious)
    flags = {kind: directory / "planted"}
    lb = Balancer("--upstream=127.0.0.1:1", user="nobody", **flags)
    lb.start()
    try:
        assert lb.wait_exit() == 2
    finally:
        lb.kill_everything()
    assert precious.stat().st_uid == 0 and precious.read_text() == "precious"
    assert "planted" in lb.log()
