"""--processes N: the run in N forked processes, each with its share of the pictures, and their statistics added up.

RULES: the parent forks, waits and adds; it talks to no server. A child that dies without statistics is a failure of the
run. Signals to the parent are passed on to the children, which end their runs and still report.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from workers.client.report import Statistics


def run_forked(number: int, work: Callable[[int], Statistics]) -> Statistics:
    """Call `work(k)` in process k of `number`; the sum of the statistics they return."""
    children: list[tuple[int, int]] = []
    for index in range(number):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            for _, other in children:
                os.close(other)
            _run_child(index, writer, work)
        os.close(writer)
        children.append((pid, reader))

    alive = {pid for pid, _ in children}  # the kernel may reuse a pid that was waited for: never signal it

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for pid in list(alive):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, pass_on)
    return _collect(children, alive)


def _run_child(index: int, writer: int, work: Callable[[int], Statistics]) -> None:
    code = 1
    try:
        raw = work(index).dump()
        with open(writer, "wb") as pipe:
            pipe.write(raw)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # without the parent's stack and its exit handlers


def _collect(children: list[tuple[int, int]], alive: set[int]) -> Statistics:
    total = Statistics()
    for pid, reader in children:
        with open(reader, "rb") as pipe:
            raw = pipe.read()
        alive.discard(pid)
        _, status = os.waitpid(pid, 0)
        try:
            total.merge(raw)
        except ValueError:
            total.add_failure(f"process {pid}", f"died: exit code {os.waitstatus_to_exitcode(status)}")
    return total
