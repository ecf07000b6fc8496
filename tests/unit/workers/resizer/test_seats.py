"""The roster: who is idle, who may be sent something ahead of time, and whether express has anything to win."""

import socket

import pytest

from workers.imaging.job import ResizeJob
from workers.resizer.orders import Result
from workers.resizer.seats import Roster, Seat, State, ghost_of
from workers.resizer.task import Stage, Task


class Nobody:
    def answer(self, task: Task, result: Result) -> None:
        raise AssertionError("nobody asked")


def work(small: bool = True) -> Task:
    return Task(7, Nobody(), ResizeJob(9, 9), slot=3, offset=300, length=30, is_small=small)


@pytest.fixture(scope="module")
def channel() -> socket.socket:
    return socket.socket()


def full(channel: socket.socket, cpus: int = 2, fills_machine: bool = True) -> tuple[Roster, list[Seat]]:
    """A roster with this many CPU seats and one express seat, all idle."""
    roster = Roster(fills_machine)
    seats = [Seat(f"cpu {number}", False, channel) for number in range(cpus)] + [
        Seat("express 0", True, channel)
    ]
    for seat in seats:
        roster.sit(seat)
        roster.rest(seat)
    return roster, seats


def take(roster: Roster, small: bool = True) -> Seat:
    """The idle CPU seat that dispatch would choose, at work."""
    seat = roster.cpus.pop()
    roster.begin(seat, work(small))
    return seat


def test_express_is_wanted_until_every_core_is_at_short_work(channel: socket.socket) -> None:
    roster, _ = full(channel)
    assert roster.wants_express
    one = take(roster)
    assert roster.wants_express
    take(roster)
    assert not roster.wants_express
    roster.slow(one)
    assert roster.wants_express
    assert roster.short == 1


def test_express_is_wanted_where_a_core_is_left_and_where_nobody_else_is(channel: socket.socket) -> None:
    roster, seats = full(channel, fills_machine=False)
    take(roster)
    take(roster)
    assert roster.wants_express
    roster, seats = full(channel, cpus=1)
    take(roster)
    roster.end(seats[0])
    roster.leave(seats[0])
    assert roster.wants_express and roster.workers == 0


def test_a_seat_is_open_while_at_short_work_with_nothing_behind(channel: socket.socket) -> None:
    roster, _ = full(channel)
    first, second = take(roster), take(roster)
    assert list(roster.open) == [first, second], "the longest at work first"
    following = work()
    del roster.open[first]
    roster.follow(first, following)
    assert list(roster.open) == [second] and first.behind is following
    assert roster.end(first) is following and first.task is None and first.behind is None
    roster.begin(first, following)
    assert list(roster.open) == [second, first]


def test_big_work_slow_work_and_express_are_never_open(channel: socket.socket) -> None:
    roster, seats = full(channel)
    take(roster, small=False)
    roster.slow(take(roster))
    roster.begin(roster.express.pop(), work())
    assert not roster.open and roster.short == 0 and seats[2].state is State.BUSY


def test_room_counts_what_need_not_wait(channel: socket.socket) -> None:
    roster, _ = full(channel)
    assert roster.room() == 3
    take(roster)
    assert roster.room() == 3, "one idle, one open, express"
    take(roster)
    assert roster.room() == 2, "two open, express is not wanted"


def test_who_leaves_is_in_no_list(channel: socket.socket) -> None:
    roster, seats = full(channel)
    busy = take(roster)
    for seat in seats:
        roster.end(seat)
        roster.leave(seat)
    assert not roster.cpus and not roster.express and not roster.open
    assert roster.workers == roster.short == 0 and busy.state is State.ABSENT


def test_a_ghost_keeps_the_place_and_is_nobodys_work() -> None:
    task = work()
    ghost = ghost_of(task)
    assert (ghost.serial, ghost.slot, ghost.offset, ghost.length) == (7, 3, 300, 30)
    assert ghost.stage is Stage.ABANDONED and not ghost.is_small, "nothing is sent behind what serves nobody"
