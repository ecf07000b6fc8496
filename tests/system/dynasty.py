"""A balancer that is upgraded: a copy of the package that can be edited, and whoever serves after USR2.

A version can really be another one: its own number, an error in its text, a worker that dies at once, a master that
never gets ready. Whose parent has left must become our child (`subreaper`), so that its exit code can be had.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.system.harness import ROOT, Balancer, wait_for

PR_SET_CHILD_SUBREAPER = 36
PROMISED = "it serves; we drain"


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Orphans of our children become our children."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Heir:
    """A successor, looking like the process that a daemon was started as."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):  # not ours yet: its parent lives
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds: float = 10.0) -> int:
        try:
            wait_for(lambda: self.poll() is not None, "its end", seconds)
        except AssertionError:
            raise subprocess.TimeoutExpired(str(self.pid), seconds) from None
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Dynasty(Balancer):
    """A balancer that runs from a copy of the package; `succeed` follows the master who took over."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(**options)
        self.cwd = directory / "app"
        shutil.copytree(
            ROOT / "balancer", self.cwd / "balancer", ignore=shutil.ignore_patterns("__pycache__")
        )
        self.founder = 0

    def start(self) -> "Dynasty":
        super().start()
        self.founder = self.pid
        return self

    def session(self) -> list[psutil.Process]:
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self.founder and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members

    def edit(self, name: str, old: str, new: str) -> str:
        """Change a line of the copy; the text before, for `restore`."""
        path = self.cwd / "balancer" / name
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, 1))
        return before

    def restore(self, name: str, text: str) -> None:
        (self.cwd / "balancer" / name).write_text(text)

    def new_version(self, number: str) -> None:
        path = self.cwd / "balancer/__init__.py"
        path.write_text(re.sub(r"(?m)^__version__ = .*$", f'__version__ = "{number}"', path.read_text()))

    def succeed(self) -> int:
        """USR2, and wait for the promise; the successor's pid, whom everything asks from now on."""
        at = len(self.log())
        self.signal(signal.SIGUSR2)
        match = self.wait_line(rf"upgrade successor=(\d+) then={PROMISED}", 20, after=at)
        assert self.process
        self.old = self.process
        self.process = Heir(int(match[1]))  # type: ignore[assignment]
        return self.process.pid

    def refuse(self, seconds: float = 15.0) -> None:
        """USR2 with a version that cannot serve: wait for the word that the old one goes on."""
        at = len(self.log())
        self.signal(signal.SIGUSR2)
        self.wait_line(r"error master pid=\d+ upgrade .*the old version goes on", seconds, after=at)

    def serving(self) -> int:
        """The pid of the master that has promised last, without waiting for anything."""
        promises = re.findall(rf"upgrade successor=(\d+) then={PROMISED}", self.log())
        return int(promises[-1]) if promises else self.founder

    def follow(self) -> None:
        """From now on everything asks the master that serves."""
        if self.serving() != self.pid:
            self.process = Heir(self.serving())  # type: ignore[assignment]


def asked(lb: Balancer) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return lb.status()
    return None
