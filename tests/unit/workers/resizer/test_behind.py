"""What is sent to a CPU process before it has done what it works on: when, and how it is had back."""

import pytest

from tests.unit.workers.resizer.house import BIG, SETTINGS, SMALL, House
from workers.resizer.crew import SLOW_SECONDS
from workers.resizer.orders import Result, encode
from workers.resizer.task import OK, Stage, Task

# -- what is sent behind what --


def test_a_small_one_is_sent_behind_a_small_one_and_begins_with_its_end(open_house: House) -> None:
    house = open_house
    first, second, third = house.submit(SMALL, SMALL, SMALL)
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
    house.submit(BIG, SMALL, SMALL, BIG)
    assert house.is_asked(house.cpu) and not house.is_asked(house.cpu)
    assert house.is_asked(house.express) and not house.is_asked(house.express)


def test_nothing_is_sent_behind_a_small_one_while_a_big_one_waits(open_house: House) -> None:
    house = open_house
    small, big, _ = house.submit(SMALL, BIG, SMALL)
    assert house.order(house.cpu).serial == small.serial
    assert not house.is_asked(house.cpu)
    house.finish(house.cpu, 11, small.serial)
    assert house.order(house.cpu).serial == big.serial, "its turn comes"
    assert house.is_asked(house.express), "and then the small one's too, on its core's time"


def test_a_result_that_is_not_of_what_is_at_work_is_not_believed(open_house: House) -> None:
    house = open_house
    _, second = house.submit(SMALL, SMALL)
    house.finish(house.cpu, 11, second.serial)
    assert house.statuses() == [] and house.seats[0].behind is second


def test_a_client_that_leaves_has_its_slot_freed_at_its_turn(open_house: House) -> None:
    house = open_house
    first, second = house.submit(SMALL, SMALL)
    house.desk.abandon(second)
    assert not any(house.arena.slot(second.slot)[:16]), "nobody is to do it"
    house.finish(house.cpu, 11, first.serial)
    assert house.free() == SETTINGS.slots - 1
    house.finish(house.cpu, 11, second.serial)
    assert house.free() == SETTINGS.slots and house.statuses() == [OK]


# -- what is had back --


def test_what_is_behind_slow_work_goes_to_express_from_another_slot(open_house: House) -> None:
    house = open_house
    slow, quick = house.submit(SMALL, SMALL)
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
    house.submit(SMALL)
    assert house.is_asked(house.cpu)
    house.wait(2 * SLOW_SECONDS)
    house.submit(SMALL, SMALL)
    assert house.is_asked(house.express) and not house.is_asked(house.cpu)


def test_what_was_begun_while_it_was_copied_stays_where_it_is(
    open_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = open_house
    first, second = house.submit(SMALL, SMALL)
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
    house.submit(SMALL, SMALL)
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
    (only,) = house.submit(SMALL)
    house.finish(house.cpu, 11, only.serial)
    house.wait(2 * SLOW_SECONDS)
    assert not house.desk.crew._is_looking


def test_what_was_had_back_keeps_its_turn(open_house: House) -> None:
    house = open_house
    first, other = house.submit(BIG, SMALL)
    house.order(house.cpu)
    assert house.order(house.express).serial == other.serial
    house.finish(house.cpu, 11, first.serial)
    slow, quick = house.submit(SMALL, SMALL)
    assert house.is_asked(house.cpu) and house.is_asked(house.cpu)
    house.submit(BIG)
    house.wait(2 * SLOW_SECONDS)
    assert quick.stage is Stage.WAITING
    house.finish(house.cpu, 11, slow.serial)
    house.finish(house.cpu, 11, quick.serial)
    assert house.order(house.cpu).serial == quick.serial, "it was asked for before the big one"


def test_what_was_had_back_is_counted_once(open_house: House) -> None:
    house = open_house
    slow, quick = house.submit(SMALL, SMALL)
    house.wait(2 * SLOW_SECONDS)
    assert house.seats[1].task is quick
    assert (house.desk.queued, house.desk.crew.busy) == (0, 2)
    house.finish(house.cpu, 11, slow.serial)
    assert (house.desk.queued, house.desk.crew.busy) == (0, 1)


def test_a_big_one_that_is_given_up_lets_small_ones_go_behind(open_house: House) -> None:
    house = open_house
    _, big, _ = house.submit(SMALL, BIG, SMALL)
    assert house.is_asked(house.cpu) and not house.is_asked(house.cpu)
    house.desk.abandon(big)
    assert house.is_asked(house.cpu)


def test_a_big_one_is_promised_no_place_behind_anything(open_house: House) -> None:
    house = open_house
    house.submit(SMALL, BIG, BIG)
    on_its_way = house.ask(BIG)
    assert not house.desk.is_full_for(on_its_way)
    house.desk.expect(on_its_way, on_its_way.slot, BIG)
    late = house.ask(BIG)
    assert house.desk.is_full_for(late)
    assert house.desk.submit(on_its_way) and not house.desk.submit(late)
