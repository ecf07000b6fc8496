"""The act of choice in a worker: which backend gets this session.

RULES
- Counts the session in the own row BEFORE the dial: a slow dial must not look like an idle backend. Whoever
  closes the backend's socket calls `release` after close(2), exactly once per election.
- Never blocks, never resolves a name, never looks at a clock. Between changes of a verdict or a wish an
  election is two comparisons, one pick and two additions; lists are rebuilt only when a version cell has
  moved.
- What everybody holds is read at every election, not once for a burst: workers that accept at the same moment would
  all give theirs to the same backend.
- Backups serve while no other backend is eligible, and a session that could reach none of the others: until the
  prober has its verdict, a refused connect would else cost a client. A full pool is full: backups do not serve then.

`why` says after None what was in the way: "down" (nobody eligible, or all eligible ones already tried),
"full" (those left have all their seats taken).
"""

from collections.abc import Collection, Sequence

from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_READY,
    ADMIN_VERSION,
    B_ADMIN,
    B_BYTES_IN,
    B_BYTES_OUT,
    B_CONNECT_FAILURES,
    B_SESSIONS,
    B_SESSIONS_TOTAL,
    B_VERDICT,
    BLOCK,
    DOWN,
    FIRST_BLOCK,
    VERDICTS_VERSION,
    Board,
)
from balancer.pool.policies import POLICIES, Candidate, Field, Pick
from balancer.pool.shared_limit import Seats
from balancer.pool.targets import SocketAddress, Target, is_near, target_of
from balancer.shm.layout import ADMIN_ROW

NOBODY: frozenset[int] = frozenset()


class Elector:
    """One worker's view of the pool. `row` is its lease; seats and counts go there."""

    def __init__(self, board: Board, backends: Sequence[Backend], policy: str, row: int) -> None:
        self.why = ""
        self._board = board
        self._build = POLICIES[policy]
        self._start = row
        self._cells = board.cells
        self._own = row * board.columns + FIRST_BLOCK
        self._seats = Seats(board, row)
        self._backends = tuple(backends)
        self._by_index = {backend.index: backend for backend in backends}
        self._targets: dict[int, tuple[int, SocketAddress, bool]] = {}
        self._pick: Pick = _pick_nobody
        self._reserve: Pick = _pick_nobody  # the backups, for sessions that could reach nobody else
        self._field: tuple[list[Candidate], ...] = ([], [], [])
        self._verdicts_cell = ADMIN_ROW * board.columns + VERDICTS_VERSION
        self._wishes_cell = ADMIN_ROW * board.columns + ADMIN_VERSION
        self._verdicts = self._wishes = -1
        self._refresh()

    def elect(self, source_ip: str, tried: Collection[int] = NOBODY) -> Backend | None:
        """The backend for a client, counted as a session of it; None with `why` when there is none now.

        `tried` holds the indexes of backends that this session could not reach."""
        cells = self._cells
        if cells[self._verdicts_cell] != self._verdicts or cells[self._wishes_cell] != self._wishes:
            self._refresh()
        pick = self._pick
        index = pick(source_ip, tried)
        if index is None:
            pick = self._reserve
            index = pick(source_ip, tried) if tried else None
            if index is None:
                self.why = "down"
                return None
        backend = self._by_index[index]
        at = self._own + index * BLOCK
        if backend.maxconn:
            return self._elect_seated(backend, source_ip, tried, pick)
        cells[at + B_SESSIONS] += 1
        cells[at + B_SESSIONS_TOTAL] += 1
        return backend

    def _elect_seated(
        self, first: Backend, source_ip: str, tried: Collection[int], pick: Pick
    ) -> Backend | None:
        """As elect, where the first choice has a limited number of seats: who is full is skipped."""
        backend, skip = first, set(tried)
        while not self._seats.take(FIRST_BLOCK + backend.index * BLOCK + B_SESSIONS, backend.maxconn):
            skip.add(backend.index)
            index = pick(source_ip, skip)
            if index is None:
                self.why = "full"
                return None
            backend = self._by_index[index]
        self._cells[self._own + backend.index * BLOCK + B_SESSIONS_TOTAL] += 1
        return backend

    def release(self, backend: Backend, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """The session's socket to the backend is closed (or was never opened); the bytes it moved and had not been
        counted yet."""
        cells, at = self._cells, self._own + backend.index * BLOCK
        cells[at + B_SESSIONS] -= 1
        cells[at + B_BYTES_IN] += bytes_in
        cells[at + B_BYTES_OUT] += bytes_out

    def count_bytes(self, backend: Backend, bytes_in: int, bytes_out: int) -> None:
        """What a session moved that goes on."""
        at = self._own + backend.index * BLOCK
        self._cells[at + B_BYTES_IN] += bytes_in
        self._cells[at + B_BYTES_OUT] += bytes_out

    def connect_failed(self, backend: Backend) -> None:
        """A dial failed by the backend's doing: counts toward its fall. `release` is still due."""
        self._cells[self._own + backend.index * BLOCK + B_CONNECT_FAILURES] += 1

    def target(self, backend: Backend) -> tuple[int, SocketAddress, bool]:
        """(address family, sockaddr, is_near) of an elected backend; for a name what the prober resolved last."""
        return self._targets[backend.index]

    # -- rebuilding, only when a version cell moved

    def _refresh(self) -> None:
        board = self._board
        versions = board.versions()
        if versions[0] & 1 and self._verdicts >= 0:
            return  # the prober is writing: the old list serves one election more
        targets = {b.index: t for b in self._backends if (t := target_of(board, b)) is not None}
        weights = {b.index: board.weight_of(b.index, b.weight) for b in self._backends}
        eligible = [b for b in self._backends if weights[b.index] and self._is_eligible(b, targets)]
        if board.versions() != versions and self._verdicts >= 0:
            return
        tier = bool(eligible) and all(backend.backup for backend in eligible)
        everyone = [b for b in self._backends if weights[b.index]]
        spare = [] if tier else self._candidates(eligible, True, weights)
        field = (self._candidates(eligible, tier, weights), self._candidates(everyone, tier, weights), spare)
        # An odd version here: this process has no list yet. Take what there is and look again next time.
        self._verdicts, self._wishes = versions[0] & ~1, versions[1]
        self._targets.update({index: (*target, is_near(target)) for index, target in targets.items()})
        if field != self._field:
            self._field = field
            self._pick = self._make_pick(field[0], field[1])
            self._reserve = self._make_pick(spare, spare)

    @staticmethod
    def _candidates(backends: Sequence[Backend], backup: bool, weights: dict[int, int]) -> list[Candidate]:
        return [Candidate(b.index, b.name, weights[b.index]) for b in backends if b.backup == backup]

    def _make_pick(self, eligible: Sequence[Candidate], everyone: Sequence[Candidate]) -> Pick:
        if not eligible:
            return _pick_nobody
        board = self._board
        loads = board.loads_reader([candidate.index for candidate in eligible])
        return self._build(Field(eligible, everyone, loads, board.sessions, self._start))

    def _is_eligible(self, backend: Backend, targets: dict[int, Target]) -> bool:
        word, index = self._board.word, backend.index
        return index in targets and word(index, B_VERDICT) != DOWN and word(index, B_ADMIN) == ADMIN_READY


def _pick_nobody(source: str, skip: Collection[int]) -> int | None:
    """The policy of an empty field."""
    return None
