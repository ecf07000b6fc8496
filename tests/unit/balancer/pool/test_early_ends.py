"""Penalties for early ends: when one is due, how they grow, what is forgotten."""

import pytest

from balancer.pool.early_ends import FIRST, LONGEST, QUIET, EarlyEnds


@pytest.mark.parametrize("fall", [1, 3])
def test_so_many_of_its_sessions_are_too_many(fall: int) -> None:
    early = EarlyEnds(fall)
    due = [early.are_too_many(total, total, float(total)) for total in range(1, fall + 1)]
    assert due == [False] * (fall - 1) + [True]


def test_several_at_once_count_like_one_after_another() -> None:
    assert EarlyEnds(3).are_too_many(
        5, 9, 1.0
    )  # five of the five that began since the last look, as far as is known
    assert not EarlyEnds(3).are_too_many(2, 2, 1.0)


@pytest.mark.parametrize(("share", "due"), [(0.4, False), (0.5, True), (1.0, True)])
def test_they_must_be_half_of_its_sessions(share: float, due: bool) -> None:
    """What a client sends can be the reason too."""
    early = EarlyEnds(3)
    found = [early.are_too_many(total, round(total / share), float(total)) for total in range(1, 40)]
    assert found[-1] is due


def test_far_apart_they_are_forgotten() -> None:
    early = EarlyEnds(3)
    assert not any(early.are_too_many(total, total, total * QUIET) for total in range(1, 20))
    start = 20 * QUIET
    assert [early.are_too_many(20 + more, 20 + more, start + 0.9 * QUIET * more) for more in range(3)] == [
        False,
        False,
        True,
    ]


def test_each_penalty_is_twice_the_last_and_on_trial_one_is_too_many() -> None:
    early = EarlyEnds(3, seen=2, count=2, last=99.0)
    total, now, spans = 3, 100.0, []
    for _ in range(9):
        assert early.are_too_many(total, total, now)
        spans.append(early.punish(now))
        assert early.is_out and early.until == now + spans[-1]
        total += 4
        assert not early.are_too_many(total, total, now + 1)  # of sessions that were open
        now = early.until
        early.release(total, now)
        assert not early.is_out
        total += 1
        now += 1.0
    assert spans[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert spans[-1] == LONGEST


def test_on_trial_one_among_good_sessions_is_not_too_many() -> None:
    early = EarlyEnds(3, level=2)
    early.release(100, 50.0)
    assert not early.are_too_many(1, 103, 55.0)


def test_a_quiet_time_after_a_penalty_forgets_it() -> None:
    early = EarlyEnds(3, level=5)
    early.release(10, 1000.0)
    assert early.limit == 1
    assert not early.are_too_many(1, 11, 1000.0 + max(QUIET, FIRST * 16))
    assert early.limit == 3
