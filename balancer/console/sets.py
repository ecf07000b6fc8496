"""What the status says of the sets of backends that name servers know.

RULES: reads the board, writes nothing. One row for each set of a pool, from the words of its first slot.
"""

from itertools import groupby
from typing import Any

from balancer.discovery.answers import ERRORS
from balancer.options import Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    W_DNS_AT_MS,
    W_DNS_ERROR,
    W_DNS_FAILURES,
    W_DNS_LEFT_OUT,
    W_DNS_QUERIES,
    W_DNS_SERVER,
    W_DNS_TTL_MS,
    Board,
)
from balancer.pool.serving import state_of
from balancer.pool.targets import address_in_use, unpack_address


def describe_sets(board: Board, pool: Pool, now_ms: int) -> list[dict[str, Any]]:
    """`age_s`, `ttl_s`, `ttl_left_s` and `server` are of the last answer, null before the first one; `error` is of the
    lookup after it, null when that has succeeded. `slot_name` stands before the numbers of its slots: a pool may ask for
    one name twice, as for IPv4 and for IPv6."""
    slots = [backend for backend in pool.backends if backend.set and not backend.is_spare]
    groups = groupby(slots, key=lambda one: (one.name.rpartition("-")[0], one.set))
    return [_describe(board, pool, list(group), now_ms) for _, group in groups]


def _describe(board: Board, pool: Pool, slots: list[Backend], now_ms: int) -> dict[str, Any]:
    first = slots[0].index
    at, ttl = board.word(first, W_DNS_AT_MS), board.word(first, W_DNS_TTL_MS)
    tenants = [slot for slot in slots if address_in_use(board, slot)]
    server = unpack_address(board.word(first, W_DNS_SERVER), board.word(first, W_DNS_SERVER + 1))
    return {
        "name": str(slots[0].set),
        "slot_name": slots[0].name.rpartition("-")[0],
        "pool": pool.name,
        "slots": len(slots),
        "backends": len(tenants),
        "left_out": board.word(first, W_DNS_LEFT_OUT),
        "age_s": round((now_ms - at) / 1000, 1) if at else None,
        "ttl_s": ttl / 1000 if at else None,
        "ttl_left_s": round(max(0, at + ttl - now_ms) / 1000, 1) if at else None,
        "server": server if at else None,
        "error": ERRORS[board.word(first, W_DNS_ERROR)] or None,
        "tenants": [
            {"name": slot.name, "address": address_in_use(board, slot), "state": state_of(board, slot)}
            for slot in tenants
        ],
        "queries_total": board.word(first, W_DNS_QUERIES),
        "failures_total": board.word(first, W_DNS_FAILURES),
    }


def is_shown(board: Board, backend: Backend) -> bool:
    """An empty slot is no backend, unless it still has sessions."""
    return backend.set is None or state_of(board, backend) != "empty" or board.sessions(backend.index) > 0
