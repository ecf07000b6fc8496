"""Durations in fixed buckets: cells of a row that one process writes and everybody sums.

    from the first cell on | one per bound: durations up to it and above the bound before it | longer ones | sum, us

RULES
- Every cell only grows, so the cells of a histogram are totals of its block: the master folds them when a process ends.
- A duration is written once, when it is known. The sum is written last, so it may lack a duration that is counted.
- Pure: knows cells, not what is measured.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

# Seconds: from a connect within one machine to a session of three hours.
BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0,
    100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0,
)  # fmt: skip
SUM = len(BOUNDS) + 1  # cell
CELLS = 32  # of one histogram, the unused ones at its end: whole cache lines
USED = SUM + 1  # ... those that are used

bucket_of = partial(bisect_left, BOUNDS)  # the cell of a duration in seconds


class Histogram:
    """The writer of one histogram; `cells` begins with its first cell."""

    __slots__ = ("cells",)

    def __init__(self, cells: memoryview) -> None:
        self.cells = cells

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        cells = self.cells
        cells[bucket_of(seconds)] += 1
        cells[SUM] += int(seconds * 1e6)

    def observe_all(self, durations: Sequence[float]) -> None:
        """Count many at once, for whom one call each is too dear."""
        cells = self.cells
        for cell, count in Counter(map(bucket_of, durations)).items():
            cells[cell] += count
        cells[SUM] += int(sum(durations) * 1e6)


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram holds: durations per bucket (the last is above all bounds), and their sum in seconds."""

    counts: tuple[int, ...]
    seconds: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def up_to(self) -> list[int]:
        """For each bound how many durations are at most that long; then all."""
        return list(accumulate(self.counts))

    def quantile(self, share: float) -> float | None:
        """The duration in seconds that `share` (0..1) of all are at most: evenly spread within a bucket. None when there
        is none; the highest bound for what is above it."""
        up_to = self.up_to()
        if not up_to[-1]:
            return None
        rank = share * up_to[-1]
        bucket = bisect_left(up_to, rank) if rank else 0
        if bucket == len(BOUNDS):
            return BOUNDS[-1]
        lower = BOUNDS[bucket - 1] if bucket else 0.0
        below = up_to[bucket - 1] if bucket else 0
        inside = self.counts[bucket]
        return lower + (BOUNDS[bucket] - lower) * ((rank - below) / inside if inside else 0.0)


def distribution(cells: Sequence[int]) -> Distribution:
    """Read the cells of a histogram, or the sums of them over several rows."""
    return Distribution(tuple(cells[:SUM]), cells[SUM] / 1e6)
