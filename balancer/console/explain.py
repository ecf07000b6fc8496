"""Which way a client would go, and why: the route, and what an election sees of each backend.

RULES: reads the board and the configuration; elects nothing and counts nothing. What depends on a worker's own state
(whose turn it is, chance) is said in words.

    {"listener", "source", "sni", "maxconns": [open, limit], "full": sentence (else no such key),
     "routes": [{"route", "matches", "is_taken"}], "pool" or null,
     "reason", "balance", "elects": "session" or "request", "queued": [now, limit],
     "connections": {"idle", "in_use"} or null,
     "backends": [{"name", "state", "weight", "sessions", "maxconn", "score", "backup", "verdict"}], "elected": [names]}

`full`: what becomes of it before a backend is elected, where the listener is full or no worker takes clients.
`verdict`: elected, or why it is not: its state ("down", "drain", "unresolved" ...), "full", "backup", "more loaded",
"not by hash", "behind it" (of balance first). `score`: what the next session costs by leastconn, null where none goes.
In framed mode each request is elected for, and what is counted and queued are requests; `connections` are those to the
backends that the workers keep, at the last look of each (1 s).
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from balancer.console.sets import is_shown
from balancer.edge.route import REJECT, Route
from balancer.options import HASHES, Listener, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import L_SESSIONS, P_CONNECTIONS_IDLE, P_CONNECTIONS_IN_USE, P_QUEUED, Board
from balancer.pool.choice import Choice
from balancer.pool.election import candidates, weights_in_force
from balancer.pool.policies import POLICIES, expected_delay
from balancer.pool.serving import is_panic, queue_limit, serving, state_of
from balancer.pool.targets import tenant_of
from balancer.relay.routes import RouteTable

IN_TURN = {
    "roundrobin": "each worker takes them in turn, by weight",
    "random": "one of them by chance, by weight",
    "p2c": "the less loaded of two that chance names",
}
PASSED = {"source": "not by hash", "maglev": "not by hash", "first": "behind it"}  # else "more loaded"
PANIC = "too few are up (panic): those that are down are elected as well"
BY_SOURCE = "the client's address decides: --source tells it"


def explain(
    board: Board, listener: Listener, pools: dict[str, Pool], source: str, name: str, shut: str = ""
) -> dict[str, Any]:
    """What would become of a client of `source` ("": not told) that asks for `name`. `shut`: why no listener takes
    anybody. Raises ValueError for a source that is no address."""
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
    if shut:
        answer["full"] = f"no client comes in: {shut}"
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
    loads = {backend.index: board.tenant_sessions(backend.index) for backend in pool.backends}
    weights = weights_in_force(board, pool)
    states = {backend.index: state_of(board, backend) for backend in pool.backends}
    in_panic, is_framed = is_panic(board, pool), pool.mode == "framed"
    able = [one for one in pool.backends if states[one.index] in (("up", "down") if in_panic else ("up",))]
    tier = [one for one in able if not is_backup(board, one)] or able
    full = {one.index for one in tier if is_full(board, one, loads[one.index])}
    elected = elected_by(board, pool, tier, full, loads, source)
    costs = costs_of({one.index: weights[one.index] for one in tier}, loads)
    rows = [
        {
            "name": one.name, "state": states[one.index], "weight": board.weight_of(one.index, one.weight),
            "sessions": loads[one.index], "maxconn": board.maxconn_of(one.index, one.maxconn),
            "backup": is_backup(board, one), "score": costs.get(one.index),
            "verdict": "elected" if one.index in elected
            else "full" if one.index in full
            else PASSED.get(pool.balance, "more loaded") if one in tier
            else "backup" if one in able else states[one.index],
        }
        for one in pool.backends
        if is_shown(board, one)
    ]  # fmt: skip
    if elected:
        by_source = BY_SOURCE if pool.balance in HASHES and not source else ""
        reason = PANIC if in_panic else by_source or IN_TURN.get(pool.balance, "")
    else:
        waiting = "request" if is_framed else "client"
        reason = (
            serving(board, pool).reason or f"every backend has its maxconn: the {waiting} joins the queue"
        )
    at = board.pool_at(pool.index)
    return {
        "pool": pool.name, "balance": pool.balance, "elects": "request" if is_framed else "session",
        "queued": [board.gauge(at + P_QUEUED), queue_limit(board, pool)], "backends": rows,
        "connections": {
            "idle": board.gauge(at + P_CONNECTIONS_IDLE), "in_use": board.gauge(at + P_CONNECTIONS_IN_USE),
        } if is_framed else None,
        "elected": [one.name for one in pool.backends if one.index in elected], "reason": reason,
    }  # fmt: skip


def is_full(board: Board, backend: Backend, sessions: int) -> bool:
    limit = board.maxconn_of(backend.index, backend.maxconn)
    return bool(limit) and sessions >= limit


def is_backup(board: Board, backend: Backend) -> bool:
    """Whether it is a backup, by its own words or by the name server's (of a set)."""
    return tenant_of(board, backend).backup if backend.set else backend.backup


def costs_of(weights: dict[int, int], loads: dict[int, int]) -> dict[int, int]:
    """What the next session costs at each backend, as leastconn counts: in whole sessions of the lightest one."""
    lightest = min(weights.values(), default=0)
    return {index: (loads[index] * lightest + lightest - 1) // weight for index, weight in weights.items()}


def least_of(indexes: set[int], costs: Mapping[int, Any]) -> set[int]:
    """All that cost least: which of them is next is a matter of the worker's turns."""
    least = min(costs[index] for index in indexes)
    return {index for index in indexes if costs[index] == least}


def elected_by(
    board: Board, pool: Pool, tier: Sequence[Backend], full: set[int], loads: dict[int, int], source: str
) -> set[int]:
    """The indexes of the backends that may be elected: one where the policy leaves no choice."""
    free = {one.index for one in tier} - full
    if pool.balance in IN_TURN or (pool.balance in HASHES and not source) or not free:
        return free
    weights = weights_in_force(board, pool)
    if pool.balance == "leastconn":
        return least_of(free, costs_of({one.index: weights[one.index] for one in tier}, loads))
    if pool.balance == "nq":
        return least_of(free, {index: expected_delay(loads[index], weights[index]) for index in free})
    # A hash knows a backend by its address, and one of a set by that of its tenant.
    present = [tenant_of(board, one) if one.set else one for one in pool.backends if weights[one.index]]
    backup = is_backup(board, tier[0])
    everyone = [one for one in present if not one.set or state_of(board, one) != "empty"]
    able = {one.index for one in tier}
    choice = Choice(
        candidates([one for one in everyone if one.index in able], backup, weights),
        candidates(everyone, backup, weights),
        lambda: [loads[one.index] for one in everyone if one.index in able],
        loads.__getitem__,
        hash_load=pool.hash_load,
    )
    index = POLICIES[pool.balance](choice)(source, full)
    return set() if index is None else {index}
