"""The slots table: what is written, which process is woken, what the kernel is told, for the sockets of every
listener."""

import signal
from collections.abc import Iterator

import pytest

from balancer.prefork.slot_table import SlotTable
from balancer.prefork.slots import HUNG_AFTER
from balancer.prefork.steering import WHOLE
from balancer.shm.layout import ADOPTER, BEAT_MS, MASTER_STEERED, SHARE, SLOT_HUNG, SLOT_SERVED, SLOT_STATE
from tests.unit.balancer.prefork.simulation import MasterSimulation, web


@pytest.fixture
def master() -> Iterator[MasterSimulation]:
    made = MasterSimulation(*web("a", "b"), workers=3)
    yield made
    made.close()


def refresh(master: MasterSimulation, table: SlotTable) -> None:
    table.refresh(master.now, master.generations.wanted, master.generations.slots)


def column(master: MasterSimulation, number: int) -> list[int]:
    slots = master.processes.shared.slots
    return [slots.row(slot)[number] for slot in range(master.generations.slots)]


def steered(master: MasterSimulation) -> dict[str, list[int]]:
    return {group.bind.name: group.steered_by for group in master.processes.sockets.groups}


def beat(master: MasterSimulation, *slots: int) -> None:
    for slot in slots:
        worker = master.processes.children.holder(master.processes.current, "worker", slot)
        assert worker is not None
        master.processes.shared.rows.row(worker.row)[BEAT_MS] = int(master.now * 1000)


def test_the_sockets_of_every_listener_are_steered_by_the_same_shares(master: MasterSimulation) -> None:
    table = SlotTable(master.processes)
    refresh(master, table)
    assert column(master, SLOT_STATE) == [SLOT_SERVED] * 3
    shares = column(master, SHARE)
    assert sum(shares) == WHOLE and steered(master) == {"a": shares, "b": shares}
    assert master.processes.row[MASTER_STEERED] == 1


def test_a_hung_worker_is_steered_away_from_and_its_adopter_woken_once(master: MasterSimulation) -> None:
    table = SlotTable(master.processes)
    refresh(master, table)
    master.now += HUNG_AFTER + 0.1
    beat(master, 0, 2)
    for _ in range(2):
        refresh(master, table)
    assert column(master, SLOT_STATE) == [SLOT_SERVED, SLOT_HUNG, SLOT_SERVED]
    assert column(master, SHARE)[1] == 0 and all(shares[1] == 0 for shares in steered(master).values())
    adopter = column(master, ADOPTER)[1]
    (worker,) = [process for process in master.processes.children.living() if process.row == adopter]
    assert worker.slot in (0, 2)
    assert [number for _, number in master.sent] == [signal.SIGURG]


def test_a_listener_that_a_reload_adds_is_steered_and_a_renamed_one_stays_so(
    master: MasterSimulation,
) -> None:
    table = SlotTable(master.processes)
    refresh(master, table)
    before = next(group for group in master.processes.sockets.groups if group.bind.name == "b")
    master.reload(*web("a", "c"), *web("new", host="127.0.0.2"))
    refresh(master, table)
    shares = column(master, SHARE)
    assert steered(master) == {"a": shares, "c": shares, "new": shares}
    assert before.bind.name == "c"
