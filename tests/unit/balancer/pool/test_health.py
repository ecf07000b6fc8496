"""Rise and fall: a row of events, and the verdict after each."""

import pytest

from balancer.pool.health import (
    JITTER,
    LONGEST_PAUSE,
    SOONEST,
    STEPS,
    UNSETTLED,
    HealthState,
    PassiveHealth,
    Schedule,
    first_due,
    ramp,
)

# "." a check passed, "x" it failed, "s" a session could not connect; below each the verdict after it.
STORIES = {
    "a healthy backend": ("....", "UUUU"),
    "dies": ("..xxx", "UUUUD"),
    "two failures are not three": ("xx.xx.xx.", "UUUUUUUUU"),
    "the first failing check of a new one counts as any other": ("xxx", "UUD"),
    "sessions find out first": ("xss", "UUD"),
    "comes back after two good checks": ("xxx..", "UUDDU"),
    "one good check is not two": ("xxx.x.x..", "UUDDDDDDU"),
    "a failed session while down starts the rise anew": ("xxx.s..", "UUDDDDU"),
    "down stays down": ("xxxxxx", "UUDDDD"),
    "falls again": ("xxx..xxx", "UUDDUUUD"),
}


@pytest.mark.parametrize("story", STORIES)
def test_story(story: str) -> None:
    events, verdicts = STORIES[story]
    health = HealthState(rise=2, fall=3)
    seen = ""
    for now, event in enumerate(events):
        before = health.up
        changed = health.passed(now) if event == "." else health.failed(now)
        assert changed == (health.up != before)
        if changed:
            assert health.since == now
        seen += "U" if health.up else "D"
    assert seen == verdicts


def test_fall_of_one_needs_one_failure_and_rise_of_one_one_success() -> None:
    health = HealthState(rise=1, fall=1)
    assert health.failed(1.0) and not health.up
    assert health.passed(2.0) and health.up


def test_is_settled_only_while_nothing_speaks_against_the_verdict() -> None:
    health = HealthState(rise=2, fall=3)
    assert health.is_settled()
    health.failed(0)
    assert not health.is_settled()
    health.passed(0)
    assert health.is_settled()


def test_schedule_jitters_five_percent_around_the_interval() -> None:
    schedule = Schedule(interval=2.0, due=10.0)
    for chance, expected in ((0.0, 2.0 * (1 - JITTER)), (0.5, 2.0), (1.0, 2.0 * (1 + JITTER))):
        schedule.begun(10.0)
        assert schedule.due == float("inf")
        schedule.ended(settled=True, chance=chance)
        assert schedule.due == pytest.approx(10.0 + expected)


def test_an_unsettled_backend_is_asked_twice_as_often() -> None:
    schedule = Schedule(interval=2.0, due=0.0)
    schedule.begun(0.0)
    schedule.ended(settled=False, chance=0.5)
    assert schedule.due == pytest.approx(2.0 * UNSETTLED)


def test_a_death_is_known_within_three_intervals_even_at_the_worst_jitter() -> None:
    health, schedule, now = HealthState(2, 3), Schedule(2.0, 0.0), 0.0
    died = 0.001  # just after a good check
    while health.up:
        schedule.begun(now)
        if now > died:
            health.failed(now)
        schedule.ended(health.is_settled(), chance=1.0)
        now = schedule.due
    assert health.since - died <= 3 * 2.0


def test_hasten_brings_the_next_check_forward_but_not_into_a_hail() -> None:
    schedule = Schedule(interval=2.0, due=0.0)
    schedule.begun(10.0)
    schedule.hasten(10.0)
    assert schedule.due == float("inf")  # one is under way
    schedule.ended(settled=True, chance=0.5)
    schedule.hasten(10.01)
    assert schedule.due == pytest.approx(10.0 + SOONEST)
    schedule.hasten(11.0)
    assert schedule.due == pytest.approx(10.0 + SOONEST)  # never later than it was
    late = Schedule(interval=2.0, due=12.0, last=10.0)
    late.hasten(11.0)
    assert late.due == 11.0


def test_first_checks_begin_within_a_quarter_interval_and_not_all_at_once() -> None:
    dues = [first_due(100.0, place, 10, 2.0) for place in range(10)]
    assert dues[0] == 100.0
    assert len(set(dues)) == 10
    assert max(dues) < 100.5


# Without checks: "x" a session could not connect, "-" half a pause goes by without one.
PASSIVE_STORIES = {
    "three failures take it down for a pause": ("xxx--", "UUDDU"),
    "on trial one failure is enough": ("xxx--x", "UUDDUD"),
    "a quiet pause on trial makes it as good as new": ("xxx----xx", "UUDDUUUUU"),
    "failures far apart do not add up": ("xx--xx--xx", "UUUUUUUUUU"),
    "failures while it is down change nothing": ("xxxxx--", "UUDDDDU"),
}


@pytest.mark.parametrize("story", PASSIVE_STORIES)
def test_passive_story(story: str) -> None:
    events, verdicts = PASSIVE_STORIES[story]
    health, now, seen = PassiveHealth(fall=3, pause=10.0), 0.0, ""
    for event in events:
        if event == "x":
            now += 0.01
            health.failed(now)
        else:
            now += 5.01
            health.has_recovered(now)
        seen += "U" if health.up else "D"
    assert seen == verdicts


def test_each_time_without_checks_is_longer_and_quiet_time_forgives() -> None:
    health, now, waits = PassiveHealth(fall=1, pause=30.0), 100.0, []
    for _ in range(12):
        assert health.failed(now)
        waits.append(health.wait)
        assert not health.has_recovered(now + health.wait - 0.1)
        now += health.wait
        assert health.has_recovered(now)
    assert waits == [30.0 * n for n in range(1, 11)] + [LONGEST_PAUSE] * 2
    for _ in range(5):
        now += 30.0
        assert not health.has_recovered(now)
    assert health.failed(now) and health.wait == 30.0 * (12 - 5 + 1)


@pytest.mark.parametrize("window", [10.0, 60.0])
def test_a_slow_start_grows_in_few_steps_from_a_tenth_to_all(window: float) -> None:
    parts = [ramp(50.0, window, 50.0 + window * part / 1000) for part in range(1100)]
    assert parts[0] == 100 and parts[500] == 500 and parts[1000:] == [0] * 100
    assert parts[:1000] == sorted(parts[:1000]) and len(set(parts)) <= STEPS
    assert ramp(50.0, 0.0, 50.0) == 0
