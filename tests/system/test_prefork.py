"""The prefork machine with a toy service: boot, kill, hang, reload, grow, shrink, upgrade, stop. Real processes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOY = Path(__file__).with_name("prefork_toy.py")


class House:
    """One running toy: its master, its log, its configuration file."""

    def __init__(self, room: Path, **config: Any) -> None:
        self.room = room
        self.config_path = room / "toy.json"
        self.config = {"workers": 2, **config}
        self.configure()
        self.log_path = room / "log"
        self.master: subprocess.Popen[bytes] | None = None

    def configure(self, **changes: Any) -> None:
        self.config |= changes
        self.config_path.write_text(json.dumps(self.config))

    def start(self, environ: dict[str, str] | None = None, **popen: Any) -> "House":
        with open(self.log_path, "ab") as log:
            self.master = subprocess.Popen(
                [sys.executable, str(TOY), str(self.config_path)],
                stdout=log,
                stderr=log,
                env={**os.environ, **(environ or {})},
                **popen,
            )
        return self

    def boot(self, **popen: Any) -> "House":
        self.start(**popen)
        self.wait_line(r" ready ")
        return self

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_line(self, pattern: str, count: int = 1, seconds: float = 10.0) -> str:
        def found() -> str | None:
            lines = [line for line in self.log.splitlines() if re.search(pattern, line)]
            return lines[count - 1] if len(lines) >= count else None

        return wait_for(found, seconds, lambda: f"{pattern!r} x{count} not in:\n{self.log}")

    @property
    def port(self) -> int:
        return int(re.search(r" bind address=127\.0\.0\.1:(\d+)", self.log).group(1))  # type: ignore[union-attr]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        assert self.master is not None
        return self.master.pid

    def exit_code(self, seconds: float = 8.0) -> int:
        assert self.master is not None
        return self.master.wait(seconds)

    def children(self, role: str = "") -> list[int]:
        """Living children of the master, by title."""
        return [pid for pid in children_of(self.pid) if role in title_of(pid)]

    def worker(self, slot: int) -> int:
        return self.ask_board()["slots"][slot][2]

    def connect(self, port: int | None = None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.port), timeout=3)

    def ask(self, word: str, port: int | None = None) -> str:
        with self.connect(port) as sock:
            return talk(sock, word)

    def ask_board(self) -> dict[str, Any]:
        return json.loads(self.ask("board"))

    def clean_up(self) -> None:
        assert self.master is not None
        pids = [self.pid, *children_of(self.pid)]
        for pid in re.findall(r"successor=(\d+)", self.log):
            pids += [int(pid), *children_of(int(pid))]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if "toy" in title_of(pid):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.master.wait(5)


def talk(sock: socket.socket, word: str) -> str:
    sock.sendall(word.encode() + b"\n")
    data = b""
    while not data.endswith(b"\n"):
        chunk = sock.recv(65536)
        if not chunk:
            raise ConnectionError(f"closed after {data!r}")
        data += chunk
    return data.decode().strip()


def wait_for(question: Callable[[], Any], seconds: float, complaint: Callable[[], str] = str) -> Any:
    end = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(complaint() or "did not happen")
        time.sleep(0.01)


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def make(**config: Any) -> House:
        room = tmp_path / f"house{len(houses)}"
        room.mkdir()
        houses.append(House(room, **config))
        return houses[-1]

    yield make
    for each in houses:
        each.clean_up()
        assert "traceback" not in each.log or "told to fail at boot" in each.log, each.log


def test_boots_tells_ready_once_and_stops_on_term(house: Callable[..., House]) -> None:
    toy = house().boot()
    assert toy.ask("hello") == "hello"
    assert title_of(toy.pid) == "toy: master [2 workers]"
    assert len(toy.children("worker")) == 2 and len(toy.children("prober")) == 1
    toy.signal(signal.SIGTERM)
    assert toy.exit_code() == 0
    assert toy.log.count(" ready ") == 1


def test_term_lets_sessions_finish_and_a_second_one_cuts_them(house: Callable[..., House]) -> None:
    toy = house(drain=20).boot()
    sock = toy.connect()
    talk(sock, "x")
    toy.signal(signal.SIGTERM)
    toy.wait_line(" unbind ")
    with pytest.raises(OSError):
        toy.ask("y")
    assert talk(sock, "still here") == "still here"
    toy.signal(signal.SIGTERM)
    assert toy.exit_code(2) == 5


def test_drain_timeout_bounds_the_stop(house: Callable[..., House]) -> None:
    toy = house(drain=0.5).boot()
    sock = toy.connect()
    talk(sock, "x")
    began = time.monotonic()
    toy.signal(signal.SIGTERM)
    assert toy.exit_code(4) == 5
    assert 0.4 < time.monotonic() - began < 1.5
    sock.close()


def test_a_second_instance_fails_loudly(house: Callable[..., House]) -> None:
    first = house().boot()
    second = house(port=first.port).start()
    assert second.exit_code() == 3
    assert f"cannot bind 127.0.0.1:{first.port}" in second.log
    assert first.ask("hello") == "hello"


def test_pid_file_is_a_lock_and_goes_with_its_owner(house: Callable[..., House], tmp_path: Path) -> None:
    path = tmp_path / "toy.pid"
    path.write_text("4711\n")
    first = house(pidfile=str(path)).boot()
    assert path.read_text() == f"{first.pid}\n"
    second = house(pidfile=str(path)).start()
    assert second.exit_code() == 3
    assert f"held by process {first.pid}" in second.log
    assert path.read_text() == f"{first.pid}\n"
    first.signal(signal.SIGTERM)
    assert first.exit_code() == 0
    assert not path.exists()


def test_a_killed_worker_is_replaced_at_once_and_loses_no_queue(house: Callable[..., House]) -> None:
    toy = house().boot()
    for round_ in range(5):
        victims = toy.children("worker")
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)  # so that what connects now is queued
        queued = [toy.connect() for _ in range(8)]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        for sock in queued:
            assert talk(sock, "hello") == "hello"
            sock.close()
        assert time.monotonic() - began < 0.8, f"round {round_}"
        time.sleep(0.6)  # longer than a short life: this is not a crash loop
    served = toy.ask_board()["served"]
    assert served == 5 * 8 + 1
    assert wait_for(lambda: toy.ask_board()["load"] == 1, 2)


def test_a_stopped_worker_is_adopted_then_killed_and_replaced(house: Callable[..., House]) -> None:
    toy = house().boot()
    victim = toy.worker(0)
    os.kill(victim, signal.SIGSTOP)
    began = time.monotonic()
    slowest = 0.0
    while time.monotonic() - began < 3.0:
        asked = time.monotonic()
        with toy.connect() as sock:
            talk(sock, "hello")
        slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.02)
    assert slowest < 1.5
    toy.wait_line(r" hang role=\"worker 0\"")
    wait_for(lambda: not is_alive(victim), 2)
    assert time.monotonic() - began < 4.5
    wait_for(lambda: toy.worker(0) not in (0, victim), 2)


def test_a_busy_loop_is_dumped_and_replaced(house: Callable[..., House]) -> None:
    toy = house().boot()
    with toy.connect() as sock:
        sock.sendall(b"spin\n")
        toy.wait_line(" hang ")
        toy.wait_line("in talk")  # the stack dump names the function
        toy.wait_line(r" reap .*signal=6")
    toy.wait_line(r" spawn role=\"worker", count=3)


def test_a_stopped_master_kills_nobody_when_it_wakes(house: Callable[..., House]) -> None:
    toy = house().boot()
    before = toy.children()
    toy.signal(signal.SIGSTOP)
    time.sleep(4)
    assert toy.ask("hello") == "hello"
    toy.signal(signal.SIGCONT)
    toy.wait_line("clock jumped")
    time.sleep(1)
    assert toy.children() == before


def test_children_die_with_a_killed_master_and_a_new_one_starts_at_once(house: Callable[..., House]) -> None:
    toy = house().boot()
    orphans = toy.children()
    toy.signal(signal.SIGKILL)
    toy.exit_code()
    wait_for(lambda: not any(map(is_alive, orphans)), 2)
    assert house(port=toy.port).boot().ask("hello") == "hello"


def test_reload_brings_a_new_generation_and_keeps_the_totals(house: Callable[..., House]) -> None:
    toy = house().boot()
    held = toy.connect()
    talk(held, "x")
    before = toy.ask_board()["served"]
    toy.configure(workers=3)
    toy.signal(signal.SIGHUP)
    toy.wait_line(r" reload generation=2")
    assert toy.ask("gen") == "2"
    assert talk(held, "gen") == "1"
    board = toy.ask_board()
    assert board["served"] > before
    notice = json.loads(board["notice"])
    assert notice["ok"] and notice["serial"] == 1 and notice["changed"] == ["workers 2 -> 3"]
    held.close()
    wait_for(lambda: len(toy.children("worker")) == 3, 3)
    assert toy.ask_board()["load"] == 1


def test_a_failed_reload_leaves_the_old_generation_serving(house: Callable[..., House]) -> None:
    toy = house().boot()
    before = toy.children()
    failures = [({"fail": "config"}, "told to fail"), ({"fail": "boot"}, "died before it was ready")]
    for serial, (changes, reason) in enumerate(failures, start=1):
        toy.configure(**changes)
        toy.signal(signal.SIGHUP)
        wait_for(lambda serial=serial: f'"serial":{serial},' in toy.ask_board()["notice"], 5)
        notice = json.loads(toy.ask_board()["notice"])
        assert not notice["ok"] and reason in notice["text"]
        wait_for(lambda: toy.children() == before, 3)
        assert toy.ask("gen") == "1"


def test_reload_changes_how_much_is_logged(house: Callable[..., House]) -> None:
    toy = house().boot()
    toy.configure(loglevel=2)
    toy.signal(signal.SIGHUP)
    toy.wait_line(r" reload generation=2")
    assert json.loads(toy.ask_board()["notice"])["changed"] == ["loglevel 0 -> 2"]
    # The old generation may still take a client that came in the instant of the change.
    talk = re.compile(r" debug worker \d+ pid=\d+ talk words=")
    wait_for(lambda: toy.ask_board() and talk.search(toy.log), 10.0, lambda: f"no debug line in:\n{toy.log}")


def test_reload_adds_and_removes_ports(house: Callable[..., House]) -> None:
    toy = house().boot()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        toy.configure(more=[port])
        toy.signal(signal.SIGHUP)
        toy.wait_line(r" reload error=.*cannot bind")
    toy.signal(signal.SIGHUP)
    toy.wait_line(r" reload generation=")
    assert toy.ask("hello", port) == "hello"
    with toy.connect(port) as held:
        talk(held, "x")
        toy.configure(more=[])
        toy.signal(signal.SIGHUP)
        toy.wait_line(" unbind ")
        with pytest.raises(OSError):
            toy.ask("hello", port)
        assert talk(held, "still") == "still"
    assert toy.ask("hello") == "hello"


def test_many_hups_fail_nobody_and_the_last_configuration_wins(house: Callable[..., House]) -> None:
    toy = house(drain=2).boot()
    fds = len(os.listdir(f"/proc/{toy.pid}/fd"))
    for count in range(40):
        toy.configure(workers=1 + count % 3)
        toy.signal(signal.SIGHUP)
        assert toy.ask("hello") == "hello"
        with toy.connect() as sock:
            talk(sock, "x")
            assert len({title_of(pid) for pid in toy.children("worker")}) <= 9
        time.sleep(0.02)
    wait_for(lambda: len(toy.children("worker")) == 1 + 39 % 3, 5)
    wait_for(lambda: len(os.listdir(f"/proc/{toy.pid}/fd")) <= fds, 5)  # a socket for slot 2, one worker less


def test_growing_and_shrinking_fails_nobody(house: Callable[..., House]) -> None:
    toy = house().boot()
    for number in [signal.SIGTTIN] * 2 + [signal.SIGTTOU] * 3 + [signal.SIGTTIN]:
        toy.signal(number)
        for _ in range(20):
            assert toy.ask("hello") == "hello"
    wait_for(lambda: len(toy.children("worker")) == 2, 3)
    board = toy.ask_board()
    assert len(board["slots"]) == 4
    surplus = board["slots"][2]
    assert surplus[0] != 0 and surplus[1] == 0  # a sibling is named, and nothing is steered there


def test_upgrade_serves_before_the_old_one_drains(house: Callable[..., House], tmp_path: Path) -> None:
    path = tmp_path / "toy.pid"
    admin = tmp_path / "admin"
    toy = house(pidfile=str(path), admin=str(admin), drain=5).boot()
    held = toy.connect()
    old = talk(held, "pid")
    toy.signal(signal.SIGUSR2)
    toy.wait_line(" upgrade .*it serves; we drain")
    assert talk(held, "pid") == old
    successor = int(re.search(r"successor=(\d+)", toy.log).group(1))  # type: ignore[union-attr]
    for _ in range(20):
        assert int(toy.ask("pid")) in children_of(successor)
    held.close()
    assert toy.exit_code(4) == 0
    assert path.read_text() == f"{successor}\n"
    assert admin.is_socket()
    assert toy.ask("hello") == "hello"
    os.kill(successor, signal.SIGTERM)
    wait_for(lambda: not is_alive(successor), 5)
    assert not path.exists() and not admin.exists()


def test_a_broken_new_version_leaves_the_old_one_serving(house: Callable[..., House], tmp_path: Path) -> None:
    path, admin = tmp_path / "toy.pid", tmp_path / "admin"
    toy = house(pidfile=str(path), admin=str(admin)).boot()
    before = toy.children("worker")
    for attempt, fail in enumerate(["config", "boot"], start=1):
        toy.configure(fail=fail)
        toy.signal(signal.SIGUSR2)
        toy.wait_line(r" upgrade .*error=.*never got ready", count=attempt, seconds=20)
        assert path.read_text() == f"{toy.pid}\n" and admin.is_socket()
    assert toy.ask("hello") == "hello"
    assert toy.children("worker") == before
    toy.configure(fail="")
    toy.signal(signal.SIGUSR2)
    toy.wait_line(" upgrade .*it serves; we drain")
    assert toy.exit_code(5) == 0
    assert toy.ask("hello") == "hello"


def test_workers_that_never_get_ready_end_the_boot(house: Callable[..., House]) -> None:
    toy = house(fail="boot").start()
    assert toy.exit_code(15) == 4
    assert "no worker ever became ready" in toy.log
    assert toy.log.count(" spawn role=") <= 10


def test_steering_keeps_new_connections_from_a_stale_slot(house: Callable[..., House]) -> None:
    toy = house(workers=3).boot()
    assert toy.ask_board()["master"][6] == 1
    victim = toy.worker(1)
    os.kill(victim, signal.SIGSTOP)
    toy.wait_line(r" steer slot=1 state=stale")
    assert toy.ask_board()["slots"][1][1] == 0
    os.kill(victim, signal.SIGCONT)
    wait_for(lambda: toy.ask_board()["slots"][1][1] > 0, 2)


def test_stray_signals_kill_nobody(house: Callable[..., House]) -> None:
    toy = house().boot()
    before = toy.children()
    strays = [signal.SIGPIPE, signal.SIGUSR1, signal.SIGWINCH, signal.SIGCHLD, signal.SIGALRM, signal.SIGURG]
    for _ in range(200):
        for pid in [toy.pid, *before]:
            for number in strays:
                os.kill(pid, number)
    assert toy.ask("hello") == "hello"
    assert toy.children() == before


def test_socket_activation_is_honoured(house: Callable[..., House]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        toy = house(port=port)
        launch = (
            f"import os,sys; os.dup2({sock.fileno()}, 3); os.environ['LISTEN_PID']=str(os.getpid());"
            f"os.environ['LISTEN_FDS']='1'; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        with open(toy.log_path, "ab") as log:
            toy.master = subprocess.Popen(
                [sys.executable, "-c", launch, str(TOY), str(toy.config_path)],
                stdout=log,
                stderr=log,
                pass_fds=[sock.fileno()],
            )
        toy.wait_line(" ready ")
        assert toy.ask("hello", port) == "hello"


def test_the_service_manager_is_told(house: Callable[..., House], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(3)
        toy = house()
        toy.start(environ={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"})
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
        assert toy.exit_code() == 0


def test_debug_leaves_a_profile_of_every_process(house: Callable[..., House], tmp_path: Path) -> None:
    toy = house(debug_dir=str(tmp_path)).boot()
    toy.ask("hello")
    toy.signal(signal.SIGTERM)
    assert toy.exit_code() == 0
    names = sorted(path.name.split("-")[0] for path in tmp_path.glob("*.pstats"))
    assert names == ["master", "prober", "worker", "worker"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become nobody")
def test_privileges_are_dropped_for_good(house: Callable[..., House]) -> None:
    toy = house(user="nobody").boot()  # its configuration lies where only root may read
    for pid in [toy.pid, *toy.children()]:
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"Uid:\s65534\s65534\s65534", status)
        assert re.search(r"Groups:\s*\n", status) and "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status
    os.kill(toy.children("worker")[0], signal.SIGKILL)
    wait_for(lambda: len(toy.children("worker")) == 2, 2)
    toy.signal(signal.SIGTTIN)
    toy.wait_line(r" scale workers=2->3")
    wait_for(lambda: len(toy.children("worker")) == 3, 2)
    orphans = toy.children()
    toy.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, orphans)), 2)
