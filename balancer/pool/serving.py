"""Whether a client of a pool can be served now, and why not: the one answer for log, page, /health, metrics, status,
elections and what drain, maint and weight say.

RULES: pure over the board; reads words and gauges, writes nothing.

A backend takes new sessions when its state is "up":

    maint, drain   an operator has taken it out          (admin state)
    weight-0       an operator has given it weight 0     (weight)
    unresolved     no address of its name is known       (address words)
    empty          a slot of a set without a backend: neither up nor down    (address words)
    agent          its agent has taken it out            (agent)
    down           the checks, sessions or its agent speak against it     (verdict, agent)
    up             none of these

A pool serves while a backend is up and a client finds a place there, or may wait for one. In panic (too few are up) those
that are down are elected as well.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from balancer.options import Options, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_MAINT,
    ADMIN_READY,
    AGENT_DOWN,
    AGENT_OUT,
    CHECK_NAMES,
    DOWN,
    NAME_ASKED,
    P_QUEUED,
    W_ADDRESSES,
    W_ADMIN_STATE,
    W_AGENT,
    W_CHECK,
    W_NAME,
    W_SUBJECT,
    W_VERDICT,
    W_WEIGHT,
    WEIGHT_ZERO,
    WORKER_ROLE,
    Board,
)
from balancer.pool.targets import is_backup, subject_of
from balancer.shm.layout import FIRST_LEASE, PID, READY, ROLE, STATE

BackendState = Literal["up", "down", "unresolved", "empty", "agent", "weight-0", "drain", "maint"]

# (state, what is said when it is that of every backend, and of some)
_REASONS: tuple[tuple[BackendState, str, str], ...] = (
    ("down", "every backend is down", "down"),
    ("unresolved", "names not resolved yet", "not resolved"),
    ("empty", "no backend is known of any name", "without a backend"),
    ("agent", "every backend is taken out by its agent", "taken out by their agents"),
    ("weight-0", "every backend has weight 0", "with weight 0"),
    ("drain", "every backend is drained by an operator", "drained"),
    ("maint", "every backend is in maintenance by an operator", "in maintenance"),
)
FULL = "full: every backend has its maxconn sessions, and no client may wait"


class Serving(NamedTuple):
    """`up` backends of `all` take new sessions; `reason` says why a client cannot be served, "" when it can.

    `is_serving` can be False while some are up: when they are full. Of several pools (`whole`) it is True while one of
    them serves, and the reason names those that do not."""

    up: int
    all: int
    is_serving: bool
    reason: str


def state_of(board: Board, backend: Backend) -> BackendState:
    """Whether the backend takes new sessions ("up"), and what keeps it from that."""
    words, at, index = board.words.cells, board.backend_words_at(backend.index), backend.index
    lacks_address = backend.address.family == "name" and not _has_address(words, at, backend)
    if backend.set and lacks_address:
        return "empty"
    if (admin := board.admin_word(index, W_ADMIN_STATE)) != ADMIN_READY:
        return "maint" if admin == ADMIN_MAINT else "drain"
    if board.admin_word(index, W_WEIGHT) == WEIGHT_ZERO:
        return "weight-0"
    if lacks_address:
        return "unresolved"
    if words[at + W_AGENT] == AGENT_OUT:
        return "agent"
    # A reload may have given the backend another address: a verdict on that one says nothing to processes of before.
    is_down = words[at + W_VERDICT] == DOWN and words[at + W_SUBJECT] in (0, subject_of(backend))
    return "down" if is_down or words[at + W_AGENT] == AGENT_DOWN else "up"


def is_asked(board: Board, backend: Backend) -> bool:
    """Whether it is up but for the answer of a name server, which is still to come. None is asked for a spare slot."""
    if backend.is_spare:
        return False
    words, at = board.words.cells, board.backend_words_at(backend.index)
    is_pending = words[at + W_NAME] == NAME_ASKED or words[at + W_SUBJECT] != subject_of(backend)
    return is_pending and state_of(board, backend) in ("unresolved", "empty")


def is_itself(board: Board, backend: Backend) -> bool:
    """Whether it is down because this balancer listens there: each session would come back as the next one."""
    return board.word(backend.index, W_CHECK) == CHECK_NAMES.index("itself")


def availability(board: Board, pool: Pool) -> Serving:
    """As `serving`, without a look at sessions: what stays until a check, an operator or a name changes it."""
    found = ((state_of(board, backend), backend) for backend in pool.backends)
    states = Counter(state for state, backend in found if state != "empty" or not backend.is_spare)
    up, count = states["up"], states.total()
    if states["empty"] < count:
        count -= states.pop("empty", 0)
    is_serving = up > 0 or (states["down"] > 0 and pool.panic > 0)
    return Serving(up, count, is_serving, "" if is_serving else _reason(states, count))


def tiers_of(board: Board, pool: Pool) -> tuple[Counter[BackendState], Counter[BackendState]]:
    """How many backends are in which state: of those that are elected first, and of the backups."""
    tiers: tuple[Counter[BackendState], Counter[BackendState]] = (Counter(), Counter())
    for backend in pool.backends:
        tiers[is_backup(board, backend)][state_of(board, backend)] += 1
    return tiers


def is_panic(board: Board, pool: Pool) -> bool:
    """Whether backends that are down are elected as well: of those that would be elected, backups only where no other is
    up, fewer than `panic` percent are up."""
    return bool(pool.panic) and is_panic_of(pool.panic, *tiers_of(board, pool))


def is_panic_of(panic: int, first: Mapping[BackendState, int], backups: Mapping[BackendState, int]) -> bool:
    """As `is_panic`, of the states of both tiers."""
    tier = backups if not first["up"] and backups["up"] else first
    count = tier["up"] + tier["down"]
    return count > 0 and 100 * tier["up"] < panic * count


def serving(board: Board, pool: Pool) -> Serving:
    """Whether a client of the pool can be served now."""
    found = availability(board, pool)
    if found.is_serving and _is_full(board, pool) and not _may_wait(board, pool):
        return found._replace(is_serving=False, reason=FULL)
    return found


def whole(pools: Mapping[str, Serving]) -> Serving:
    """Several pools together, by their names."""
    reasons = {name: found.reason for name, found in pools.items() if not found.is_serving}
    one = len(pools) == 1
    return Serving(
        sum(found.up for found in pools.values()),
        sum(found.all for found in pools.values()),
        len(reasons) < len(pools),
        "; ".join(reason if one else f"pool {name}: {reason}" for name, reason in reasons.items()),
    )


def serving_by_pool(board: Board, options: Options) -> dict[str, Serving]:
    """For each pool that a listener leads to."""
    used = {name for listener in options.listeners for name in listener.pool_names}
    return {pool.name: serving(board, pool) for pool in options.pools if pool.name in used}


def _has_address(words: memoryview, at: int, backend: Backend) -> bool:
    return words[at + W_ADDRESSES] > 0 and bool(words[at + W_SUBJECT] == subject_of(backend))


def _reason(states: Mapping[BackendState, int], count: int) -> str:
    """Why no backend is up: one sentence when all have the same cause, else the causes with their numbers."""
    for state, of_all, _ in _REASONS:
        if states.get(state) == count:
            return of_all
    return ", ".join(f"{states[state]} {of_some}" for state, _, of_some in _REASONS if states.get(state))


def _is_full(board: Board, pool: Pool) -> bool:
    """Whether each backend that a new session could get has its maxconn sessions. Backups serve while no other is up."""
    states = [(state_of(board, backend), backend) for backend in pool.backends]
    up = [backend for state, backend in states if state == "up"]
    if is_panic(board, pool):
        up += [backend for state, backend in states if state == "down"]
    first = [backend for backend in up if not is_backup(board, backend)] or up
    return all(_has_no_place(board, backend) for backend in first)


def _has_no_place(board: Board, backend: Backend) -> bool:
    limit = board.maxconn_of(backend.index, backend.maxconn)
    return bool(limit) and board.tenant_sessions(backend.index) >= limit


def _may_wait(board: Board, pool: Pool) -> bool:
    """Whether the queue of a worker has room."""
    limit = board.max_queue_of(pool.index, pool.max_queue)
    if not pool.queue_timeout or not limit:
        return False
    column = board.pool_at(pool.index) + P_QUEUED
    return any(cells[column] < limit for cells in workers_of(board))


def queue_limit(board: Board, pool: Pool) -> int:
    """How many sessions may wait in a pool: its max-queue, which holds for a worker, times the workers."""
    return board.max_queue_of(pool.index, pool.max_queue) * max(1, len(workers_of(board)))


def workers_of(board: Board) -> Sequence[memoryview]:
    """The rows of the workers that accept clients; of all that live when there is none (a reload has just begun)."""
    rows = [board.counts.row(row) for row in range(FIRST_LEASE, board.live_rows())]
    living: Sequence[memoryview] = [cells for cells in rows if cells[PID] and cells[ROLE] == WORKER_ROLE]
    return [cells for cells in living if cells[STATE] == READY] or living
