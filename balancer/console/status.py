"""The state of the balancer as one dictionary: what `balancerctl status --json` prints, documented and stable.

RULES
- Reads the board, writes nothing; time and process figures come in as arguments, so that a table of cells made by hand
  is a whole test.
- A key is never renamed or removed within one schema; new ones may come. What is not known is null.
- Totals include the dead and the draining; they never fall.

    {"schema": 2, "version", "host", "config", "serving", "reason", "generation", "uptime_s", "steering": "on"|"off",
     "former_master": pid or null,
     "listeners": [{"name", "addresses", "pools", "sessions", "maxconns", "overflow": "drop"|"queue", "accepted_total",
                   "refused_total", "failed_total", "bytes_in_total", "bytes_out_total", "closed_total", "cut_total",
                   "retries_total", "pauses_total", "resumes_total", "ends": {"--", "CC", ...}, "denials": {"deny", ...},
                   "times": {"session": TIMES, "handshake": TIMES}, "tls": {"certificates": [{"path", "expires_in_s"}],
                   "revoked": {"path", "expires_in_s"} or null, "handshakes_total", "resumed_total", "truncated_total",
                   "failures": {...}} or null}],
     "pools":    [{"name", "balance", "serving", "reason", "up", "queued", "queued_total", "max_queue",
                   "framed": {"requests_per_s", "connections_idle", "connections_in_use"} or null,
                   "times": {"connect": TIMES, "wait": TIMES, "reply": TIMES},
                   "sets": [{"name", "slot_name", "pool", "slots", "backends", "left_out", "age_s",
                   "ttl_s", "ttl_left_s", "server", "error", "tenants": [{"name", "address",
                   "state"}], "queries_total", "failures_total"}],
                   "backends": [as in "backends"]}],
     "backends": [{"name", "pool", "address", "address_in_use", "state", "weight", "sessions", "sessions_total",
                   "connect_failures_total", "early_ends_total", "bytes_in_total", "bytes_out_total",
                   "checks_total", "check_failures_total", "downs_total", "check", "check_streak", "check_ms",
                   "maxconn", "backup", "since_s", "share_percent", "agent"}],
     "workers":  [{"slot", "pid", "state", "generation", "accepting", "sessions", "accepted_total", "cpu_percent",
                  "rss_bytes", "fds", "share_percent", "drain_left_s"}],
     "processes": [{"role": "master"|"worker"|"prober"|"console", "pid", "cpu_percent", "rss_bytes", "fds"}],
     "max_fds":   the limit of open files of each process
     "totals":   {"sessions", "accepted_total", "refused_total", "failed_total", "bytes_in_total", "bytes_out_total",
                  "closed_total", "cut_total", "retries_total", "pauses_total", "resumes_total", "ends", "denials",
                  "queued_total", "log_dropped_total", "queued", "respawns_total", "hangs_total"},
     "reload":   {"serial", "ok", "text", "age_s", ...} of the last reload, or null,
     "events":   [{"serial", "at", "age_s", "verb", "text"}], the last 20,
     "bounds_s": [0.0001, ...]}
    TIMES:       {"count", "sum_s", "p50_s", "p90_s", "p99_s", "counts": [...]}

Schema 1 had no listeners and no pools. The totals count removed listeners and pools too; the sums of those that are
configured can be less.
`ends`: sessions by the end that the log has for them, every end a key. What else there is of clients that are gone is a
sum: refused (closed at the accept, or by a limit: sQ, RC), failed (no backend could be reached: SC, sC), cut (KD), closed
(all of them, those without a session too: accepted - closed are open).
`former_master`: the master before the last upgrade, while it lives: its sessions are in no figure here.
`tls`: null without TLS; `revoked`: of the revocation list that is too old first; `failures`: handshakes (TLS_FAILURES).
`denials`: clients that a rule of their listener has turned away, or with dry-run would have, by relay/ends.py.
`serving`: whether a client can be served now, `reason`: why not, or which pools are out (pool/serving.py): it takes a
worker that is ready and accepts, a listener that does not refuse, being full (entrance.py), and a pool that serves.
`state` of a worker: starting, ready, draining, hung. `state` of a backend: up (it takes new sessions), down, unresolved,
empty (a place of a set without a backend), agent (taken out by its agent), weight-0, drain, maint; `since_s` is the age
of that state.
`share_percent` is the part of its weight that counts, by its agent and a slow start; `agent` is ready, out (drain, maint
or weight 0) or down, null where none is asked.
`early_ends` are sessions that the backend has ended before the client and before its own first byte; too many take it
down with the check `early-end`. `address_in_use` is the one of a name's addresses that new sessions are sent to; null for
an address that is no name.
In framed mode the sessions of a backend are requests under way, and `queued` are requests that wait.
bytes_in went from client to backend. `check` is the outcome of the last health check, `check_streak` how many results in
a row speak against the present state, `check_ms` how long the last good one took; downs are falls from up to down.
`times` are durations since the start in fixed buckets: `counts` has one figure for those up to each of `bounds_s` (and
above the bound before it) and one for what is longer; it is empty while there is none. `session`: from accept to end;
`handshake`: TLS, of those that succeed; `connect`: of connects that succeed, unless connect(2) has done it at once, as
it mostly does within one machine; `wait`: of sessions (framed mode: requests) that had to wait for a place, whether they
got it or not; `reply`: framed mode, from the first byte of a request upstream to the last one of its reply.
Respawns are processes that had to be replaced, hangs those that were killed because their heartbeat stood still.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import add
from typing import Any

from balancer.console.certificates import presented
from balancer.console.entrance import Entrance
from balancer.console.events import described
from balancer.console.processes import UNKNOWN, Figures
from balancer.console.sets import describe_sets, is_shown
from balancer.edge.certificates import calendar_time
from balancer.options import Listener, Options, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    B_BYTES_IN,
    B_BYTES_OUT,
    B_CHECK_FAILURES,
    B_CHECKS,
    B_CONNECT_FAILURES,
    B_DOWNS,
    B_EARLY_ENDS,
    B_SESSIONS,
    B_SESSIONS_ODD,
    B_SESSIONS_TOTAL,
    BACKENDS,
    CHECK_NAMES,
    L_ACCEPTED,
    L_BYTES_IN,
    L_BYTES_OUT,
    L_DENIALS,
    L_ENDS,
    L_HANDSHAKE_TIMES,
    L_PAUSES,
    L_REFUSED,
    L_RESUMES,
    L_RETRIES,
    L_SESSION_TIMES,
    L_SESSIONS,
    L_TLS_FAILURES,
    L_TLS_HANDSHAKES,
    L_TLS_RESUMED,
    L_TLS_TRUNCATED,
    LISTENERS,
    LOG_DROPPED,
    P_CONNECT_TIMES,
    P_CONNECTIONS_IDLE,
    P_CONNECTIONS_IN_USE,
    P_QUEUED,
    P_QUEUED_TOTAL,
    P_REPLY_TIMES,
    P_REQUESTS_PER_S,
    P_WAIT_TIMES,
    POOLS,
    TLS_FAILURES,
    W_ADMIN_SINCE_MS,
    W_AGENT,
    W_CHECK,
    W_CHECK_US,
    W_SINCE_MS,
    W_STREAK,
    WORKER_ROLE,
    BlockKind,
    Board,
)
from balancer.pool.serving import (
    BackendState,
    Serving,
    queue_limit,
    serving,
    serving_by_pool,
    state_of,
)
from balancer.pool.targets import address_in_use, is_backup
from balancer.prefork.slots import is_hung
from balancer.relay import ends
from balancer.shm.histogram import BOUNDS
from balancer.shm.layout import (
    ACCEPTING,
    BEAT_MS,
    DEADLINE_MS,
    DRAINING,
    FIRST_LEASE,
    GENERATION,
    MASTER_FORMER,
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
AGENT_NAMES = ("ready", "out", "down")
MOST_EVENTS = 20
ROLE_NAMES = ("worker", "prober", "console")  # by ROLE: the order of the plan
LISTENER_TOTALS = {
    "accepted_total": L_ACCEPTED,
    "bytes_in_total": L_BYTES_IN,
    "bytes_out_total": L_BYTES_OUT,
    "retries_total": L_RETRIES,
    "pauses_total": L_PAUSES,
    "resumes_total": L_RESUMES,
}
TLS_TOTALS = {
    "handshakes_total": L_TLS_HANDSHAKES,
    "resumed_total": L_TLS_RESUMED,
    "truncated_total": L_TLS_TRUNCATED,
}
FRAMED_GAUGES = {
    "requests_per_s": P_REQUESTS_PER_S,
    "connections_idle": P_CONNECTIONS_IDLE,
    "connections_in_use": P_CONNECTIONS_IN_USE,
}
LISTENER_TIMES = {"session": L_SESSION_TIMES, "handshake": L_HANDSHAKE_TIMES}
POOL_TIMES = {"connect": P_CONNECT_TIMES, "wait": P_WAIT_TIMES, "reply": P_REPLY_TIMES}
BACKEND_TOTALS = {
    "sessions_total": B_SESSIONS_TOTAL,
    "connect_failures_total": B_CONNECT_FAILURES,
    "early_ends_total": B_EARLY_ENDS,
    "bytes_in_total": B_BYTES_IN,
    "bytes_out_total": B_BYTES_OUT,
    "checks_total": B_CHECKS,
    "check_failures_total": B_CHECK_FAILURES,
    "downs_total": B_DOWNS,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Which balancer the status is of. `config` is the path of its file, empty without one."""

    version: str
    host: str
    config: str = ""
    max_fds: int = 0


def roles_by_pid(board: Board) -> dict[int, str]:
    """Every living process, all generations."""
    cells, rows = board.cells, (row * board.columns for row in range(FIRST_LEASE, board.live_rows()))
    leased = {cells[at + PID]: ROLE_NAMES[cells[at + ROLE]] for at in rows if cells[at + PID]}
    return {cells[MASTER_ROW * board.columns + PID]: "master", **leased}


def worker_rows(board: Board) -> list[int]:
    """The row of every living worker."""
    rows = ((row, row * board.columns) for row in range(FIRST_LEASE, board.live_rows()))
    return [row for row, at in rows if board.cells[at + PID] and board.cells[at + ROLE] == WORKER_ROLE]


def serving_workers(board: Board) -> int:
    """Workers of the generation that serves, those that leave excepted."""
    cells, generation = board.cells, board.cells[MASTER_ROW * board.columns + MASTER_GENERATION]
    rows = [row * board.columns for row in worker_rows(board)]
    return sum(cells[at + GENERATION] == generation and cells[at + STATE] != DRAINING for at in rows)


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


def describe_process(pid: int, role: str, seen: Figures) -> dict[str, Any]:
    return {
        "role": role,
        "pid": pid,
        "cpu_percent": seen.cpu_percent,
        "rss_bytes": seen.rss_bytes,
        "fds": seen.fds,
    }


def describe_listener(board: Board, listener: Listener) -> dict[str, Any]:
    at = board.listener_at(listener.index)
    return {
        "name": listener.name,
        "addresses": [str(address) for address in listener.addresses],
        "pools": listener.pool_names,
        "sessions": board.gauge(at + L_SESSIONS),
        "maxconns": listener.maxconns,
        "overflow": listener.overflow,
        "tls": describe_tls(board, listener),
        **listener_totals(lambda column: board.total(at + column)),
        "times": describe_times(board, LISTENERS, listener.index, LISTENER_TIMES),
    }


def describe_tls(board: Board, listener: Listener) -> dict[str, Any] | None:
    """What only a listener that ends TLS has."""
    if not listener.tls_cert:
        return None
    at = board.listener_at(listener.index)
    return {
        "certificates": describe_expiry(board, listener, calendar_time()),
        "revoked": describe_revoked(listener, calendar_time()),
        **{key: board.total(at + column) for key, column in TLS_TOTALS.items()},
        "failures": {
            reason: board.total(at + column) for column, reason in enumerate(TLS_FAILURES, L_TLS_FAILURES)
        },
    }


def describe_expiry(board: Board, listener: Listener, calendar: float) -> list[dict[str, Any]]:
    """Each certificate of a listener and when it expires; `calendar` is seconds since 1970."""
    return [
        {"path": file.path, "expires_in_s": round(file.not_after - calendar)}
        for file in presented(board, listener)
    ]


def describe_revoked(listener: Listener, calendar: float) -> dict[str, Any] | None:
    """Its revocation lists, and when the first of them is too old; None without one that says."""
    lists = listener.tls_client_crl
    if lists is None or lists.not_after == inf:
        return None
    return {"path": lists.path, "expires_in_s": round(lists.not_after - calendar)}


def listener_totals(total: Callable[[int], int]) -> dict[str, Any]:
    """The totals of one listener or of all; `total` gives that of a column of their blocks."""
    refused = total(L_REFUSED)
    by_end = {end: total(column) for column, end in enumerate(ends.ORDER, L_ENDS)}
    return {
        **{key: total(column) for key, column in LISTENER_TOTALS.items()},
        "refused_total": refused + sum(by_end[end] for end in ends.REFUSED),
        "failed_total": sum(by_end[end] for end in ends.FAILED),
        "cut_total": by_end[ends.KILLED],
        "closed_total": refused + sum(by_end.values()),
        "ends": by_end,
        "denials": {rule: total(column) for column, rule in enumerate(ends.DENIALS, L_DENIALS)},
    }


def describe_times(board: Board, kind: BlockKind, index: int, columns: dict[str, int]) -> dict[str, Any]:
    """The histograms of a block: TIMES by name."""
    found = {name: board.histogram(kind, index, column) for name, column in columns.items()}
    return {
        name: {
            "count": one.count,
            "sum_s": one.seconds,
            **{f"p{share}_s": one.quantile(share / 100) for share in (50, 90, 99)},
            "counts": list(one.counts) if one.count else [],
        }
        for name, one in found.items()
    }


def describe_pool(
    board: Board, pool: Pool, backends: Sequence[dict[str, Any]], now_ms: int, entrance: Entrance
) -> dict[str, Any]:
    """`backends` are those of this pool."""
    at = board.pool_at(pool.index)
    return {
        "name": pool.name,
        "balance": pool.balance,
        **describe_serving(entrance.of_pool(pool.name, serving(board, pool))),
        "queued": board.gauge(at + P_QUEUED),
        "queued_total": board.total(at + P_QUEUED_TOTAL),
        "max_queue": queue_limit(board, pool),
        "framed": describe_framed(board, pool),
        "times": describe_times(board, POOLS, pool.index, POOL_TIMES),
        "sets": describe_sets(board, pool, now_ms),
        "backends": backends,
    }


def describe_framed(board: Board, pool: Pool) -> dict[str, Any] | None:
    """What only a pool in framed mode has."""
    if pool.mode != "framed":
        return None
    at = board.pool_at(pool.index)
    return {key: board.gauge(at + column) for key, column in FRAMED_GAUGES.items()}


def describe_serving(found: Serving) -> dict[str, Any]:
    """Whether a client can be served, and why not."""
    return {"serving": found.is_serving, "reason": found.reason, "up": found.up}


def since_of(board: Board, index: int, state: BackendState) -> int:
    """When a backend came into this state, monotonic ms; 0 when it was never in another one."""
    verdict, admin = board.word(index, W_SINCE_MS), board.admin_word(index, W_ADMIN_SINCE_MS)
    if state in ("drain", "maint", "weight-0"):
        return admin
    return max(verdict, admin) if state == "up" else verdict


def describe_backend(
    board: Board, backend: Backend, now_ms: int, sums: dict[str, list[int]], has_agent: bool = False
) -> dict[str, Any]:
    index = backend.index
    state = state_of(board, backend)
    since = since_of(board, index, state)
    check, check_us = board.word(index, W_CHECK), board.word(index, W_CHECK_US)
    return {
        "name": backend.name,
        "pool": backend.pool,
        "address": str(backend.set or backend.address),
        "address_in_use": address_in_use(board, backend) or None,
        "state": state,
        "weight": board.weight_of(index, backend.weight),
        "share_percent": round(100 * board.share_of(index)),
        "agent": AGENT_NAMES[board.word(index, W_AGENT)] if has_agent else None,
        **{key: column[index] for key, column in sums.items()},
        "check": CHECK_NAMES[check] if check else None,
        "check_streak": board.word(index, W_STREAK) if check else None,
        "check_ms": check_us / 1000 if check_us else None,
        "maxconn": board.maxconn_of(index, backend.maxconn),
        "backup": is_backup(board, backend),
        "since_s": round((now_ms - since) / 1000, 1) if since else None,
    }


def entrance_of(board: Board, listeners: Sequence[Listener], now: float) -> Entrance:
    """Whether clients come in at monotonic time `now` (seconds)."""
    workers = [
        describe_worker(board, row, int(now * 1000), lambda pid: UNKNOWN) for row in worker_rows(board)
    ]
    return Entrance(workers, [describe_listener(board, one) for one in listeners])


def snapshot(
    board: Board, options: Options, identity: Identity, now: float, figures: Callable[[int], Figures]
) -> dict[str, Any]:
    """Everything at monotonic time `now` (seconds), shaped as the module's docstring says."""
    now_ms = int(now * 1000)
    master = MASTER_ROW * board.columns
    odd = board.every_gauge(BACKENDS, B_SESSIONS_ODD)
    sums = {"sessions": list(map(add, board.every_gauge(BACKENDS, B_SESSIONS), odd))}
    sums |= {key: board.every_total(BACKENDS, column) for key, column in BACKEND_TOTALS.items()}
    workers = [describe_worker(board, row, now_ms, figures) for row in worker_rows(board)]
    backends = [
        [
            describe_backend(board, backend, now_ms, sums, pool.has_agent)
            for backend in pool.backends
            if is_shown(board, backend)
        ]
        for pool in options.pools
    ]
    serial, text = board.shared.notice.read()
    listeners = [describe_listener(board, listener) for listener in options.listeners]
    entrance = Entrance(workers, listeners)
    described_pool = partial(describe_pool, board, now_ms=now_ms, entrance=entrance)
    whole = entrance.of_whole(serving_by_pool(board, options))
    return {
        "schema": SCHEMA,
        "version": identity.version,
        "host": identity.host,
        "config": identity.config or None,
        "serving": whole.is_serving,
        "reason": whole.reason,
        "generation": board.cells[master + MASTER_GENERATION],
        "uptime_s": round(now - board.cells[master + STARTED_MS] / 1000, 1),
        "steering": "on" if board.cells[master + MASTER_STEERED] else "off",
        "former_master": former_master(board, figures),
        "listeners": listeners,
        "pools": list(map(described_pool, options.pools, backends)),
        "backends": [backend for each in backends for backend in each],
        "workers": sorted(workers, key=lambda worker: (worker["slot"], worker["generation"])),
        "processes": [describe_process(pid, role, figures(pid)) for pid, role in roles_by_pid(board).items()],
        "max_fds": identity.max_fds,
        "totals": describe_totals(board, board.cells[master : master + board.columns]),
        "reload": describe_reload(text, now) if serial > 0 and text else None,
        "events": described(board.shared.events.read()[-MOST_EVENTS:], now),
        "bounds_s": list(BOUNDS),
    }


def describe_totals(board: Board, master: memoryview) -> dict[str, Any]:
    """Of all listeners and pools, those that were removed included; `master` is the cells of its row."""
    return {
        "sessions": sum(board.every_gauge(LISTENERS, L_SESSIONS)),
        **listener_totals(partial(board.sum_total, LISTENERS)),
        "queued_total": board.sum_total(POOLS, P_QUEUED_TOTAL),
        "log_dropped_total": board.total(LOG_DROPPED),
        "queued": sum(board.every_gauge(POOLS, P_QUEUED)),
        "respawns_total": master[MASTER_RESPAWNS],
        "hangs_total": master[MASTER_HANGS],
    }


def former_master(board: Board, figures: Callable[[int], Figures]) -> int | None:
    """The pid of the master that an upgrade took over from; None once it has ended, and its child has another parent."""
    master = MASTER_ROW * board.columns
    former = board.cells[master + MASTER_FORMER]
    return former if former and figures(board.cells[master + PID]).parent == former else None


def describe_reload(text: str, now: float) -> dict[str, Any]:
    """The master's notice of its last reload, and how long ago that was (null when it does not say)."""
    record: dict[str, Any] = json.loads(text)
    at_ms = record.get("at_ms")
    return {**record, "age_s": None if at_ms is None else round(now - at_ms / 1000, 1)}
