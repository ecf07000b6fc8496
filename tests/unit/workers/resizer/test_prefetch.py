"""Tasks sent to a CPU process before it has finished the one before: when, and how they are taken back."""

from tests.unit.workers.resizer.scheduler_fixture import BIG, OPTIONS, SMALL, SchedulerFixture
from workers.resizer.orders import Result, encode
from workers.resizer.task import OK, TaskStage
from workers.resizer.worker_pool import SLOW_SECONDS

# -- prefetching --


def test_a_small_task_is_prefetched_and_begins_with_the_end_of_the_one_before(
    ready: SchedulerFixture,
) -> None:
    fixture = ready
    first, second, third = fixture.submit(SMALL, SMALL, SMALL)
    assert [fixture.order(fixture.cpu).serial for _ in range(2)] == [first.serial, second.serial]
    assert not fixture.is_asked(fixture.cpu) and not fixture.is_asked(fixture.express)
    assert fixture.scheduler.working == 1 and fixture.scheduler.queued == 2
    fixture.now += 3
    fixture.finish(fixture.cpu, 11, first.serial)
    assert fixture.statuses() == [OK] and second.begun_at == fixture.now
    assert fixture.order(fixture.cpu).serial == third.serial, "the next one at once"
    fixture.finish(fixture.cpu, 11, second.serial)
    fixture.finish(fixture.cpu, 11, third.serial)
    assert fixture.statuses() == [OK] * 3 and fixture.free() == OPTIONS.slots
    assert fixture.scheduler.pool.idle.cpus == [fixture.workers[0]] and fixture.scheduler.queued == 0


def test_nothing_is_prefetched_at_a_big_task_or_by_express(ready: SchedulerFixture) -> None:
    fixture = ready
    fixture.submit(BIG, SMALL, SMALL, BIG)
    assert fixture.is_asked(fixture.cpu) and not fixture.is_asked(fixture.cpu)
    assert fixture.is_asked(fixture.express) and not fixture.is_asked(fixture.express)


def test_nothing_is_prefetched_while_a_big_task_waits(ready: SchedulerFixture) -> None:
    fixture = ready
    small, big, _ = fixture.submit(SMALL, BIG, SMALL)
    assert fixture.order(fixture.cpu).serial == small.serial
    assert not fixture.is_asked(fixture.cpu)
    fixture.finish(fixture.cpu, 11, small.serial)
    assert fixture.order(fixture.cpu).serial == big.serial, "its turn comes"
    assert fixture.is_asked(fixture.express), "and then the small one's too, on its core's time"


def test_a_result_that_is_not_of_the_current_task_is_ignored(ready: SchedulerFixture) -> None:
    fixture = ready
    _, second = fixture.submit(SMALL, SMALL)
    fixture.finish(fixture.cpu, 11, second.serial)
    assert fixture.statuses() == [] and fixture.workers[0].prefetched is second


def test_an_abandoned_prefetched_task_frees_its_slot_at_once(ready: SchedulerFixture) -> None:
    fixture = ready
    first, second = fixture.submit(SMALL, SMALL)
    assert fixture.is_asked(fixture.cpu)
    fixture.scheduler.abandon(second)
    assert not any(fixture.picture(0, fixture.order(fixture.cpu))[:16]), "it is not to be resized"
    assert fixture.free() == OPTIONS.slots - 1
    fixture.finish(fixture.cpu, 11, first.serial)
    fixture.finish(fixture.cpu, 11, second.serial)
    assert fixture.free() == OPTIONS.slots and fixture.statuses() == [OK]


# -- taking back --


def test_a_task_prefetched_behind_slow_work_goes_to_express(
    ready: SchedulerFixture,
) -> None:
    fixture = ready
    slow, quick = fixture.submit(SMALL, SMALL)
    assert fixture.is_asked(fixture.cpu)
    taken_back = fixture.order(fixture.cpu)
    fixture.wait(SLOW_SECONDS)
    assert not fixture.is_asked(fixture.express), "not slow yet"
    fixture.wait(SLOW_SECONDS)
    order = fixture.order(fixture.express)
    assert not any(fixture.picture(0, taken_back)[:16]), "the process is not to resize it too"
    assert fixture.picture(1, order) == b"B" * SMALL and order.serial == quick.serial
    fixture.finish(fixture.express, 12, order.serial)
    assert fixture.statuses() == [OK]
    fixture.finish(fixture.cpu, 11, slow.serial)
    assert fixture.statuses() == [OK, OK] and fixture.free() == OPTIONS.slots
    assert not fixture.scheduler.pool.idle.cpus, "the process still has the other"
    fixture.finish(fixture.cpu, 11, taken_back.serial)
    assert fixture.statuses() == [OK, OK]
    assert fixture.scheduler.pool.idle.cpus == [fixture.workers[0]]


def test_nothing_is_prefetched_behind_slow_work(ready: SchedulerFixture) -> None:
    fixture = ready
    fixture.submit(SMALL)
    assert fixture.is_asked(fixture.cpu)
    fixture.wait(2 * SLOW_SECONDS)
    fixture.submit(SMALL, SMALL)
    assert fixture.is_asked(fixture.express) and not fixture.is_asked(fixture.cpu)


def test_a_task_begun_before_it_could_be_taken_back_stays_where_it_is(ready: SchedulerFixture) -> None:
    fixture = ready
    first, second = fixture.submit(SMALL, SMALL)
    fixture.cpu.send(encode(Result(11, first.serial, OK, 5, text="jpeg")))
    fixture.now += 2 * SLOW_SECONDS
    fixture.loop.run_once(0)  # the timer and the packet in one turn
    assert fixture.statuses() == [OK] and fixture.workers[0].task is second
    assert not fixture.is_asked(fixture.express) and fixture.free() == OPTIONS.slots - 1
    fixture.finish(fixture.cpu, 11, second.serial)
    assert fixture.statuses() == [OK, OK] and fixture.free() == OPTIONS.slots


def test_a_task_is_taken_back_without_a_free_slot(ready: SchedulerFixture) -> None:
    fixture = ready
    fixture.submit(SMALL, SMALL)
    while fixture.scheduler.slots.allocate() is not None:
        pass
    fixture.wait(2 * SLOW_SECONDS)
    assert fixture.is_asked(fixture.express)


def test_the_check_for_slow_work_stops_without_short_work(ready: SchedulerFixture) -> None:
    fixture = ready
    (only,) = fixture.submit(SMALL)
    fixture.finish(fixture.cpu, 11, only.serial)
    fixture.wait(2 * SLOW_SECONDS)
    assert not fixture.scheduler.is_watching_slow


def test_a_task_taken_back_keeps_its_turn(ready: SchedulerFixture) -> None:
    fixture = ready
    first, other = fixture.submit(BIG, SMALL)
    fixture.order(fixture.cpu)
    assert fixture.order(fixture.express).serial == other.serial
    fixture.finish(fixture.cpu, 11, first.serial)
    slow, quick = fixture.submit(SMALL, SMALL)
    assert fixture.is_asked(fixture.cpu) and fixture.is_asked(fixture.cpu)
    fixture.submit(BIG)
    fixture.wait(2 * SLOW_SECONDS)
    assert quick.stage is TaskStage.WAITING
    fixture.finish(fixture.cpu, 11, slow.serial)
    fixture.finish(fixture.cpu, 11, quick.serial)
    assert fixture.order(fixture.cpu).serial == quick.serial, "it was asked for before the big one"


def test_a_task_taken_back_is_counted_once(ready: SchedulerFixture) -> None:
    fixture = ready
    slow, quick = fixture.submit(SMALL, SMALL)
    fixture.wait(2 * SLOW_SECONDS)
    assert fixture.workers[1].task is quick
    assert (fixture.scheduler.queued, fixture.scheduler.working) == (0, 2)
    fixture.finish(fixture.cpu, 11, slow.serial)
    assert (fixture.scheduler.queued, fixture.scheduler.working) == (0, 1)


def test_an_abandoned_big_task_lets_small_ones_be_prefetched(ready: SchedulerFixture) -> None:
    fixture = ready
    _, big, _ = fixture.submit(SMALL, BIG, SMALL)
    assert fixture.is_asked(fixture.cpu) and not fixture.is_asked(fixture.cpu)
    fixture.scheduler.abandon(big)
    assert fixture.is_asked(fixture.cpu)


def test_prefetching_gives_no_place_to_a_big_task(ready: SchedulerFixture) -> None:
    fixture = ready
    fixture.submit(SMALL, BIG, BIG)
    on_its_way = fixture.ask(BIG)
    assert not fixture.scheduler.is_full_for(on_its_way)
    fixture.scheduler.expect(on_its_way)
    late = fixture.ask(BIG)
    assert fixture.scheduler.is_full_for(late)
    assert fixture.scheduler.submit(on_its_way) and not fixture.scheduler.submit(late)


def test_an_abandoned_prefetched_task_is_not_taken_back_and_is_watched_when_it_begins(
    ready: SchedulerFixture,
) -> None:
    fixture = ready
    first, second = fixture.submit(SMALL, SMALL)
    fixture.scheduler.abandon(second)
    fixture.wait(2 * SLOW_SECONDS)
    assert not fixture.is_asked(fixture.express) and not fixture.scheduler.is_watching_slow
    fixture.finish(fixture.cpu, 11, first.serial)
    begun = fixture.workers[0].task
    assert begun is not None and begun.serial == second.serial and not fixture.workers[0].is_short
