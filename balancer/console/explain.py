"""Which way a client would go, and why: the route, and what an election sees of each backend.

RULES: reads the board and the configuration; elects nothing and counts nothing. What depends on a worker's own state
(whose turn it is, chance) is said in words.

    {"listener", "source", "sni", "maxconns": [open, limit], "routes": [{"route", "matches", "is_taken"}], "pool" or null,
     "reason", "balance", "queued": [now, limit],
     "backends": [{"name", "state", "weight", "sessions", "maxconn", "score", "backup", "verdict"}], "elected": [names]}

`verdict`: elected, or why it is not: "down", "drain", "full", "backup", "more loaded". `score`: sessions per weight.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from balancer.edge.route import REJECT, Route
from balancer.options import Listener, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import L_SESSIONS, P_QUEUED, Board
from balancer.pool.choice import Candidate, Choice
from balancer.pool.policies import POLICIES
from balancer.pool.serving import serving, state_of
from balancer.relay.routes import RouteTable

IN_TURN = {
    "roundrobin": "each worker takes them in turn, by weight",
    "random": "one of them by chance, by weight",
    "p2c": "the less loaded of two that chance names",
}
ABLE = ("up", "unresolved")


def explain(
    board: Board, listener: Listener, pools: dict[str, Pool], source: str, name: str
) -> dict[str, Any]:
    """What would become of a client of `source` ("": not told) that asks for `name`. Raises ValueError for a source that
    is no address."""
    if source:
        ip_address(source)
    routes = [describe_route(route, source, name) for route in listener.routes]
    taken = next((one for one in routes if one["matches"]), None)
    if taken is not None:
        taken["is_taken"] = True
    sessions = board.gauge(board.listener_at(listener.index) + L_SESSIONS)
    answer = {
        "listener": listener.name, "source": source or None, "sni": name or None,
        "maxconns": [sessions, listener.maxconns], "routes": routes, "pool": None, "backends": [], "elected": [],
    }  # fmt: skip
    if listener.maxconns and sessions >= listener.maxconns:
        answer["full"] = (
            "the client waits in the kernel's queue" if listener.overflow == "queue" else "it is refused"
        )
    pool = pools.get(taken["pool"]) if taken is not None else None
    if pool is None:
        return answer | {"reason": "no route matches: refused" if taken is None else "the route rejects it"}
    return answer | explain_pool(board, pool, source)


def describe_route(route: Route, source: str, name: str) -> dict[str, Any]:
    """A route, and whether it would take the client were it the only one."""
    return {
        "route": str(route),
        "pool": route.pool,
        "matches": RouteTable([(route, route.pool)]).find(source, name) is not None,
        "is_taken": False,
        "rejects": route.pool == REJECT,
    }


def explain_pool(board: Board, pool: Pool, source: str) -> dict[str, Any]:
    """What an election in a pool sees now."""
    loads = {backend.index: board.sessions(backend.index) for backend in pool.backends}
    weights = {backend.index: board.weight_of(backend.index, backend.weight) for backend in pool.backends}
    able = [one for one in pool.backends if state_of(board, one) in ABLE and weights[one.index]]
    tier = [one for one in able if not one.backup] or able
    free = [one for one in tier if not is_full(board, one, loads[one.index])]
    names = elected_by(pool, free, weights, loads, source)
    found = serving(board, pool)
    rows = [
        {
            "name": one.name, "state": state_of(board, one), "weight": weights[one.index], "sessions": loads[one.index],
            "maxconn": board.maxconn_of(one.index, one.maxconn), "backup": one.backup,
            "score": round(loads[one.index] / weights[one.index], 3) if weights[one.index] else None,
            "verdict": "elected" if one.name in names else verdict_on(board, one, tier, free),
        }
        for one in pool.backends
    ]  # fmt: skip
    queued = board.gauge(board.pool_at(pool.index) + P_QUEUED)
    if not free:
        reason = found.reason or "every backend has its maxconn: the client joins the queue"
    else:
        reason = IN_TURN.get(pool.balance, "")
    return {
        "pool": pool.name, "balance": pool.balance, "queued": [queued, pool.max_queue], "backends": rows,
        "elected": names, "reason": reason,
    }  # fmt: skip


def is_full(board: Board, backend: Backend, sessions: int) -> bool:
    limit = board.maxconn_of(backend.index, backend.maxconn)
    return bool(limit) and sessions >= limit


def elected_by(
    pool: Pool, free: Sequence[Backend], weights: dict[int, int], loads: dict[int, int], source: str
) -> list[str]:
    """The backends that may be elected: one where the policy leaves no choice."""
    if pool.balance in IN_TURN or (pool.balance == "source" and not source) or not free:
        return [one.name for one in free]
    if pool.balance == "leastconn":
        least = min(loads[one.index] / weights[one.index] for one in free)
        return [one.name for one in free if loads[one.index] / weights[one.index] == least]
    candidates = [Candidate(one.index, one.name, weights[one.index]) for one in free]
    everyone = [
        Candidate(one.index, one.name, weights[one.index]) for one in pool.backends if weights[one.index]
    ]
    choice = Choice(candidates, everyone, lambda: [loads[one.index] for one in free], loads.__getitem__, 0)
    index = POLICIES[pool.balance](choice)(source, ())
    return [one.name for one in free if one.index == index]


def verdict_on(board: Board, backend: Backend, tier: Sequence[Backend], free: Sequence[Backend]) -> str:
    """Why a backend is not elected."""
    if backend not in tier:
        state = state_of(board, backend)
        return state if state not in ABLE else "backup"
    return "more loaded" if backend in free else "full"
