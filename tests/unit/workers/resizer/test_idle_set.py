"""The sets of workers: which are idle, which can prefetch, and whether one more process gains anything."""

import socket

import pytest

from workers.imaging.job import ResizeJob
from workers.resizer.idle_set import IdleSet, WorkerSlot, WorkerState, tombstone_of
from workers.resizer.orders import Result
from workers.resizer.task import Task, TaskStage


class NoRequester:
    def answer(self, task: Task, result: Result) -> None:
        raise AssertionError("no task is answered here")


def work(small: bool = True) -> Task:
    return Task(7, NoRequester(), ResizeJob(9, 9), slot=3, offset=300, length=30, is_small=small)


@pytest.fixture(scope="module")
def channel() -> socket.socket:
    return socket.socket()


def idle_workers(
    channel: socket.socket, cpus: int = 2, fills_machine: bool = True
) -> tuple[IdleSet, list[WorkerSlot]]:
    """A idle with this many CPU workers and one express worker, all idle."""
    idle = IdleSet(fills_machine)
    workers = [WorkerSlot(f"cpu {number}", False, channel) for number in range(cpus)] + [
        WorkerSlot("express 0", True, channel)
    ]
    for worker in workers:
        idle.attach(worker)
    return idle, workers


def take(idle: IdleSet, small: bool = True) -> WorkerSlot:
    """The idle CPU worker that dispatch would choose, at work."""
    worker = idle.cpus.pop()
    idle.begin(worker, work(small))
    return worker


def test_express_is_wanted_until_every_core_is_at_short_work(channel: socket.socket) -> None:
    idle, _ = idle_workers(channel)
    assert idle.wants_express
    one = take(idle)
    assert idle.wants_express
    take(idle)
    assert not idle.wants_express
    idle.mark_slow(one)
    assert idle.wants_express
    assert idle.short == 1


def test_express_is_wanted_while_a_core_is_left_or_no_cpu_worker_is_there(channel: socket.socket) -> None:
    idle, workers = idle_workers(channel, fills_machine=False)
    take(idle)
    take(idle)
    assert idle.wants_express
    idle, workers = idle_workers(channel, cpus=1)
    take(idle)
    idle.end(workers[0])
    idle.detach(workers[0])
    assert idle.wants_express and idle.worker_count == 0


def test_a_worker_can_prefetch_while_at_short_work_without_a_prefetched_task(channel: socket.socket) -> None:
    idle, _ = idle_workers(channel)
    first, second = take(idle), take(idle)
    assert list(idle.can_prefetch) == [first, second], "the longest at work first"
    following = work()
    del idle.can_prefetch[first]
    idle.prefetch(first, following)
    assert list(idle.can_prefetch) == [second] and first.prefetched is following
    assert idle.end(first) is following and first.task is None and first.prefetched is None
    idle.begin(first, following)
    assert list(idle.can_prefetch) == [second, first]


def test_no_prefetch_at_big_work_slow_work_or_express(channel: socket.socket) -> None:
    idle, workers = idle_workers(channel)
    take(idle, small=False)
    idle.mark_slow(take(idle))
    idle.begin(idle.express.pop(), work())
    assert not idle.can_prefetch and idle.short == 0 and workers[2].state is WorkerState.BUSY


def test_free_places_count_tasks_that_need_not_wait(channel: socket.socket) -> None:
    idle, _ = idle_workers(channel)
    assert idle.free_places() == 3
    take(idle)
    assert idle.free_places() == 3, "one idle, one that can prefetch, express"
    take(idle)
    assert idle.free_places() == 2, "two that can prefetch; express is not wanted"


def test_a_detached_worker_is_in_no_set(channel: socket.socket) -> None:
    idle, workers = idle_workers(channel)
    busy = take(idle)
    for worker in workers:
        idle.end(worker)
        idle.detach(worker)
    assert not idle.cpus and not idle.express and not idle.can_prefetch
    assert idle.worker_count == idle.short == 0 and busy.state is WorkerState.ABSENT


def test_a_tombstone_has_no_slot_and_is_abandoned() -> None:
    task = work()
    tombstone = tombstone_of(task)
    assert (tombstone.serial, tombstone.slot, tombstone.length) == (7, -1, 30)
    assert tombstone.stage is TaskStage.ABANDONED and not tombstone.is_small, (
        "nothing is prefetched behind it"
    )
