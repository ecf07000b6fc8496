"""How evenly the sessions of several workers lie, in simulation."""

import pytest

from tests.unit.balancer.pool.balance_simulation import busiest_above_mean


@pytest.mark.parametrize(
    ("workers", "backends", "sessions"), [(2, 200, 1000), (8, 200, 1000), (64, 200, 200), (2, 5, 50)]
)
def test_leastconn_is_nearly_as_even_as_a_look_at_all_sessions_and_far_more_than_p2c(
    workers: int, backends: int, sessions: int
) -> None:
    exact, leastconn, p2c = (
        busiest_above_mean(policy, workers, backends, sessions, 8000)
        for policy in ("exact", "leastconn", "p2c")
    )
    print(f"exact {exact:.2f}, leastconn {leastconn:.2f}, p2c {p2c:.2f}")
    assert leastconn <= exact + 0.75 and leastconn <= 0.75 * p2c
