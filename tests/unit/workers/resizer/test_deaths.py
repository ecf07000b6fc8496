"""CPU processes that die, are killed or leave: what becomes of the pictures they have and of those behind."""

import errno
import os
import socket

import pytest

from tests.unit.workers.resizer.house import BIG, SETTINGS, SMALL, House
from workers.resizer import tally
from workers.resizer.crew import SLOW_SECONDS
from workers.resizer.desk import GRUDGE
from workers.resizer.orders import Bye, Result, encode
from workers.resizer.seats import State
from workers.resizer.task import DRAINING, OK, TIMEOUT, Stage


def test_a_death_is_the_end_of_what_was_at_work_and_not_of_what_was_behind(open_house: House) -> None:
    house = open_house
    first, second, third = house.submit(SMALL, SMALL, SMALL)
    house.die(11)
    assert house.statuses() == [DRAINING]
    assert house.order(house.express).serial == second.serial, "first in the queue again"
    house.hello(house.cpu, 21)
    while house.order(house.cpu).worker != 21:
        pass  # the successor throws away what its predecessor was told
    assert first.stage is Stage.DONE and third.stage is Stage.WORKING


def test_what_nobody_wants_any_more_is_not_done_by_another(open_house: House) -> None:
    house = open_house
    _, second = house.submit(SMALL, SMALL)
    house.desk.abandon(second)
    house.die(11)
    assert not house.is_asked(house.express) and house.free() == SETTINGS.slots


def test_a_death_after_the_result_is_the_end_of_what_was_behind_too(open_house: House) -> None:
    house = open_house
    first, second = house.submit(SMALL, SMALL)
    house.cpu.send(encode(Result(11, first.serial, OK, 5, text="jpeg")))
    house.die(11)
    assert house.statuses() == [OK, DRAINING] and second.stage is Stage.DONE
    assert house.free() == SETTINGS.slots


def test_what_is_behind_the_condemned_is_done_by_another(open_house: House) -> None:
    house = open_house
    _, second = house.submit(SMALL, SMALL)
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
    first, second = house.submit(SMALL, SMALL)
    house.desk.sweep(house.now + 10.1)
    house.finish(house.cpu, 11, first.serial)
    house.die(11)
    assert house.statuses() == [TIMEOUT, DRAINING], "its slot may hold half an answer by now"
    assert second.stage is Stage.DONE and house.free() == SETTINGS.slots


def test_who_says_bye_has_begun_nothing_since_its_last_result(open_house: House) -> None:
    house = open_house
    first, second, third = house.submit(SMALL, SMALL, SMALL)
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
    house.submit(SMALL)
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
    house.submit(SMALL, SMALL)
    assert house.statuses() == [DRAINING] and house.seats[0].state is State.CONDEMNED
    assert house.is_asked(house.express), "every core is not at short work now"


def test_who_was_killed_for_another_picture_blames_nobody(open_house: House) -> None:
    house = open_house
    first, _ = house.submit(SMALL, SMALL)
    house.desk.sweep(house.now + 10.1)
    house.finish(house.cpu, 11, first.serial)
    house.die(11)
    assert house.desk.cells[tally.DIED] == 0 and not house.desk._deaths


def test_nobody_is_blamed_for_what_nobody_wants(open_house: House) -> None:
    house = open_house
    slow, _ = house.submit(SMALL, SMALL)
    house.wait(2 * SLOW_SECONDS)
    house.finish(house.cpu, 11, slow.serial)
    house.die(11)
    assert house.desk.cells[tally.DIED] == 0 and not house.desk._deaths


def test_a_death_is_remembered_for_a_while_from_the_last_on(open_house: House) -> None:
    house = open_house
    for number, letter in enumerate(b"ABA"):
        house.desk.submit(house.ask(BIG, bytes([letter]) * BIG))
        house.die(11 + 10 * number)
        house.hello(house.cpu, 21 + 10 * number)
        house.now += GRUDGE * 0.4
        house.desk.sweep(house.now)
    assert [count for count, _ in house.desk._deaths.values()] == [1, 2]
    house.desk.sweep(house.now + GRUDGE * 0.3)
    assert [count for count, _ in house.desk._deaths.values()] == [2]
    house.desk.sweep(house.now + GRUDGE * 0.7)
    assert not house.desk._deaths


def test_what_could_not_be_sent_is_done_by_another(
    open_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = open_house
    (first,) = house.submit(SMALL)
    with monkeypatch.context() as deaf:
        deaf.setattr(house.desk.crew, "_send", lambda seat, message: False)
        (second,) = house.submit(SMALL)
    assert house.statuses() == [DRAINING]
    house.finish(house.cpu, 11, first.serial)
    house.die(11)
    assert house.order(house.express).serial == second.serial


def test_without_sight_of_a_predecessors_process_there_is_no_front(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", full)
    with pytest.raises(OSError, match="Too many"):
        house.open([("cpu 0", 11)])
