"""A check: exactly one outcome, and no descriptor left behind."""

import errno
import os
import socket
from collections.abc import Callable
from typing import ClassVar

import pytest

from balancer.checks.agent import listen
from balancer.checks.check import parse_check_line
from balancer.checks.probe import FAREWELL, MOST_READS, STAYS, Probe, outcome_of
from balancer.checks.protocols import dialogue_of
from balancer.checks.talk import Dialogue
from balancer.edge.proxy_protocol import SendProxy
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
    """What connect() returns first, what SO_ERROR says later, and what the peer does then."""

    first, later = errno.EINPROGRESS, 0
    peer: str = "silent"  # or "speaks", "ends", "resets"
    is_unix = False
    talk: ClassVar[list[bytes]] = []  # what a talk reads: b"" is its end, no item is silence

    def __init__(self, family: int, kind: int) -> None:
        assert kind & socket.SOCK_NONBLOCK
        self.closed = False
        self.sent: list[bytes] = []

    def fileno(self) -> int:
        return 9

    def connect_ex(self, address: object) -> int:
        assert address == TARGET[1]
        return self.first

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.later

    def getsockname(self) -> object:
        return "" if self.is_unix else ("192.0.2.9", 40000)

    def getpeername(self) -> object:
        return "/run/a" if self.is_unix else TARGET[1]

    def send(self, data: bytes) -> int:
        if self.peer == "resets":
            raise BrokenPipeError(errno.EPIPE, "no reader")
        self.sent.append(data)
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not flags and self.talk:
            said = self.talk.pop(0)
            if isinstance(said, OSError):
                raise said
            return said
        if not flags:
            raise BlockingIOError(errno.EAGAIN, "nothing yet")
        assert flags == socket.MSG_PEEK  # what a peer says is its next reader's
        if self.peer == "silent":
            raise BlockingIOError(errno.EAGAIN, "nothing yet")
        if self.peer == "resets":
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return b"2" if self.peer == "speaks" else b""

    def close(self) -> None:
        self.closed = True


class Check:
    """A probe on a fake loop and a fake socket, and what it reported."""

    def __init__(
        self,
        first: int = errno.EINPROGRESS,
        later: int = 0,
        no_socket: int = 0,
        peer: str = "silent",
        send_proxy: SendProxy | None = None,
        dialogue: Dialogue | None = None,
        is_unix: bool = False,
    ) -> None:
        self.loop = FakeLoop()
        self.outcomes: list[tuple[str, float]] = []
        self.sockets: list[FakeSocket] = []
        self.first, self.later, self.no_socket, self.peer = first, later, no_socket, peer
        self.is_unix = is_unix
        self.probe = Probe(self.loop, TARGET, 2.0, self.done, send_proxy, dialogue, self.make)  # type: ignore[arg-type]

    def done(self, outcome: str, seconds: float, came: str) -> None:
        self.outcomes.append((outcome, seconds))
        self.came = came

    def make(self, family: int, kind: int) -> FakeSocket:
        if self.no_socket:
            raise OSError(self.no_socket, os.strerror(self.no_socket))
        self.sockets.append(FakeSocket(family, kind))
        made = self.sockets[-1]
        made.first, made.later, made.peer = self.first, self.later, self.peer
        made.is_unix = self.is_unix
        return self.sockets[-1]


@pytest.mark.parametrize(
    "later, outcome",
    [
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


@pytest.mark.parametrize("first", [0, errno.EINPROGRESS])
def test_a_connection_that_stays_is_good_after_a_moment(first: int) -> None:
    check = Check(first=first)
    check.loop.now += 0.5
    if first:
        check.loop.watched[9](4)
        assert check.loop.timers[0].cancelled
    assert check.outcomes == [] and not check.probe.is_over
    timer = check.loop.timers[-1]
    assert timer.when == pytest.approx((100.5 if first else 100.0) + STAYS)
    check.loop.now = timer.when
    timer.act()
    assert check.outcomes == [("ok", 0.5 if first else 0.0)]  # how long the connect took
    assert check.probe.is_over and check.loop.watched == {}
    assert [finish() for finish in check.loop.retired] and check.sockets[0].closed


def test_it_waits_no_longer_than_its_time_limit_leaves() -> None:
    check = Check()
    check.loop.now += 1.95
    check.loop.watched[9](4)
    assert check.loop.timers[-1].when == 102.0


@pytest.mark.parametrize("first", [0, errno.EINPROGRESS])
@pytest.mark.parametrize("peer, outcome", [("speaks", "ok"), ("ends", "closed"), ("resets", "closed")])
@pytest.mark.parametrize("is_late", [False, True])
def test_what_the_peer_does_right_after_the_connect(
    first: int, peer: str, outcome: str, is_late: bool
) -> None:
    check = Check(first=first, peer="silent" if is_late else peer)
    if first:
        check.loop.watched[9](4)
    if is_late:
        assert check.outcomes == []
        check.sockets[0].peer = peer
        check.loop.now += 0.05
        check.loop.watched[9](1)
    assert [one for one, _ in check.outcomes] == [outcome]
    assert check.probe.is_over and check.loop.watched == {} and check.loop.timers[-1].cancelled


def test_a_reset_before_the_connect_was_seen_is_no_refusal() -> None:
    check = Check(later=errno.ECONNRESET)
    check.sockets[0].peer = "ends"  # SO_ERROR has been read: recv(2) tells an end only
    check.loop.watched[9](4 | 8)
    assert [one for one, _ in check.outcomes] == ["closed"]


@pytest.mark.parametrize("first, outcome", [(errno.ECONNREFUSED, "refused"), (errno.ENOENT, "refused")])
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


V1 = b"PROXY TCP4 192.0.2.9 192.0.2.1 40000 80\r\n"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


@pytest.mark.parametrize("first", [0, errno.EINPROGRESS])
@pytest.mark.parametrize(
    "send, is_unix, header",
    [
        (None, False, []),
        (SendProxy(1), False, [V1]),
        (SendProxy(1), True, [b"PROXY UNKNOWN\r\n"]),
        (SendProxy(2), False, [LOCAL]),
        (SendProxy(2, frozenset({"crc32c"})), True, [LOCAL]),
    ],
)
def test_a_backend_that_expects_a_header_gets_it_once(
    first: int, send: SendProxy | None, is_unix: bool, header: list[bytes]
) -> None:
    check = Check(first=first, send_proxy=send, is_unix=is_unix)
    if first:
        assert check.sockets[0].sent == []
        check.loop.watched[9](4)
    check.loop.watched[9](4)
    assert check.sockets[0].sent == header and check.outcomes == []
    check.loop.timers[-1].act()
    assert [one for one, _ in check.outcomes] == ["ok"]


def test_a_peer_that_is_gone_before_the_header_is_one_that_closes() -> None:
    check = Check(first=0, peer="resets", send_proxy=SendProxy(2))
    assert [one for one, _ in check.outcomes] == ["closed"]


def test_the_header_comes_before_the_talk() -> None:
    check = Check(first=0, send_proxy=SendProxy(2), dialogue=dialogue_of(parse_check_line("redis"), "a"))  # type: ignore[arg-type]
    assert check.sockets[0].sent == [LOCAL, b"PING\r\n"]


# -- a talk


def talking(line: str, first: int = errno.EINPROGRESS) -> Check:
    """A check with a talk, connected."""
    check = Check(first=first, dialogue=dialogue_of(parse_check_line(line), "a"))  # type: ignore[arg-type]
    if first:
        check.loop.watched[9](4)
    return check


def hear(check: Check, *said: bytes | OSError, after: float = 0.25) -> None:
    check.sockets[0].talk = list(said)
    check.loop.now += after
    check.loop.watched[9](1)


@pytest.mark.parametrize("first", [0, errno.EINPROGRESS])
def test_a_talk_is_had_once_connected_and_its_outcome_is_the_checks(first: int) -> None:
    check = talking("redis", first)
    assert check.sockets[0].sent == [b"PING\r\n"] and not check.outcomes
    hear(check, b"+PO")
    hear(check, b"NG\r\n")
    assert check.outcomes == [("ok", 0.5)] and check.probe.is_over and check.loop.timers[-1].cancelled


@pytest.mark.parametrize(
    "said, outcome, came",
    [
        ([b"-LOADING\r\n"], "reply", "-LOADING"),
        ([b"+PO", b""], "closed", "+PO"),
        ([b""], "closed", ""),
    ],
)
def test_what_came_instead_is_told(said: list[bytes], outcome: str, came: str) -> None:
    check = talking("redis")
    hear(check, *said)
    assert [one for one, _ in check.outcomes] == [outcome] and check.came == came


def test_a_talk_that_does_not_end_fails_by_the_time_limit_with_what_came() -> None:
    check = talking("redis")
    hear(check, b"+PO")
    assert check.outcomes == []
    check.loop.timers[-1].act()
    assert [one for one, _ in check.outcomes] == ["timeout"] and check.came == "+PO"


@pytest.mark.parametrize("said", [b"", ConnectionResetError(errno.ECONNRESET, "reset")])
def test_what_a_reset_cuts_is_no_line_of_an_agent(said: bytes | OSError) -> None:
    check = Check(first=0, dialogue=Dialogue(listen))
    hear(check, b"up maxconn:3", said)
    assert [one for one, _ in check.outcomes] == ["ok" if said == b"" else "closed"]


def test_after_the_last_word_the_service_closes_and_the_outcome_waits_for_that() -> None:
    check = talking("smtp")
    hear(check, b"220 here\r\n")
    assert check.sockets[0].sent == [b"QUIT\r\n"]
    hear(check, b"221 bye\r\n")
    assert check.outcomes == [] and check.loop.timers[-1].when == check.loop.now + FAREWELL
    hear(check, b"", after=0.5)
    assert check.outcomes == [("ok", 0.5)], "seconds until the outcome"


@pytest.mark.parametrize("greeting, outcome", [(b"220 here\r\n221 bye\r\n", "ok"), (b"554 no\r\n", "reply")])
def test_a_service_that_does_not_close_is_closed_after_a_while(greeting: bytes, outcome: str) -> None:
    check = talking("smtp")
    hear(check, greeting)
    assert check.outcomes == [] and check.sockets[0].sent == [b"QUIT\r\n"]
    check.loop.timers[-1].act()
    assert [one for one, _ in check.outcomes] == [outcome] and check.probe.is_over


def test_a_service_that_never_stops_is_read_a_bounded_time() -> None:
    check = talking("http GET /")
    hear(check, b"HTTP/1.1 200 OK\r\n", *[b"x" * 4096] * 100)
    assert [one for one, _ in check.outcomes] == ["ok"]
    assert len(check.sockets[0].talk) == 101 - MOST_READS
