"""How the number of connections follows what they bring."""

from collections.abc import Callable

from workers.client.pacing import HOLD, INTERVAL, Pacer


def drive(pacer: Pacer, rate: Callable[[int], float], seconds: float, start: float = 0.0) -> list[int]:
    """`wanted` after each look, replies coming in at rate(wanted) a second."""
    history, due, now = [], 0.0, start
    pacer.look(now)
    while now < start + seconds:
        now += INTERVAL
        due += rate(pacer.wanted) * INTERVAL
        while due >= 1:
            pacer.answered()
            due -= 1
        pacer.look(now)
        history.append(pacer.wanted)
    return history


def test_grows_to_the_limit_when_every_connection_adds_its_rate() -> None:
    history = drive(Pacer(1, 16), lambda wanted: 100.0 * wanted, 4)
    assert max(history) == 16
    assert history[:5] == [2, 4, 8, 16, 16]


def test_stays_when_more_connections_bring_nothing() -> None:
    pacer = Pacer(1, 64)
    history = drive(pacer, lambda wanted: 50.0 * min(wanted, 4), 30)
    assert max(history) <= 8
    assert sum(history[-40:]) / 40 < 6


def test_never_leaves_its_bounds() -> None:
    pacer = Pacer(2, 5)
    drive(pacer, lambda wanted: 10.0 * wanted, 3)
    assert pacer.wanted == 5
    for second in range(100):
        pacer.refused(100.0 + second)
    assert pacer.wanted == 2


def test_equal_bounds_are_a_constant() -> None:
    assert set(drive(Pacer(3, 3), lambda wanted: 1000.0, 3)) == {3}


def test_busy_takes_a_quarter_off_once_per_interval_and_holds() -> None:
    pacer = Pacer(1, 16)
    drive(pacer, lambda wanted: 100.0 * wanted, 4)
    for _ in range(50):
        pacer.refused(10.0)
    assert pacer.wanted == 12
    held = drive(pacer, lambda wanted: 100.0 * wanted, INTERVAL * (HOLD - 2), start=10.0)
    assert set(held) == {12}
    after = drive(pacer, lambda wanted: 100.0 * wanted, 3, start=20.0)
    assert after[-1] > 12


def test_slow_replies_are_not_judged_too_early() -> None:
    pacer = Pacer(1, 8)
    history = drive(pacer, lambda wanted: 2.0, 1)
    assert set(history) <= {1, 2}


def test_the_upper_bound_is_never_below_the_lower() -> None:
    assert Pacer(4, 0).wanted == 4
