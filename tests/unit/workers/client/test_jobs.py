"""The queue: fresh ones in order, failed ones later, elsewhere, and alone."""

import pytest

from workers.client.jobs import BACK_OFF, Job, Queue, back_off
from workers.client.scan import Picture


def jobs(count: int) -> list[Job]:
    return [Job(Picture(f"{n}.jpg", 1, 1, 0), f"{n}-2x2.jpg") for n in range(count)]


def test_fresh_jobs_come_in_order_and_only_when_asked_for() -> None:
    made = []

    def make() -> "list[Job]":
        return made

    def source():  # type: ignore[no-untyped-def]
        for job in jobs(3):
            make().append(job)
            yield job

    queue = Queue(source(), 3)
    assert (queue.ready(0), made) == (3, [])
    first = queue.take(1, 0.0, True)
    assert made == [first]
    assert queue.take(1, 0.0, True) is made[1]
    assert queue.ready(0) == 1
    assert queue.take(1, 0.0, True) is made[2]
    assert queue.take(1, 0.0, True) is None


def test_a_failed_job_waits_and_goes_to_a_newer_connection_only() -> None:
    (job,) = jobs(1)
    queue = Queue(iter([]), 0)
    queue.put_back(job, due=5.0, after=7, is_suspect=False)
    assert queue.take(8, 4.9, True) is None
    assert queue.ready(4.9) == 0
    assert queue.take(7, 5.0, True) is None
    assert queue.is_waiting_for(7, 5.0)
    assert not queue.is_waiting_for(8, 5.0)
    assert queue.take(8, 5.0, False) is job
    assert queue.ready(5.0) == 0


def test_a_suspect_only_goes_to_an_idle_connection() -> None:
    (job,) = jobs(1)
    queue = Queue(iter([]), 0)
    queue.put_back(job, due=0.0, after=1, is_suspect=True)
    assert queue.take(2, 1.0, False) is None
    assert queue.take(2, 1.0, True) is job


def test_a_busy_connection_runs_dry_for_a_suspect_and_an_older_one_does_not() -> None:
    suspect, fresh, other = jobs(3)
    queue = Queue(iter([fresh, other]), 2)
    queue.put_back(suspect, due=1.0, after=1, is_suspect=True)
    assert queue.take(2, 0.5, False) is fresh  # not due yet
    assert queue.take(2, 1.0, False) is None
    assert queue.take(1, 1.0, False) is other
    assert queue.take(2, 1.0, True) is suspect


def test_retries_come_before_fresh_ones() -> None:
    again, fresh = jobs(2)
    queue = Queue(iter([fresh]), 1)
    queue.put_back(again, due=0.0, after=0, is_suspect=False)
    assert queue.take(1, 0.0, True) is again
    assert not queue.is_waiting_for(1, 0.0)
    assert queue.take(1, 0.0, True) is fresh


def test_giving_up_takes_everything() -> None:
    again, *fresh = jobs(4)
    queue = Queue(iter(fresh), 3)
    queue.put_back(again, due=99.0, after=0, is_suspect=False)
    assert list(queue.give_up()) == [again, *fresh]
    assert queue.take(1, 100.0, True) is None


@pytest.mark.parametrize(
    ("tries", "base"), [(1, BACK_OFF[0]), (2, BACK_OFF[1]), (3, BACK_OFF[2]), (9, BACK_OFF[2])]
)
def test_back_off_grows_and_spreads(tries: int, base: float) -> None:
    assert back_off(tries, 0.0) == base * 0.5
    assert back_off(tries, 0.999) == pytest.approx(base * 1.5, rel=0.01)
