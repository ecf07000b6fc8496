"""Histograms: every duration is in one bucket, and quantiles lie in the bucket of the true one."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.shm.histogram import BOUNDS, CELLS, SUM, USED, Histogram, distribution

DURATIONS = st.floats(0, 1e6)


def cells() -> memoryview:
    return memoryview(bytearray(8 * CELLS)).cast("q")


@given(st.lists(DURATIONS, max_size=30))
def test_a_duration_is_counted_once_and_added_up(durations: list[float]) -> None:
    row = cells()
    histogram = Histogram(row)
    for seconds in durations:
        histogram.observe(seconds)
    found = distribution(row)
    assert found.count == len(durations) and not any(row[USED:])
    assert found.seconds == pytest.approx(sum(durations), abs=1e-6 * (len(durations) + 1))
    for bound, count in zip(BOUNDS, found.up_to(), strict=False):
        assert count == sum(seconds <= bound for seconds in durations)


@given(st.lists(DURATIONS, max_size=30), st.lists(DURATIONS, max_size=30))
def test_many_at_once_are_counted_as_one_by_one(before: list[float], durations: list[float]) -> None:
    one, all_at_once = Histogram(cells()), Histogram(cells())
    for seconds in before + durations:
        one.observe(seconds)
    all_at_once.observe_all(before)
    all_at_once.observe_all(durations)
    assert list(all_at_once.cells[:SUM]) == list(one.cells[:SUM])
    assert abs(all_at_once.cells[SUM] - one.cells[SUM]) <= 1 + len(before + durations)


@given(st.lists(DURATIONS, min_size=1, max_size=30), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_true_one(durations: list[float], share: float) -> None:
    row = cells()
    for seconds in durations:
        Histogram(row).observe(seconds)
    rank = max(1, -(-share * len(durations) // 1))
    true = bisect_left(BOUNDS, sorted(durations)[int(rank) - 1])
    found = distribution(row).quantile(share)
    assert found is not None
    if true == len(BOUNDS):
        assert found == BOUNDS[-1]
    else:
        assert (BOUNDS[true - 1] if true else 0) <= found <= BOUNDS[true]


def test_without_a_duration_there_is_no_quantile() -> None:
    assert distribution(cells()).quantile(0.5) is None
    assert len(BOUNDS) + 1 == SUM < CELLS and sorted(set(BOUNDS)) == list(BOUNDS)
