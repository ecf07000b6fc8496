"""Timers of one process: a heap of few. The caller passes the time.

RULES: pure. Reads no clock, never sleeps, knows no file descriptor.
A session owns no timer per message. Timeouts of one constant length belong in a queue that is swept once a second:
insertion order is deadline order there and costs nothing. The heap is for the few that differ in length.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf

FEW = 64


class Timer:
    """One act at one time. With a `period` above 0 it repeats at a fixed rate and skips missed beats."""

    __slots__ = ("_act", "period", "when")

    def __init__(self, when: float, act: Callable[[], object], period: float = 0.0) -> None:
        self.when = when
        self.period = period
        self._act: Callable[[], object] | None = act

    def cancel(self) -> None:
        """Keep the act from running (again). Does nothing when it has run."""
        self._act = None

    def is_cancelled(self) -> bool:
        return self._act is None

    def fire(self, now: float) -> bool:
        """Run the act; True when the timer repeats (its `when` is then past `now`)."""
        act = self._act
        if act is None:
            return False
        if not self.period:
            self._act = None
            act()
            return False
        self.when += self.period
        if self.when <= now:  # beats missed (a long turn, a suspended machine): skip them, keep the phase
            self.when += self.period * int((now - self.when) / self.period + 1)
        act()
        return self._act is not None


class Timers:
    """The heap. A cancelled timer stays in it until its time, or until the heap has doubled since they were last dropped.

    `due_at`: the time of the earliest timer, cancelled or not; infinite when there is none. It is an attribute because
    the loop reads it twice a turn.
    """

    __slots__ = ("_heap", "_look_at", "_serial", "due_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0
        self._look_at = FEW  # the length at which to look for cancelled ones
        self.due_at = inf

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, timer: Timer) -> Timer:
        if len(self._heap) > self._look_at:
            self._drop_cancelled()
        self._serial += 1
        heappush(self._heap, (timer.when, self._serial, timer))
        self.due_at = self._heap[0][0]
        return timer

    def fire_due(self, now: float) -> int:
        """Run every timer due at `now`, once each, in order of time; returns how many ran."""
        heap = self._heap
        due = []
        while heap and (heap[0][0] <= now or heap[0][2].is_cancelled()):
            due.append(heappop(heap)[2])
        self.due_at = heap[0][0] if heap else inf
        fired = 0
        for timer in due:
            if timer.is_cancelled():
                continue
            fired += 1
            if timer.fire(now):
                self.add(timer)
        return fired

    def _drop_cancelled(self) -> None:
        """Look again at twice the length that is left, so that a timer is looked at once or twice, however many live."""
        live = [entry for entry in self._heap if not entry[2].is_cancelled()]
        if len(live) < len(self._heap):
            heapify(live)
            self._heap[:] = live
        self._look_at = max(FEW, 2 * len(live))
