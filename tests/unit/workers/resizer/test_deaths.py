"""CPU processes that die, are killed or leave: what becomes of their current and prefetched tasks."""

import errno
import os
import socket

import pytest

from tests.unit.workers.resizer.scheduler_fixture import BIG, OPTIONS, SMALL, SchedulerFixture
from workers.resizer import counters
from workers.resizer.idle_set import WorkerState
from workers.resizer.orders import Bye, Result, encode
from workers.resizer.scheduler import QUARANTINE_SECONDS
from workers.resizer.task import DRAINING, OK, TIMEOUT, TaskStage
from workers.resizer.worker_pool import SLOW_SECONDS


def test_a_death_ends_the_current_task_and_not_the_prefetched_one(ready: SchedulerFixture) -> None:
    fixture = ready
    first, second, third = fixture.submit(SMALL, SMALL, SMALL)
    fixture.die(11)
    assert fixture.statuses() == [DRAINING]
    assert fixture.order(fixture.express).serial == second.serial, "first in the queue again"
    fixture.hello(fixture.cpu, 21)
    while fixture.order(fixture.cpu).worker_pid != 21:
        pass  # orders for its predecessor
    assert first.stage is TaskStage.DONE and third.stage is TaskStage.WORKING


def test_an_abandoned_prefetched_task_is_not_requeued_after_a_death(ready: SchedulerFixture) -> None:
    fixture = ready
    _, second = fixture.submit(SMALL, SMALL)
    fixture.scheduler.abandon(second)
    fixture.die(11)
    assert not fixture.is_asked(fixture.express) and fixture.free() == OPTIONS.slots


def test_a_death_after_the_result_ends_the_prefetched_task(ready: SchedulerFixture) -> None:
    fixture = ready
    first, second = fixture.submit(SMALL, SMALL)
    fixture.cpu.send(encode(Result(11, first.serial, OK, 5, text="jpeg")))
    fixture.die(11)
    assert fixture.statuses() == [OK, DRAINING] and second.stage is TaskStage.DONE
    assert fixture.free() == OPTIONS.slots


def test_the_prefetched_task_of_a_killed_process_is_requeued(ready: SchedulerFixture) -> None:
    fixture = ready
    _, second = fixture.submit(SMALL, SMALL)
    held = [
        fixture.scheduler.slots.allocate() for _ in range(fixture.free())
    ]  # or the task would have been taken back long before
    fixture.scheduler.tick(fixture.now + 10.1)
    assert fixture.statuses() == [TIMEOUT] and not fixture.is_asked(fixture.express)
    fixture.die(11)
    assert fixture.order(fixture.express).serial == second.serial
    assert fixture.free() == OPTIONS.slots - len(held) - 1


def test_a_process_that_went_on_before_the_kill_takes_its_prefetched_task_along(
    ready: SchedulerFixture,
) -> None:
    fixture = ready
    first, second = fixture.submit(SMALL, SMALL)
    fixture.scheduler.tick(fixture.now + 10.1)
    fixture.finish(fixture.cpu, 11, first.serial)
    fixture.die(11)
    assert fixture.statuses() == [TIMEOUT, DRAINING], "its slot may hold half an answer by now"
    assert second.stage is TaskStage.DONE and fixture.free() == OPTIONS.slots


def test_a_process_that_sends_bye_has_begun_nothing_since_its_last_result(ready: SchedulerFixture) -> None:
    fixture = ready
    first, second, third = fixture.submit(SMALL, SMALL, SMALL)
    fixture.cpu.send(encode(Result(11, first.serial, OK, 5, text="jpeg")))
    fixture.loop.run_once(0)
    fixture.now += 3
    fixture.cpu.send(encode(Bye(11)))
    fixture.turn()
    assert fixture.statuses() == [OK] and fixture.workers[0].state is WorkerState.ABSENT
    assert fixture.order(fixture.express).serial == second.serial and second.begun_at == fixture.now
    assert third.stage is TaskStage.WAITING and fixture.scheduler.pool.worker_count == 0


def test_the_bye_of_a_predecessor_or_of_a_killed_process_changes_nothing(ready: SchedulerFixture) -> None:
    fixture = ready
    fixture.submit(SMALL)
    fixture.cpu.send(encode(Bye(10)))
    fixture.turn()
    assert fixture.workers[0].state is WorkerState.BUSY
    fixture.scheduler.tick(fixture.now + 10.1)
    fixture.cpu.send(encode(Bye(11)))
    fixture.turn()
    assert fixture.workers[0].state is WorkerState.KILLED
    fixture.die(11)
    assert fixture.free() == OPTIONS.slots


def test_a_process_that_takes_no_orders_is_killed_and_gets_no_more(ready: SchedulerFixture) -> None:
    fixture = ready
    fixture.workers[0].channel.shutdown(socket.SHUT_WR)
    fixture.submit(SMALL, SMALL)
    assert fixture.statuses() == [DRAINING] and fixture.workers[0].state is WorkerState.KILLED
    assert fixture.is_asked(fixture.express), "every core is not at short work now"


def test_a_kill_for_another_picture_does_not_count_as_a_crash(ready: SchedulerFixture) -> None:
    fixture = ready
    first, _ = fixture.submit(SMALL, SMALL)
    fixture.scheduler.tick(fixture.now + 10.1)
    fixture.finish(fixture.cpu, 11, first.serial)
    fixture.die(11)
    assert fixture.scheduler.cells[counters.DIED] == 0 and not fixture.scheduler._deaths


def test_a_death_at_a_tombstone_does_not_count_as_a_crash(ready: SchedulerFixture) -> None:
    fixture = ready
    slow, _ = fixture.submit(SMALL, SMALL)
    fixture.wait(2 * SLOW_SECONDS)
    fixture.finish(fixture.cpu, 11, slow.serial)
    fixture.die(11)
    assert fixture.scheduler.cells[counters.DIED] == 0 and not fixture.scheduler._deaths


def test_crashes_of_a_picture_are_forgotten_after_a_while(ready: SchedulerFixture) -> None:
    fixture = ready
    for number, letter in enumerate(b"ABA"):
        fixture.scheduler.submit(fixture.ask(BIG, bytes([letter]) * BIG))
        fixture.die(11 + 10 * number)
        fixture.hello(fixture.cpu, 21 + 10 * number)
        fixture.now += QUARANTINE_SECONDS * 0.4
        fixture.scheduler.tick(fixture.now)
    assert [count for count, _ in fixture.scheduler._deaths.values()] == [1, 2]
    fixture.scheduler.tick(fixture.now + QUARANTINE_SECONDS * 0.3)
    assert [count for count, _ in fixture.scheduler._deaths.values()] == [2]
    fixture.scheduler.tick(fixture.now + QUARANTINE_SECONDS * 0.7)
    assert not fixture.scheduler._deaths


def test_an_order_that_could_not_be_sent_is_requeued(
    ready: SchedulerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = ready
    (first,) = fixture.submit(SMALL)
    with monkeypatch.context() as deaf:
        deaf.setattr(fixture.scheduler.pool, "_send", lambda worker, message: False)
        (second,) = fixture.submit(SMALL)
    assert fixture.statuses() == [DRAINING]
    fixture.finish(fixture.cpu, 11, first.serial)
    fixture.die(11)
    assert fixture.order(fixture.express).serial == second.serial


def test_a_front_does_not_start_when_it_cannot_watch_an_older_process(
    fixture: SchedulerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", full)
    with pytest.raises(OSError, match="Too many"):
        fixture.open([("cpu 0", 11)])
