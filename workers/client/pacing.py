"""How many connections: more while that pays, fewer when resizers are busy.

    start at `low` --> double while each step raises the rate by a twentieth --> one at a time --> hold
                       a step that did not pay is taken back; a busy reply takes a quarter off; then hold

RULES: pure; time comes in as an argument. Between `low` and `high`, always. A rate is only judged over enough
replies; with two slow pictures a second there is nothing to learn from half a second.
"""

INTERVAL = 0.25  # seconds between two looks
GAIN = 1.05
HOLD = 12  # looks


class Pacer:
    """The number of connections `wanted` now."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, max(low, high)
        self.wanted = low
        self._doubling = True
        self._before = low  # what was wanted before the step under trial
        self._best = 0.0  # replies a second that the last accepted step brought
        self._answers = 0
        self._since: float | None = None
        self._hold = 0
        self._shrunk_at = float("-inf")

    def answered(self) -> None:
        """A reply that did work came in."""
        self._answers += 1

    def refused(self, now: float) -> None:
        """A busy reply came in. Those of one interval count once: they tell of one queue being full."""
        if now - self._shrunk_at < INTERVAL:
            return
        self._shrunk_at = now
        self._doubling = False
        self.wanted = self._before = max(self.low, min(self.wanted - 1, self.wanted * 3 // 4))
        self._best = 0.0
        self._hold = HOLD
        self._restart(now)

    def look(self, now: float) -> None:
        """Judge the step under trial and take the next one; to be called every INTERVAL."""
        if self.low == self.high:
            return
        if self._since is None:
            self._restart(now)
            return
        if self._hold:
            self._hold -= 1
            if not self._hold:
                self._restart(now)
                self._best = 0.0
            return
        if self._answers < 2 * self.wanted or now <= self._since:
            return
        rate = self._answers / (now - self._since)
        self._restart(now)
        if rate > self._best * GAIN:
            self._best = rate
            self._before = self.wanted
            self.wanted = min(self.high, self.wanted * 2 if self._doubling else self.wanted + 1)
        else:
            self.wanted = self._before
            self._doubling = False
            self._hold = HOLD

    def _restart(self, now: float) -> None:
        self._answers = 0
        self._since = now
