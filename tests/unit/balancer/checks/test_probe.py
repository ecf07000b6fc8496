"""A check: exactly one outcome, and no descriptor left behind."""

import errno
import os
import socket
from collections.abc import Callable

import pytest

from balancer.checks.probe import Probe, outcome_of
from balancer.eventloop.errnos import CAPACITY, CROWDED
from balancer.pool.board import CHECK_NAMES

TARGET = (int(socket.AF_INET), ("192.0.2.1", 80))


class FakeTimer:
    def __init__(self, when: float, act: Callable[[], object]) -> None:
        self.when, self.act, self.cancelled = when, act, False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    def __init__(self) -> None:
        self.now = 100.0
        self.watched: dict[int, Callable[[int], object]] = {}
        self.timers: list[FakeTimer] = []
        self.retired: list[Callable[[], object]] = []

    def watch(self, fd: int, handler: Callable[[int], object]) -> None:
        self.watched[fd] = handler

    def forget(self, fd: int) -> None:
        del self.watched[fd]

    def call_at(self, when: float, act: Callable[[], object]) -> FakeTimer:
        self.timers.append(FakeTimer(when, act))
        return self.timers[-1]

    def retire(self, finish: Callable[[], object]) -> None:
        self.retired.append(finish)


class FakeSocket:
    """What connect() returns first, and what SO_ERROR says later."""

    first, later = errno.EINPROGRESS, 0

    def __init__(self, family: int, kind: int) -> None:
        assert kind & socket.SOCK_NONBLOCK
        self.closed = False

    def fileno(self) -> int:
        return 9

    def connect_ex(self, address: object) -> int:
        assert address == TARGET[1]
        return self.first

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.later

    def close(self) -> None:
        self.closed = True


class Check:
    """A probe on a fake loop and a fake socket, and what it reported."""

    def __init__(self, first: int = errno.EINPROGRESS, later: int = 0, no_socket: int = 0) -> None:
        self.loop = FakeLoop()
        self.outcomes: list[tuple[str, float]] = []
        self.sockets: list[FakeSocket] = []
        self.first, self.later, self.no_socket = first, later, no_socket
        self.probe = Probe(self.loop, TARGET, 2.0, self.done, self.make)  # type: ignore[arg-type]

    def done(self, outcome: str, seconds: float) -> None:
        self.outcomes.append((outcome, seconds))

    def make(self, family: int, kind: int) -> FakeSocket:
        if self.no_socket:
            raise OSError(self.no_socket, os.strerror(self.no_socket))
        self.sockets.append(FakeSocket(family, kind))
        self.sockets[-1].first, self.sockets[-1].later = self.first, self.later
        return self.sockets[-1]


@pytest.mark.parametrize(
    "later, outcome",
    [
        (0, "ok"),
        (errno.ECONNREFUSED, "refused"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ETIMEDOUT, "timeout"),
    ],
)
def test_an_event_ends_it_with_the_pending_error(later: int, outcome: str) -> None:
    check = Check(later=later)
    assert not check.probe.is_over and check.outcomes == []
    check.loop.now += 0.5
    check.loop.watched[9](4)
    assert check.outcomes == [(outcome, 0.5)]
    assert check.probe.is_over and check.loop.watched == {} and check.loop.timers[0].cancelled
    assert [finish() for finish in check.loop.retired] and check.sockets[0].closed


def test_its_time_limit_ends_it() -> None:
    check = Check()
    assert check.loop.timers[0].when == 102.0
    check.loop.timers[0].act()
    assert [outcome for outcome, _ in check.outcomes] == ["timeout"]
    assert check.loop.watched == {} and len(check.loop.retired) == 1


@pytest.mark.parametrize(
    "first, outcome", [(0, "ok"), (errno.ECONNREFUSED, "refused"), (errno.ENOENT, "refused")]
)
def test_a_connect_that_ends_at_once(first: int, outcome: str) -> None:
    check = Check(first=first)
    assert check.outcomes == [(outcome, 0.0)]
    assert check.probe.is_over and check.sockets[0].closed
    assert check.loop.watched == {} and check.loop.timers == []


def test_a_local_shortage_says_nothing_about_the_backend() -> None:
    assert Check(first=errno.EADDRNOTAVAIL).outcomes == [("", 0.0)]
    assert Check(no_socket=errno.EMFILE).outcomes == [("", 0.0)]
    assert Check(no_socket=errno.EAFNOSUPPORT).outcomes == [("error", 0.0)]


def test_abandon_reports_nothing() -> None:
    check = Check()
    check.probe.abandon()
    assert check.outcomes == [] and check.loop.watched == {}
    assert check.loop.timers[0].cancelled and len(check.loop.retired) == 1


@pytest.mark.parametrize("error", sorted(CAPACITY | CROWDED))
def test_what_is_short_here_and_a_queue_that_is_full_say_nothing_of_the_backend(error: int) -> None:
    assert outcome_of(error) == ""


def test_every_outcome_has_its_place_on_the_board() -> None:
    for error in (0, *errno.errorcode):
        assert outcome_of(error) in ("", *CHECK_NAMES)
