"""Real processes under test: started on port 0, watched through their log and status, ended without a trace.

    with Echo() as backend, Balancer(upstreams=[backend.address], workers=2) as lb:
        ...                       talk to lb.address; lb.status(), lb.worker_pids(), lb.wait_line(...)
        lb.check_at_rest()        P0: counters 0, descriptors at baseline, nobody missing, nobody a zombie

RULES: nothing waits for time, only for a line or a condition with a deadline. Leaving the `with` stops the
daemon, kills by pid whatever it left behind, then fails the test on a traceback, on an error line nobody
announced with `expect`, on an exit code other than the one expected, on processes that outlived their master.
"""

import contextlib
import ctypes
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from tests.system.kernel import CLOSE_WAIT, KernelSocket, inodes_of, sockets_in

ROOT = Path(__file__).resolve().parents[2]
BOOT_SECONDS = 15.0  # generous: two cores may be shared with other runs
STOP_SECONDS = 12.0
ERROR_LINE = re.compile(r"^\S+ error .*|^Traceback \(most recent call last\).*", re.MULTILINE)

Address = tuple[str, int]
T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = 5.0, every: float = 0.005) -> T:
    """The first true value of `condition`; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}; last value: {value!r}")
        time.sleep(every)


def text_of(address: Address | str) -> str:
    """An address as an option takes it."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def free_port() -> int:
    """A port that was free a moment ago: for tests that must name one before anybody has it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without anything that configures the daemons."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("BALANCER_", "RESIZER_", "NOTIFY_", "LISTEN_"))
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | (extra or {})


def die_with_the_test() -> None:
    """In the forked daemon, before its exec: SIGKILL when the test run is killed, since nobody would leave the `with`."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Daemon:
    """One running program with its children, in a session of its own so that no orphan can hide."""

    def __init__(self, module: str, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self.module = module
        self.arguments = [str(word) for word in arguments]
        self.environment = clean_environment(environment)
        self.directory = Path(tempfile.mkdtemp(prefix="pb-"))
        self.log_path = self.directory / "log"
        self.wrapper: list[str] = []  # a program that becomes ours: `prlimit --nofile=256`
        self.cwd = ROOT  # where the program's own code is found
        self.stderr: int | None = None  # a descriptor for its output, in place of `log_path`
        self.pass_fds: tuple[int, ...] = ()
        self.expected: list[re.Pattern[str]] = []
        self.expected_exit: int | None = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: set[int] = set()

    # --- life

    def start(self) -> Self:
        """Start without waiting for anything."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-m", self.module, *self.arguments],
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log if self.stderr is None else self.stderr,
                stderr=log if self.stderr is None else self.stderr,
                pass_fds=self.pass_fds,
                start_new_session=True,
                preexec_fn=die_with_the_test,
            )
        self.seen.add(self.pid)
        return self

    def wait_ready(self) -> None:
        self.wait_line(r"info master pid=\d+ ready\b", BOOT_SECONDS)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.kill_everything()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        code: int | None = None
        try:
            if self.process and self.process.poll() is None:
                code = self.stop()
            elif self.process:
                code = self.process.returncode
        finally:
            survivors = self.kill_everything()
            log = self.log()
            shutil.rmtree(self.directory, ignore_errors=True)
        if error is not None:
            error.add_note(f"--- log of {self.module} {' '.join(self.arguments)}\n{log[-6000:]}")
            return
        self.check_log(log)
        assert not survivors, f"outlived their master: {survivors}\n{log[-3000:]}"
        if self.expected_exit is not None:
            assert code == self.expected_exit, (
                f"exit code {code}, expected {self.expected_exit}\n{log[-3000:]}"
            )

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
        """Signal the master and wait for its exit code."""
        self.processes()
        self.signal(how)
        return self.wait_exit(seconds)

    def wait_exit(self, seconds: float = STOP_SECONDS) -> int:
        assert self.process
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {seconds:g} s later\n{self.log()[-3000:]}") from None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill_everything(self) -> list[str]:
        """SIGKILL by pid to all that is left of this daemon's session; what that was."""
        if self.process is None:
            return []
        left = []
        deadline = time.monotonic() + 0.5
        while (found := self.session()) and (time.monotonic() < deadline and self.process.poll() is not None):
            time.sleep(0.01)  # children die with their master, but not in the same instant
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.append(f"{process.pid} {' '.join(process.cmdline())}")
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        return left

    # --- its processes

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def session(self) -> list[psutil.Process]:
        """Every live process of the session that this daemon leads."""
        members = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return members

    def processes(self) -> list[psutil.Process]:
        """The master, then its children in order of pid."""
        try:
            master = psutil.Process(self.pid)
            found = [master, *sorted(master.children(), key=lambda child: child.pid)]
        except psutil.NoSuchProcess:
            return []
        self.seen.update(process.pid for process in found)
        return found

    def titles(self) -> dict[int, str]:
        """pid -> what `ps` shows."""
        shown = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                shown[process.pid] = " ".join(process.cmdline()).strip()
        return shown

    def descriptors(self, pid: int) -> int:
        """Open descriptors but for pipes, which the relay keeps for the next bulk flow on purpose."""
        count = 0
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += not os.readlink(link).startswith("pipe:")
        return count

    def memory(self, pids: Sequence[int] | None = None) -> int:
        """Proportional set size in bytes, summed; RSS would count forked pages once per process."""
        total = 0
        for pid in pids or [process.pid for process in self.processes()]:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1]) * 1024  # type: ignore[index]
        return total

    def cpu_share(self, seconds: float) -> float:
        """Of one core, all its processes together, over the next `seconds`: the one wait that is for time."""

        def spent() -> dict[int, float]:
            times = {}
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    used = process.cpu_times()
                    times[process.pid] = used.user + used.system
            return times

        before, began = spent(), time.monotonic()
        time.sleep(seconds)
        after, took = spent(), time.monotonic() - began
        return sum(used - before.get(pid, 0.0) for pid, used in after.items()) / took

    # --- its log

    def log(self) -> str:
        try:
            return self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_line(self, pattern: str, seconds: float = 5.0, after: int = 0) -> re.Match[str]:
        """The first line of the log, from byte `after` on, that matches."""
        wanted = re.compile(pattern, re.MULTILINE)

        def found() -> re.Match[str] | None:
            match = wanted.search(self.log(), after)
            if match is None and self.process and self.process.poll() is not None:
                match = wanted.search(self.log(), after)
                assert match, f"ended with {self.process.returncode} before /{pattern}/\n{self.log()[-3000:]}"
            return match

        return wait_for(found, f"/{pattern}/ in the log", seconds)

    def expect(self, pattern: str) -> None:
        """Error lines that match are part of the test."""
        self.expected.append(re.compile(pattern))

    def check_log(self, log: str) -> None:
        """No traceback; no error line but the announced."""
        for line in ERROR_LINE.findall(log):
            assert any(pattern.search(line) for pattern in self.expected), (
                f"unexpected: {line}\n{log[-4000:]}"
            )


class Balancer(Daemon):
    """A balancer on a port of the kernel's choice. Keyword options are flags: `drain_timeout="5s"`."""

    def __init__(
        self,
        *words: object,
        upstreams: Sequence[Address | str] = (),
        environment: dict[str, str] | None = None,
        port: int = 0,
        **options: object,
    ) -> None:
        super().__init__("balancer", environment=environment)
        self.admin = self.directory / "admin"
        options.setdefault("drain_timeout", "5s")
        options.setdefault("workers", 2)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        upstream_flags = [f"--upstream={text_of(upstream)}" for upstream in upstreams]
        bind = [] if any(str(word).startswith(("--bind", "-c")) for word in words) else ["--bind=127.0.0.1"]
        self.arguments = [f"--port={port}", *bind, f"--admin={self.admin}", *upstream_flags, *flags]
        self.arguments += [str(word) for word in words]
        self.baseline: dict[str, int] = {}

    def wait_ready(self) -> None:
        super().wait_ready()
        self.baseline = self.descriptors_by_place()

    @functools.cached_property
    def address(self) -> Address:
        """Where it listens (its first address)."""
        match = self.wait_line(r"\bbind address=\[?([^\s\]]+?)\]?:(\d+)\b")
        return match[1], int(match[2])

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "balancer.ctl", "--admin", str(self.admin), *words]
        env = clean_environment()
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=env)

    def status(self) -> dict[str, Any]:
        """What the console says, asked over its socket without the detour of a process."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
            conn.settimeout(5)
            conn.connect(str(self.admin))
            conn.sendall(b"status\n")
            conn.shutdown(socket.SHUT_WR)
            reply: dict[str, Any] = json.loads(b"".join(iter(lambda: conn.recv(65536), b"")))
        assert "error" not in reply, reply
        return reply

    def worker_pids(self) -> list[int]:
        """Pids of the workers that serve, by slot."""
        ready = [worker for worker in self.status()["workers"] if worker["pid"]]
        return [worker["pid"] for worker in sorted(ready, key=lambda worker: worker["slot"])]

    def backend(self, name_or_address: str) -> dict[str, Any]:
        for backend in self.status()["backends"]:
            if name_or_address in (backend["name"], backend["address"]):
                found: dict[str, Any] = backend
                return found
        raise AssertionError(f"no backend {name_or_address} in the status")

    def wait_backend(self, name_or_address: str, state: str, seconds: float = 10.0) -> None:
        def reached() -> bool:
            return str(self.backend(name_or_address)["state"]) == state

        wait_for(reached, f"backend {name_or_address} {state}", seconds)

    # --- P0

    def descriptors_by_place(self) -> dict[str, int]:
        """Descriptors of each process under a name that survives its replacement: `worker 0`, `master`."""
        counts = {}
        for pid, title in self.titles().items():
            place = re.match(r"balancer: (\w+(?: \d+)?)", title)
            if place:
                counts[place[1]] = self.descriptors(pid)
        return counts

    def wait_idle(self, seconds: float = 2.0) -> dict[str, Any]:
        """The status once no session is left anywhere."""

        def idle() -> dict[str, Any] | None:
            status = self.status()
            gauges = [status["totals"]["sessions"]]
            gauges += [row["sessions"] for row in (*status["workers"], *status["backends"])]
            assert min(gauges) >= 0, f"a negative gauge: {status}"
            return status if not any(gauges) else None

        return wait_for(idle, "every session counted out", seconds, every=0.02)

    def check_at_rest(
        self, workers: int | None = None, helpers: int = 2, seconds: float = 2.0, more_descriptors: int = 0
    ) -> dict[str, Any]:
        """P0: what holds after any load and any fault, once nobody talks any more. Returns the status.

        `more_descriptors` each process may have over its baseline: for a test that has added something.
        """
        status = self.wait_idle(seconds)
        wanted = 1 + (len(status["workers"]) if workers is None else workers) + helpers

        def whole() -> bool:
            states = [process.status() for process in self.processes()]
            return len(states) == wanted and psutil.STATUS_ZOMBIE not in states

        wait_for(whole, f"{wanted} processes and no zombie", seconds)
        for process in self.processes():
            assert process.num_threads() == 1, f"{process.cmdline()} has {process.num_threads()} threads"
        self.check_descriptors(seconds, more_descriptors)
        wait_for(lambda: not self.half_dead(), "no socket in CLOSE-WAIT", seconds)
        totals = status["totals"]
        by_backend = sum(backend["sessions_total"] for backend in status["backends"])
        lost = totals["accepted_total"] - totals["closed_total"]
        # What is refused at the door was accepted and never became a session.
        assert lost >= 0 and (lost <= totals["refused_total"] or " signal=" in self.log()), (
            f"without an end: {totals}"
        )
        assert by_backend <= totals["accepted_total"] + sum(
            b["connect_failures_total"] for b in status["backends"]
        )
        self.check_log(self.log())
        return status

    def check_descriptors(self, seconds: float, more: int = 0) -> None:
        """Every process back at the count it had when the daemon was ready; new places have no baseline."""

        def surplus() -> dict[str, tuple[int, int]]:
            now = self.descriptors_by_place()
            return {k: (self.baseline[k], n) for k, n in now.items() if n > self.baseline.get(k, n) + more}

        try:
            wait_for(lambda: not surplus(), "descriptors at baseline", seconds)
        except AssertionError:
            raise AssertionError(f"descriptors above the baseline: {surplus()} (then, now)") from None

    def half_dead(self) -> list[KernelSocket]:
        """Sockets whose peer has closed and that nobody here has noticed."""
        waiting = sockets_in(CLOSE_WAIT)
        inodes: set[int] = set()
        for process in self.processes() if waiting else ():
            with contextlib.suppress(FileNotFoundError):
                inodes |= inodes_of(process.pid)
        return [each for each in waiting if each.inode in inodes]


class Resizer(Daemon):
    """A resizer on a port of the kernel's choice."""

    def __init__(self, *words: object, name: str = "backend-1", port: int = 0, **options: object) -> None:
        options.setdefault("drain_timeout", "5s")
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        super().__init__(
            "workers.resizer", f"--port={port}", "--bind=127.0.0.1", f"--name={name}", *flags, *words
        )

    @property
    def address(self) -> Address:
        match = self.wait_line(r"\bbind address=\[?([^\s\]]+?)\]?:(\d+)\b")
        return match[1], int(match[2])


@contextlib.contextmanager
def held(address: Address, count: int, timeout: float = 5.0) -> Iterator[list[socket.socket]]:
    """`count` connections, opened one after the other and closed at the end."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection(address, timeout))  # noqa: PERF401 - closed if one fails
        yield opened
    finally:
        for sock in opened:
            sock.close()
