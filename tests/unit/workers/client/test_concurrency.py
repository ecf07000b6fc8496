"""How the number of connections follows the rate of replies."""

from collections.abc import Callable

from workers.client.concurrency import HOLD, INTERVAL, ConcurrencyLimit


def drive(
    limit: ConcurrencyLimit, rate: Callable[[int], float], seconds: float, start: float = 0.0
) -> list[int]:
    """`current` after each adjust(), with rate(current) replies a second."""
    history, due, now = [], 0.0, start
    limit.adjust(now)
    while now < start + seconds:
        now += INTERVAL
        due += rate(limit.current) * INTERVAL
        while due >= 1:
            limit.on_reply()
            due -= 1
        limit.adjust(now)
        history.append(limit.current)
    return history


def test_grows_to_the_limit_when_every_connection_adds_its_rate() -> None:
    history = drive(ConcurrencyLimit(1, 16), lambda current: 100.0 * current, 4)
    assert max(history) == 16
    assert history[:5] == [2, 4, 8, 16, 16]


def test_stays_when_more_connections_do_not_help() -> None:
    limit = ConcurrencyLimit(1, 64)
    history = drive(limit, lambda current: 50.0 * min(current, 4), 30)
    assert max(history) <= 8
    assert sum(history[-40:]) / 40 < 6


def test_never_leaves_its_bounds() -> None:
    limit = ConcurrencyLimit(2, 5)
    drive(limit, lambda current: 10.0 * current, 3)
    assert limit.current == 5
    for second in range(100):
        limit.on_busy(100.0 + second)
    assert limit.current == 2


def test_equal_bounds_are_a_constant() -> None:
    assert set(drive(ConcurrencyLimit(3, 3), lambda current: 1000.0, 3)) == {3}


def test_busy_takes_a_quarter_off_once_per_interval_and_holds() -> None:
    limit = ConcurrencyLimit(1, 16)
    drive(limit, lambda current: 100.0 * current, 4)
    for _ in range(50):
        limit.on_busy(10.0)
    assert limit.current == 12
    held = drive(limit, lambda current: 100.0 * current, INTERVAL * (HOLD - 2), start=10.0)
    assert set(held) == {12}
    after = drive(limit, lambda current: 100.0 * current, 3, start=20.0)
    assert after[-1] > 12


def test_a_rate_of_few_replies_is_not_compared() -> None:
    limit = ConcurrencyLimit(1, 8)
    history = drive(limit, lambda current: 2.0, 1)
    assert set(history) <= {1, 2}


def test_the_upper_bound_is_never_below_the_lower() -> None:
    assert ConcurrencyLimit(4, 0).current == 4
