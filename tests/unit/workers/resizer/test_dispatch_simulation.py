"""Invariants under random events: a slot has one holder, a picture one answer, and no worker idles while work waits."""

import pytest

from tests.unit.workers.resizer.dispatch_simulation import DispatchSimulation
from workers.resizer.idle_set import WorkerState
from workers.resizer.worker_pool import SLOW_SECONDS


def check(simulation: DispatchSimulation) -> None:
    """What must hold at any time."""
    check_tasks(simulation)
    check_idle_set(simulation)


def check_tasks(simulation: DispatchSimulation) -> None:
    scheduler, pool = simulation.scheduler, simulation.scheduler.pool
    given = [(one.task, one) for one in pool.workers] + [(one.prefetched, one) for one in pool.workers]
    work = [(task, worker) for task, worker in given if task is not None]
    tasks = [*(task for task, _ in work), *scheduler.queue]
    held = [task.slot for task in tasks if task.slot >= 0] + simulation.sending + simulation.hoarded
    assert sorted(held + scheduler.slots.free) == [*range(simulation.options.slots)], "a slot has one holder"
    assert simulation.tasks.keys() <= {*tasks}, "no task is lost"
    for one in simulation.processes:
        if one.order is not None and one.life >= 0 and one.order.front_pid == simulation.front:
            assert (one.order.serial, one.pid) in [(task.serial, worker.pid) for task, worker in work]


def check_idle_set(simulation: DispatchSimulation) -> None:
    scheduler, pool, idle = simulation.scheduler, simulation.scheduler.pool, simulation.scheduler.pool.idle
    small, big = scheduler.queue.small, scheduler.queue.big
    cpus = [worker for worker in pool.workers if not worker.is_express]
    idlers = sorted(id(worker) for worker in pool.workers if worker.state is WorkerState.IDLE)
    assert sorted(map(id, [*idle.cpus, *idle.express])) == idlers
    assert {*idle.can_prefetch} == {one for one in cpus if one.is_short and one.prefetched is None}
    assert idle.worker_count == sum(worker.state is not WorkerState.ABSENT for worker in cpus)
    assert idle.short == sum(worker.is_short for worker in cpus)
    assert scheduler.is_watching_slow or not idle.short
    assert not (idle.cpus and (small or big)), "a cpu idles"
    wants_express = idle.wants_express or (small and small.head.overtaken > idle.worker_count)
    assert not (idle.express and wants_express and small), "express idles"
    assert not (idle.can_prefetch and small and not big), "a worker could prefetch"


@pytest.mark.parametrize("seed", range(40))
def test_every_picture_is_answered_once_and_every_slot_comes_back(seed: int) -> None:
    simulation = DispatchSimulation(seed)
    for _ in range(1000):
        simulation.event()
        check(simulation)
    for turn in range(200):
        simulation.settle(turn)
        check(simulation)
    simulation.pass_time(2 * SLOW_SECONDS)
    scheduler = simulation.scheduler
    assert not simulation.tasks
    assert {worker.state for worker in scheduler.pool.workers} == {WorkerState.IDLE}
    assert len(scheduler.slots) == simulation.options.slots
    assert not scheduler.queued and not scheduler.is_watching_slow
    simulation.close()
