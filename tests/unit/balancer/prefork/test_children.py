"""Histories of forks and deaths, played without a fork."""

import pytest

from balancer.prefork.children import SHORT_LIFE, ChildProcess, Children, Leases, NoLease, backoff


def make(*slots: int, now: float = 0.0) -> Children:
    children = Children(Leases(3, 100))
    for slot in slots:
        children.want(1, "worker", slot, now)
    return children


def spawn(children: Children, pid: int, now: float) -> ChildProcess:
    place = children.due(now)[0]
    return children.spawned(place, pid, children.leases.take(), now)


def test_the_lowest_free_row_is_leased_first() -> None:
    leases = Leases(3, 6)
    assert [leases.take(), leases.take()] == [3, 4] and leases.end == 5
    leases.give_back(3)
    assert leases.end == 5
    assert leases.take() == 3
    leases.take()
    with pytest.raises(NoLease):
        leases.take()
    leases.give_back(5)
    leases.give_back(4)
    assert leases.end == 4
    with pytest.raises(KeyError):
        leases.give_back(5)


def test_no_row_leased_means_no_row_to_scan() -> None:
    assert Leases(3, 6).end == 3


def test_wanted_places_are_due_at_once_and_asking_twice_changes_nothing() -> None:
    children = make(0, 1)
    children.want(1, "worker", 0, 5.0)
    assert [place.slot for place in children.due(0.0)] == [0, 1]
    assert children.next_due() == 0.0


def test_a_ready_process_that_lived_is_replaced_at_once() -> None:
    children = make(0)
    spawn(children, 100, 0.0)
    assert children.next_due() is None
    assert children.became_ready(100, 0.1) is not None
    assert children.reaped(100, 0.1 + SHORT_LIFE) is not None
    assert children.next_due() == 0.1 + SHORT_LIFE


def test_the_first_short_life_is_replaced_at_once_the_next_ones_after_a_back_off() -> None:
    children, now, waits = make(0), 0.0, []
    for pid in range(100, 108):
        spawn(children, pid, now)
        children.became_ready(pid, now)
        children.reaped(pid, now + 0.01)
        due = children.next_due()
        assert due is not None
        waits.append(round(due - now - 0.01, 3))
        now = due
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_a_long_life_ends_the_back_off() -> None:
    children, now = make(0), 0.0
    for pid, life in ((100, 0.01), (101, 0.01), (102, 5.0), (103, 0.01)):
        spawn(children, pid, now)
        children.became_ready(pid, now)
        now += life
        children.reaped(pid, now)
        now = children.next_due() or now
    assert children.next_due() == now  # the first short life again: at once


def test_dying_before_ready_backs_off_and_counts_as_never_ready_after_four() -> None:
    children, now, births = make(0), 0.0, []
    for pid in range(100, 104):
        births.append(now)
        spawn(children, pid, now)
        assert not children.never_got_ready(1, "worker", 4)
        children.reaped(pid, now)
        now = children.next_due() or 0.0
    assert births == [0.0, 1.0, 3.0, 7.0]
    assert children.never_got_ready(1, "worker", 4)


def test_a_role_with_one_ready_process_is_not_given_up() -> None:
    children = make(0, 1)
    children.want(1, "prober", 0, 0.0)
    spawn(children, 100, 0.0)
    children.became_ready(100, 0.0)
    for place in children.of_generation(1):
        place.unready_deaths = 9
    assert not children.never_got_ready(1, "worker", 4)
    assert children.never_got_ready(1, "prober", 4)


def test_backoff_is_capped() -> None:
    assert [backoff(n, 1.0, 2.0, 30.0) for n in (0, 1, 2, 3, 6, 7, 1000)] == [1, 1, 2, 4, 30, 30, 30]


def test_a_failed_fork_waits_a_second_and_counts_as_no_failure() -> None:
    children = make(0)
    place = children.due(0.0)[0]
    children.fork_failed(place, 10.0)
    assert children.due(10.9) == [] and children.due(11.0) == [place]
    assert place.failures == 0


def test_unknown_pids_are_neither_reaped_nor_ready() -> None:
    children = make(0)
    spawn(children, 100, 0.0)
    assert children.reaped(999, 1.0) is None
    assert children.became_ready(999, 1.0) is None
    children.became_ready(100, 1.0)
    assert children.became_ready(100, 2.0) is None


def test_a_process_that_drains_has_left_its_place_which_may_be_wanted_again() -> None:
    children = make(0)
    old = spawn(children, 100, 0.0)
    assert children.unwant(1, "worker", 0) is old and old.draining
    children.want(1, "worker", 0, 1.0)
    new = spawn(children, 101, 1.0)
    assert children.holder(1, "worker", 0) is new
    assert children.reaped(100, 2.0) is old
    assert children.holder(1, "worker", 0) is new and children.next_due() is None


def test_a_place_knows_whether_the_next_process_is_a_replacement() -> None:
    """A place that is given up and wanted again has no history."""
    children = make(0)
    place = children.places[1, "worker", 0]
    assert not place.was_held
    spawn(children, 100, 0.0)
    children.reaped(100, 5.0)
    assert place.was_held
    children.unwant(1, "worker", 0)
    assert not children.want(1, "worker", 0, 6.0).was_held


def test_giving_up_an_empty_place_stops_no_process() -> None:
    children = make(0)
    assert children.unwant(1, "worker", 0) is None
    assert children.unwant(1, "worker", 7) is None
    assert children.due(9.0) == []


def test_generations_live_as_long_as_a_process_or_a_place() -> None:
    children = make(0)
    spawn(children, 100, 0.0)
    children.want(2, "worker", 0, 0.0)
    assert children.generations() == [1, 2]
    assert children.is_all_ready(1) is False
    children.unwant(1, "worker", 0)
    assert children.generations() == [1, 2]
    children.reaped(100, 1.0)
    assert children.generations() == [2]


def test_all_ready_means_every_place() -> None:
    children = make(0, 1)
    for pid in (100, 101):
        assert not children.is_all_ready(1)
        spawn(children, pid, 0.0)
        children.became_ready(pid, 0.0)
    assert children.is_all_ready(1)


def test_the_least_failed_place_is_forked_first() -> None:
    children = make(0, 1)
    children.places[1, "worker", 0].failures = 3
    assert [place.slot for place in children.due(0.0)] == [1, 0]
