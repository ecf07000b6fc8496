"""The desk and its crew with processes that are only the other ends of socket pairs: nobody is forked or killed."""

import os

from tests.unit.workers.resizer.house import SETTINGS, House
from workers.resizer.desk import DEADLY, PROMPT
from workers.resizer.orders import Result, Roll, encode
from workers.resizer.seats import State
from workers.resizer.task import BUSY, DRAINING, OK, TIMEOUT, Stage


def test_a_task_becomes_an_order_and_a_result_an_answer_and_the_slot_comes_back(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    task = house.ask(5000)
    assert house.free() == SETTINGS.slots - 1
    assert house.desk.submit(task) and task.stage is Stage.WORKING
    order = house.order(house.cpu)
    assert (order.worker, order.serial, order.slot, order.length) == (11, task.serial, task.slot, 5000)
    house.cpu.send(encode(Result(11, task.serial, OK, 77, text="jpeg")))
    house.turn()
    assert house.statuses() == [OK] and house.free() == SETTINGS.slots
    assert house.desk.crew.busy == 0


def test_big_ones_never_go_to_express_and_small_ones_do_when_the_cpu_is_busy(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    house.hello(house.express, 12)
    big, other, small = house.ask(5000), house.ask(5000), house.ask(500)
    for task in (big, other, small):
        assert house.desk.submit(task)
    assert house.order(house.cpu).serial == big.serial
    assert house.order(house.express).serial == small.serial
    assert other.stage is Stage.WAITING


def test_results_of_another_task_or_another_process_are_nobodys(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    task = house.ask(5000)
    house.desk.submit(task)
    for stale in (Result(11, task.serial + 1, OK), Result(10, task.serial, OK)):
        house.cpu.send(encode(stale))
        house.turn()
    assert house.statuses() == [] and task.stage is Stage.WORKING


def test_over_its_time_it_is_answered_and_killed_and_its_slot_waits_for_the_death(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    task = house.ask(5000)
    house.desk.submit(task)
    house.desk.sweep(house.now + 9.9)
    assert house.statuses() == []
    house.desk.sweep(house.now + 10.1)
    assert house.statuses() == [TIMEOUT] and len(house.killed) == 1
    assert house.free() == SETTINGS.slots - 1, "the condemned may still write into it"
    house.cpu.send(encode(Result(11, task.serial, OK, 5)))
    house.turn()
    assert house.statuses() == [TIMEOUT], "too late"
    house.die(11)
    assert house.free() == SETTINGS.slots


def test_a_death_in_the_middle_is_answered_and_the_successor_gets_the_next(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    first, second = house.ask(5000), house.ask(5000)
    house.desk.submit(first)
    house.desk.submit(second)
    house.order(house.cpu)
    house.die(11)
    assert house.statuses() == [DRAINING] and house.free() == SETTINGS.slots - 1
    assert house.desk.crew.workers == 0
    house.hello(house.cpu, 21)
    order = house.order(house.cpu)
    assert (order.worker, order.serial) == (21, second.serial)


def test_a_result_that_was_sent_before_the_death_counts(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    task = house.ask(5000)
    house.desk.submit(task)
    house.cpu.send(encode(Result(11, task.serial, OK, 7, text="jpeg")))
    house.desk.crew._on_death(house.seats[0], 0)  # the kernel may report the death first
    assert house.statuses() == [OK]
    assert house.seats[0].state is State.ABSENT


def test_three_deaths_in_a_row_make_a_picture_deadly_and_others_are_not(house: House) -> None:
    house.open()
    for number in range(DEADLY):
        house.hello(house.cpu, 11 + number)
        house.desk.submit(house.ask(5000, b"poison"))
        house.order(house.cpu)
        house.die(11 + number)
    house.hello(house.cpu, 40)
    assert house.desk.submit(house.ask(5000, b"poison"))
    assert house.statuses() == [DRAINING] * DEADLY + [422]
    house.desk.submit(house.ask(5000, b"honest"))
    assert house.order(house.cpu).worker == 40


def test_no_slot_is_given_while_a_predecessors_process_may_still_write(house: House) -> None:
    house.open(alive=[("cpu 0", 11)])
    called: list[bool] = []
    assert house.desk.claim(lambda: called.append(True)) is None
    house.hello(house.cpu, 11, front=99)
    assert house.desk.claim(lambda: None) is None, "an answer to somebody else's roll proves nothing"
    house.hello(house.cpu, 11, front=os.getpid())
    assert called == [True]
    assert house.desk.claim(lambda: None) is not None


def test_a_full_queue_refuses_and_whoever_waits_is_called_when_it_moves(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    working = house.ask(500)
    house.desk.submit(working)
    assert house.desk.submit(house.ask(500)), "it is sent already, behind the first"
    for _ in range(SETTINGS.queue):
        assert house.desk.submit(house.ask(500))
    assert house.desk.is_full() and not house.desk.submit(house.ask(500))
    assert house.desk.busy().status == BUSY and "4/4" in house.desk.busy().text
    called: list[bool] = []
    house.desk.wait_for_queue(lambda: called.append(True))
    house.cpu.send(encode(Result(11, working.serial, OK, 5, text="jpeg")))
    house.turn(3)
    assert called == [True]


def test_places_are_promised_to_who_is_on_the_way_and_prompt(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    coming = [house.ask(500) for _ in range(SETTINGS.queue + 1)]
    for task in coming:
        assert not house.desk.is_full_for(task), "one for the idle seat, four to wait"
        house.desk.expect(task, task.slot, 500)
    late = house.ask(500)
    assert house.desk.is_full_for(late)
    for task in coming[:3]:
        assert house.desk.submit(task)
    assert not house.desk.is_full_for(late), "one of them lies behind the one at work"
    house.desk.expect(late, late.slot, 500)
    assert house.desk.is_full_for(house.ask(500)), "the others have moved from one line to the other"
    house.now += PROMPT + 0.01
    house.turn(1)
    assert not house.desk.is_full_for(late), "three of them are not prompt: nobody waits for them"


def test_an_abandoned_task_gives_its_slot_back_when_nobody_can_write_there(house: House) -> None:
    house.open()
    house.hello(house.cpu, 11)
    working, waiting = house.ask(5000), house.ask(5000)
    house.desk.submit(working)
    house.desk.submit(waiting)
    house.desk.abandon(waiting)
    assert house.free() == SETTINGS.slots - 1, "one that waits at once"
    house.desk.abandon(working)
    assert house.free() == SETTINGS.slots - 1, "one at work not before its end"
    house.cpu.send(encode(Result(11, working.serial, OK, 5, text="jpeg")))
    house.turn()
    assert house.free() == SETTINGS.slots and house.statuses() == []


def test_without_any_process_the_queue_is_refused_after_a_pictures_time(house: House) -> None:
    house.open()
    house.desk.submit(house.ask(5000))
    house.desk.sweep(house.now + 9)
    assert house.statuses() == []
    house.desk.sweep(house.now + 11)
    assert house.statuses() == [DRAINING] and house.free() == SETTINGS.slots


def test_a_packet_that_is_none_of_ours_is_ignored(house: House) -> None:
    house.open()
    house.cpu.send(b"nonsense")
    house.cpu.send(encode(Roll(3)))
    house.turn(3)
    house.hello(house.cpu, 11)
    assert house.desk.crew.roster.cpus == [house.seats[0]]
    assert house.seats[0].state is State.IDLE
