"""Sessions that a backend ends before its first byte, and the penalty for them. Pure: time comes in as an argument.

RULES
- A backend that accepts and closes (out of descriptors, its own server gone) passes every connect. So its sessions count,
  and no check clears what they have told: it is out for FIRST seconds, twice as long each further time.
- After a penalty it is on trial: one more early end begins the next, a quiet time forgets all.
- Clients can bring early ends about too, by what they send. So they must be half of its sessions, and the prober gives no
  penalty in a pool that never says a word, nor to the last backend that is up.
"""

from dataclasses import dataclass

FIRST = 5.0  # seconds of the first penalty
LONGEST = 300.0
QUIET = 60.0  # seconds, and no less than the last penalty


@dataclass(slots=True)
class EarlyEnds:
    """What is held against one backend. Totals are those of all workers; `fall` of them in a row are too many."""

    fall: int
    seen: int = 0  # the total of early ends, as last looked at
    count: int = 0  # of those: what counts now
    sessions: int = 0  # the total of its sessions when counting began
    last: float = 0.0  # monotonic seconds of the last one
    level: int = 0  # penalties that are not forgotten
    until: float = 0.0  # end of the penalty, 0 while it is not out

    @property
    def is_out(self) -> bool:
        return self.until > 0

    @property
    def limit(self) -> int:
        """Early ends that are too many: on trial the first one is."""
        return 1 if self.level else self.fall

    def are_too_many(self, total: int, sessions: int, now: float) -> bool:
        """There are more of them, `total` of `sessions` now; whether a penalty is due."""
        more, self.seen = total - self.seen, total
        if self.is_out:
            return False  # of sessions that had begun before
        if now - self.last >= max(QUIET, self._seconds()):
            self.level = self.count = 0
        if not self.count and not self.level:
            self.sessions = sessions - more
        self.last = now
        self.count += more
        return self.count >= self.limit and 2 * self.count >= sessions - self.sessions

    def punish(self, now: float) -> float:
        """Begin the next penalty; return its seconds."""
        self.level += 1
        self.until = now + self._seconds()
        return self._seconds()

    def release(self, sessions: int, now: float) -> None:
        """The penalty is over; `sessions` is the total of its sessions now."""
        self.until, self.count, self.sessions, self.last = 0.0, 0, sessions, now

    def _seconds(self) -> float:
        return min(FIRST * 2.0 ** min(self.level - 1, 16), LONGEST) if self.level else 0.0
