"""How many connections: more while more replies per second come of it, fewer when resizers answer busy.

    start at `low` --> double while each step raises the reply rate by GAIN --> add one at a time --> hold
                       a step without that gain is reverted; a busy reply removes a quarter; then hold

RULES: pure; time comes in as an argument. Always between `low` and `high`. A rate is compared only after enough
replies: at two slow pictures a second, half a second of measurement says nothing.
"""

INTERVAL = 0.25  # seconds between two calls of adjust()
GAIN = 1.05
HOLD = 12  # intervals


class ConcurrencyLimit:
    """`current` is the number of connections to have now."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, max(low, high)
        self.current = low
        self._is_doubling = True
        self._previous = low  # `current` before the step that is being measured
        self._best_rate = 0.0  # replies a second after the last step that was kept
        self._replies = 0
        self._measured_since: float | None = None
        self._hold = 0
        self._reduced_at = float("-inf")

    def on_reply(self) -> None:
        """Count a reply other than busy or draining."""
        self._replies += 1

    def on_busy(self, now: float) -> None:
        """Reduce after a busy reply. Busy replies within one INTERVAL count once: they report the same full queue."""
        if now - self._reduced_at < INTERVAL:
            return
        self._reduced_at = now
        self._is_doubling = False
        self.current = self._previous = max(self.low, min(self.current - 1, self.current * 3 // 4))
        self._best_rate = 0.0
        self._hold = HOLD
        self._restart(now)

    def adjust(self, now: float) -> None:
        """Keep or revert the step that is being measured and take the next; to be called every INTERVAL."""
        if self.low == self.high:
            return
        if self._measured_since is None:
            self._restart(now)
            return
        if self._hold:
            self._hold -= 1
            if not self._hold:
                self._restart(now)
                self._best_rate = 0.0
            return
        if self._replies < 2 * self.current or now <= self._measured_since:
            return
        rate = self._replies / (now - self._measured_since)
        self._restart(now)
        if rate > self._best_rate * GAIN:
            self._best_rate = rate
            self._previous = self.current
            self.current = min(self.high, self.current * 2 if self._is_doubling else self.current + 1)
        else:
            self.current = self._previous
            self._is_doubling = False
            self._hold = HOLD

    def _restart(self, now: float) -> None:
        self._replies = 0
        self._measured_since = now
