"""Counts over any history of reloads and deaths: they follow a name, sums never fall, gauges are those of the living."""

import os
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancer.pool.blocks import BoardBlocks
from balancer.pool.board import (
    B_BYTES_IN,
    B_SESSIONS,
    BACKENDS,
    KINDS,
    L_ACCEPTED,
    L_SESSIONS,
    LISTENERS,
    LOG_DROPPED,
    P_QUEUED,
    P_QUEUED_TOTAL,
    POOLS,
    W_POOL,
    BlockKind,
    Board,
    columns_for,
)
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, make_shared
from balancer.shm.table import RETIRED_ROW

ROWS = 8
CAPACITIES = (3, 3, 5)  # of listeners, pools and backends: small, so that blocks are reused
TOTAL = {LISTENERS: L_ACCEPTED, POOLS: P_QUEUED_TOTAL, BACKENDS: B_BYTES_IN}
GAUGE = {LISTENERS: L_SESSIONS, POOLS: P_QUEUED, BACKENDS: B_SESSIONS}
POOL_BACKENDS = st.dictionaries(
    st.sampled_from("pqrs"), st.sets(st.sampled_from("abc"), max_size=3), min_size=1, max_size=3
)


@dataclass
class Generation:
    """What a plan knows: the block of each name by kind, and the columns to fold."""

    placed: dict[BlockKind, dict[str, int]]
    totals: tuple[range, ...]
    rows: list[int] = field(default_factory=list)


class Reloads(RuleBasedStateMachine):
    """The master's part of reloads and deaths, beside a model that counts by name."""

    def __init__(self) -> None:
        super().__init__()
        shared = make_shared(columns_for(CAPACITIES[2]), rows=FIRST_LEASE + ROWS)
        shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + ROWS
        self.board = Board(shared, CAPACITIES[2])
        self.blocks = BoardBlocks(*CAPACITIES)
        self.generations: dict[int, Generation] = {}
        self.last = 0
        self.owners: dict[BlockKind, dict[int, str]] = {kind: {} for kind in KINDS}
        self.totals: dict[BlockKind, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.gauges: dict[int, dict[BlockKind, Counter[str]]] = {}  # by row
        self.grand: Counter[BlockKind] = Counter()
        self.dropped = 0

    def teardown(self) -> None:
        os.close(self.board.lock_fd)

    @rule(listeners=st.sets(st.sampled_from("wxyz"), min_size=1, max_size=3), pools=POOL_BACKENDS)
    def reload(self, listeners: set[str], pools: dict[str, set[str]]) -> None:
        used = {row for generation in self.generations.values() for row in generation.rows}
        free = [row for row in range(FIRST_LEASE, FIRST_LEASE + ROWS) if row not in used][:2]
        backends = [f"{pool}/{name}" for pool in sorted(pools) for name in sorted(pools[pool])]
        self.last += 1
        try:
            assignments = self.blocks.assign(self.last, sorted(listeners), sorted(pools), backends)
        except ValueError:
            return
        placed: dict[BlockKind, dict[str, int]] = {}
        for kind, (blocks, reused) in zip(KINDS, assignments, strict=True):
            for block in reused:
                del self.totals[kind][self.owners[kind][block]]
            self.owners[kind] |= {block: name for name, block in blocks.items()}
            self.board.give_out(kind, blocks.values(), reused)
            placed[kind] = blocks
        for pool in pools:
            mine = [block for name, block in placed[BACKENDS].items() if name.startswith(f"{pool}/")]
            self.board.assign_pool(placed[POOLS][pool], mine)
        self.generations[self.last] = Generation(placed, self.board.totals(), free)
        for row in free:
            self.board.counts.row(row)[PID] = 1000 + row
            self.gauges[row] = {kind: Counter() for kind in KINDS}
        if not free:
            self.retire(self.last)

    @precondition(lambda self: self.generations)
    @rule(data=st.data(), kind=st.sampled_from(KINDS), amount=st.integers(1, 9), ends=st.booleans())
    def count(self, data: st.DataObject, kind: BlockKind, amount: int, ends: bool) -> None:
        generation = data.draw(st.sampled_from(list(self.generations.values())))
        if not generation.placed[kind]:
            return
        row, name = (
            data.draw(st.sampled_from(generation.rows)),
            data.draw(st.sampled_from(sorted(generation.placed[kind]))),
        )
        cells, at = self.board.counts.row(row), kind.at(generation.placed[kind][name])
        cells[at + TOTAL[kind]] += amount
        cells[at + GAUGE[kind]] += 1
        cells[LOG_DROPPED] += 1
        self.totals[kind][name] += amount
        self.grand[kind] += amount
        self.gauges[row][kind][name] += 1
        self.dropped += 1
        if ends:
            cells[at + GAUGE[kind]] -= 1
            self.gauges[row][kind][name] -= 1

    @precondition(lambda self: self.generations)
    @rule(data=st.data())
    def reap(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(list(self.generations)))
        generation = self.generations[number]
        row = data.draw(st.sampled_from(generation.rows))
        self.board.counts.fold(row, RETIRED_ROW, generation.totals)
        generation.rows.remove(row)
        del self.gauges[row]
        if not generation.rows:
            self.retire(number)

    def retire(self, number: int) -> None:
        del self.generations[number]
        self.blocks.retire(number)

    @invariant()
    def totals_follow_their_names(self) -> None:
        for generation in self.generations.values():
            for kind in KINDS:
                every = self.board.every_total(kind, TOTAL[kind])
                for name, block in generation.placed[kind].items():
                    assert (
                        every[block]
                        == self.board.total(kind.at(block) + TOTAL[kind])
                        == self.totals[kind][name]
                    )

    @invariant()
    def sums_lose_nothing(self) -> None:
        assert {kind: self.board.sum_total(kind, TOTAL[kind]) for kind in KINDS} == {
            kind: self.grand[kind] for kind in KINDS
        }
        assert self.board.total(LOG_DROPPED) == self.dropped

    @invariant()
    def gauges_are_those_of_the_living(self) -> None:
        for kind in KINDS:
            expected = sum((gauges[kind] for gauges in self.gauges.values()), Counter())
            every = self.board.every_gauge(kind, GAUGE[kind])
            assert sum(every) == expected.total()
            for row, gauges in self.gauges.items():
                assert self.board.sum_in_row(row, kind, GAUGE[kind]) == gauges[kind].total()
            for generation in self.generations.values():
                for name, block in generation.placed[kind].items():
                    assert every[block] == expected[name]

    @invariant()
    def backends_know_their_pool(self) -> None:
        for generation in self.generations.values():
            for name, block in generation.placed[BACKENDS].items():
                assert self.board.word(block, W_POOL) == generation.placed[POOLS][name.partition("/")[0]]


Reloads.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_any_history = Reloads.TestCase
