"""When refused clients are told to come again."""

from collections import Counter

from workers.resizer.retry import LONGEST, RetrySchedule
from workers.resizer.task import QueueClient

SECONDS_EACH = 0.1


def schedule() -> RetrySchedule:
    made = RetrySchedule()
    for _ in range(200):
        made.record(SECONDS_EACH)
    return made


def test_the_real_length_of_the_queue_counts() -> None:
    assert schedule().seconds_for(QueueClient(), 50.0, 0, 1) == 1
    assert schedule().seconds_for(QueueClient(), 50.0, 60, 1) == 7
    assert schedule().seconds_for(QueueClient(), 50.0, 60, 2) == 4


def test_refused_clients_come_again_at_the_rate_at_which_they_can_be_served() -> None:
    retries = schedule()
    told = Counter(retries.seconds_for(QueueClient(), 50.0, 20, 1) for _ in range(70))
    assert max(told) <= LONGEST + 1
    assert all(8 <= told[seconds] <= 12 for seconds in range(4, 9)), told


def test_a_client_that_comes_too_early_is_told_the_same_moment_and_puts_nobody_off() -> None:
    retries, hasty = schedule(), QueueClient()
    assert [retries.seconds_for(hasty, 50.0 + 0.5 * number, 50, 1) for number in range(8)] == [
        6,
        5,
        5,
        4,
        4,
        3,
        3,
        2,
    ]
    assert retries.seconds_for(QueueClient(), 50.0, 50, 1) == 6


def test_what_was_told_is_forgotten_as_time_passes() -> None:
    retries = schedule()
    for _ in range(1000):
        retries.seconds_for(QueueClient(), 50.0, 64, 1)
    assert retries.seconds_for(QueueClient(), 50.0, 64, 1) == round(LONGEST + 0.5)
    assert retries.seconds_for(QueueClient(), 65.0, 0, 1) == 1
