"""Signals: a bounded queue of numbers, and a wake-up socket that ends the wait."""

import os
import signal
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

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


def test_a_signal_ends_the_wait_and_is_taken_once(signals: Signals) -> None:
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


def test_blocked_signals_are_delivered_later(signals: Signals) -> None:
    with signals_blocked():
        # To this thread: the process of a test runner may have others.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert not signals.waiting()
    assert signals.take() == signal.SIGUSR1


@pytest.mark.parametrize("blocked", [MINE, (signal.SIGUSR1,), signal.valid_signals()])
def test_a_mask_that_a_parent_has_left_is_empty_once_there_are_handlers(
    signals: Signals, blocked: Collection[signal.Signals]
) -> None:
    """Fails where the mask is kept: the process would hear nothing of what is blocked."""
    signals.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        again = Signals(MINE)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        assert again.take() == signal.SIGUSR1
        again.close()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def test_neither_a_group_nor_a_process_that_is_gone_is_signalled() -> None:
    assert send(0, signal.SIGTERM) is False
    assert send(-1, signal.SIGTERM) is False
    assert send(int(Path("/proc/sys/kernel/pid_max").read_text()) + 1, signal.SIGTERM) is False
    assert send(os.getpid(), 0) is True
