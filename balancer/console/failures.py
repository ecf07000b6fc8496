"""The last refused clients and failed sessions of all workers, as `balancerctl errors` shows them.

RULES: reads the rings that workers write (relay/failures.py), writes nothing.

    {"at": "2026-11-27T00:12:01.123Z", "age_s", "kind": "refuse" | "session", "end", "what", "reason", "client",
     "listener", "pool", "backend", "id", "omitted"}

What a record does not say is null. `what` is `end` in words; `omitted` counts like ones of the same second that have no
record. A worker's record is shown until 500 later ones have come.
"""

from typing import Any

from balancer.console.events import time_text
from balancer.console.views import ENDS
from balancer.eventloop.log_format import fields_in
from balancer.pool.board import Board

KEYS = ("end", "reason", "client", "listener", "pool", "backend", "id", "omitted")


def describe_failures(board: Board, now: float, calendar: float) -> list[dict[str, Any]]:
    """The last ones, the newest last. `now` is monotonic seconds, `calendar` the same moment in seconds since 1970."""
    found = []
    for one in board.failures.read():
        age = max(0.0, now - one.at_ms / 1000)
        fields = fields_in(one.text)
        known = {key: fields.pop(key, None) for key in KEYS}
        found.append(
            {"at": time_text(int((calendar - age) * 1e9)), "age_s": round(age, 1), "kind": one.verb}
            | known
            | {"what": ENDS.get(str(known["end"])), "omitted": known["omitted"] or 0}
            | fields
        )
    return found
