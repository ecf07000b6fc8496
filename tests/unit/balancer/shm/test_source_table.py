"""Sources over several processes, in one: each row stands for a process."""

import random
from collections import Counter

import pytest

from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, PREFORK_COLUMNS
from balancer.shm.source_table import LOOK, SourceCounts, SourceTable
from balancer.shm.table import Table

ROWS = 8


class Processes:
    """A table of sources and the processes that count in it."""

    def __init__(self) -> None:
        self.leases = Table(ROWS, PREFORK_COLUMNS)
        self.leases.row(MASTER_ROW)[MASTER_LIVE_ROWS] = ROWS
        self.table = SourceTable(ROWS)

    def start(self, row: int, pid: int) -> SourceCounts:
        self.leases.row(row)[PID] = pid
        return SourceCounts(self.table, self.leases, row)

    def reap(self, row: int) -> None:
        self.leases.row(row)[PID] = 0


@pytest.fixture
def processes() -> Processes:
    return Processes()


def test_what_one_process_holds_another_sees(processes: Processes) -> None:
    one, two = processes.start(FIRST_LEASE, 71), processes.start(FIRST_LEASE + 1, 72)
    here, there = processes.table.cells_of(b"here"), processes.table.cells_of(b"there")
    for _ in range(3):
        one.add_sessions(here, 1)
    two.add_sessions(here, 1)
    assert (one.sessions(here, 0.0), two.sessions(here, 0.0), one.sessions(there, 0.0)) == (4, 4, 0)
    one.add_sessions(here, -1)
    assert two.sessions(here, 0.0) == 3


def test_what_a_dead_process_held_is_gone_and_its_row_begins_anew(processes: Processes) -> None:
    one, two = processes.start(FIRST_LEASE, 71), processes.start(FIRST_LEASE + 1, 72)
    here = processes.table.cells_of(b"here")
    one.add_sessions(here, 1)
    two.add_sessions(here, 1)
    one.add_client(here, 5)
    processes.reap(FIRST_LEASE)
    assert two.sessions(here, 2 * LOOK) == 1
    assert two.clients(here, 5, 2 * LOOK) == 0
    third = processes.start(FIRST_LEASE, 73)
    assert (third.sessions(here, 4 * LOOK), third.clients(here, 5, 4 * LOOK)) == (1, 0)
    third.add_sessions(here, 1)
    assert two.sessions(here, 6 * LOOK) == 2


def test_a_lease_without_a_counting_process_counts_nothing(processes: Processes) -> None:
    """A prober gets the row of a dead worker: what stands there is not its own."""
    one = processes.start(FIRST_LEASE, 71)
    here = processes.table.cells_of(b"here")
    one.add_sessions(here, 1)
    processes.leases.row(FIRST_LEASE)[PID] = 99
    assert processes.start(FIRST_LEASE + 1, 72).sessions(here, 0.0) == 0


def test_new_clients_of_this_period_and_the_last(processes: Processes) -> None:
    one, two = processes.start(FIRST_LEASE, 71), processes.start(FIRST_LEASE + 1, 72)
    here = processes.table.cells_of(b"here")
    for counts, period in ((one, 6), (one, 6), (two, 6), (one, 7)):
        counts.add_client(here, period)
    assert [two.clients(here, period, 0.0) for period in (5, 6, 7, 8)] == [0, 3, 1, 0]
    one.add_client(here, 8)  # its bank of period 6 is taken
    assert [two.clients(here, period, 0.0) for period in (6, 7, 8)] == [1, 1, 1]


def test_collisions_only_ever_add_and_are_rare(processes: Processes) -> None:
    counts = processes.start(FIRST_LEASE, 71)
    rng = random.Random(3)
    held: Counter[bytes] = Counter()
    for _ in range(10_000):
        source = rng.randbytes(16)
        held[source] += 1
        counts.add_sessions(processes.table.cells_of(source), 1)
    wrong = 0
    for _ in range(5_000):
        seen = counts.sessions(processes.table.cells_of(rng.randbytes(16)), 0.0)
        wrong += seen >= 3
    assert wrong <= 5
    assert all(
        counts.sessions(processes.table.cells_of(source), 0.0) >= count for source, count in held.items()
    )


def test_places_follow_from_a_secret_of_the_table() -> None:
    one, two = SourceTable(1), SourceTable(1)
    assert one.cells_of(b"here") != two.cells_of(b"here")


def test_a_period_of_milliseconds_after_months_of_uptime(processes: Processes) -> None:
    """A cell has 32 bits."""
    counts = processes.start(FIRST_LEASE, 71)
    here = processes.table.cells_of(b"here")
    for period in (2**31 - 1, 2**31, 2**31 + 1):
        counts.add_client(here, period)
        assert counts.clients(here, period, 0.0) == 1
        assert counts.clients(here, period - 1, 0.0) == (period > 2**31 - 1)
