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
    here, there = processes.table.places(b"here"), processes.table.places(b"there")
    for _ in range(3):
        one.hold(here, 1)
    two.hold(here, 1)
    assert (one.held(here, 0.0), two.held(here, 0.0), one.held(there, 0.0)) == (4, 4, 0)
    one.hold(here, -1)
    assert two.held(here, 0.0) == 3


def test_what_a_dead_process_held_is_gone_and_its_row_begins_anew(processes: Processes) -> None:
    one, two = processes.start(FIRST_LEASE, 71), processes.start(FIRST_LEASE + 1, 72)
    here = processes.table.places(b"here")
    one.hold(here, 1)
    two.hold(here, 1)
    one.note(here, 5)
    processes.reap(FIRST_LEASE)
    assert two.held(here, 2 * LOOK) == 1
    assert two.noted(here, 5, 2 * LOOK) == 0
    third = processes.start(FIRST_LEASE, 73)
    assert (third.held(here, 4 * LOOK), third.noted(here, 5, 4 * LOOK)) == (1, 0)
    third.hold(here, 1)
    assert two.held(here, 6 * LOOK) == 2


def test_a_lease_without_a_counting_process_counts_nothing(processes: Processes) -> None:
    """A prober gets the row of a dead worker: what stands there is not its own."""
    one = processes.start(FIRST_LEASE, 71)
    here = processes.table.places(b"here")
    one.hold(here, 1)
    processes.leases.row(FIRST_LEASE)[PID] = 99
    assert processes.start(FIRST_LEASE + 1, 72).held(here, 0.0) == 0


def test_new_clients_of_this_period_and_the_last(processes: Processes) -> None:
    one, two = processes.start(FIRST_LEASE, 71), processes.start(FIRST_LEASE + 1, 72)
    here = processes.table.places(b"here")
    for counts, period in ((one, 6), (one, 6), (two, 6), (one, 7)):
        counts.note(here, period)
    assert [two.noted(here, period, 0.0) for period in (5, 6, 7, 8)] == [0, 3, 1, 0]
    one.note(here, 8)  # its bank of period 6 is taken
    assert [two.noted(here, period, 0.0) for period in (6, 7, 8)] == [1, 1, 1]


def test_collisions_only_ever_add_and_are_rare(processes: Processes) -> None:
    counts = processes.start(FIRST_LEASE, 71)
    rng = random.Random(3)
    held: Counter[bytes] = Counter()
    for _ in range(10_000):
        source = rng.randbytes(16)
        held[source] += 1
        counts.hold(processes.table.places(source), 1)
    wrong = 0
    for _ in range(5_000):
        seen = counts.held(processes.table.places(rng.randbytes(16)), 0.0)
        wrong += seen >= 3
    assert wrong <= 5
    assert all(counts.held(processes.table.places(source), 0.0) >= count for source, count in held.items())


def test_places_follow_from_a_secret_of_the_table() -> None:
    one, two = SourceTable(1), SourceTable(1)
    assert one.places(b"here") != two.places(b"here")
