"""The programs under test: started on port 0, watched through their log and status, checked for what they leave behind.

    with Echo() as backend, Balancer(upstreams=[backend.address], workers=2) as lb:
        ...                       talk to lb.address; lb.status(), lb.worker_pids(), lb.wait_line(...)
        lb.check_at_rest()        counters 0, descriptors at baseline, every process there, no zombie

RULES: nothing waits for time, only for a line or a condition with a deadline. Leaving the `with` stops the daemon, kills
by pid what it left behind, then fails the test on a traceback, on an error line that was not announced with `expect`, on
an exit code other than the one expected, on processes that outlived their master.
"""

import contextlib
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
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.request import urlopen

import psutil

from scripts.lab.kernel import CLOSE_WAIT, KernelSocket, inodes_of, sockets_in
from scripts.lab.measure import memory_of_process
from scripts.lab.network import Address, text_of
from scripts.lab.process import ROOT, LabProcess, clean_environment
from scripts.lab.waiting import WaitFailed, wait_for

BOOT_SECONDS = 15.0  # generous: two cores may be shared with other runs
ERROR_LINE = re.compile(r"^\S+ error .*|^Traceback \(most recent call last\).*", re.MULTILINE)


class Daemon(LabProcess):
    """One of our daemons with its children, in a directory of its own."""

    def __init__(self, module: str, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pb-"))
        super().__init__([], self.directory / "log", environment=clean_environment(environment))
        self.module = module
        self.arguments = [str(word) for word in arguments]
        self.wrapper: list[str] = []  # a command that executes ours: `prlimit --nofile=256`
        self.expected: list[re.Pattern[str]] = []
        self.expected_exit: int | None = 0
        self._changes = 0

    # --- life

    def with_file(self) -> Self:
        """Before the start: read a file too, for `change_file`."""
        self.arguments += ["-c", str(self.directory / "changes.ini")]
        self.change_file()
        return self

    def change_file(self) -> None:
        """Change a value that no test looks at. A reload that finds nothing changed forks nothing."""
        self._changes += 1
        lines = f"[{self.module.rpartition('.')[2]}]\nidle-timeout = {600 + self._changes}s\n"
        beside = self.directory / "changes.new"
        beside.write_text(lines)
        beside.rename(self.directory / "changes.ini")

    def start(self) -> Self:
        self.command = [*self.wrapper, sys.executable, "-m", self.module, *self.arguments]
        super().start()
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

    # --- its processes

    def processes(self) -> list[psutil.Process]:
        """The master, then its children in order of pid."""
        try:
            master = psutil.Process(self.pid)
            found = [master, *sorted(master.children(), key=lambda child: child.pid)]
        except psutil.NoSuchProcess:
            return []
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
        return sum(memory_of_process(pid) for pid in pids or [process.pid for process in self.processes()])

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
    """A balancer on a port of the kernel's choice. Keyword options are flags: `drain_timeout="5s"`.

    With `port=None` there is no flag for the port and the address: a file says where to listen."""

    def __init__(
        self,
        *words: object,
        upstreams: Sequence[Address | str] = (),
        environment: dict[str, str] | None = None,
        port: int | None = 0,
        **options: object,
    ) -> None:
        super().__init__("balancer", environment=environment)
        self.admin = self.directory / "admin"
        options.setdefault("drain_timeout", "5s")
        options.setdefault("workers", 2)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        upstream_flags = [f"--upstream={text_of(upstream)}" for upstream in upstreams]
        bind = [] if port is None else [f"--port={port}"]
        if bind and not any(str(word).startswith(("--bind", "-c")) for word in words):
            bind.append("--bind=127.0.0.1")
        self.arguments = [*bind, f"--admin={self.admin}", *upstream_flags, *flags]
        self.arguments += [str(word) for word in words]
        self.baseline: dict[str, int] = {}

    def wait_ready(self) -> None:
        super().wait_ready()
        self.baseline = self.descriptors_by_place()

    @functools.cached_property
    def address(self) -> Address:
        """The first address that it listens on."""
        match = self.wait_line(r"\bbind address=\[?([^\s\]]+?)\]?:(\d+)\b")
        return match[1], int(match[2])

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "balancer.ctl", "--admin", str(self.admin), *words]
        env = clean_environment()
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=env)

    def status(self) -> dict[str, Any]:
        """The status as the console tells it over its socket; no `balancerctl` is started."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
            conn.connect(
                str(self.admin)
            )  # waits while the queue is full, which a socket with a timeout does not
            conn.settimeout(60)
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

    # --- at rest

    def descriptors_by_place(self) -> dict[str, int]:
        """Descriptors of each process under a name that its replacement has too: `worker 0`, `master`."""
        counts = {}
        for pid, title in self.titles().items():
            place = re.match(r"balancer: (\w+(?: \d+)?)", title)
            if place:
                counts[place[1]] = self.descriptors(pid)
        return counts

    def wait_idle(self, seconds: float = 5.0) -> dict[str, Any]:
        """The status once no session is left anywhere."""

        def idle() -> dict[str, Any] | None:
            status = self.status()
            gauges = [status["totals"]["sessions"]]
            gauges += [row["sessions"] for row in (*status["workers"], *status["backends"])]
            assert min(gauges) >= 0, f"a negative gauge: {status}"
            return status if not any(gauges) else None

        return wait_for(idle, "every session counted out", seconds, every=0.02)

    def check_at_rest(
        self, workers: int | None = None, helpers: int = 2, seconds: float = 5.0, more_descriptors: int = 0
    ) -> dict[str, Any]:
        """What holds after any load and any fault once no client is connected. Returns the status.

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
        # Every client that was accepted has one end; the sessions of a killed worker have none.
        assert lost == 0 or (lost > 0 and " signal=" in self.log()), f"without an end: {totals}"
        assert by_backend <= totals["accepted_total"] + sum(
            b["connect_failures_total"] for b in status["backends"]
        )
        self.check_log(self.log())
        return status

    def check_descriptors(self, seconds: float, more: int = 0) -> None:
        """Every process is back at the count it had when the daemon was ready; a new slot has no baseline."""

        def surplus() -> dict[str, tuple[int, int]]:
            now = self.descriptors_by_place()
            return {k: (self.baseline[k], n) for k, n in now.items() if n > self.baseline.get(k, n) + more}

        try:
            wait_for(lambda: not surplus(), "descriptors at baseline", seconds)
        except WaitFailed:
            raise AssertionError(f"descriptors above the baseline: {surplus()} (then, now)") from None

    def half_dead(self) -> list[KernelSocket]:
        """Sockets in CLOSE-WAIT: the peer has closed and the process has not."""
        waiting = sockets_in(CLOSE_WAIT)
        inodes: set[int] = set()
        for process in self.processes() if waiting else ():
            with contextlib.suppress(FileNotFoundError):
                inodes |= inodes_of(process.pid)
        return [each for each in waiting if each.inode in inodes]


def ini_section(header: str, **keys: object) -> str:
    """A section of a file; a list or tuple is one item a line."""
    lines = [f"[{header}]"]
    for key, value in keys.items():
        items = value if isinstance(value, list | tuple) else [value]
        lines.append(f"{key.replace('_', '-')} =")
        lines += [f"    {item}" for item in items]
    return "\n".join(lines) + "\n"


class FileBalancer(Balancer):
    """A balancer with a configuration file: `write` replaces the file, `reload` makes it hold."""

    def __init__(self, text: str, **options: Any) -> None:
        super().__init__(port=None, **options)
        self.path = self.directory / "balancer.ini"
        self.arguments += ["-c", str(self.path)]
        self.write(text)

    def write(self, text: str) -> None:
        """Replace the file by a rename: no reader sees half of it."""
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.path)

    @property
    def generation(self) -> int:
        return int(self.status()["generation"])

    def reload(self, wanted: int, seconds: float = 15.0) -> None:
        """HUP, and wait for generation `wanted` and the report: from then on no older one accepts clients."""

        def reported() -> tuple[int, int]:
            status = self.status()
            return (status["reload"] or {"serial": 0})["serial"], status["generation"]

        before, _ = reported()
        self.signal(signal.SIGHUP)

        def is_in_force() -> bool:
            serial, generation = reported()
            return serial > before and generation >= wanted

        wait_for(is_in_force, f"generation {wanted}, and its report", seconds, every=0.02)

    def wait_one_generation(self, seconds: float = 8.0) -> None:
        def is_alone() -> bool:
            return len({worker["generation"] for worker in self.status()["workers"]}) == 1

        wait_for(is_alone, "the old generation gone", seconds, every=0.02)


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

    def pids(self, word: str) -> list[int]:
        """Processes whose title begins with `word`: front, cpu, express."""
        return [pid for pid, title in self.titles().items() if f": {word}" in title]

    def status(self) -> dict[str, Any]:
        """GET /status."""
        with urlopen("http://{}:{}/status".format(*self.address), timeout=15) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
