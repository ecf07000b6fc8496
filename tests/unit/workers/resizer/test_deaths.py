"""CPU processes that die, are killed or leave: what becomes of their current and prefetched tasks."""

import errno
import os
import socket

from tests.unit.workers.resizer.scheduler_fixture import BIG, OPTIONS, SMALL, SchedulerFixture, receive
from workers.resizer import counters
from workers.resizer.idle_set import WorkerState
from workers.resizer.orders import Bye, Ping, Result, encode
from workers.resizer.task import DRAINING, OK, TIMEOUT, TaskStage
from workers.resizer.worker_pool import RETRY_SECONDS, SILENT_SECONDS, SLOW_SECONDS


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
    fixture.scheduler.tick(fixture.now + 10.1)
    assert fixture.statuses() == [TIMEOUT] and not fixture.is_asked(fixture.express)
    fixture.die(11)
    assert fixture.order(fixture.express).serial == second.serial
    assert fixture.free() == OPTIONS.slots - 1


def test_a_process_that_went_on_before_the_kill_takes_its_prefetched_task_along(
    ready: SchedulerFixture,
) -> None:
    fixture = ready
    first, second = fixture.submit(SMALL, SMALL)
    fixture.scheduler.tick(fixture.now + 10.1)
    fixture.finish(fixture.cpu, 11, first.serial)
    fixture.die(11)
    assert fixture.statuses() == [TIMEOUT, DRAINING], "it may have begun it by now"
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
    assert third.stage is TaskStage.WAITING and fixture.scheduler.worker_count == 0


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


def test_a_front_that_was_stopped_does_not_count_that_time_as_one_without_cpu_processes(
    ready: SchedulerFixture,
) -> None:
    """The process dies meanwhile. Its successor is given as long to come as a picture may take."""
    fixture = ready
    fixture.submit(SMALL)
    fixture.now += 2 * OPTIONS.job_timeout
    fixture.die(11)
    assert fixture.statuses() == [DRAINING], "the one it worked on"
    fixture.submit(BIG)
    fixture.scheduler.tick(fixture.now)
    assert not fixture.scheduler.reason_not_ready()
    fixture.now += OPTIONS.job_timeout
    fixture.turn()
    fixture.scheduler.tick(fixture.now)
    assert fixture.statuses() == [DRAINING] and fixture.scheduler.reason_not_ready()
    fixture.now += 0.25
    fixture.scheduler.tick(fixture.now)
    assert fixture.statuses() == [DRAINING, DRAINING]


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
    assert fixture.scheduler.cells[counters.DIED] == 0 and not fixture.scheduler.quarantine.crashes


def test_a_death_at_a_tombstone_does_not_count_as_a_crash(ready: SchedulerFixture) -> None:
    fixture = ready
    slow, _ = fixture.submit(SMALL, SMALL)
    fixture.wait(2 * SLOW_SECONDS)
    fixture.finish(fixture.cpu, 11, slow.serial)
    fixture.die(11)
    assert fixture.scheduler.cells[counters.DIED] == 0 and not fixture.scheduler.quarantine.crashes


def test_crashes_are_counted_until_the_picture_is_resized(ready: SchedulerFixture) -> None:
    fixture = ready
    pid = 11
    for number in range(2):
        assert fixture.scheduler.submit(fixture.ask(BIG, b"A" * BIG))
        fixture.die(pid)
        pid += 10
        fixture.hello(fixture.cpu, pid)
        assert (
            len(fixture.scheduler.quarantine.crashes) == 1 == fixture.scheduler.cells[counters.DIED] - number
        )
    task = fixture.ask(BIG, b"A" * BIG)
    assert fixture.scheduler.submit(task)
    fixture.finish(fixture.cpu, pid, task.serial)
    assert not fixture.scheduler.quarantine.crashes


def test_an_order_that_could_not_be_sent_is_requeued(ready: SchedulerFixture) -> None:
    fixture = ready
    (first,) = fixture.submit(SMALL)
    fixture.workers[0].channel.shutdown(socket.SHUT_WR)
    (second,) = fixture.submit(SMALL)
    assert fixture.statuses() == [DRAINING]
    fixture.finish(fixture.cpu, 11, first.serial)
    fixture.die(11)
    assert fixture.order(fixture.express).serial == second.serial


def test_without_descriptors_a_new_process_is_asked_again(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.processes.open_error = OSError(errno.EMFILE, "Too many open files")
    fixture.hello(fixture.cpu, 11)
    assert fixture.workers[0].state is WorkerState.ABSENT
    fixture.processes.open_error = None
    fixture.wait(RETRY_SECONDS)
    assert isinstance(receive(fixture.cpu), Ping)
    fixture.hello(fixture.cpu, 11, fixture.scheduler.pool.pid)
    assert fixture.workers[0].state is WorkerState.IDLE


def test_processes_that_do_not_answer_a_new_front_are_killed_and_others_not(
    fixture: SchedulerFixture,
) -> None:
    fixture.open(**{"cpu 0": 11, "express 0": 12})
    fixture.hello(fixture.cpu, 11, front=os.getpid())
    fixture.wait(SILENT_SECONDS - 0.1)
    assert not fixture.processes.killed
    fixture.wait(0.2)
    assert len(fixture.processes.killed) == 1, "the express process is stopped, or works for the front before"
    fixture.hello(fixture.express, 21)
    fixture.submit(BIG, SMALL)
    assert fixture.is_asked(fixture.cpu) and fixture.is_asked(fixture.express)


def test_a_successor_that_is_quicker_is_not_killed(fixture: SchedulerFixture) -> None:
    fixture.open(**{"cpu 0": 11})
    fixture.hello(fixture.cpu, 21)
    fixture.wait(SILENT_SECONDS + 0.1)
    assert fixture.workers[0].pid == 21 and fixture.workers[0].pidfd not in fixture.processes.killed


def test_a_silent_process_that_is_none_of_this_resizer_is_not_killed(fixture: SchedulerFixture) -> None:
    fixture.processes.strangers = {11}
    fixture.open(**{"cpu 0": 11, "express 0": 12})
    fixture.wait(SILENT_SECONDS + 0.1)
    assert len(fixture.processes.killed) == 1, "the word of a process for its own pid is not enough"
