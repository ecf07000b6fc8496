"""Elects the backend of a request of framed mode, in a worker: requests are many, and their backends mostly few.

RULES
- What other workers hold, verdicts and admin states are read once in LOOK seconds; what this worker elects and releases
  counts at once. To read it all for each request was a quarter of its instructions.
- leastconn over backends of equal weight, the default, is one list: requests under way, and behind the point how often
  the backend was elected. The least of it is the one with the fewest requests, among equals the one furthest behind.
  Everything else is the business of the policies.
- A pool with limits (`maxconn`) is elected by `elect`, which reads everything each time: limits are exact.
- Of more than FEW backends the policies read what they need themselves.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import inf

from balancer.options import Pool
from balancer.pool.backend import Backend
from balancer.pool.board import B_SESSIONS, B_SESSIONS_TOTAL, BACKENDS, Board
from balancer.pool.election import NONE_TRIED, Elector
from balancer.pool.load_table import ROW_ITSELF
from balancer.pool.loads import loads_reader
from balancer.pool.policies import FEW

LOOK = 0.001
BEHIND = (
    64  # elections by which a backend can be behind the others: those it had no part in do not count for ever
)
_ELECTED = 2.0**-20
_STEP = 1 + _ELECTED
_SESSIONS_TOTAL = B_SESSIONS_TOTAL - B_SESSIONS
NOWHERE = -1


class RequestElector(Elector):
    """As Elector. `elect_request` is the election of a request that no backend has failed yet; it knows a backend by its
    place in the pool."""

    def __init__(self, board: Board, pool: Pool, row: int) -> None:
        count = len(pool.backends)
        self._places = {backend.index: place for place, backend in enumerate(pool.backends)}
        self._indexes = list(self._places)
        self._gauge_at = [row * board.columns + BACKENDS.at(index) + B_SESSIONS for index in self._indexes]
        self._is_small = count <= FEW
        self._read = loads_reader(board, self._indexes)
        self._loads: list[float] = [0] * count  # requests of all workers, by place
        self._ranks = [(place - row) % count / count * _ELECTED for place in range(count)]
        self._eligible: list[int] = []  # places
        self._is_plain = False  # leastconn, equal weights, no limits: `ranks` decides
        self._held = self._loads  # what decides
        self._stale_at = 0.0
        self.on_limits: Callable[[], object] | None = None  # told when limits may have changed
        super().__init__(board, pool, row)
        if self._show is not None and self._is_small:
            for index in self._indexes:
                self._show(index, 0, ROW_ITSELF)
            self._show = None  # a write for each request would be dearer than the looks of others

    def place_of(self, backend: Backend) -> int:
        return self._places[backend.index]

    def elect_request(self, source_ip: str, now: float) -> int:
        """The place of the backend, counted as `elect` does; NOWHERE: ask `elect`. `now` is the loop's."""
        if now >= self._stale_at:
            self._stale_at = now + LOOK
            self._look()
        if self._is_plain:
            ranks = self._ranks
            place = ranks.index(min(ranks))
            ranks[place] += _STEP
        else:
            index = None if self._limits else self._pick(source_ip, NONE_TRIED)
            if index is None:
                return NOWHERE
            place = self._places[index]
            self._loads[place] += 1
            if self._show is not None:
                self._show(index, 0, self._cells[self._gauge_at[place]] + 1)
        cells = self._cells
        gauge = self._gauge_at[place]
        cells[gauge] += 1
        cells[gauge + _SESSIONS_TOTAL] += 1
        return place

    def release_request(self, place: int) -> None:
        """The reply of a request has come."""
        self._held[place] -= 1
        self._cells[self._gauge_at[place]] -= 1
        if not self._is_small:
            index = self._indexes[place]
            self._ended.add(index)
            if self._show is not None:
                self._show(index, 0, self._cells[self._gauge_at[place]])

    def elect(self, source_ip: str, tried: Collection[int] = NONE_TRIED) -> Backend | None:
        self._look()
        backend = super().elect(source_ip, tried)
        if backend is not None:
            self._held[self._places[backend.index]] += 1
        return backend

    def release(self, backend: Backend, bytes_in: int = 0, bytes_out: int = 0) -> bool:
        self._held[self._places[backend.index]] -= 1
        return super().release(backend, bytes_in, bytes_out)

    def _look(self) -> None:
        """Read what other processes have changed."""
        words = self._words
        if words[self._verdicts_cell] != self._verdicts or words[self._admin_cell] != self._admin:
            self._refresh()
        if self._is_small:
            self._loads[:] = self._read()
            if self._is_plain:
                self._rank()

    def _rank(self) -> None:
        """Put the loads that have been read into the ranks. What is behind the point stays, from the least on."""
        ranks, loads = self._ranks, self._loads
        shares = [ranks[place] % 1 if ranks[place] < inf else 0.0 for place in self._eligible]
        least = max(min(shares), max(shares) - BEHIND * _ELECTED)
        ranks[:] = [inf] * len(ranks)
        for place, share in zip(self._eligible, shares, strict=True):
            ranks[place] = loads[place] + max(share - least, 0.0)

    def _refresh(self) -> None:
        super()._refresh()
        tier = self._tiers[0]
        self._eligible = [self._places[candidate.index] for candidate in tier]
        is_even = len({candidate.weight for candidate in tier}) == 1
        self._is_plain = self._is_small and is_even and not self._limits and self._pool.balance == "leastconn"
        self._held = self._ranks if self._is_plain else self._loads
        if self.on_limits is not None:
            self.on_limits()

    def _tenant(self, slot: Backend) -> Backend:
        """Requests are counted in one gauge, also of a tenant from before framed mode."""
        return replace(super()._tenant(slot), parity=0)

    def _readers(self, indexes: Sequence[int]) -> tuple[Callable[[], list[int]], Callable[[int], int]]:
        if not self._is_small:
            return super()._readers(indexes)
        held, places = self._loads, self._places
        order = [places[index] for index in indexes]
        return lambda: [int(held[place]) for place in order], lambda index: int(held[places[index]])
