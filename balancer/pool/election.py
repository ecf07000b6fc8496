"""Elects the backend of a session, in a worker.

RULES
- The session is counted in the worker's own row BEFORE the dial: a slow dial must not look like an idle backend. The
  code that closes the backend's socket calls `release` after close(2), exactly once per election.
- Never blocks, never resolves a name, never reads a clock. While neither a verdict nor an admin state changes, an
  election is two comparisons, one pick and two additions; lists are rebuilt only when a version cell has changed.
- The sessions of all workers are read at every election. Read once for a burst, workers that accept at the same moment
  would all elect the same backend.
- Backups serve while no other backend is eligible. They also serve a session that could reach none of the others:
  until the prober has its verdict, a refused connect would otherwise cost a client. They do not serve when the others
  are full.

After None, `why` says the reason: "down" (no backend is eligible, or all eligible ones were tried), "full" (those left
have all their maxconn sessions), "busy" (for one of those left that cannot be told now: ask again soon), "resolving"
(none is eligible, but one whose name the name server has not answered yet).

A name with several addresses: a session that cannot reach the one in use dials the next one at once, for the same
election; the worker's further sessions begin with that one.
"""

from collections.abc import Callable, Collection, Sequence

from balancer.options import HASHES, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_VERSION,
    B_ADDRESS_FAILURES,
    B_BYTES_IN,
    B_BYTES_OUT,
    B_CONNECT_FAILURES,
    B_EARLY_ENDS,
    B_SESSIONS,
    B_SESSIONS_TOTAL,
    BACKENDS,
    ODD,
    VERDICTS_VERSION,
    Board,
)
from balancer.pool.choice import Candidate, Choice, Pick
from balancer.pool.loads import load_reader, loads_reader
from balancer.pool.policies import POLICIES
from balancer.pool.serving import is_asked, is_itself, is_panic, state_of
from balancer.pool.shared_limit import SharedLimit
from balancer.pool.targets import DialTarget, Target, chain, links, targets_of, tenant_of

NONE_TRIED: frozenset[int] = frozenset()
# Seconds within which a backend that ends before its first byte has failed: servers close silent clients after a while,
# and some take what a client sends for hours without a word. What ends later says nothing.
EARLY, EARLY_WHEN_ASKED = 1.0, 30.0
SCALE = 64  # of weights of which a part counts
_BLOCK = BACKENDS.size
# A backend's cells are found from its gauge, which every election and every release changes.
_SESSIONS_TOTAL = B_SESSIONS_TOTAL - B_SESSIONS
_BYTES_IN, _BYTES_OUT = B_BYTES_IN - B_SESSIONS, B_BYTES_OUT - B_SESSIONS
_EARLY_ENDS = B_EARLY_ENDS - B_SESSIONS
_CONNECT_FAILURES, _ADDRESS_FAILURES = B_CONNECT_FAILURES - B_SESSIONS, B_ADDRESS_FAILURES - B_SESSIONS


class Elector:
    """One worker's view of a pool. `row` is the row it counts in."""

    def __init__(self, board: Board, pool: Pool, row: int) -> None:
        self.why = ""
        self._board = board
        self._pool = pool
        self._start = row
        self._limit = SharedLimit(board, row)
        self._show = board.loads.writer(row) if board.loads is not None else None
        self._cells = board.cells
        self._gauges = row * board.columns + BACKENDS.at(0) + B_SESSIONS
        self._by_index = {backend.index: backend for backend in pool.backends}
        self._slots = [backend for backend in pool.backends if backend.set]
        self._names = [backend for backend in pool.backends if backend.address.family == "name"]
        self.on_tenant: Callable[[Backend], object] | None = None  # told when another backend has a slot
        self._known: dict[int, list[Target]] = {}  # of each name, as the board last had them
        self._targets: dict[int, DialTarget] = {}
        for backend in pool.backends:
            if backend.address.family != "name":
                self._set_target(backend.index, targets_of(board, backend))
        self._none_is_up = "down"  # or "resolving"
        self._limits: dict[int, int] = {}  # maxconn of those that have one
        self._odd: frozenset[int] = frozenset()  # slots whose tenant is counted in the odd gauge
        self._load = load_reader(board)
        self._ended: set[int] = set()  # indexes released since a policy has last looked
        self._pick: Pick = _pick_none
        self._reserve: Pick = _pick_none  # the backups, for sessions that could reach no other backend
        self._tiers: tuple[list[Candidate], ...] = ([], [], [])
        self._words = board.words.cells
        self._verdicts_cell = board.pool_words_at(pool.index) + VERDICTS_VERSION
        self._admin_cell = board.pool_words_at(pool.index) + ADMIN_VERSION
        self._verdicts = self._admin = -1
        self._refresh()

    def elect(self, source_ip: str, tried: Collection[int] = NONE_TRIED) -> Backend | None:
        """The backend for a client, counted as a session of it; None with `why` when there is none now.

        `tried` holds the indexes of backends that this session could not reach."""
        words = self._words
        if words[self._verdicts_cell] != self._verdicts or words[self._admin_cell] != self._admin:
            self._refresh()
        pick = self._pick
        index = pick(source_ip, tried)
        if index is None:
            pick = self._reserve
            index = pick(source_ip, tried) if tried else None
            if index is None:
                self.why = self._none_is_up
                return None
        backend = self._by_index[index]
        if index in self._limits:
            return self._elect_limited(backend, source_ip, tried, pick)
        cells = self._cells
        gauge = self._gauges + index * _BLOCK
        cells[gauge + ODD if backend.parity else gauge] += 1
        cells[gauge + _SESSIONS_TOTAL] += 1
        if self._show is not None:
            self._show(index, backend.parity, cells[gauge + ODD * backend.parity])
        return backend

    def _elect_limited(
        self, first: Backend, source_ip: str, tried: Collection[int], pick: Pick
    ) -> Backend | None:
        """As elect, when the first choice has a maxconn: backends that are full are skipped."""
        backend, skip, why = first, set(tried), "full"
        while True:
            maxconn = self._limits.get(backend.index, 0)
            answer = self._limit.acquire(
                BACKENDS.at(backend.index) + B_SESSIONS + ODD * backend.parity, maxconn
            )
            if answer == "acquired":
                break
            if answer == "busy":
                why = "busy"
            elif why == "full" and len(skip) == len(tried):
                # The first that is full is seldom the only one: a pick for each of many would take long.
                skip.update(index for index, limit in self._limits.items() if self._held_of(index) >= limit)
            skip.add(backend.index)
            index = pick(source_ip, skip)
            if index is None:
                self.why = why
                return None
            backend = self._by_index[index]
        cells, gauge = self._cells, self._gauges + backend.index * _BLOCK
        cells[gauge + _SESSIONS_TOTAL] += 1
        if self._show is not None:
            self._show(backend.index, backend.parity, cells[gauge + ODD * backend.parity])
        return backend

    def _held_of(self, index: int) -> int:
        """The sessions that a limit goes by."""
        return self._limit.held(BACKENDS.at(index) + B_SESSIONS + ODD * self._by_index[index].parity)

    def present(self, backend: Backend) -> Backend:
        """The backend itself, and of a slot the one that has it now."""
        return self._by_index[backend.index]

    def release(self, backend: Backend, bytes_in: int = 0, bytes_out: int = 0) -> bool:
        """The session's socket to the backend is closed (or was never opened). The bytes are those it moved and
        `count_bytes` has not counted. Return whether the backend has a limit, so that clients may wait for the place."""
        cells = self._cells
        index = backend.index
        self._ended.add(index)
        gauge = self._gauges + index * _BLOCK
        cells[gauge + ODD if backend.parity else gauge] -= 1
        cells[gauge + _BYTES_IN] += bytes_in
        cells[gauge + _BYTES_OUT] += bytes_out
        if self._show is not None:
            self._show(index, backend.parity, cells[gauge + ODD * backend.parity])
        return index in self._limits

    def is_limited(self, backend: Backend) -> bool:
        """Whether a backend has a limit, by the last look."""
        return backend.index in self._limits

    def count_bytes(self, backend: Backend, bytes_in: int, bytes_out: int) -> None:
        """Bytes of a session that goes on."""
        gauge = self._gauges + backend.index * _BLOCK
        self._cells[gauge + _BYTES_IN] += bytes_in
        self._cells[gauge + _BYTES_OUT] += bytes_out

    def connect_failed(self, backend: Backend) -> None:
        """The backend refused a dial or did not answer it: counts toward its fall. `release` is still due."""
        if not self._has_left(backend):
            self._cells[self._gauges + backend.index * _BLOCK + _CONNECT_FAILURES] += 1

    def ended_early(self, backend: Backend, seconds: float, was_asked: bool) -> None:
        """The backend has ended a session, before the client and before its own first byte, `seconds` after the connect.
        `was_asked`: it had been given bytes of the client. Counts toward a penalty."""
        if seconds < (EARLY_WHEN_ASKED if was_asked else EARLY) and not self._has_left(backend):
            self._cells[self._gauges + backend.index * _BLOCK + _EARLY_ENDS] += 1

    def _has_left(self, backend: Backend) -> bool:
        """Whether another backend has its slot, of which nothing is said by what happens to this one."""
        return self._by_index[backend.index].address != backend.address

    def address_failed(self, backend: Backend, target: DialTarget) -> None:
        """One of several addresses of an elected backend could not be reached: the next session begins with another. The
        prober finds out by a check which of them answers."""
        index = backend.index
        self._cells[self._gauges + index * _BLOCK + _ADDRESS_FAILURES] += 1
        first = self._targets[index]
        if first[:2] == target[:2]:
            known = [each[:2] for each in links(first)]
            self._set_target(index, [*known[1:], *known[:1]])

    def target(self, backend: Backend) -> DialTarget:
        """(address family, sockaddr, is_near, what to dial when that fails) of an elected backend."""
        return self._targets[backend.index]

    # -- rebuilding, only when a version cell moved

    def _refresh(self) -> None:
        board, pool = self._board, self._pool
        versions = board.versions(pool.index)
        if versions[0] & 1 and self._verdicts >= 0:
            return  # the prober is writing: the old lists serve one election more
        limits = {b.index: board.maxconn_of(b.index, b.maxconn) for b in pool.backends}
        # A newer configuration may have given a name's block another address: this worker goes on with what it knew.
        known = {b.index: targets_of(board, b) or self._known.get(b.index, []) for b in self._names}
        tenants = {b.index: self._tenant(b) for b in self._slots}
        weights = weights_in_force(board, pool)
        present = [
            tenants.get(b.index, b) for b in pool.backends if not b.set or state_of(board, b) != "empty"
        ]
        everyone = [b for b in present if weights[b.index]]
        states = {b.index: state_of(board, b) for b in pool.backends if known.get(b.index, True)}
        able_now = {index for index, state in states.items() if state in ("up", "unresolved")}
        if is_panic(board, pool):
            down = [b for b in pool.backends if states.get(b.index) == "down"]
            able_now.update(b.index for b in down if not is_itself(board, b))
        eligible = [b for b in present if b.index in able_now]
        is_resolving = any(is_asked(board, b) for b in self._names)
        if board.versions(pool.index) != versions and self._verdicts >= 0:
            return
        is_backup = bool(eligible) and all(backend.backup for backend in eligible)
        spare = [] if is_backup else candidates(eligible, True, weights)
        tiers = (candidates(eligible, is_backup, weights), candidates(everyone, is_backup, weights), spare)
        # The version is odd only when this process has no lists yet: use these, and rebuild at the next election.
        self._verdicts, self._admin = versions[0] & ~1, versions[1]
        self._move_in(tenants)
        self._limits = {index: limit for index, limit in limits.items() if limit}
        self._none_is_up = "resolving" if is_resolving else "down"
        for index, targets in known.items():
            if targets != self._known.get(
                index
            ):  # else this worker goes on with the address that it has found
                self._known[index] = targets
                self._set_target(index, targets)
        # A tenant may have gone and come back since the last election: its sessions are in the other gauge now.
        odd = frozenset(tenant.index for tenant in tenants.values() if tenant.parity)
        if tiers != self._tiers or odd != self._odd:
            self._tiers, self._odd, self._load = tiers, odd, load_reader(board, odd)
            self._pick = self._make_pick(tiers[0], tiers[1])
            self._reserve = self._make_pick(spare, spare)

    def _tenant(self, slot: Backend) -> Backend:
        return tenant_of(self._board, slot)

    def _move_in(self, tenants: dict[int, Backend]) -> None:
        """Other backends have the slots: sessions from now on are theirs, those under way keep the backend they have."""
        for index, tenant in tenants.items():
            if tenant != self._by_index[index]:
                self._by_index[index] = tenant
                if self.on_tenant is not None:
                    self.on_tenant(tenant)

    def _set_target(self, index: int, targets: list[Target]) -> None:
        if (first := chain(targets)) is not None:
            self._targets[index] = first

    def _make_pick(self, eligible: Sequence[Candidate], everyone: Sequence[Candidate]) -> Pick:
        if not eligible:
            return _pick_none
        loads, load = self._readers([candidate.index for candidate in eligible])
        bound = self._pool.hash_load
        choice = Choice(eligible, everyone, loads, load, self._start, self._ended, bound)
        return POLICIES[self._pool.balance](choice)

    def _readers(self, indexes: Sequence[int]) -> tuple[Callable[[], list[int]], Callable[[int], int]]:
        """Functions for a policy: the sessions of these backends, and of one of them."""
        return loads_reader(self._board, indexes, self._odd), self._load


def weights_in_force(board: Board, pool: Pool) -> dict[int, int]:
    """The weight of each backend by its index; 0 takes no new sessions. While a part of one counts, by its agent or a
    slow start, all are scaled: a tenth of weight 1 is not 1. A hash keeps to the configured weights, since each change of
    them would move clients."""
    weights = {b.index: board.weight_of(b.index, b.weight) for b in pool.backends}
    if pool.balance in HASHES:
        return weights
    shares = {index: board.share_of(index) for index in weights}
    if all(share == 1.0 for share in shares.values()):
        return weights
    return {
        index: max(1, round(weight * SCALE * shares[index])) if weight else 0
        for index, weight in weights.items()
    }


def candidates(backends: Sequence[Backend], backup: bool, weights: dict[int, int]) -> list[Candidate]:
    """The backends of one tier, with the weights in force."""
    return [
        Candidate(b.index, b.name, weights[b.index], str(b.address)) for b in backends if b.backup == backup
    ]


def _pick_none(source: str, skip: Collection[int]) -> int | None:
    """The policy when no backend is eligible."""
    return None
