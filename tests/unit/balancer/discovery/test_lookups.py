"""When a name is asked for again: by its refresh, sooner after a failure, and soon when its addresses do not answer."""

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
