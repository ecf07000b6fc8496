"""How long this machine kept a ready thread waiting: what a bound on wall time must forgive on a shared machine.

    with Ruler(lb.worker_pids()) as ruler:
        began = time.monotonic(); waited = ruler.waited(); ...; took = time.monotonic() - began
        took -= ruler.stalled(began)         what a thread of this process waited
        took -= ruler.waited() - waited      what workers and threads waited, by the scheduler's own account

RULES: a thread that only sleeps a millisecond at a time; what it oversleeps is the machine's. So a delay of ours (a
timer, an acknowledgement that nobody sends) is never forgiven, because nobody is kept from running by it.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

NAP = 0.001
JITTER = 0.001  # oversleeping this much is normal


class Ruler:
    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._accounts = [Path(f"/proc/{pid}/schedstat") for pid in pids]
        self._gaps: list[tuple[float, float]] = []  # (when it woke, seconds too late)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _measure(self) -> None:
        last = time.monotonic()
        while not self._stopping.is_set():
            time.sleep(NAP)
            now = time.monotonic()
            if now - last > NAP + JITTER:
                self._gaps.append((now, now - last - NAP))
            last = now

    def stalled(self, since: float, until: float | None = None) -> float:
        """Seconds of the interval in which a thread that was ready did not run."""
        now = time.monotonic()
        until = now if until is None else until
        if now - until < 4 * NAP:
            time.sleep(4 * NAP)  # the gap under way is known only once it is over
        total = 0.0
        for woke, late in reversed(self._gaps):
            if woke <= since:
                break
            total += max(0.0, min(woke, until) - max(woke - late, since))
        return total

    def waited(self) -> float:
        """Seconds that the processes, and the threads of this one, have ever been ready and not run."""
        accounts = [*self._accounts, *Path("/proc/self/task").glob("*/schedstat")]
        return sum(int(account.read_text().split()[1]) for account in accounts) / 1e9
