"""The queue of jobs: fresh ones in order, failed ones later, on another connection, and alone."""

from collections.abc import Iterator

import pytest

from workers.client.jobs import RETRY_DELAYS, ClientJob, JobQueue, retry_delay
from workers.client.scan import Picture


def jobs(count: int) -> list[ClientJob]:
    return [ClientJob(Picture(f"{n}.jpg", 1, 1, "jpeg"), f"{n}-2x2.jpg") for n in range(count)]


def test_fresh_jobs_come_in_order_and_only_when_asked_for() -> None:
    made: list[ClientJob] = []

    def source() -> Iterator[ClientJob]:
        for job in jobs(3):
            made.append(job)
            yield job

    queue = JobQueue(source(), 3)
    assert (queue.count_ready(0), made) == (3, [])
    first = queue.take(1, 0.0, True)
    assert made == [first]
    assert queue.take(1, 0.0, True) is made[1]
    assert queue.count_ready(0) == 1
    assert queue.take(1, 0.0, True) is made[2]
    assert queue.take(1, 0.0, True) is None


def test_a_failed_job_waits_and_goes_to_a_newer_connection_only() -> None:
    (job,) = jobs(1)
    queue = JobQueue(iter([]), 0)
    queue.retry(job, due=5.0, after_serial=7, is_suspect=False)
    assert queue.take(8, 4.9, True) is None
    assert queue.count_ready(4.9) == 0
    assert queue.take(7, 5.0, True) is None
    assert queue.needs_newer_than(7, 5.0)
    assert not queue.needs_newer_than(8, 5.0)
    assert queue.take(8, 5.0, False) is job
    assert queue.count_ready(5.0) == 0


def test_a_suspect_only_goes_to_an_idle_connection() -> None:
    (job,) = jobs(1)
    queue = JobQueue(iter([]), 0)
    queue.retry(job, due=0.0, after_serial=1, is_suspect=True)
    assert queue.take(2, 1.0, False) is None
    assert queue.take(2, 1.0, True) is job


def test_a_busy_connection_becomes_idle_for_a_suspect_and_an_older_one_does_not() -> None:
    suspect, fresh, other = jobs(3)
    queue = JobQueue(iter([fresh, other]), 2)
    queue.retry(suspect, due=1.0, after_serial=1, is_suspect=True)
    assert queue.take(2, 0.5, False) is fresh  # not due yet
    assert queue.take(2, 1.0, False) is None
    assert queue.take(1, 1.0, False) is other
    assert queue.take(2, 1.0, True) is suspect


def test_retries_come_before_fresh_ones() -> None:
    again, fresh = jobs(2)
    queue = JobQueue(iter([fresh]), 1)
    queue.retry(again, due=0.0, after_serial=0, is_suspect=False)
    assert queue.take(1, 0.0, True) is again
    assert not queue.needs_newer_than(1, 0.0)
    assert queue.take(1, 0.0, True) is fresh


def test_giving_up_takes_everything() -> None:
    again, *fresh = jobs(4)
    queue = JobQueue(iter(fresh), 3)
    queue.retry(again, due=99.0, after_serial=0, is_suspect=False)
    assert list(queue.take_all()) == [again, *fresh]
    assert queue.take(1, 100.0, True) is None


@pytest.mark.parametrize(
    ("tries", "base"),
    [(1, RETRY_DELAYS[0]), (2, RETRY_DELAYS[1]), (3, RETRY_DELAYS[2]), (9, RETRY_DELAYS[2])],
)
def test_the_delay_grows_and_spreads(tries: int, base: float) -> None:
    assert retry_delay(tries, 0.0) == base * 0.5
    assert retry_delay(tries, 0.999) == pytest.approx(base * 1.5, rel=0.01)
