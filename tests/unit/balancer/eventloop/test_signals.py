"""Signals become words in a queue and a byte that wakes."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from balancer.eventloop.signals import QUEUED, Signals, send, signals_blocked, wait_readable

MINE = (signal.SIGUSR1, signal.SIGTTIN, signal.SIGHUP)


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in MINE}
    made = Signals(MINE)
    yield made
    made.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_wakes_the_sleeper_and_is_taken_once(signals: Signals) -> None:
    assert wait_readable([signals.fileno()], 0) == []
    os.kill(os.getpid(), signal.SIGHUP)
    assert wait_readable([signals.fileno()], 1) == [signals.fileno()]
    signals.clear_wakeup()
    assert wait_readable([signals.fileno()], 0) == []
    assert signals.waiting()
    assert signals.take() == signal.SIGHUP
    assert signals.take() is None and not signals.waiting()


def test_order_is_kept_and_repeats_coalesce_unless_they_count(signals: Signals) -> None:
    for number in (signal.SIGUSR1, signal.SIGTTIN, signal.SIGUSR1, signal.SIGTTIN, signal.SIGHUP):
        signals.note(number)
    taken = []
    while (number := signals.take()) is not None:
        taken.append(number)
    assert taken == [signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTIN, signal.SIGHUP]


def test_a_flood_is_bounded(signals: Signals) -> None:
    for _ in range(10 * QUEUED):
        signals.note(signal.SIGTTIN)
        signals.note(signal.SIGUSR1)
    taken = 0
    while signals.take() is not None:
        taken += 1
    assert taken == QUEUED + 1


def test_signals_wait_while_signals_blocked(signals: Signals) -> None:
    with signals_blocked():
        # To this thread and not to the process: a test runner may have others.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert not signals.waiting()
    assert signals.take() == signal.SIGUSR1


def test_no_group_and_nobody_dead_is_signalled() -> None:
    assert send(0, signal.SIGTERM) is False
    assert send(-1, signal.SIGTERM) is False
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    assert send(pid, signal.SIGTERM) is False
    assert send(os.getpid(), 0) is True
