"""The last events as balancerctl, the page and /events.json show them.

RULES: reads the rings of shm.events, writes nothing. Times are UTC; `age_s` counts from the monotonic clock.

    {"boot": ..., "last": serial of the last event or `since`,
     "events": [{"serial", "at": "2026-11-27T00:12:01.123Z", "age_s", "verb", "text": "key=value ..."}]}

`boot` differs when another master has taken over (an upgrade): serials begin anew then.
"""

import time
from collections.abc import Iterable
from typing import Any

from balancer.pool.board import Board
from balancer.shm.events import Event
from balancer.shm.layout import MASTER_ROW, PID, STARTED_MS


def describe_events(board: Board, since: int, now: float) -> dict[str, Any]:
    """The events after a serial, 0 for the last 500."""
    events = board.shared.events.read(since)
    master = board.shared.rows.row(MASTER_ROW)
    return {
        "boot": f"{master[PID]}-{master[STARTED_MS]}",
        "last": events[-1].serial if events else since,
        "events": described(events, now),
    }


def described(events: Iterable[Event], now: float) -> list[dict[str, Any]]:
    """Each event as a dictionary, at monotonic time `now`."""
    return [
        {
            "serial": event.serial,
            "at": time_text(event.wall_ns),
            "age_s": round(max(0.0, now - event.at_ms / 1000), 1),
            "verb": event.verb,
            "text": event.text,
        }
        for event in events
    ]


def time_text(wall_ns: int) -> str:
    """A time of day as the log writes it."""
    second, ns = divmod(wall_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{ns // 1_000_000:03d}Z"
