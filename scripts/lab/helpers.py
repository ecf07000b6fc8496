"""A module of this tree as a helper process that reports JSON, and a thread for the length of a `with`.

RULES: a helper process ends when its standard input ends, and prints its figures as one JSON object before it exits.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from scripts.lab.process import ROOT, die_with_parent
from scripts.lab.waiting import WaitFailed


class HelperProcess:
    """`python -m MODULE WORDS...`: a process of its own, so that what it does does not slow the threads of this one."""

    def __init__(self, module: str, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill()

    def read_line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def kill(self) -> None:
        """End it without its figures; a second call does nothing."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def figures(self, stop: bool = True, seconds: float = 60.0) -> dict[str, Any]:
        """Tell it to stop, or let it end by itself, and return what it has printed since the last `read_line`."""
        assert self.process.stdin and self.process.stdout
        if stop:
            self.process.stdin.close()
        deadline = threading.Timer(seconds, self.process.kill)
        deadline.start()
        text = self.process.stdout.read()  # before wait(): a long text fills the pipe
        self.process.wait()
        deadline.cancel()
        if not text:
            raise WaitFailed(f"{self.process.args!r} ended within {seconds:g} s without its figures")
        found: dict[str, Any] = json.loads(text)
        return found


class BackgroundThread:
    """`work` in a thread from the start of the `with` to its end; it returns soon after `stopping` is set."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=work, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.end()

    def end(self, seconds: float = 10.0) -> None:
        """Ask the thread to end and wait for it; a second call does nothing."""
        self.stopping.set()
        if self.thread.is_alive():
            self.thread.join(seconds)
