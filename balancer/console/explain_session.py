"""What the election of a session saw, by its record.

RULES: reads what workers have recorded while an operator asked for it (relay/election_recorder.py).

    {"session", "elections": [{"at", "age_s", "pool", "balance", "elected" or null, "left_out",
     "backends": [{"name", "state", "weight", "sessions", "verdict"}]}]}

Several elections are those of retries, and of a place that was waited for. `verdict` is as in explain.py, or "tried
before". `left_out`: backends of a large pool that the record has no room for. A backend is "removed since" when today's
configuration has none of that name and address in the pool.
"""

import re
from collections.abc import Mapping
from typing import Any

from balancer.console.events import time_text
from balancer.console.explain import IN_TURN, PASSED
from balancer.options import Pool
from balancer.pool.board import Board
from balancer.pool.election_log import Election, SeenBackend, SessionKey, tag_of
from balancer.pool.targets import tag_of_backend

_ID = re.compile(r"([0-9a-f]{1,8})-([0-9a-f]{1,16})-([0-9a-f]{1,8})")
NOT_RECORDED = (
    "no election of session {} is recorded: `balancerctl record 5m` records those of the next five minutes, "
    "record-elections those of {}; the last 1,022 of each worker are kept"
)

REMOVED = "removed since"


class NoRecord(Exception):
    """The text says why, and what to do."""


def key_of_id(text: str) -> SessionKey:
    """The key of a session's ID. Raises NoRecord."""
    match = _ID.fullmatch(text)
    if match is None:
        raise NoRecord(f"{text!r} is no ID of a session; `balancerctl sessions` and the log have them")
    return SessionKey(*(int(part, 16) for part in match.groups()))


def explain_session(
    board: Board, pools: Mapping[str, Pool], text: str, now: float, calendar: float, which: str = "off"
) -> dict[str, Any]:
    """The elections of a session. `now` is monotonic seconds, `calendar` the same moment since 1970, `which` the value of
    record-elections. Raises NoRecord."""
    found = board.elections.find(key_of_id(text))
    if not found:
        raise NoRecord(NOT_RECORDED.format(text, "one session in N" if which == "off" else which))
    by_tag = {tag_of(pool.name): pool for pool in pools.values()}
    return {
        "session": text,
        "elections": [describe(board, one, by_tag.get(one.pool), now, calendar) for one in found],
    }


def describe(board: Board, one: Election, pool: Pool | None, now: float, calendar: float) -> dict[str, Any]:
    """An election as the module's head says."""
    age = max(0.0, now - one.at_ms / 1000)
    names = (
        {} if pool is None else {tag_of_backend(board, backend): backend.name for backend in pool.backends}
    )
    balance = "" if pool is None else pool.balance
    places = {tag: place for place, tag in enumerate(names)}
    rows = sorted(one.backends, key=lambda seen: places.get(seen.tag, len(places)))
    tags = {seen.block: seen.tag for seen in rows}
    return {
        "at": time_text(int((calendar - age) * 1e9)),
        "age_s": round(age, 1),
        "pool": pool.name if pool is not None else None,
        "balance": balance or None,
        "elected": None if one.elected is None else names.get(tags.get(one.elected, -1), REMOVED),
        "left_out": one.of - len(one.backends),
        "backends": [
            {
                "name": names.get(seen.tag, REMOVED), "state": seen.state, "weight": seen.weight,
                "sessions": seen.sessions, "verdict": verdict(seen, one.elected, balance),
            }
            for seen in rows
        ],
    }  # fmt: skip


def verdict(seen: SeenBackend, elected: int | None, balance: str) -> str:
    """Elected, or why not."""
    if seen.block == elected:
        return "elected"
    if seen.was_tried:
        return "tried before"
    if seen.state != "up":
        return seen.state
    if elected is None:
        return "full"
    return "not its turn" if balance in IN_TURN else PASSED.get(balance, "more loaded")
