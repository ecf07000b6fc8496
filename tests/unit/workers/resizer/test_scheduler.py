"""The scheduler and its pool, with processes that are only the other ends of socket pairs."""

import io
import os

from PIL import Image

from tests.unit.workers.resizer.scheduler_fixture import OPTIONS, SchedulerFixture
from workers.imaging.job import ResizeJob
from workers.resizer.idle_set import WorkerState
from workers.resizer.orders import Ping, Result, encode
from workers.resizer.quarantine import QUARANTINE_CRASHES
from workers.resizer.scheduler import PROMPT
from workers.resizer.task import BUSY, DRAINING, OK, TIMEOUT, TaskStage


def test_a_task_becomes_an_order_and_a_result_an_answer_and_the_slot_comes_back(
    fixture: SchedulerFixture,
) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    task = fixture.ask(5000)
    assert fixture.free() == OPTIONS.slots - 1
    assert fixture.scheduler.submit(task) and task.stage is TaskStage.WORKING
    order = fixture.order(fixture.cpu)
    assert (order.worker_pid, order.serial, order.length) == (11, task.serial, 5000)
    fixture.cpu.send(encode(Result(11, task.serial, OK, 77, text="jpeg")))
    fixture.turn()
    assert fixture.statuses() == [OK] and fixture.free() == OPTIONS.slots
    assert fixture.scheduler.working == 0


def test_express_gets_small_tasks_only_and_only_when_the_cpu_is_busy(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    fixture.hello(fixture.express, 12)
    big, other, small = fixture.ask(5000), fixture.ask(5000), fixture.ask(500)
    for task in (big, other, small):
        assert fixture.scheduler.submit(task)
    assert fixture.order(fixture.cpu).serial == big.serial
    assert fixture.order(fixture.express).serial == small.serial
    assert other.stage is TaskStage.WAITING


def test_a_few_bytes_that_cost_much_are_big(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.hello(fixture.express, 12)
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "PNG")
    data = out.getvalue()
    cheap, dear = fixture.ask(len(data), data), fixture.ask(len(data), data)
    dear.job = ResizeJob(5656, 5656, format="avif")
    for task in (dear, cheap):
        assert task.is_small and fixture.scheduler.submit(task)
    assert fixture.order(fixture.express).serial == cheap.serial and not fixture.is_asked(fixture.express)
    assert dear.stage is TaskStage.WAITING and not dear.is_small


def test_results_of_another_task_or_another_process_are_ignored(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    task = fixture.ask(5000)
    fixture.scheduler.submit(task)
    for stale in (Result(11, task.serial + 1, OK), Result(10, task.serial, OK)):
        fixture.cpu.send(encode(stale))
        fixture.turn()
    assert fixture.statuses() == [] and task.stage is TaskStage.WORKING


def test_a_task_over_its_time_is_answered_and_its_slot_is_free_at_once(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    task = fixture.ask(5000)
    fixture.scheduler.submit(task)
    fixture.scheduler.tick(fixture.now + 9.9)
    assert fixture.statuses() == []
    fixture.scheduler.tick(fixture.now + 10.1)
    assert fixture.statuses() == [TIMEOUT] and len(fixture.processes.killed) == 1
    assert fixture.free() == OPTIONS.slots, "the killed process has a copy only"
    fixture.cpu.send(encode(Result(11, task.serial, OK, 5)))
    fixture.turn()
    assert fixture.statuses() == [TIMEOUT], "too late"
    fixture.die(11)
    assert fixture.free() == OPTIONS.slots


def test_a_death_in_the_middle_is_answered_and_the_successor_gets_the_next(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    first, second = fixture.ask(5000), fixture.ask(5000)
    fixture.scheduler.submit(first)
    fixture.scheduler.submit(second)
    fixture.order(fixture.cpu)
    fixture.die(11)
    assert fixture.statuses() == [DRAINING] and fixture.free() == OPTIONS.slots - 1
    assert fixture.scheduler.worker_count == 0
    fixture.hello(fixture.cpu, 21)
    order = fixture.order(fixture.cpu)
    assert (order.worker_pid, order.serial) == (21, second.serial)


def test_a_result_that_was_sent_before_the_death_counts(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    task = fixture.ask(5000)
    fixture.scheduler.submit(task)
    fixture.cpu.send(encode(Result(11, task.serial, OK, 7, text="jpeg")))
    fixture.scheduler.on_exit(fixture.workers[0])  # the kernel may report the death first
    assert fixture.statuses() == [OK]
    assert fixture.workers[0].state is WorkerState.ABSENT


def test_a_picture_is_quarantined_after_three_deaths_in_a_row(fixture: SchedulerFixture) -> None:
    fixture.open()
    for number in range(QUARANTINE_CRASHES):
        fixture.hello(fixture.cpu, 11 + number)
        fixture.scheduler.submit(fixture.ask(5000, b"poison"))
        fixture.order(fixture.cpu)
        fixture.die(11 + number)
    fixture.hello(fixture.cpu, 40)
    assert fixture.scheduler.submit(fixture.ask(5000, b"poison"))
    assert fixture.statuses() == [DRAINING] * QUARANTINE_CRASHES + [422]
    fixture.scheduler.submit(fixture.ask(5000, b"honest"))
    assert fixture.order(fixture.cpu).worker_pid == 40


def test_a_process_older_than_the_front_gets_work_once_it_has_answered_the_ping_and_no_other_waits_for_it(
    fixture: SchedulerFixture,
) -> None:
    fixture.open()
    assert fixture.scheduler.claim_slot(lambda: None) is not None
    fixture.hello(fixture.express, 12)
    fixture.submit(500)
    assert fixture.is_asked(fixture.express)
    fixture.hello(fixture.cpu, 11, front=99)
    assert fixture.workers[0].state is WorkerState.ABSENT, "it may still work for the front of that Ping"
    fixture.hello(fixture.cpu, 11, front=os.getpid())
    assert fixture.workers[0].state is WorkerState.IDLE


def test_a_picture_and_its_answer_are_copied_and_each_process_has_its_own_memory(
    ready: SchedulerFixture,
) -> None:
    fixture = ready
    first, second = fixture.submit(3000, 500)
    order = fixture.order(fixture.cpu)
    assert fixture.picture(0, order) == b"A" * 3000
    assert fixture.picture(1, fixture.order(fixture.express)) == b"B" * 500
    memory = fixture.workers[0].memory
    assert memory is not None
    memory.view(order.place, 5)[:] = b"small"
    assert bytes(fixture.arena.piece(first.offset, 5)) == b"AAAAA"
    fixture.finish(fixture.cpu, 11, first.serial)
    assert bytes(fixture.arena.slot(first.slot)[:6]) == b"smallA"
    assert bytes(fixture.arena.slot(second.slot)[:5]) == b"BBBBB"


def test_a_full_queue_refuses_and_calls_those_that_wait_when_it_moves(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    working = fixture.ask(500)
    fixture.scheduler.submit(working)
    assert fixture.scheduler.submit(fixture.ask(500)), "it is sent already, behind the first"
    for _ in range(OPTIONS.queue):
        assert fixture.scheduler.submit(fixture.ask(500))
    assert fixture.scheduler.is_queue_full() and not fixture.scheduler.submit(fixture.ask(500))
    assert fixture.scheduler.busy_result().status == BUSY and "4/4" in fixture.scheduler.busy_result().text
    called: list[bool] = []
    fixture.scheduler.wait_for_queue(lambda: called.append(True))
    fixture.cpu.send(encode(Result(11, working.serial, OK, 5, text="jpeg")))
    fixture.turn(3)
    assert called == [True]


def test_arriving_tasks_keep_their_place_as_long_as_they_are_prompt(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    coming = [fixture.ask(500) for _ in range(OPTIONS.queue + 1)]
    for task in coming:
        assert not fixture.scheduler.is_full_for(task), "one for the idle worker, four to wait"
        fixture.scheduler.expect(task)
    late = fixture.ask(500)
    assert fixture.scheduler.is_full_for(late)
    for task in coming[:3]:
        assert fixture.scheduler.submit(task)
    assert not fixture.scheduler.is_full_for(late), "one of them lies behind the one at work"
    fixture.scheduler.expect(late)
    assert fixture.scheduler.is_full_for(fixture.ask(500)), "the others have moved from one line to the other"
    fixture.now += PROMPT + 0.01
    fixture.turn(1)
    assert not fixture.scheduler.is_full_for(late), "three of them are not prompt and keep no place"


def test_the_slot_of_an_abandoned_task_is_free_when_its_process_is_through_with_it(
    fixture: SchedulerFixture,
) -> None:
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    working, waiting = fixture.ask(5000), fixture.ask(5000)
    fixture.scheduler.submit(working)
    fixture.scheduler.submit(waiting)
    fixture.scheduler.abandon(waiting)
    assert fixture.free() == OPTIONS.slots - 1, "one that waits at once"
    fixture.scheduler.abandon(working)
    assert fixture.free() == OPTIONS.slots - 1, "one at work not before its end"
    fixture.cpu.send(encode(Result(11, working.serial, OK, 5, text="jpeg")))
    fixture.turn()
    assert fixture.free() == OPTIONS.slots and fixture.statuses() == []


def test_without_any_process_the_queue_is_refused_after_a_pictures_time(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.scheduler.submit(fixture.ask(5000))
    fixture.scheduler.tick(fixture.now + 9)
    assert fixture.statuses() == []
    fixture.scheduler.tick(fixture.now + 11)
    assert fixture.statuses() == [DRAINING] and fixture.free() == OPTIONS.slots


def test_a_packet_that_is_no_message_for_a_front_is_ignored(fixture: SchedulerFixture) -> None:
    fixture.open()
    fixture.cpu.send(b"nonsense")
    fixture.cpu.send(encode(Ping(3)))
    fixture.turn(3)
    fixture.hello(fixture.cpu, 11)
    assert fixture.scheduler.pool.idle.cpus == [fixture.workers[0]]
    assert fixture.workers[0].state is WorkerState.IDLE
