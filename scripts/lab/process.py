"""A program in a session of its own: start it, read its log, stop it, kill what is left of it.

    with LabProcess([sys.executable, "-m", "balancer", ...], directory / "log") as program:
        program.wait_line(r"info master pid=\\d+ ready")

RULES: no process outlives the `with`. A program whose parent is killed is killed by the kernel (PR_SET_PDEATHSIG).
"""

import contextlib
import ctypes
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL, SIGSTOP, SIGTERM, Signals
from types import TracebackType
from typing import Self

from scripts.lab.waiting import PATIENCE, WaitFailed, wait_for

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 12.0
PR_SET_PDEATHSIG = 1
CONFIGURING = ("BALANCER_", "RESIZER_", "RESIZE_CLIENT_", "NOTIFY_", "LISTEN_")  # prefixes in the environment
LIBC = ctypes.CDLL(None)


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of this process without the variables that configure our programs, and with `extra`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(CONFIGURING)}
    return kept | {"PYTHONUNBUFFERED": "1"} | (extra or {})


def die_with_parent() -> None:
    """In the forked child, before its exec: SIGKILL when the parent ends, since no `with` is left then."""
    LIBC.prctl(PR_SET_PDEATHSIG, SIGKILL)


def children_of(pid: int) -> list[int]:
    """Pids of the children; empty when the process is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def title_of(pid: int) -> str:
    """What `ps` shows; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def state_of(pid: int) -> str:
    """The kernel's letter for the state of a process; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    return state_of(pid) not in ("", "Z", "X")


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until the process is stopped."""
    os.kill(pid, SIGSTOP)
    wait_for(lambda: state_of(pid) in ("T", ""), f"process {pid} stopped", every=0.0005)


class LabProcess:
    """One running program with its children."""

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        cwd: Path = ROOT,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.command = list(command)
        self.log_path = log_path
        self.cwd = cwd
        self.environment = clean_environment() if environment is None else environment
        self.output: int | None = None  # a descriptor for its output, in place of `log_path`
        self.pass_fds: tuple[int, ...] = ()
        self.process: subprocess.Popen[bytes] | None = None
        self.session_id = 0

    def start(self) -> Self:
        """Start without waiting for anything."""
        with open(self.log_path, "ab") as log:
            output = log if self.output is None else self.output
            self.process = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=self.pass_fds,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.session_id = self.pid
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill_everything()

    @property
    def pid(self) -> int:
        assert self.process, "not started"
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: Signals) -> None:
        os.kill(self.pid, number)

    def stop(self, how: Signals = SIGTERM, seconds: float = STOP_SECONDS) -> int:
        """Signal the program and wait for its exit code."""
        self.signal(how)
        return self.wait_exit(seconds)

    def wait_exit(self, seconds: float = STOP_SECONDS) -> int:
        assert self.process
        seconds *= PATIENCE
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise WaitFailed(f"still running {seconds:g} s later\n{self.log()[-3000:]}") from None

    def log(self) -> str:
        try:
            return self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_line(self, pattern: str, seconds: float = 5.0, after: int = 0) -> re.Match[str]:
        """The first line of the log, from byte `after` on, that matches."""
        wanted = re.compile(pattern, re.MULTILINE)

        def found() -> re.Match[str] | None:
            ended = self.has_ended
            match = wanted.search(self.log(), after)
            if match is None and ended and self.process:
                raise WaitFailed(
                    f"ended with {self.process.returncode} before /{pattern}/\n{self.log()[-3000:]}"
                )
            return match

        return wait_for(found, f"/{pattern}/ in the log", seconds)

    def session(self) -> list[int]:
        """Pids of the live processes of the session that this program leads."""
        members = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                pid = int(name)
                if os.getsid(pid) == self.session_id and is_running(pid):
                    members.append(pid)
        return members

    def kill_everything(self) -> list[str]:
        """SIGKILL by pid to all that is left of the session; "pid title" of each."""
        if self.process is None:
            return []
        left = []
        deadline = time.monotonic() + 0.5
        while (found := self.session()) and self.has_ended and time.monotonic() < deadline:
            time.sleep(0.01)  # children die with their master, but not in the same instant
        for pid in found:
            left.append(f"{pid} {title_of(pid)}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        if not self.has_ended:
            self.process.kill()
        self.process.wait()
        return left
