"""What is sent to a CPU process before it has done what it works on: when, and how it is had back."""

import socket

import pytest

from tests.unit.workers.resizer.house import SETTINGS, House
from workers.resizer.crew import SLOW_SECONDS
from workers.resizer.orders import Bye, Result, encode
from workers.resizer.seats import State
from workers.resizer.task import DRAINING, OK, TIMEOUT, Stage, Task

SMALL, BIG = 500, 3000


def submit(house: House, *lengths: int) -> list[Task]:
    """Pictures of these lengths, each with content of its own, in the queue."""
    tasks = [house.ask(length, bytes([65 + number]) * length) for number, length in enumerate(lengths)]
    for task in tasks:
        assert house.desk.submit(task)
    return tasks


@pytest.fixture
def open_house(house: House) -> House:
    """Both processes have said hello."""
    house.open()
    house.hello(house.cpu, 11)
    house.hello(house.express, 12)
    return house


# -- what is sent behind what --


def test_a_small_one_is_sent_behind_a_small_one_and_begins_with_its_end(open_house: House) -> None:
    house = open_house
    first, second, third = submit(house, SMALL, SMALL, SMALL)
    assert [house.order(house.cpu).serial for _ in range(2)] == [first.serial, second.serial]
    assert not house.is_asked(house.cpu) and not house.is_asked(house.express)
    assert house.desk.crew.busy == 1 and house.desk.queued == 2
    house.now += 3
    house.finish(house.cpu, 11, first.serial)
    assert house.statuses() == [OK] and second.begun_at == house.now
    assert house.order(house.cpu).serial == third.serial, "the next one at once"
    house.finish(house.cpu, 11, second.serial)
    house.finish(house.cpu, 11, third.serial)
    assert house.statuses() == [OK] * 3 and house.free() == SETTINGS.slots
    assert house.desk.crew.roster.cpus == [house.seats[0]] and house.desk.queued == 0


def test_nothing_is_sent_behind_a_big_one_or_to_a_busy_express(open_house: House) -> None:
    house = open_house
    submit(house, BIG, SMALL, SMALL, BIG)
    assert house.is_asked(house.cpu) and not house.is_asked(house.cpu)
    assert house.is_asked(house.express) and not house.is_asked(house.express)


def test_nothing_is_sent_behind_a_small_one_while_a_big_one_waits(open_house: House) -> None:
    house = open_house
    small, big, _ = submit(house, SMALL, BIG, SMALL)
    assert house.order(house.cpu).serial == small.serial
    assert not house.is_asked(house.cpu)
    house.finish(house.cpu, 11, small.serial)
    assert house.order(house.cpu).serial == big.serial, "its turn comes"
    assert house.is_asked(house.express), "and then the small one's too, on its core's time"


def test_a_result_that_is_not_of_what_is_at_work_is_not_believed(open_house: House) -> None:
    house = open_house
    _, second = submit(house, SMALL, SMALL)
    house.finish(house.cpu, 11, second.serial)
    assert house.statuses() == [] and house.seats[0].behind is second


def test_a_client_that_leaves_has_its_slot_freed_at_its_turn(open_house: House) -> None:
    house = open_house
    first, second = submit(house, SMALL, SMALL)
    house.desk.abandon(second)
    assert not any(house.arena.slot(second.slot)[:16]), "nobody is to do it"
    house.finish(house.cpu, 11, first.serial)
    assert house.free() == SETTINGS.slots - 1
    house.finish(house.cpu, 11, second.serial)
    assert house.free() == SETTINGS.slots and house.statuses() == [OK]


# -- what is had back --


def test_what_is_behind_slow_work_goes_to_express_from_another_slot(open_house: House) -> None:
    house = open_house
    slow, quick = submit(house, SMALL, SMALL)
    old_serial, old_slot = quick.serial, quick.slot
    assert house.is_asked(house.cpu) and house.is_asked(house.cpu)
    house.wait(SLOW_SECONDS)
    assert not house.is_asked(house.express), "not slow yet"
    house.wait(SLOW_SECONDS)
    order = house.order(house.express)
    assert order.slot == quick.slot != old_slot
    assert not any(house.arena.slot(old_slot)[:16]), "the process is not to do it too"
    assert bytes(house.arena.piece(order.offset, order.length)) == b"B" * SMALL
    house.finish(house.express, 12, order.serial)
    assert house.statuses() == [OK]
    house.finish(house.cpu, 11, slow.serial)
    assert house.statuses() == [OK, OK] and house.free() == SETTINGS.slots - 1, (
        "the process still has the other"
    )
    house.finish(house.cpu, 11, old_serial)
    assert house.statuses() == [OK, OK] and house.free() == SETTINGS.slots
    assert house.desk.crew.roster.cpus == [house.seats[0]]


def test_behind_slow_work_nothing_more_is_sent(open_house: House) -> None:
    house = open_house
    submit(house, SMALL)
    assert house.is_asked(house.cpu)
    house.wait(2 * SLOW_SECONDS)
    submit(house, SMALL, SMALL)
    assert house.is_asked(house.express) and not house.is_asked(house.cpu)


def test_what_was_begun_while_it_was_copied_stays_where_it_is(
    open_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = open_house
    first, second = submit(house, SMALL, SMALL)
    copy = house.desk.copy

    def copy_late(task: Task) -> int:
        slot = copy(task)
        house.cpu.send(encode(Result(11, first.serial, OK, 5, text="jpeg")))
        return slot

    monkeypatch.setattr(house.desk, "copy", copy_late)
    house.now += 2 * SLOW_SECONDS
    house.loop.run_once(0)
    assert house.statuses() == [OK] and house.seats[0].task is second
    assert not house.is_asked(house.express) and house.free() == SETTINGS.slots - 1
    house.finish(house.cpu, 11, second.serial)
    assert house.statuses() == [OK, OK] and house.free() == SETTINGS.slots


def test_without_a_free_slot_it_is_had_back_as_soon_as_there_is_one(open_house: House) -> None:
    house = open_house
    submit(house, SMALL, SMALL)
    taken = [house.desk.shelf.take() for _ in range(house.free())]
    house.wait(2 * SLOW_SECONDS)
    assert not house.is_asked(house.express)
    slot = taken.pop()
    assert slot is not None
    house.desk.release(slot)
    house.wait(2 * SLOW_SECONDS)
    assert house.is_asked(house.express)


def test_looking_ends_when_there_is_no_short_work(open_house: House) -> None:
    house = open_house
    (only,) = submit(house, SMALL)
    house.finish(house.cpu, 11, only.serial)
    house.wait(2 * SLOW_SECONDS)
    assert not house.desk.crew._is_looking


# -- deaths --


def test_a_death_is_the_end_of_what_was_at_work_and_not_of_what_was_behind(open_house: House) -> None:
    house = open_house
    first, second, third = submit(house, SMALL, SMALL, SMALL)
    house.die(11)
    assert house.statuses() == [DRAINING]
    assert house.order(house.express).serial == second.serial, "first in the queue again"
    house.hello(house.cpu, 21)
    while house.order(house.cpu).worker != 21:
        pass  # the successor throws away what its predecessor was told
    assert first.stage is Stage.DONE and third.stage is Stage.WORKING


def test_what_nobody_wants_any_more_is_not_done_by_another(open_house: House) -> None:
    house = open_house
    _, second = submit(house, SMALL, SMALL)
    house.desk.abandon(second)
    house.die(11)
    assert not house.is_asked(house.express) and house.free() == SETTINGS.slots


def test_a_death_after_the_result_is_the_end_of_what_was_behind_too(open_house: House) -> None:
    house = open_house
    first, second = submit(house, SMALL, SMALL)
    house.cpu.send(encode(Result(11, first.serial, OK, 5, text="jpeg")))
    house.die(11)
    assert house.statuses() == [OK, DRAINING] and second.stage is Stage.DONE
    assert house.free() == SETTINGS.slots


def test_what_is_behind_the_condemned_is_done_by_another(open_house: House) -> None:
    house = open_house
    _, second = submit(house, SMALL, SMALL)
    held = [
        house.desk.shelf.take() for _ in range(house.free())
    ]  # or it would have been had back long before
    house.desk.sweep(house.now + 10.1)
    assert house.statuses() == [TIMEOUT] and not house.is_asked(house.express)
    house.die(11)
    assert house.order(house.express).serial == second.serial
    assert house.free() == SETTINGS.slots - len(held) - 1


def test_the_condemned_that_went_on_before_the_kill_takes_what_was_behind_along(open_house: House) -> None:
    house = open_house
    first, second = submit(house, SMALL, SMALL)
    house.desk.sweep(house.now + 10.1)
    house.finish(house.cpu, 11, first.serial)
    house.die(11)
    assert house.statuses() == [TIMEOUT, DRAINING], "its slot may hold half an answer by now"
    assert second.stage is Stage.DONE and house.free() == SETTINGS.slots


def test_who_says_bye_has_begun_nothing_since_its_last_result(open_house: House) -> None:
    house = open_house
    first, second, third = submit(house, SMALL, SMALL, SMALL)
    house.cpu.send(encode(Result(11, first.serial, OK, 5, text="jpeg")))
    house.loop.run_once(0)
    house.now += 3
    house.cpu.send(encode(Bye(11)))
    house.turn()
    assert house.statuses() == [OK] and house.seats[0].state is State.ABSENT
    assert house.order(house.express).serial == second.serial and second.begun_at == house.now
    assert third.stage is Stage.WAITING and house.desk.crew.workers == 0


def test_the_bye_of_a_predecessor_or_of_the_condemned_changes_nothing(open_house: House) -> None:
    house = open_house
    submit(house, SMALL)
    house.cpu.send(encode(Bye(10)))
    house.turn()
    assert house.seats[0].state is State.BUSY
    house.desk.sweep(house.now + 10.1)
    house.cpu.send(encode(Bye(11)))
    house.turn()
    assert house.seats[0].state is State.CONDEMNED
    house.die(11)
    assert house.free() == SETTINGS.slots


def test_a_process_that_takes_no_orders_is_given_nothing_more(open_house: House) -> None:
    house = open_house
    house.seats[0].channel.shutdown(socket.SHUT_WR)
    submit(house, SMALL, SMALL)
    assert house.statuses() == [DRAINING] and house.seats[0].state is State.CONDEMNED
    assert house.is_asked(house.express), "every core is not at short work now"
