"""The state of the balancer as one dictionary: what `balancerctl status --json` prints, documented and stable.

RULES
- Reads the board, writes nothing; time and process figures come in as arguments, so that a table of cells made by hand
  is a whole test.
- A key is never renamed or removed within one schema; new ones may come. What is not known is null.
- Totals include the dead and the draining; they never fall.

    {"schema": 2, "version", "generation", "uptime_s", "steering": "on"|"off",
     "listeners": [{"name", "addresses", "pools", "sessions", "maxconns", "accepted_total", "refused_total",
                   "failed_total", "bytes_in_total", "bytes_out_total", "closed_total", "cut_total", "retries_total",
                   "pauses_total", "resumes_total"}],
     "pools":    [{"name", "balance", "queued", "queued_total", "max_queue", "backends": [as in "backends"]}],
     "backends": [{"name", "pool", "address", "state", "weight", "sessions", "sessions_total", "connect_failures_total",
                   "bytes_in_total", "bytes_out_total", "checks_total", "check_failures_total", "downs_total",
                   "check", "check_streak", "check_ms", "maxconn", "backup", "since_s"}],
     "workers":  [{"slot", "pid", "state", "generation", "accepting", "sessions", "accepted_total", "cpu_percent",
                  "rss_bytes", "fds", "share_percent", "drain_left_s"}],
     "totals":   {"sessions", "accepted_total", "refused_total", "failed_total", "bytes_in_total", "bytes_out_total",
                  "closed_total", "cut_total", "retries_total", "pauses_total", "resumes_total",
                  "queued_total", "log_dropped_total", "queued", "respawns_total", "hangs_total"},
     "reload":   {"serial", "ok", "text", "age_s", ...} of the last reload, or null}

Schema 1 had no listeners and no pools. The totals count removed listeners and pools too; the sums of those that are
configured can be less.
`state` of a worker: starting, ready, draining, hung. `state` of a backend: up, down, drain, maint.
bytes_in went from client to backend. `check` is the outcome of the last health check, `check_streak` how many results in
a row speak against the present state, `check_ms` how long the last good one took; downs are falls from up to down.
Respawns are processes that had to be replaced, hangs those that were killed because their heartbeat stood still.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from balancer.console.processes import Figures
from balancer.options import Listener, Options, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_NAMES,
    ADMIN_READY,
    B_BYTES_IN,
    B_BYTES_OUT,
    B_CHECK_FAILURES,
    B_CHECKS,
    B_CONNECT_FAILURES,
    B_DOWNS,
    B_SESSIONS,
    B_SESSIONS_TOTAL,
    BACKENDS,
    CHECK_NAMES,
    L_ACCEPTED,
    L_BYTES_IN,
    L_BYTES_OUT,
    L_CLOSED,
    L_CUT,
    L_FAILED,
    L_PAUSES,
    L_REFUSED,
    L_RESUMES,
    L_RETRIES,
    L_SESSIONS,
    LISTENERS,
    LOG_DROPPED,
    P_QUEUED,
    P_QUEUED_TOTAL,
    POOLS,
    VERDICT_NAMES,
    W_ADMIN_STATE,
    W_CHECK,
    W_CHECK_US,
    W_SINCE_MS,
    W_STREAK,
    W_VERDICT,
    WORKER_ROLE,
    Board,
)
from balancer.prefork.slots import is_hung
from balancer.shm.layout import (
    ACCEPTING,
    BEAT_MS,
    DEADLINE_MS,
    DRAINING,
    FIRST_LEASE,
    GENERATION,
    MASTER_GENERATION,
    MASTER_HANGS,
    MASTER_RESPAWNS,
    MASTER_ROW,
    MASTER_STEERED,
    PID,
    READY,
    ROLE,
    SHARE,
    SLOT,
    STARTED_MS,
    STATE,
)

SCHEMA = 2
LISTENER_TOTALS = {
    "accepted_total": L_ACCEPTED,
    "refused_total": L_REFUSED,
    "failed_total": L_FAILED,
    "bytes_in_total": L_BYTES_IN,
    "bytes_out_total": L_BYTES_OUT,
    "closed_total": L_CLOSED,
    "cut_total": L_CUT,
    "retries_total": L_RETRIES,
    "pauses_total": L_PAUSES,
    "resumes_total": L_RESUMES,
}
BACKEND_TOTALS = {
    "sessions_total": B_SESSIONS_TOTAL,
    "connect_failures_total": B_CONNECT_FAILURES,
    "bytes_in_total": B_BYTES_IN,
    "bytes_out_total": B_BYTES_OUT,
    "checks_total": B_CHECKS,
    "check_failures_total": B_CHECK_FAILURES,
    "downs_total": B_DOWNS,
}


def worker_pids(board: Board) -> list[int]:
    """The living workers, all generations."""
    return [board.cells[row * board.columns + PID] for row in worker_rows(board)]


def worker_rows(board: Board) -> list[int]:
    """The row of every living worker."""
    rows = ((row, row * board.columns) for row in range(FIRST_LEASE, board.live_rows()))
    return [row for row, at in rows if board.cells[at + PID] and board.cells[at + ROLE] == WORKER_ROLE]


def worker_state(state: int, beat_ms: int, now_ms: int) -> str:
    """The word for a worker's STATE cell and the age of its heartbeat."""
    if state in (READY, DRAINING) and is_hung((now_ms - beat_ms) / 1000):
        return "hung"
    return {READY: "ready", DRAINING: "draining"}.get(state, "starting")


def describe_worker(board: Board, row: int, now_ms: int, figures: Callable[[int], Figures]) -> dict[str, Any]:
    cells, slots = board.cells, board.shared.slots
    at = row * board.columns
    seen = figures(cells[at + PID])
    slot = cells[at + SLOT]
    state = worker_state(cells[at + STATE], cells[at + BEAT_MS], now_ms)
    deadline = cells[at + DEADLINE_MS]
    share = None
    if state == "ready" and cells[MASTER_ROW * board.columns + MASTER_STEERED]:
        share = slots.cells[slot * slots.columns + SHARE] / 10
    return {
        "slot": slot,
        "pid": cells[at + PID],
        "state": state,
        "generation": cells[at + GENERATION],
        "accepting": bool(cells[at + ACCEPTING]),
        "sessions": board.sum_in_row(row, LISTENERS, L_SESSIONS),
        "accepted_total": board.sum_in_row(row, LISTENERS, L_ACCEPTED),
        "cpu_percent": seen.cpu_percent,
        "rss_bytes": seen.rss_bytes,
        "fds": seen.fds,
        "share_percent": share,
        "drain_left_s": max(0, deadline - now_ms) / 1000 if deadline else None,
    }


def describe_listener(board: Board, listener: Listener) -> dict[str, Any]:
    at = board.listener_at(listener.index)
    return {
        "name": listener.name,
        "addresses": [str(address) for address in listener.addresses],
        "pools": list(dict.fromkeys(route.pool for route in listener.routes)),
        "sessions": board.gauge(at + L_SESSIONS),
        "maxconns": listener.maxconns,
        **{key: board.total(at + column) for key, column in LISTENER_TOTALS.items()},
    }


def describe_pool(board: Board, pool: Pool, backends: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`backends` are those of this pool."""
    at = board.pool_at(pool.index)
    return {
        "name": pool.name,
        "balance": pool.balance,
        "queued": board.gauge(at + P_QUEUED),
        "queued_total": board.total(at + P_QUEUED_TOTAL),
        "max_queue": pool.max_queue,
        "backends": backends,
    }


def describe_backend(
    board: Board, backend: Backend, now_ms: int, sums: dict[str, list[int]]
) -> dict[str, Any]:
    index = backend.index
    admin, verdict = board.word(index, W_ADMIN_STATE), board.word(index, W_VERDICT)
    since = board.word(index, W_SINCE_MS)
    check, check_us = board.word(index, W_CHECK), board.word(index, W_CHECK_US)
    return {
        "name": backend.name,
        "pool": backend.pool,
        "address": str(backend.address),
        "state": VERDICT_NAMES[verdict] if admin == ADMIN_READY else ADMIN_NAMES[admin],
        "weight": board.weight_of(index, backend.weight),
        **{key: column[index] for key, column in sums.items()},
        "check": CHECK_NAMES[check] if check else None,
        "check_streak": board.word(index, W_STREAK) if check else None,
        "check_ms": check_us / 1000 if check_us else None,
        "maxconn": backend.maxconn,
        "backup": backend.backup,
        "since_s": round((now_ms - since) / 1000, 1) if since else None,
    }


def snapshot(
    board: Board, options: Options, version: str, now: float, figures: Callable[[int], Figures]
) -> dict[str, Any]:
    """Everything at monotonic time `now` (seconds), shaped as the module's docstring says."""
    now_ms = int(now * 1000)
    master = MASTER_ROW * board.columns
    sums = {"sessions": board.every_gauge(BACKENDS, B_SESSIONS)}
    sums |= {key: board.every_total(BACKENDS, column) for key, column in BACKEND_TOTALS.items()}
    workers = [describe_worker(board, row, now_ms, figures) for row in worker_rows(board)]
    backends = [
        [describe_backend(board, backend, now_ms, sums) for backend in pool.backends]
        for pool in options.pools
    ]
    serial, text = board.shared.notice.read()
    return {
        "schema": SCHEMA,
        "version": version,
        "generation": board.cells[master + MASTER_GENERATION],
        "uptime_s": round(now - board.cells[master + STARTED_MS] / 1000, 1),
        "steering": "on" if board.cells[master + MASTER_STEERED] else "off",
        "listeners": [describe_listener(board, listener) for listener in options.listeners],
        "pools": [describe_pool(board, *each) for each in zip(options.pools, backends, strict=True)],
        "backends": [backend for each in backends for backend in each],
        "workers": sorted(workers, key=lambda worker: (worker["slot"], worker["generation"])),
        "totals": {
            "sessions": sum(board.every_gauge(LISTENERS, L_SESSIONS)),
            **{key: board.sum_total(LISTENERS, column) for key, column in LISTENER_TOTALS.items()},
            "queued_total": board.sum_total(POOLS, P_QUEUED_TOTAL),
            "log_dropped_total": board.total(LOG_DROPPED),
            "queued": sum(board.every_gauge(POOLS, P_QUEUED)),
            "respawns_total": board.cells[master + MASTER_RESPAWNS],
            "hangs_total": board.cells[master + MASTER_HANGS],
        },
        "reload": describe_reload(text, now) if serial > 0 and text else None,
    }


def describe_reload(text: str, now: float) -> dict[str, Any]:
    """The master's notice of its last reload, and how long ago that was (null when it does not say)."""
    record: dict[str, Any] = json.loads(text)
    at_ms = record.get("at_ms")
    return {**record, "age_s": None if at_ms is None else round(now - at_ms / 1000, 1)}
