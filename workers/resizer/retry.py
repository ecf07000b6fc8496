"""When a refused client is told to come again: when there will be room for it, and not all at once.

RULES: pure; time comes in. Each refused client gets the next moment at which the CPU processes will be through with the
queue and with those refused before it. A client that comes too early is told the same moment again.
"""

from workers.resizer.task import QueueClient

LONGEST = (
    10.0  # seconds: who is told more goes elsewhere, and those who ignore it could put off those who obey
)
_WEIGHT = 0.1  # of one picture in the mean


class RetrySchedule:
    """Of one front. `seconds_each`: mean time of a picture in a CPU process."""

    __slots__ = ("_taken_until", "seconds_each")

    def __init__(self) -> None:
        self.seconds_each = 0.02
        self._taken_until = 0.0

    def record(self, seconds: float) -> None:
        """A picture took so long."""
        self.seconds_each += (seconds - self.seconds_each) * _WEIGHT

    def seconds_for(self, client: QueueClient, now: float, waiting: int, workers: int) -> int:
        """Whole seconds, 1 to LONGEST, after which `client` is to come again; `waiting`: pictures before it."""
        if client.retry_at <= now:
            step = self.seconds_each / max(1, workers)
            earliest = max(now + waiting * step, self._taken_until)
            client.retry_at = self._taken_until = min(earliest + step, now + LONGEST)
        return max(1, round(client.retry_at - now + 0.5))
