"""How long this machine keeps a ready thread waiting: what a bound on wall time must forgive on a shared machine.

    with StallMeter(lb.worker_pids()) as stalls:
        began = time.monotonic(); waited = stalls.waited(); ...; took = time.monotonic() - began
        took -= stalls.stalled(began)          what a thread of this process waited
        took -= stalls.waited() - waited       what workers and threads waited, by the scheduler's own account

RULES: a thread sleeps a millisecond at a time; what it oversleeps is the machine's. A delay that our programs make (a
timer, an acknowledgement that is not sent) keeps no thread from running, so it is never forgiven.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from scripts.lab.helpers import BackgroundThread

NAP = 0.001
JITTER = 0.001  # oversleeping this much is normal


class StallMeter(BackgroundThread):
    def __init__(self, pids: Sequence[int] = ()) -> None:
        super().__init__(self.measure)
        self.accounts = [Path(f"/proc/{pid}/schedstat") for pid in pids]
        self.gaps: list[tuple[float, float]] = []  # (when it woke, seconds too late)

    def measure(self) -> None:
        last = time.monotonic()
        while not self.stopping.is_set():
            time.sleep(NAP)
            now = time.monotonic()
            if now - last > NAP + JITTER:
                self.gaps.append((now, now - last - NAP))
            last = now

    def stalled(self, since: float, until: float | None = None) -> float:
        """Seconds of the interval in which a thread that was ready did not run."""
        now = time.monotonic()
        until = now if until is None else until
        if now - until < 4 * NAP:
            time.sleep(4 * NAP)  # the gap under way is known only once it is over
        total = 0.0
        for woke, late in reversed(self.gaps):
            if woke <= since:
                break
            total += max(0.0, min(woke, until) - max(woke - late, since))
        return total

    def waited(self) -> float:
        """Seconds that the processes, and the threads of this one, have ever been ready and not run."""
        accounts = [*self.accounts, *Path("/proc/self/task").glob("*/schedstat")]
        return sum(int(account.read_text().split()[1]) for account in accounts) / 1e9
