"""Invariants under random events: a slot has one holder, a picture one answer, and no worker idles while work waits."""

import pytest

from tests.unit.workers.resizer.dispatch_simulation import DispatchSimulation
from workers.resizer.idle_set import WorkerState
from workers.resizer.worker_pool import SLOW_SECONDS


def check(simulation: DispatchSimulation) -> None:
    """What must hold at any time."""
    scheduler, pool, small = (
        simulation.scheduler,
        simulation.scheduler.pool,
        simulation.scheduler.queue._small,
    )
    idle_set = pool.idle
    work = [
        (task, worker)
        for worker in pool.workers
        for task in (worker.task, worker.prefetched)
        if task is not None
    ]
    waiting = [*small, *scheduler.queue._big]
    held = (
        [task.slot for task in [*(task for task, _ in work), *waiting]]
        + simulation.sending
        + simulation.hoarded
    )
    assert sorted(held + scheduler.slots._free) == [*range(simulation.options.slots)], (
        "each slot has one holder"
    )
    assert simulation.tasks.keys() <= {*(task for task, _ in work), *waiting}, "no task is lost"
    for one in simulation.processes:
        if one.order is not None and one.life >= 0 and not pool.has_unverified:
            assert (one.order.slot, one.pid) in [(task.slot, worker.pid) for task, worker in work]
    cpus = [worker for worker in pool.workers if not worker.is_express]
    idle = sorted(id(worker) for worker in pool.workers if worker.state is WorkerState.IDLE)
    assert sorted(map(id, [*idle_set.cpus, *idle_set.express])) == idle
    assert {*idle_set.can_prefetch} == {
        worker for worker in cpus if worker.is_short and worker.prefetched is None
    }
    assert idle_set.worker_count == sum(worker.state is not WorkerState.ABSENT for worker in cpus)
    assert idle_set.short == sum(worker.is_short for worker in cpus) and (
        not idle_set.short or pool._is_looking
    )
    assert not (idle_set.cpus and waiting) and not (idle_set.express and idle_set.wants_express and small)
    assert not (idle_set.can_prefetch and small and not scheduler.queue._big), (
        "a task waits although a worker could prefetch it"
    )


@pytest.mark.parametrize("seed", range(40))
def test_every_picture_is_answered_once_and_every_slot_comes_back(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = DispatchSimulation(monkeypatch, seed)
    for _ in range(1000):
        simulation.event()
        check(simulation)
    for turn in range(200):
        simulation.settle(turn)
        check(simulation)
    simulation.pass_time(2 * SLOW_SECONDS)
    pool = simulation.scheduler.pool
    assert not simulation.tasks and {worker.state for worker in pool.workers} == {WorkerState.IDLE}
    assert (
        len(simulation.scheduler.slots) == simulation.options.slots
        and not simulation.scheduler.queued
        and not pool._is_looking
    )
    simulation.close()
