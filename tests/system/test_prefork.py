"""The prefork machine with a toy service: boot, kill, hang, reload, grow, shrink, upgrade, stop. Real processes."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.lab.process import children_of, is_running, title_of
from scripts.lab.waiting import wait_for
from tests.system.toy import Toy, make_toy, talk

__all__ = ["make_toy"]  # a fixture


def test_boots_tells_ready_once_and_stops_on_term(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    assert toy.ask("hello") == "hello"
    assert title_of(toy.pid) == "toy: master [2 workers]"
    assert len(toy.children("worker")) == 2 and len(toy.children("prober")) == 1
    toy.signal(signal.SIGTERM)
    assert toy.wait_exit() == 0
    assert toy.log().count(" ready ") == 1


def test_term_lets_sessions_finish_and_a_second_one_cuts_them(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy(drain=20).boot()
    sock = toy.connect()
    talk(sock, "x")
    toy.signal(signal.SIGTERM)
    toy.wait_lines(" unbind ")
    with pytest.raises(OSError):
        toy.ask("y")
    assert talk(sock, "still here") == "still here"
    time.sleep(1.1)  # before, it would be the same TERM
    toy.signal(signal.SIGTERM)
    assert toy.wait_exit(5) == 5


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_stop_within_a_second_is_the_same_one(
    make_toy: Callable[..., Toy], first: signal.Signals, second: signal.Signals
) -> None:
    """Fails where it cuts: `timeout` signals the program and then its group, and every session is lost."""
    toy = make_toy(drain=20).boot()
    sock = toy.connect()
    talk(sock, "x")
    toy.signal(first)
    toy.wait_lines(" stop within=20s")
    for _ in range(3):
        toy.signal(second)
        assert talk(sock, "still here") == "still here"
    sock.close()
    assert toy.wait_exit(3) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_the_process_group_announces_no_replacement(
    make_toy: Callable[..., Toy], number: signal.Signals
) -> None:
    toy = make_toy(drain=20).boot()
    sock = toy.connect()
    talk(sock, "x")
    os.killpg(toy.session_id, number)
    toy.wait_lines(" reap ")
    assert talk(sock, "still here") == "still here"
    sock.close()
    assert toy.wait_exit(3) == 0
    stopping = toy.log().partition(" stop within")[2]
    assert "a new one" not in stopping and "spawn" not in stopping


def test_what_happens_to_a_service_is_an_event(make_toy: Callable[..., Toy]) -> None:
    """The line of the log and the event are one call; `events` of the toy reads the ring."""
    toy = make_toy().boot()
    os.kill(toy.worker(0), signal.SIGKILL)
    toy.wait_lines(" respawn ")
    os.kill(toy.worker(1), signal.SIGSTOP)
    toy.wait_lines(" respawn ", count=2)
    toy.reload(workers=1)
    toy.configure(fail="config")
    toy.signal(signal.SIGUSR2)
    toy.wait_lines("the old version goes on")
    events = [tuple(one) for one in json.loads(toy.ask("events"))]
    assert {verb for verb, _ in events} == {"respawn", "hang", "reload", "upgrade"}
    for verb, text in events:
        assert f" {verb} {text}\n" in toy.log()
    assert 'role="worker 0" after="signal 9"' in events[0][1]


def test_drain_timeout_bounds_the_stop(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy(drain=0.5).boot()
    sock = toy.connect()
    talk(sock, "x")
    began = time.monotonic()
    toy.signal(signal.SIGTERM)
    assert toy.wait_exit(4) == 5
    assert 0.4 < time.monotonic() - began < 15
    sock.close()


def test_a_second_instance_fails_loudly(make_toy: Callable[..., Toy]) -> None:
    first = make_toy().boot()
    second = make_toy(port=first.port).start()
    assert second.wait_exit() == 3
    assert f"cannot bind 127.0.0.1:{first.port}" in second.log()
    assert first.ask("hello") == "hello"


def test_pid_file_is_a_lock_and_goes_with_its_owner(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    path = tmp_path / "toy.pid"
    path.write_text("4711\n")
    first = make_toy(pidfile=str(path)).boot()
    assert path.read_text() == f"{first.pid}\n"
    second = make_toy(pidfile=str(path)).start()
    assert second.wait_exit() == 3
    assert f"held by process {first.pid}" in second.log()
    assert path.read_text() == f"{first.pid}\n"
    first.signal(signal.SIGTERM)
    assert first.wait_exit() == 0
    assert not path.exists()


def test_a_killed_worker_is_replaced_at_once_and_loses_no_queue(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    for _ in range(5):
        victims = toy.children("worker")
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)  # so that what connects now is queued
        queued = [toy.connect() for _ in range(8)]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for sock in queued:  # how soon is measured in test_crash.py
            assert talk(sock, "hello") == "hello"
            sock.close()
        time.sleep(0.6)  # longer than a short life: this is not a crash loop
    served = toy.ask_board()["served"]
    assert served == 5 * 8 + 1
    wait_for(lambda: toy.ask_board()["load"] == 1, "one connection")


def test_a_stopped_worker_is_adopted_then_killed_and_replaced(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    victim = toy.worker(0)
    os.kill(victim, signal.SIGSTOP)
    began, asked = time.monotonic(), 0
    while (
        time.monotonic() - began < 3.0 or not asked
    ):  # how long one waits at most is measured in test_hang.py
        with toy.connect() as sock:
            assert talk(sock, "hello") == "hello"
        asked += 1
        time.sleep(0.02)
    toy.wait_lines(r" hang role=\"worker 0\"")
    wait_for(lambda: not is_running(victim), "the stopped worker killed")
    wait_for(lambda: toy.worker(0) not in (0, victim), "its replacement")


def test_a_busy_loop_is_dumped_and_replaced(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    with toy.connect() as sock:
        sock.sendall(b"spin\n")
        toy.wait_lines(" hang ")
        toy.wait_lines("in talk")  # the stack dump names the function
        toy.wait_lines(r" reap .*signal=6")
    toy.wait_lines(r" respawn role=\"worker")


def test_a_stopped_master_kills_no_worker_when_it_continues(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    before = toy.children()
    toy.signal(signal.SIGSTOP)
    time.sleep(4)
    assert toy.ask("hello") == "hello"
    toy.signal(signal.SIGCONT)
    toy.wait_lines("clock jumped")
    time.sleep(1)
    assert toy.children() == before


def test_children_die_with_a_killed_master_and_a_new_one_starts_at_once(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    orphans = toy.children()
    toy.signal(signal.SIGKILL)
    toy.wait_exit()
    wait_for(lambda: not any(map(is_running, orphans)), "the children gone")
    assert make_toy(port=toy.port).boot().ask("hello") == "hello"


def test_reload_brings_a_new_generation_and_keeps_the_totals(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    held = toy.connect()
    talk(held, "x")
    before = toy.ask_board()["served"]
    toy.configure(workers=3)
    toy.signal(signal.SIGHUP)
    toy.wait_lines(r" reload generation=2")
    assert toy.ask("gen") == "2"
    assert talk(held, "gen") == "1"
    board = toy.ask_board()
    assert board["served"] > before
    notice = json.loads(board["notice"])
    assert notice["ok"] and notice["serial"] == 1 and notice["changed"] == ["workers 2 -> 3"]
    held.close()
    wait_for(lambda: len(toy.children("worker")) == 3, "three workers", 3)
    wait_for(lambda: toy.ask_board()["load"] == 1, "one connection", 3)


def test_a_failed_reload_leaves_the_old_generation_serving(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    before = toy.children()
    failures = [({"fail": "config"}, "told to fail"), ({"fail": "boot"}, "died before it was ready")]
    for serial, (changes, reason) in enumerate(failures, start=1):
        toy.configure(**changes)
        toy.signal(signal.SIGHUP)
        said = f'"serial":{serial},'
        wait_for(lambda said=said: said in toy.ask_board()["notice"], f"notice {serial}")
        notice = json.loads(toy.ask_board()["notice"])
        assert not notice["ok"] and reason in notice["text"]
        wait_for(lambda: toy.children() == before, "the old generation alone", 3)
        assert toy.ask("gen") == "1"


def test_reload_changes_how_much_is_logged(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    toy.configure(loglevel=2)
    toy.signal(signal.SIGHUP)
    toy.wait_lines(r" reload generation=2")
    assert json.loads(toy.ask_board()["notice"])["changed"] == ["loglevel 0 -> 2"]
    talk = re.compile(r" debug worker \d+ pid=\d+ talk words=")
    wait_for(lambda: toy.ask_board() and talk.search(toy.log()), "a debug line", 10.0)


def test_reload_adds_and_removes_ports(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        toy.configure(more=[port])
        toy.signal(signal.SIGHUP)
        toy.wait_lines(r" reload error=.*cannot bind")
    toy.signal(signal.SIGHUP)
    toy.wait_lines(r" reload generation=")
    assert toy.ask("hello", port) == "hello"
    with toy.connect(port) as held:
        talk(held, "x")
        toy.configure(more=[])
        toy.signal(signal.SIGHUP)
        toy.wait_lines(" unbind ")
        with pytest.raises(OSError):
            toy.ask("hello", port)
        assert talk(held, "still") == "still"
    assert toy.ask("hello") == "hello"


def test_many_hups_fail_no_client_and_the_last_configuration_wins(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy(drain=2).boot()
    fds = len(os.listdir(f"/proc/{toy.pid}/fd"))
    for count in range(40):
        toy.configure(workers=1 + count % 3)
        toy.signal(signal.SIGHUP)
        assert toy.ask("hello") == "hello"
        with toy.connect() as sock:
            talk(sock, "x")
            assert len({title_of(pid) for pid in toy.children("worker")}) <= 9
        time.sleep(0.02)
    wait_for(lambda: len(toy.children("worker")) == 1 + 39 % 3, "the last configuration")
    # A socket for slot 2, one worker less.
    wait_for(lambda: len(os.listdir(f"/proc/{toy.pid}/fd")) <= fds, "descriptors at baseline")


def test_growing_and_shrinking_fails_no_client(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    numbers = [signal.SIGTTIN] * 2 + [signal.SIGTTOU] * 3 + [signal.SIGTTIN]
    for count, number in enumerate(numbers, start=1):
        toy.signal(number)
        toy.wait_lines(" scale workers=", count)  # the kernel merges equal pending signals
        for _ in range(20):
            assert toy.ask("hello") == "hello"
    wait_for(lambda: len(toy.children("worker")) == 2, "two workers", 3)
    board = toy.ask_board()
    assert len(board["slots"]) == 4
    surplus = board["slots"][2]
    assert surplus[0] != 0 and surplus[1] == 0  # it is adopted, and nothing is steered there


def test_upgrade_serves_before_the_old_one_drains(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    path = tmp_path / "toy.pid"
    admin = tmp_path / "admin"
    toy = make_toy(pidfile=str(path), admin=str(admin), drain=5).boot()
    held = toy.connect()
    old = talk(held, "pid")
    toy.signal(signal.SIGUSR2)
    toy.wait_lines(" upgrade .*it serves; we drain")
    assert talk(held, "pid") == old
    successor = int(toy.wait_line(r"successor=(\d+)")[1])
    # The old processes are told when that line is written, and may accept until they have heard.
    wait_for(lambda: all(int(toy.ask("pid")) in children_of(successor) for _ in range(20)), "it alone", 10)
    held.close()
    assert toy.wait_exit(4) == 0
    assert path.read_text() == f"{successor}\n"
    assert admin.is_socket()
    assert toy.ask("hello") == "hello"
    os.kill(successor, signal.SIGTERM)
    wait_for(lambda: not is_running(successor), "the successor gone")
    assert not path.exists() and not admin.exists()


def test_a_broken_new_version_leaves_the_old_one_serving(
    make_toy: Callable[..., Toy], tmp_path: Path
) -> None:
    path, admin = tmp_path / "toy.pid", tmp_path / "admin"
    toy = make_toy(pidfile=str(path), admin=str(admin)).boot()
    before = toy.children("worker")
    for attempt, fail in enumerate(["config", "boot"], start=1):
        toy.configure(fail=fail)
        toy.signal(signal.SIGUSR2)
        toy.wait_lines(r" upgrade .*error=.*never got ready", count=attempt, seconds=20)
        assert path.read_text() == f"{toy.pid}\n" and admin.is_socket()
    assert toy.ask("hello") == "hello"
    assert toy.children("worker") == before
    toy.configure(fail="")
    toy.signal(signal.SIGUSR2)
    toy.wait_lines(" upgrade .*it serves; we drain")
    assert toy.wait_exit(5) == 0
    assert toy.ask("hello") == "hello"


def test_workers_that_never_get_ready_end_the_boot(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy(fail="boot").start()
    assert toy.wait_exit(15) == 4
    assert "no worker ever became ready" in toy.log()
    assert toy.log().count(" spawn role=") <= 10


def test_steering_keeps_new_connections_from_a_hung_worker(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy(workers=3).boot()
    assert toy.ask_board()["master"][6] == 1
    victim = toy.worker(1)
    os.kill(victim, signal.SIGSTOP)
    toy.wait_lines(r" steer slot=1 state=hung")
    assert toy.ask_board()["slots"][1][1] == 0
    os.kill(victim, signal.SIGCONT)
    wait_for(lambda: toy.ask_board()["slots"][1][1] > 0, "the slot steered to again")


def test_stray_signals_kill_no_process(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy().boot()
    before = toy.children()
    strays = [signal.SIGPIPE, signal.SIGUSR1, signal.SIGWINCH, signal.SIGCHLD, signal.SIGALRM, signal.SIGURG]
    for _ in range(200):
        for pid in [toy.pid, *before]:
            for number in strays:
                os.kill(pid, number)
    assert toy.ask("hello") == "hello"
    assert toy.children() == before


def test_socket_activation_is_honoured(make_toy: Callable[..., Toy]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        toy = make_toy(port=port)
        launch = (
            f"import os,sys; os.dup2({sock.fileno()}, 3); os.environ['LISTEN_PID']=str(os.getpid());"
            f"os.environ['LISTEN_FDS']='1'; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        toy.command[1:1] = ["-c", launch]
        toy.pass_fds = (sock.fileno(),)
        toy.boot()
        assert toy.ask("hello", port) == "hello"


def test_the_service_manager_is_told(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        toy = make_toy(environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"})
        toy.start()
        assert b"READY=1" in manager.recv(4096)
        assert manager.recv(4096) == b"WATCHDOG=1"
        toy.signal(signal.SIGHUP)
        heard = b""
        while b"READY=1" not in heard:
            heard += manager.recv(4096)
        assert b"RELOADING=1\nMONOTONIC_USEC=" in heard
        toy.signal(signal.SIGTERM)
        while b"STOPPING=1" not in heard:
            heard += manager.recv(4096)
        assert toy.wait_exit() == 0


def test_debug_leaves_a_profile_of_every_process(make_toy: Callable[..., Toy], tmp_path: Path) -> None:
    toy = make_toy(debug_dir=str(tmp_path)).boot()
    toy.ask("hello")
    toy.signal(signal.SIGTERM)
    assert toy.wait_exit() == 0
    names = sorted(path.name.split("-")[0] for path in tmp_path.glob("*.pstats"))
    assert names == ["master", "prober", "worker", "worker"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become nobody")
def test_privileges_are_dropped_for_good(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy(user="nobody").boot()  # its configuration lies where only root may read
    for pid in [toy.pid, *toy.children()]:
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"Uid:\s65534\s65534\s65534", status)
        assert re.search(r"Groups:\s*\n", status) and "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status
    os.kill(toy.children("worker")[0], signal.SIGKILL)
    wait_for(lambda: len(toy.children("worker")) == 2, "two workers")
    toy.signal(signal.SIGTTIN)
    toy.wait_lines(r" scale workers=2->3")
    wait_for(lambda: len(toy.children("worker")) == 3, "three workers")
    orphans = toy.children()
    toy.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, orphans)), "the children gone")
