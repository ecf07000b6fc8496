"""The queue of two classes and the rule that pairs its tasks with workers."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from workers.resizer.dispatch import TaskQueue, pairs


@dataclass(frozen=True)
class FakeTask:
    serial: int
    is_small: bool


@dataclass(frozen=True)
class FakeWorker:
    name: str
    is_express: bool = False


@dataclass
class FakeIdleSet:
    """What IdleSet offers to the rule."""

    cpus: list[FakeWorker] = field(default_factory=list)
    express: list[FakeWorker] = field(default_factory=list)
    can_prefetch: dict[FakeWorker, None] = field(default_factory=dict)
    wants_express: bool = True


CPU0, CPU1, EXPRESS = FakeWorker("cpu 0"), FakeWorker("cpu 1"), FakeWorker("express", True)


def queue_of(words: str, limit: int = 100) -> TaskQueue[FakeTask]:
    """ "sbb": a small task, then two big ones."""
    waiting: TaskQueue[FakeTask] = TaskQueue(limit)
    for serial, letter in enumerate(words):
        assert waiting.put(FakeTask(serial, letter == "s"))
    return waiting


def assigned(
    words: str,
    cpus: list[FakeWorker],
    express: list[FakeWorker],
    prefetching: tuple[FakeWorker, ...] = (),
    wants: bool = True,
) -> dict[int, str]:
    """serial -> name of the worker that got it."""
    idle_set = FakeIdleSet(list(cpus), list(express), dict.fromkeys(prefetching), wants)
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
    waiting: TaskQueue[FakeTask] = TaskQueue(8)
    assert [waiting.put(FakeTask(n, False)) for n in range(8)] == [True] * 6 + [False] * 2
    assert [waiting.put(FakeTask(n, True)) for n in range(8, 11)] == [True, True, False]
    assert len(waiting) == 8


def test_a_cancelled_task_is_gone_and_cancelled_once() -> None:
    waiting = queue_of("sbs")
    middle = FakeTask(1, False)
    assert waiting.cancel(middle) and not waiting.cancel(middle)
    assert [task.serial for task, _ in pairs(waiting, FakeIdleSet([CPU0, CPU1]))] == [0, 2]


def test_a_queue_of_one_takes_either() -> None:
    for small in (True, False):
        waiting: TaskQueue[FakeTask] = TaskQueue(1)
        assert waiting.put(FakeTask(0, small)) and not waiting.put(FakeTask(1, small))


def test_express_gets_nothing_while_it_is_not_wanted() -> None:
    assert assigned("ss", [], [EXPRESS], wants=False) == {}
    assert assigned("ss", [CPU0], [EXPRESS], wants=False) == {0: "cpu 0"}


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
    prefetching = [FakeWorker(f"busy {n}") for n in range(busy)]
    idle_set = FakeIdleSet(
        [FakeWorker(f"cpu {n}") for n in range(cpus)],
        [FakeWorker(f"express {n}", True) for n in range(express)],
        dict.fromkeys(prefetching),
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
    has_small = waiting.pop_small() is not None
    assert not (has_small and idle_set.express and wants)
    assert not (has_small and idle_set.can_prefetch) or waiting.has_big
