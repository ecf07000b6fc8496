"""Slots: a backend keeps its slot, a new one takes the emptiest, and nobody is moved by the order of an answer."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.discovery.answers import Member
from balancer.discovery.slots import Slot, place

A, B, C, D = (Member(f"10.0.0.{number}", 80) for number in range(1, 5))


def idle(slot: int) -> tuple[int, int]:
    return 0, 0


def filled(*members: Member | None) -> list[Slot]:
    return [Slot(member) for member in members]


def test_the_first_answer_fills_slots_and_the_rest_is_left_out() -> None:
    slots = filled(None, None)
    assert place(slots, [A, B, C], 1, idle) == ({0: A, 1: B}, 1)
    assert place(slots, [C, B, A], 1, idle) == ({}, 1)


def test_one_that_is_replaced_leaves_the_others_where_they_are() -> None:
    slots = filled(A, B, C)
    assert place(slots, [C, D, A], 1, idle) == ({1: D}, 0)
    assert [slot.member for slot in slots] == [A, D, C]


def test_other_weights_change_no_tenant() -> None:
    slots = filled(A)
    heavier = Member(A.host, A.port, 3, True)
    assert place(slots, [heavier], 1, idle) == ({0: heavier}, 0)


def test_a_new_one_takes_the_slot_with_the_fewest_sessions_left() -> None:
    slots = filled(None, None, None)
    left = {0: (2, 0), 1: (0, 9), 2: (0, 1)}
    changes, _ = place(slots, [A, B], 1, left.__getitem__)
    assert changes == {2: A, 1: B}


def test_one_that_comes_back_takes_the_slot_it_had_while_no_other_has_taken_it() -> None:
    slots = filled(None, None, None)
    place(slots, [A, B], 1, idle)
    place(slots, [A], 1, idle)
    assert place(slots, [A, C, B], 1, lambda slot: (int(slot == 1),)) == ({1: B, 2: C}, 0)
    place(slots, [A, C], 1, idle)
    place(slots, [A, C, D], 1, idle)
    assert [slot.member for slot in slots] == [A, D, C]
    place(slots, [A, C], 1, idle)
    assert place(slots, [A, C, B], 1, idle) == ({1: B}, 0), "D had it last"


@pytest.mark.parametrize("obsolete", [1, 2, 3])
def test_one_is_gone_when_it_was_missing_so_often_in_a_row(obsolete: int) -> None:
    slots = filled(A, B)
    for _ in range(obsolete - 1):
        assert place(slots, [B], obsolete, idle) == ({}, 0)
    assert place(slots, [A, B], obsolete, idle) == ({}, 0)
    for _ in range(obsolete - 1):
        assert place(slots, [B], obsolete, idle) == ({}, 0)
    assert place(slots, [B], obsolete, idle) == ({0: None}, 0)


@given(
    st.lists(st.sets(st.integers(0, 9), max_size=8), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_over_any_answers_each_backend_has_one_slot_and_keeps_it(
    answers: list[set[int]], chance: random.Random
) -> None:
    slots = filled(*[None] * 6)
    for answer in answers:
        before = {slot.member: number for number, slot in enumerate(slots) if slot.member}
        members = [Member(f"10.0.0.{number}", 80) for number in answer]
        chance.shuffle(members)
        _, left_out = place(slots, members, 1, idle)
        now = {slot.member: number for number, slot in enumerate(slots) if slot.member}
        assert len(now) == min(6, len(members)) and left_out == len(members) - len(now)
        assert all(now[one] == number for one, number in before.items() if one in members)
