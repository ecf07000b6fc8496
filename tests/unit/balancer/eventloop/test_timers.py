"""Timers, told the time by the test."""

from math import inf

from balancer.eventloop.timers import Timer, Timers


def test_due_timers_run_in_order_and_once() -> None:
    timers, ran = Timers(), []
    timers.add(Timer(3.0, lambda: ran.append("c")))
    timers.add(Timer(1.0, lambda: ran.append("a")))
    timers.add(Timer(2.0, lambda: ran.append("b")))
    assert timers.due_at == 1.0
    assert timers.fire_due(2.0) == 2
    assert timers.fire_due(2.0) == 0
    assert ran == ["a", "b"]
    assert timers.due_at == 3.0


def test_a_cancelled_timer_does_not_run_even_within_the_batch() -> None:
    timers, ran = Timers(), []
    second = Timer(2.0, lambda: ran.append("second"))
    timers.add(Timer(1.0, second.cancel))
    timers.add(second)
    timers.fire_due(5.0)
    assert ran == []
    assert timers.due_at == inf


def test_a_periodic_timer_skips_missed_beats_and_keeps_its_phase() -> None:
    timers, ran = Timers(), []
    timer = timers.add(Timer(1.0, lambda: ran.append(timer.when), period=1.0))
    timers.fire_due(1.0)
    timers.fire_due(4.5)
    assert ran == [2.0, 5.0]
    timers.fire_due(4.9)
    assert len(ran) == 2
    timer.cancel()
    assert timers.fire_due(9.0) == 0


def test_cancelled_timers_do_not_pile_up() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.add(Timer(1e9 + number, lambda: None)).cancel()
    assert len(timers) < 200


def test_a_timer_costs_the_same_however_many_live() -> None:
    """Ten thousand clients whose first bytes are waited for have a timer each."""
    looks = 0

    class Watched(Timer):
        def is_cancelled(self) -> bool:
            nonlocal looks
            looks += 1
            return super().is_cancelled()

    timers = Timers()
    for number in range(10_000):
        timers.add(Watched(1e9 + number, lambda: None))
    assert looks < 3 * 10_000
    assert len(timers) == 10_000


def test_a_cancelled_timer_is_gone_after_its_time() -> None:
    timers, ran = Timers(), []
    timers.add(Timer(1.0, lambda: ran.append("first"))).cancel()
    timers.add(Timer(2.0, lambda: ran.append("second")))
    assert timers.due_at == 1.0  # waking once for nothing is cheaper than looking every turn
    assert timers.fire_due(1.0) == 0
    assert timers.due_at == 2.0
    assert timers.fire_due(2.0) == 1
    assert (ran, timers.due_at, len(timers)) == (["second"], inf, 0)
