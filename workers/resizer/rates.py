"""How fast totals grow, of the last minute in which a front was asked for its page.

RULES: pure. A sample is taken when a page is asked for, at most one a second: a page that nobody looks at costs nothing,
and the first one has no rates.
"""

from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from math import nan

from balancer.web.history import STEPS, points

MINUTE = 60  # seconds, and samples
LEAST = 1.0  # seconds between two samples


class Rates:
    """Samples of totals by name, the oldest first."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque()

    def note(self, now: float, totals: Mapping[str, int]) -> None:
        """Take a sample at this monotonic time."""
        samples = self._samples
        while samples and samples[0][0] < now - MINUTE:
            samples.popleft()
        if not samples or now - samples[-1][0] >= LEAST:
            samples.append((now, totals))

    def per_second(self, name: str) -> float | None:
        """Of all samples; None before the second one."""
        if len(self._samples) < 2:
            return None
        (begun, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last[name] - first[name]) / (ended - begun)

    def chart(self, name: str) -> str:
        """The points of a polyline: the growth per second from each sample to the next."""
        growth = [
            (after[name] - before[name]) / (ended - begun)
            for (begun, before), (ended, after) in pairwise(self._samples)
        ]
        steps = [value for value in growth[-MINUTE:] for _ in range(STEPS // MINUTE)]
        return points([nan] * (STEPS - len(steps)) + steps)
