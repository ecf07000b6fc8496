"""A balancer that is upgraded: it runs from a copy of the package that a test edits, and USR2 starts its successor.

An edited copy is another version: it has its own number, a syntax error, a worker that dies at once, or a master that
never gets ready. A successor becomes our child when its parent exits (`subreaper`), so that its exit code is known.
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

from scripts.lab.process import ROOT
from scripts.lab.waiting import WaitFailed, wait_for
from tests.system.harness import Balancer

PR_SET_CHILD_SUBREAPER = 36
SERVES = "it serves; we drain"


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Orphans of our children become our children."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Successor:
    """A master started by USR2, with the interface of the Popen that a daemon was started as."""

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
        except WaitFailed:
            raise subprocess.TimeoutExpired(str(self.pid), seconds) from None
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class UpgradableBalancer(Balancer):
    """A balancer that runs from a copy of the package; `upgrade` follows the master that takes over."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(**options)
        self.cwd = directory / "app"
        shutil.copytree(
            ROOT / "balancer", self.cwd / "balancer", ignore=shutil.ignore_patterns("__pycache__")
        )

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

    def upgrade(self) -> int:
        """USR2, and wait until the successor serves; its pid. All methods ask the successor from now on."""
        at = len(self.log())
        self.signal(signal.SIGUSR2)
        match = self.wait_line(rf"upgrade successor=(\d+) then={SERVES}", 20, after=at)
        assert self.process
        self.old = self.process
        self.process = Successor(int(match[1]))  # type: ignore[assignment]
        return self.process.pid

    def upgrade_in_vain(self, seconds: float = 15.0) -> None:
        """USR2 with a version that cannot serve: wait for the line that the old one goes on."""
        at = len(self.log())
        self.signal(signal.SIGUSR2)
        self.wait_line(r"error master pid=\d+ upgrade .*the old version goes on", seconds, after=at)

    def serving(self) -> int:
        """The pid of the latest master that serves, by the log; waits for nothing."""
        promises = re.findall(rf"upgrade successor=(\d+) then={SERVES}", self.log())
        return int(promises[-1]) if promises else self.session_id

    def follow(self) -> None:
        """All methods ask the master that serves from now on."""
        if self.serving() != self.pid:
            self.process = Successor(self.serving())  # type: ignore[assignment]


def status_or_none(lb: Balancer) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return lb.status()
    return None
