"""The state of slots, which process adopts one, heartbeats and a clock that jumps."""

import pytest

from balancer.prefork.slots import (
    HUNG_AFTER,
    HeartbeatWatch,
    SlotVerdict,
    SlotView,
    eligible_loads,
    judge,
    state_of,
    wants_abort,
)
from balancer.shm.layout import SLOT_EMPTY, SLOT_HUNG, SLOT_PAUSED, SLOT_SERVED, SLOT_STARTING, SLOT_SURPLUS


def served(row: int, load: int = 0, reach: int = 99) -> SlotView:
    return SlotView(row=row, is_ready=True, is_accepting=True, load=load, reach=reach)


HUNG = SlotView(row=9, is_ready=True, is_accepting=True, age=HUNG_AFTER + 0.01)
EMPTY = SlotView()
SURPLUS = SlotView(is_surplus=True)


@pytest.mark.parametrize(
    ("view", "state"),
    [
        (served(3), SLOT_SERVED),
        (HUNG, SLOT_HUNG),
        (SlotView(row=9, is_ready=True, is_accepting=True, age=HUNG_AFTER), SLOT_SERVED),
        (EMPTY, SLOT_EMPTY),
        (SlotView(row=4), SLOT_STARTING),
        (SlotView(row=4, is_ready=True), SLOT_PAUSED),
        (SlotView(row=4, is_ready=True, is_accepting=True, is_surplus=True), SLOT_SURPLUS),
    ],
)
def test_the_state_of_a_slot(view: SlotView, state: int) -> None:
    assert state_of(view) == state


def test_a_slot_that_is_not_served_is_adopted_by_the_least_loaded_worker() -> None:
    verdicts = judge([HUNG, served(3, load=5), served(4, load=2)], [0, 0, 0])
    assert verdicts == [SlotVerdict(SLOT_HUNG, 4), SlotVerdict(SLOT_SERVED, 0), SlotVerdict(SLOT_SERVED, 0)]


def test_an_adopter_stays_while_it_serves() -> None:
    views = [EMPTY, served(3, load=5), served(4, load=2)]
    assert judge(views, [3, 0, 0])[0].adopter == 3
    assert judge(views, [77, 0, 0])[0].adopter == 4


def test_several_slots_are_spread_over_adopters() -> None:
    verdicts = judge([EMPTY, SURPLUS, served(3), served(4)], [0, 0, 0, 0])
    assert {verdict.adopter for verdict in verdicts[:2]} == {3, 4}


def test_only_a_process_that_has_the_socket_can_adopt_it() -> None:
    verdicts = judge([served(3, reach=2), served(4, load=9, reach=3), SURPLUS], [0, 0, 0])
    assert verdicts[2].adopter == 4
    assert judge([served(3, reach=2), SURPLUS, SURPLUS], [0, 0, 0])[1:] == [
        SlotVerdict(SLOT_SURPLUS, 3),
        SlotVerdict(SLOT_SURPLUS, 0),
    ]


def test_no_slot_served_means_no_adopter() -> None:
    assert [verdict.adopter for verdict in judge([HUNG, EMPTY], [0, 0])] == [0, 0]


def loads(*views: SlotView) -> list[int | None]:
    return eligible_loads(views, judge(views, [0] * len(views)))


def test_only_served_slots_are_steered_to() -> None:
    assert loads(served(3, load=7), HUNG, EMPTY, SURPLUS) == [7, None, None, None]


def test_when_no_slot_is_served_those_that_will_be_soonest_are_steered_to() -> None:
    paused = SlotView(row=4, is_ready=True, load=3)
    assert loads(paused, HUNG, SURPLUS) == [3, None, None]
    assert loads(EMPTY, SURPLUS) == [0, None]
    assert loads(SURPLUS) == [0]


def test_time_in_which_the_master_stood_still_does_not_count() -> None:
    watch = HeartbeatWatch(100.0)
    assert not watch.look(100.25)
    assert watch.age(99_000, 100.5) == 0.5  # no time from before the watch began
    assert watch.age(100_250, 100.5) == 0.25
    assert watch.look(110.0)  # the master was stopped for ten seconds
    assert watch.age(100_250, 110.0) == 0.0
    assert not watch.look(110.25)
    assert watch.age(100_250, 110.25) == 0.25
    assert watch.age(100_250, 113.1) > 3.0


def test_a_missing_heartbeat_ends_in_an_abort_unless_the_role_has_none() -> None:
    assert wants_abort(3.01, True, 3.0) and not wants_abort(3.0, True, 3.0)
    assert not wants_abort(1e9, True, 0.0)
    assert not wants_abort(9.0, False, 3.0) and wants_abort(10.1, False, 3.0)
