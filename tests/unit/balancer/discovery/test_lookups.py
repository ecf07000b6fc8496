"""When a name is asked for again: by its refresh, sooner after a failure, and soon when its addresses do not answer."""

from itertools import pairwise

import pytest

from balancer.discovery.lookups import LookupSchedule


def test_every_name_is_due_at_once_and_then_by_the_refresh() -> None:
    schedule = LookupSchedule(["web", "api"], 10.0)
    assert schedule.take_due(100.0) == ["web", "api"]
    assert schedule.take_due(200.0) == []  # still being asked
    assert schedule.ended("web", True, 200.0) == 10.0
    assert schedule.take_due(209.9) == []
    assert schedule.take_due(210.0) == ["web"]


def test_after_failures_it_asks_sooner_and_each_time_later() -> None:
    schedule, now, waits = LookupSchedule(["web"], 10.0), 100.0, []
    for _ in range(6):
        assert schedule.take_due(now) == ["web"]
        waits.append(schedule.ended("web", False, now))
        now += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert schedule.failures["web"] == 6
    schedule.ended("web", True, now)
    assert schedule.failures["web"] == 0
    assert schedule.ended("web", False, now) == 1.0


def test_a_short_refresh_is_the_longest_wait() -> None:
    schedule = LookupSchedule(["web"], 0.5)
    schedule.take_due(0.0)
    assert schedule.ended("web", False, 0.0) == 0.5


def test_a_name_whose_addresses_do_not_answer_is_asked_soon_but_once_a_second() -> None:
    schedule = LookupSchedule(["web"], 60.0)
    schedule.take_due(100.0)
    schedule.hasten("web", 100.1)  # under way
    assert schedule.take_due(100.2) == []
    schedule.ended("web", True, 100.2)
    schedule.hasten("web", 100.3)
    assert schedule.take_due(100.9) == []
    assert schedule.take_due(101.0) == ["web"]
    schedule.ended("web", True, 101.0)
    schedule.hasten("web", 150.0)
    assert schedule.take_due(150.0) == ["web"]


@pytest.mark.parametrize("refresh", [0.5, 3.0, 10.0, 300.0])
@pytest.mark.parametrize("every", [0.1, 0.5, 2.0])
def test_while_its_addresses_do_not_answer_it_is_asked_soon_and_then_less_and_less(
    refresh: float, every: float
) -> None:
    schedule, now = LookupSchedule(["web"], refresh), 100.0
    begun = []
    for _ in range(round(900 / every)):
        if schedule.take_due(now):
            begun.append(now)
            schedule.ended("web", True, now)
        schedule.hasten("web", now)  # a check has failed
        now += every
    waits = [later - earlier for earlier, later in pairwise(begun)]
    expected = [min(refresh, 2.0 ** min(number, 12)) for number in range(len(waits))]
    assert all(
        wait == pytest.approx(least, abs=every + 0.01) for wait, least in zip(waits, expected, strict=True)
    )
    while not schedule.take_due(now):  # they answer again
        now += every
    schedule.ended("web", True, now)
    schedule.take_due(now + refresh)
    schedule.ended("web", True, now + refresh)
    schedule.hasten("web", now + refresh)
    assert schedule.take_due(now + refresh + min(1.0, refresh)) == ["web"], "as soon as the first time"


def test_a_server_that_fails_is_not_asked_more_often_because_checks_fail() -> None:
    schedule, now, begun = LookupSchedule(["web"], 10.0), 100.0, []
    while now < 160.0:
        if schedule.take_due(now):
            begun.append(now)
            schedule.ended("web", False, now)
        schedule.hasten("web", now)
        now += 0.25
    assert [later - earlier for earlier, later in pairwise(begun)] == [
        1.0,
        2.0,
        4.0,
        8.0,
        10.0,
        10.0,
        10.0,
        10.0,
    ]
