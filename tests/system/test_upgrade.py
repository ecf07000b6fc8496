"""USR2: the program's next version takes over the sockets; a broken one is a line in the log and nothing else."""

import json
import random
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import Load, receive
from scripts.lab.network import free_port, held, text_of
from scripts.lab.process import is_running
from scripts.lab.waiting import wait_for
from tests.system.faults import report
from tests.system.random_sections import random_sections
from tests.system.upgradable import SERVES, Successor, UpgradableBalancer, status_or_none, subreaper


@pytest.fixture(autouse=True)
def orphans_are_ours() -> Iterator[None]:
    with subreaper():
        yield


def test_a_new_version_takes_over_under_load(tmp_path: Path) -> None:
    """Fails where the new one is not handed the sockets, and where the old one ends its workers instead of draining."""
    upgrade_under_load(tmp_path, 2, 300)


@pytest.mark.soak
def test_ten_versions_one_after_another(tmp_path: Path) -> None:
    upgrade_under_load(tmp_path, 10, 5000)


def upgrade_under_load(directory: Path, upgrades: int, steady: int) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        pidfile = directory / "pid"
        lb = UpgradableBalancer(directory, upstreams=[backend.address], pidfile=pidfile)
        stack.enter_context(lb)
        load = stack.enter_context(Load(lb.address, clients=16, pause=0.002))
        for turn in range(upgrades):
            before = {process.pid for process in lb.processes()}
            lb.new_version(f"9.{turn}")
            pid = lb.upgrade()
            assert lb.old.wait(10) == 0
            wait_for(lambda b=before: not any(map(is_running, b)), "the old version gone", 8)
            status = wait_for(lambda: status_or_none(lb), "a status of the new version", 5)
            assert status["version"] == f"9.{turn}"
            assert pidfile.read_text().strip() == str(pid)
            assert not set(lb.worker_pids()) & before
            wait_for(lambda: lb.status()["totals"]["accepted_total"] > steady, "load on the new version", 60)
        outcome = load.finish()
        report("upgrades", upgrades=upgrades, requests=outcome.attempts, failed=outcome.failed)
        outcome.check_nothing_lost(steady * upgrades)
        lb.check_at_rest()
        lb.stop()
        assert not pidfile.exists() and not lb.admin.exists()


def broken_versions_under_load(
    directory: Path, kinds: dict[str, tuple[str, str, str]], seconds: float
) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        pidfile = directory / "pid"
        lb = UpgradableBalancer(directory, upstreams=[backend.address], pidfile=pidfile)
        for pattern in (r"upgrade successor=\d+", r"Traceback", r"traceback|crash|give-up|reap", r"config"):
            lb.expect(pattern)
        stack.enter_context(lb)
        load = stack.enter_context(Load(lb.address, clients=16, pause=0.002))
        pids = lb.worker_pids()
        for name, old, new in kinds.values():
            text = lb.edit(name, old, new)
            lb.upgrade_in_vain(seconds)
            lb.restore(name, text)
            assert lb.worker_pids() == pids
            assert pidfile.read_text().strip() == str(lb.pid)
            assert lb.admin.exists()
        wait_for(lambda: len(lb.session()) == len(lb.processes()), "no process of the broken version left", 3)
        lb.upgrade()
        assert lb.old.wait(10) == 0
        outcome = load.finish()
        report("broken upgrades", kinds=list(kinds), requests=outcome.attempts, failed=outcome.failed)
        outcome.check_nothing_lost(300)
        wait_for(lambda: status_or_none(lb), "a status of the new version")
        lb.check_at_rest()


NO = "raise OSError('no')"
PARSED = "        options = parse("
QUICKLY = {
    "its text is wrong": ("__main__.py", "\nimport ", "\nimprot "),
    "it refuses its configuration": ("service.py", PARSED, f"        raise ConfigError('no')\n{PARSED}"),
    "its boot fails": ("prefork/boot.py", "    sockets = Sockets()", f"    {NO}"),
}
SLOWLY = {
    "its workers die": ("worker.py", "    worker.start()", f"    {NO}"),
    "it never gets ready": ("worker.py", "    child.ready()", "    pass"),
}


def test_a_broken_version_leaves_the_old_one_serving(tmp_path: Path) -> None:
    """Fails where USR2 replaces the master itself (exec without a fork): then no process is left to go on."""
    broken_versions_under_load(tmp_path, QUICKLY, 10.0)


@pytest.mark.soak
def test_every_kind_of_broken_version_leaves_the_old_one_serving(tmp_path: Path) -> None:
    broken_versions_under_load(tmp_path, QUICKLY | SLOWLY, 50.0)


def test_sessions_of_the_old_version_are_finished_by_it(tmp_path: Path) -> None:
    """And a second USR2 meanwhile is refused. Fails where each signal starts another successor."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = stack.enter_context(UpgradableBalancer(tmp_path, upstreams=[echo.address], drain_timeout="20s"))
        clients = stack.enter_context(held(lb.address, 10))
        for client in clients:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
        lb.signal(signal.SIGUSR2)
        lb.wait_line(r"info master pid=\d+ upgrade successor=\d+ sockets=")
        lb.upgrade()
        lb.wait_line(r"warning master pid=\d+ upgrade .*refused: one is under way")
        assert len(set(re.findall(r"successor=(\d+)", lb.log()))) == 1
        wait_for(lambda: lb.log().count(" drain sessions=") == 2, "both old workers to accept no more")
        with socket.create_connection(lb.address, 5) as new:
            new.sendall(b"n")
            assert receive(new, 1) == b"n"
            for client in clients:
                client.sendall(b"y")
                assert receive(client, 1) == b"y"
            assert lb.old.poll() is None
            told = wait_for(
                lambda: (status_or_none(lb) or {}).get("former_master"), "the former master, told"
            )
            assert told == lb.old.pid
            listed = json.loads(lb.ctl("sessions", "--json").stdout)
            assert listed["former_master"] == told and len(listed["sessions"]) == 1
            said = f"the master before the upgrade (pid {told}) still has its sessions, which are not "
            assert f"{said}listed here" in lb.ctl("sessions").stdout
            assert f"{said}counted here" in lb.ctl("kill", "--client", "192.0.2.1").stdout
            waiting = lb.ctl("wait", "idle", "--timeout", "1s")
            assert waiting.returncode == 1, "the sessions of the former master count too"
            for client in clients:
                client.close()
            assert lb.old.wait(10) == 0
            wait_for(lambda: lb.status()["former_master"] is None, "the former master has gone")
            new.sendall(b"m")
            assert receive(new, 1) == b"m"
        wait_for(lambda: status_or_none(lb), "a status of the new version")
        lb.check_at_rest()


def test_a_new_version_with_fewer_workers_empties_every_queue(tmp_path: Path) -> None:
    """Fails where the sockets of slots that it has no worker for stay in the kernel's group with no worker to accept."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = stack.enter_context(UpgradableBalancer(tmp_path, upstreams=[echo.address], workers=2))
        assert lb.ctl("workers", "4").returncode == 0
        lb.wait_line(r"scale workers=2->4")
        lb.upgrade()
        assert lb.old.wait(10) == 0
        for client in stack.enter_context(held(lb.address, 40)):
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
        lb.wait_line(r"ready workers=2 slots=4")


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGUSR2], ids=["reload-first", "upgrade-first"])
def test_a_reload_and_an_upgrade_cross_and_nothing_is_lost(tmp_path: Path, first: signal.Signals) -> None:
    """Both change which generation serves. Fails where the generation that a reload has begun is left behind by the
    master that is superseded meanwhile, or where the reload's end takes the sockets from the successor."""
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        lb = UpgradableBalancer(tmp_path, upstreams=[backend.address]).with_file()
        lb.expect(r"reload error=.*told to stop")
        stack.enter_context(lb)
        load = stack.enter_context(Load(lb.address, clients=16, pause=0.002))
        for _ in range(3):
            before = {process.pid for process in lb.processes()}
            if first == signal.SIGHUP:
                lb.change_file()
                lb.signal(signal.SIGHUP)
                lb.upgrade()
            else:
                at = len(lb.log())
                lb.signal(signal.SIGUSR2)
                lb.wait_line(r"upgrade successor=\d+ sockets=", after=at)
                lb.change_file()
                lb.signal(signal.SIGHUP)
                match = lb.wait_line(rf"upgrade successor=(\d+) then={SERVES}", 20, after=at)
                lb.old, lb.process = lb.process, Successor(int(match[1]))  # type: ignore[assignment]
            assert lb.old.wait(10) == 0
            wait_for(lambda b=before: not any(map(is_running, b)), "the old version gone", 8)
            wait_for(lambda: status_or_none(lb), "a status of the new version")
        outcome = load.finish()
        report("crossed", first=first.name, requests=outcome.attempts, failed=outcome.failed)
        outcome.check_nothing_lost(300)
        lb.check_at_rest()


def test_listeners_and_pools_change_in_an_upgrade(tmp_path: Path) -> None:
    """They are added, removed, renamed and routed to other pools. Fails where a successor takes the sockets of a
    listener by its name, and where the addresses that it does not have any more stay open without a process that
    accepts."""
    with ExitStack() as stack:
        dice = random.Random(8)
        backends = [stack.enter_context(Digest(index)) for index in range(3)]
        ports, gone = (free_port(), free_port()), free_port()
        texts = [text_of(backend.address) for backend in backends]
        path = tmp_path / "balancer.ini"
        path.write_text(
            random_sections(dice, ports, texts) + f"[listener gone]\nbind = 127.0.0.1:{gone}\npool = stay\n"
        )
        lb = stack.enter_context(UpgradableBalancer(tmp_path, port=None, config=path))
        loads = [stack.enter_context(Load(("127.0.0.1", port), clients=8, pause=0.002)) for port in ports]
        socket.create_connection(("127.0.0.1", gone), 1).close()
        for turn in range(4):
            path.write_text(random_sections(dice, ports, texts))
            lb.upgrade()
            wait_for(lambda: refuses(gone), "the removed address refuses", 1)
            assert lb.old.wait(10) == 0, turn
            status = wait_for(lambda: status_or_none(lb), "a status of the new version")
            assert "stay" in {listener["name"] for listener in status["listeners"]}
        outcomes = [load.finish() for load in loads]
        attempts, failed = (sum(getattr(one, name) for one in outcomes) for name in ("attempts", "failed"))
        report("upgrades of listeners and pools", upgrades=4, requests=attempts, failed=failed)
        for outcome in outcomes:
            outcome.check_nothing_lost(100)
        lb.check_at_rest(more_descriptors=20)


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionError:
        return True
    return False


def test_an_upgraded_master_can_reload(tmp_path: Path) -> None:
    """Fails where a new child closes a descriptor that its master has closed long ago: the number is something else's by
    then, here the child's own control socket."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = stack.enter_context(UpgradableBalancer(tmp_path, upstreams=[echo.address]).with_file())
        lb.upgrade()
        assert lb.old.wait(10) == 0
        wait_for(lambda: status_or_none(lb), "a status of the new version")
        for generation in (2, 3):
            lb.change_file()
            assert lb.ctl("reload").returncode == 0
            wait_for(lambda g=generation: status_or_none(lb)["generation"] == g, "the new generation")
        lb.check_at_rest()


def test_what_is_down_and_what_was_taken_out_stays_so(tmp_path: Path) -> None:
    """Fails where a successor begins with a clean board: it would send clients to the backend that is being repaired."""
    with ExitStack() as stack:
        sound, repaired = stack.enter_context(Echo()), stack.enter_context(Echo())
        dead = f"127.0.0.1:{free_port()}"
        lb = stack.enter_context(
            UpgradableBalancer(tmp_path, upstreams=[sound.address, repaired.address, dead])
        )
        lb.wait_backend(dead, "down")
        assert lb.ctl("maint", text_of(repaired.address)).returncode == 0
        before = {backend["name"]: backend["state"] for backend in lb.status()["backends"]}
        since = lb.backend(dead)["since_s"]
        lb.upgrade()
        wait_for(lambda: status_or_none(lb), "a status of the new version")
        after = lb.status()["backends"]
        assert {backend["name"]: backend["state"] for backend in after} == before
        assert lb.backend(dead)["since_s"] > since
        for _ in range(20):
            with socket.create_connection(lb.address, 5) as client:
                client.sendall(b"x")
                assert receive(client, 1) == b"x"
        assert lb.backend(text_of(repaired.address))["sessions_total"] == 0
        assert lb.old.wait(10) == 0
        lb.check_at_rest()
