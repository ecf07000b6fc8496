"""The queue of two classes and the rule that pairs its tasks with workers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.workers.resizer.scheduler_fixture import worker_without_channel
from workers.imaging.job import ResizeJob
from workers.resizer.dispatch import TaskQueue, pairs
from workers.resizer.idle_set import IdleSet, WorkerSlot
from workers.resizer.orders import Result
from workers.resizer.task import Origin, QueueClient, Task


class ChosenIdleSet(IdleSet):
    """An idle set of chosen workers, which wants express or not."""

    def __init__(
        self,
        cpus: list[WorkerSlot],
        express: list[WorkerSlot],
        can_prefetch: tuple[WorkerSlot, ...] = (),
        wants_express: bool = True,
    ) -> None:
        super().__init__(fills_machine=True, worker_count=1, short=0 if wants_express else 1)
        self.cpus, self.express, self.can_prefetch = list(cpus), list(express), dict.fromkeys(can_prefetch)


class NoRequester:
    def answer(self, task: Task, result: Result) -> None:
        raise AssertionError("no task is answered here")


CPU0, CPU1 = worker_without_channel("cpu 0"), worker_without_channel("cpu 1")
EXPRESS = worker_without_channel("express", True)


def task_of(serial: int, is_small: bool) -> Task:
    return Task(serial, NoRequester(), ResizeJob(9, 9), is_small=is_small)


def queue_of(words: str, limit: int = 100) -> TaskQueue:
    """ "sbb": a small task, then two big ones."""
    waiting = TaskQueue(limit)
    for serial, letter in enumerate(words):
        assert waiting.put(task_of(serial, letter == "s"))
    return waiting


def assigned(
    words: str,
    cpus: list[WorkerSlot],
    express: list[WorkerSlot],
    prefetching: tuple[WorkerSlot, ...] = (),
    wants: bool = True,
) -> dict[int, str]:
    """serial -> name of the worker that got it."""
    idle_set = ChosenIdleSet(cpus, express, prefetching, wants)
    return {task.serial: worker.name for task, worker in pairs(queue_of(words), idle_set)}


def test_a_small_task_gets_an_idle_cpu_rather_than_express() -> None:
    assert assigned("s", [CPU0], [EXPRESS]) == {0: "cpu 0"}


def test_a_small_task_gets_express_when_every_cpu_is_busy() -> None:
    assert assigned("bs", [], [EXPRESS]) == {1: "express"}


def test_a_big_task_never_gets_express() -> None:
    assert assigned("bbb", [], [EXPRESS]) == {}


def test_the_last_idle_cpu_gets_the_big_task_when_express_can_take_the_small_one() -> None:
    assert assigned("sb", [CPU0], [EXPRESS]) == {1: "cpu 0", 0: "express"}


def test_without_express_the_older_goes_first() -> None:
    assert assigned("sb", [CPU0], []) == {0: "cpu 0"}
    assert assigned("bs", [CPU0], []) == {0: "cpu 0"}


def test_big_tasks_get_the_cpus_and_a_small_one_gets_express() -> None:
    assert assigned("bbss", [CPU0, CPU1], [EXPRESS]) == {0: "cpu 1", 1: "cpu 0", 2: "express"}


def test_big_tasks_cannot_fill_the_queue() -> None:
    waiting = TaskQueue(4)
    assert [waiting.put(task_of(n, False)) for n in range(5)] == [True] * 3 + [False] * 2
    assert [waiting.put(task_of(n, True)) for n in range(5, 7)] == [True, False]
    assert len(waiting) == 4


@pytest.mark.parametrize("is_small", [True, False])
def test_beyond_the_limit_only_those_are_let_in_whose_turn_is_first_and_not_many(is_small: bool) -> None:
    waiting = TaskQueue(16)
    greedy, modest, others = Origin(served=7), Origin(served=3), [Origin(served=number) for number in (2, 1)]

    def put(origin: Origin) -> bool:
        return waiting.put(
            Task(
                len(waiting),
                NoRequester(),
                ResizeJob(9, 9),
                is_small=is_small,
                client=QueueClient(origin, origin.served),
            )
        )

    limit = 16 if is_small else 15
    assert [put(greedy) for _ in range(limit + 1)] == [True] * limit + [False]
    assert put(modest) and not put(modest) and not put(greedy)
    assert put(others[0]) and not put(others[1]), "two more than the limit"
    assert waiting.small.popleft().client.origin is others[0] if is_small else True


def test_a_cancelled_task_is_gone_and_cancelled_once() -> None:
    waiting = queue_of("sbs")
    middle = next(task for task in waiting if task.serial == 1)
    assert waiting.cancel(middle) and not waiting.cancel(middle)
    assert [task.serial for task, _ in pairs(waiting, ChosenIdleSet([CPU0, CPU1], []))] == [0, 2]


def test_a_queue_of_one_takes_either() -> None:
    for small in (True, False):
        waiting = TaskQueue(1)
        assert waiting.put(task_of(0, small)) and not waiting.put(task_of(1, small))


def test_express_gets_nothing_while_it_is_not_wanted() -> None:
    assert assigned("ss", [], [EXPRESS], wants=False) == {}
    assert assigned("ss", [CPU0], [EXPRESS], wants=False) == {0: "cpu 0"}


@pytest.mark.parametrize(("waiting", "given"), [(1, {0: "cpu 0"}), (2, {2: "express", 0: "cpu 0"})])
def test_a_task_that_overtakes_more_others_than_there_are_cpus_gets_express_all_the_same(
    waiting: int, given: dict[int, str]
) -> None:
    """ChosenIdleSet has one cpu."""
    queue, greedy = TaskQueue(100), QueueClient(Origin(served=9), 9)
    for serial, client in enumerate([greedy] * waiting + [QueueClient(Origin(served=3), 3)]):
        assert queue.put(Task(serial, NoRequester(), ResizeJob(9, 9), client=client))
    if waiting == 1:
        queue.small.popleft()
    idle_set = ChosenIdleSet([], [EXPRESS], (CPU0,), wants_express=False)
    assert {task.serial: worker.name for task, worker in pairs(queue, idle_set)} == given


@pytest.mark.parametrize("modest_is_small", [True, False])
def test_an_idle_cpu_gets_the_picture_whose_turn_is_first_of_both_classes(modest_is_small: bool) -> None:
    """Those of the other class came before."""
    queue, greedy = TaskQueue(100), QueueClient(Origin(served=9), 9)
    for serial in range(5):
        queue.put(Task(serial, NoRequester(), ResizeJob(9, 9), is_small=not modest_is_small, client=greedy))
    modest = QueueClient(Origin(served=3), 3)
    queue.put(Task(5, NoRequester(), ResizeJob(9, 9), is_small=modest_is_small, client=modest))
    assert [task.serial for task, _ in pairs(queue, ChosenIdleSet([CPU0, CPU1], []))] == [5, 0]


def test_a_task_that_no_idle_worker_can_begin_is_prefetched() -> None:
    assert assigned("sss", [], [EXPRESS], (CPU0, CPU1)) == {0: "express", 1: "cpu 0", 2: "cpu 1"}
    assert assigned("sss", [CPU0], [EXPRESS], (CPU1,), wants=False) == {0: "cpu 0", 1: "cpu 1"}


def test_big_tasks_are_not_prefetched_and_nothing_is_while_one_waits() -> None:
    assert assigned("b", [], [], (CPU0,)) == {}
    assert assigned("ssb", [], [EXPRESS], (CPU0,)) == {0: "express"}


@given(st.text("sb", max_size=40), st.integers(0, 5), st.integers(0, 2), st.integers(0, 3), st.booleans())
def test_first_in_first_out_within_a_class_without_loss_or_duplicate(
    words: str, cpus: int, express: int, busy: int, wants: bool
) -> None:
    waiting = queue_of(words)
    prefetching = tuple(worker_without_channel(f"busy {n}") for n in range(busy))
    idle_set = ChosenIdleSet(
        [worker_without_channel(f"cpu {n}") for n in range(cpus)],
        [worker_without_channel(f"express {n}", True) for n in range(express)],
        prefetching,
        wants,
    )
    given_out = list(pairs(waiting, idle_set))
    chosen = [worker for _, worker in given_out]
    assert len(set(chosen)) == len(chosen)
    assert not any(
        (worker.is_express or worker in prefetching) and not task.is_small for task, worker in given_out
    )
    for small in (True, False):
        serials = [task.serial for task, _ in given_out if task.is_small is small]
        assert serials == sorted(serials)
        assert serials == [n for n, letter in enumerate(words) if (letter == "s") is small][: len(serials)]
    assert len(given_out) + len(waiting) == len(words)
    assert not idle_set.cpus or not len(waiting), "no cpu idles while a task waits"
    assert not (waiting.small and idle_set.express and wants)
    assert not (waiting.small and idle_set.can_prefetch) or waiting.big
