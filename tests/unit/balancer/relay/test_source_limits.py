"""Limits of a source over two workers, one of them interrupted by the other at each step of its count."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from balancer.option_values import Rate
from balancer.options import MAIN, Listener
from balancer.relay.source_limits import SourceLimits
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, PREFORK_COLUMNS
from balancer.shm.source_table import SourceCells, SourceCounts, SourceTable
from balancer.shm.table import Table

LIMIT = 3
ROWS = FIRST_LEASE + 2
STEPS = 4  # before and after each of the two calls that count a client or read the counts


class InterruptedCounts(SourceCounts):
    """One worker's counts. `interrupt` is called once, after `left` more steps."""

    interrupt: Callable[[], object] = staticmethod(lambda: None)
    left = -1

    def _step(self) -> None:
        self.left -= 1
        if self.left == -1:
            self.interrupt()

    def add_client(self, source: SourceCells, period: int) -> None:
        self._step()
        super().add_client(source, period)
        self._step()

    def clients_within(self, source: SourceCells, seconds: float, now: float) -> int:
        self._step()
        seen = super().clients_within(source, seconds, now)
        self._step()
        return seen


class Client:
    source_ip = "10.0.0.1"
    lane = SimpleNamespace(loop=SimpleNamespace(now=100.0))


@pytest.mark.parametrize("interrupted", range(LIMIT + 2))
@pytest.mark.parametrize("step", range(STEPS))
def test_two_workers_at_once_admit_no_fewer_than_the_limit_and_one_more_at_most(
    step: int, interrupted: int
) -> None:
    leases, table = Table(ROWS, PREFORK_COLUMNS), SourceTable(ROWS)
    leases.row(MASTER_ROW)[MASTER_LIVE_ROWS] = ROWS
    for row in (FIRST_LEASE, FIRST_LEASE + 1):
        leases.row(row)[PID] = 70 + row
    listener = Listener(MAIN, (), source_rate=Rate(LIMIT, 3600.0), index=0)
    counts = InterruptedCounts(table, leases, FIRST_LEASE)
    one = SourceLimits(listener, counts)
    other = SourceLimits(listener, SourceCounts(table, leases, FIRST_LEASE + 1))
    reasons: list[str] = []

    def come(limits: SourceLimits) -> None:
        client: Any = Client()
        reasons.append(limits.why_not(client))

    counts.interrupt = lambda: come(other)
    for number in range(2 * LIMIT):
        if number == interrupted:
            counts.left = step
        come(one)
    assert len(reasons) == 2 * LIMIT + 1
    assert LIMIT <= reasons.count("") <= LIMIT + 1
