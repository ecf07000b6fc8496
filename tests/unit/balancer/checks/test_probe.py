"""One question, exactly one answer, and no descriptor left behind."""

import errno
import socket
from collections.abc import Callable

import pytest

from balancer.checks import probe as module
from balancer.checks.probe import Probe, outcome_of
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
    """What the kernel would say: first to connect(), then through SO_ERROR."""

    first, later = errno.EINPROGRESS, 0
    made = 0

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


@pytest.fixture
def ask(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Probe, FakeLoop, list[tuple[str, float]], list[FakeSocket]]]:
    def start(
        first: int = errno.EINPROGRESS, later: int = 0
    ) -> tuple[Probe, FakeLoop, list[tuple[str, float]], list[FakeSocket]]:
        loop, answers, sockets = FakeLoop(), [], []

        def make(family: int, kind: int) -> FakeSocket:
            sockets.append(FakeSocket(family, kind))
            sockets[-1].first, sockets[-1].later = first, later
            return sockets[-1]

        monkeypatch.setattr(module.socket, "socket", make)
        probe = Probe(loop, TARGET, 2.0, lambda outcome, took: answers.append((outcome, took)))  # type: ignore[arg-type]
        return probe, loop, answers, sockets

    return start


@pytest.mark.parametrize(
    "later, outcome",
    [
        (0, "ok"),
        (errno.ECONNREFUSED, "refused"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ETIMEDOUT, "timeout"),
    ],
)
def test_an_event_ends_it_with_what_the_kernel_says(ask, later, outcome) -> None:  # type: ignore[no-untyped-def]
    probe, loop, answers, sockets = ask(later=later)
    assert not probe.is_over and answers == []
    loop.now += 0.5
    loop.watched[9](4)
    assert answers == [(outcome, 0.5)]
    assert probe.is_over and loop.watched == {} and loop.timers[0].cancelled
    assert [finish() for finish in loop.retired] and sockets[0].closed


def test_its_time_limit_ends_it(ask) -> None:  # type: ignore[no-untyped-def]
    _, loop, answers, _ = ask()
    assert loop.timers[0].when == 102.0
    loop.timers[0].act()
    assert [outcome for outcome, _ in answers] == ["timeout"]
    assert loop.watched == {} and len(loop.retired) == 1


@pytest.mark.parametrize(
    "first, outcome", [(0, "ok"), (errno.ECONNREFUSED, "refused"), (errno.ENOENT, "refused")]
)
def test_an_answer_on_the_spot(ask, first, outcome) -> None:  # type: ignore[no-untyped-def]
    probe, loop, answers, sockets = ask(first=first)
    assert answers == [(outcome, 0.0)]
    assert probe.is_over and sockets[0].closed and loop.watched == {} and loop.timers == []


def test_our_own_want_says_nothing_about_the_backend(ask, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert ask(first=errno.EADDRNOTAVAIL)[2] == [("", 0.0)]

    def no_descriptor(family: int, kind: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module.socket, "socket", no_descriptor)
    answers: list[tuple[str, float]] = []
    Probe(FakeLoop(), TARGET, 2.0, lambda outcome, took: answers.append((outcome, took)))  # type: ignore[arg-type]
    assert answers == [("", 0.0)]


def test_abandon_gives_no_answer(ask) -> None:  # type: ignore[no-untyped-def]
    probe, loop, answers, _ = ask()
    probe.abandon()
    assert answers == [] and loop.watched == {} and loop.timers[0].cancelled and len(loop.retired) == 1


def test_every_outcome_has_its_place_on_the_board() -> None:
    for error in (0, *errno.errorcode):
        assert outcome_of(error) in ("", *CHECK_NAMES)
