"""The acceptor: how many at a time, from which sockets, and what happens when there is no room."""

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from balancer.eventloop.acceptor import (
    MAX_ACCEPTS,
    REPORT_SECONDS,
    REST_SECONDS,
    Accepted,
    Acceptor,
    ShortageLog,
    socket_of,
)
from balancer.eventloop.loop import Loop
from scripts.lab.network import has_ipv6


class ListeningSocket(socket.socket):
    """A listening unix socket in the abstract namespace whose accept(2) fails as told."""

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX)
        self.bind("")
        self.listen(64)
        self.failures: list[int] = []
        self.asked = 0

    def _accept(self) -> Accepted:
        self.asked += 1
        if self.failures:
            raise OSError(self.failures.pop(0), "as told")
        return super()._accept()  # type: ignore[misc, no-any-return]


class Fixture:
    """An acceptor on two listening sockets, with a clock that the test turns."""

    def __init__(self, **arguments: Any) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        self.lines: list[str] = []
        self.batches: list[int] = []
        self.accepted: list[int] = []
        self.changes: list[bool] = []
        self.gone: list[socket.socket] = []
        self.clients: list[socket.socket] = []
        self.limit = 1000
        self.sockets = [ListeningSocket(), ListeningSocket()]
        self.acceptor = Acceptor(
            self.loop,
            self.begin,
            ShortageLog(self.loop, self, lambda: {"open": len(self.accepted)}),  # type: ignore[arg-type]
            room=lambda: self.limit - len(self.accepted),
            on_shutdown=self.gone.append,
            on_change=lambda: self.changes.append(self.acceptor.is_accepting),
            **arguments,
        )
        self.acceptor.serve(self.sockets)

    def warning(self, verb: str, **fields: object) -> None:
        self.lines.append(f"{verb} " + " ".join(f"{key}={value}" for key, value in fields.items()))

    def begin(self, batch: list[Accepted]) -> None:
        self.batches.append(len(batch))
        self.accepted += [fd for fd, _ in batch]

    def connect(self, count: int = 1, to: int = 0) -> None:
        for _ in range(count):
            client = socket.socket(socket.AF_UNIX)
            client.connect(self.sockets[to].getsockname())
            self.clients.append(client)

    def turn(self, turns: int = 1) -> None:
        for _ in range(turns):
            self.loop.run_once(0)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.turn(3)

    def close(self) -> None:
        for fd in self.accepted:
            os.close(fd)
        for sock in (*self.clients, *self.sockets):
            sock.close()
        self.loop.close()


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.close()


def test_accepts_double_while_the_queue_is_found_filled(fixture: Fixture) -> None:
    fixture.turn(3)
    fixture.connect(40)
    fixture.turn(7)
    assert fixture.batches == [1, 2, 4, 8, MAX_ACCEPTS, 40 - 31]
    fixture.connect(3)
    fixture.turn()
    assert fixture.batches[-1] == 1, "after a turn without clients it begins with one again"


def test_only_the_named_sockets_are_served(fixture: Fixture) -> None:
    fixture.acceptor.serve(fixture.sockets[1:])
    fixture.connect(1, to=0)
    fixture.turn(3)
    assert fixture.batches == [] and fixture.acceptor.is_accepting
    fixture.acceptor.serve([])
    assert not fixture.acceptor.is_accepting
    fixture.connect(1, to=1)
    fixture.turn(3)
    assert fixture.batches == []
    fixture.acceptor.serve(fixture.sockets)
    fixture.turn(3)
    assert fixture.batches == [1, 1]
    assert fixture.changes == [True, True, False, True]


def test_a_closed_socket_is_left_out_and_its_number_may_be_another_ones(fixture: Fixture) -> None:
    fixture.acceptor.serve(fixture.sockets[1:])
    number = fixture.sockets[0].fileno()
    fixture.sockets[0].close()
    fixture.acceptor.serve(fixture.sockets)
    fixture.sockets[0] = ListeningSocket()
    assert fixture.sockets[0].fileno() == number
    fixture.acceptor.serve(fixture.sockets)
    fixture.connect(1, to=0)
    fixture.turn()
    assert fixture.batches == [1]


def test_what_waits_is_accepted_before_the_queues_are_left(fixture: Fixture) -> None:
    fixture.connect(30, to=0)
    fixture.connect(20, to=1)
    fixture.acceptor.accept_waiting()
    assert len(fixture.accepted) == 50


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EIO])
def test_out_of_something_all_sockets_rest(fixture: Fixture, code: int) -> None:
    first, second = fixture.sockets
    first.failures = [code, code]
    fixture.connect(2, to=0)
    fixture.turn()
    asked = second.asked
    fixture.connect(1, to=1)
    fixture.turn(20)
    assert (first.asked, second.asked, fixture.acceptor.is_accepting) == (1, asked, False)
    fixture.pass_time(REST_SECONDS * 0.9)
    assert first.asked == 1
    fixture.pass_time(REST_SECONDS * 0.2)
    assert first.asked == 2
    fixture.pass_time(REST_SECONDS * 1.1)
    fixture.turn(3)
    assert len(fixture.accepted) == 3 and fixture.acceptor.is_accepting
    name = errno.errorcode[code]
    assert fixture.lines == [f"accept error={name} open=0 then=again in 0.2 s"], (
        "once, not five times a second"
    )
    first.failures = [code]
    fixture.connect(1, to=0)
    fixture.pass_time(REPORT_SECONDS)
    assert len(fixture.lines) == 2


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EHOSTUNREACH])
def test_a_connection_that_died_in_the_queue_is_passed_over(fixture: Fixture, code: int) -> None:
    fixture.sockets[0].failures = [code]
    fixture.connect(1)
    fixture.turn(2)
    assert len(fixture.accepted) == 1 and fixture.acceptor.is_accepting and fixture.lines == []


def test_no_more_than_there_is_room_for(fixture: Fixture) -> None:
    fixture.limit = 3
    fixture.connect(5)
    fixture.turn(10)
    assert len(fixture.accepted) == 3 and not fixture.acceptor.is_accepting
    assert fixture.lines == ["accept error=limit open=3 then=again in 0.2 s"]
    fixture.pass_time(REST_SECONDS)
    assert not fixture.acceptor.is_accepting
    fixture.limit = 4
    fixture.acceptor.resume()
    fixture.turn(10)
    assert len(fixture.accepted) == 4 and not fixture.acceptor.is_accepting
    fixture.limit = 5
    fixture.pass_time(REST_SECONDS)
    assert len(fixture.accepted) == 5


def test_a_place_is_acquired_first_and_released_when_there_was_no_connection() -> None:
    places = [3]

    def acquire() -> bool:
        if not places[0]:
            fixture.acceptor.rest(0.02)
            return False
        places[0] -= 1
        return True

    def release() -> None:
        places[0] += 1

    fixture = Fixture(acquire=acquire, release=release)
    fixture.connect(2)
    fixture.acceptor.accept_waiting()
    assert (fixture.batches, places) == ([2], [1]), "the accept that found nothing has given its place back"
    fixture.connect(2)
    fixture.turn(4)
    assert (len(fixture.accepted), places) == (3, [0])
    assert not fixture.acceptor.is_accepting and fixture.lines == []
    places[0] = 1
    fixture.acceptor.resume()
    fixture.turn(2)
    assert len(fixture.accepted) == 4
    fixture.close()


def test_a_socket_that_was_shut_down_is_let_go_of(fixture: Fixture) -> None:
    """A reload has removed its address: level-triggered, it would be reported in every turn."""
    first = fixture.sockets[0]
    first.shutdown(socket.SHUT_RD)
    first.failures = [errno.EINVAL] * 3  # as TCP; a unix socket that was shut down for reading goes on
    fixture.connect(1, to=1)
    fixture.turn(3)
    asked = first.asked
    fixture.turn(3)
    assert (fixture.gone, first.asked, len(fixture.accepted)) == ([first], asked, 1)
    assert fixture.acceptor.is_accepting
    assert first.fileno() >= 0, "it is the owner's to close"


def test_the_family_is_told_by_the_address() -> None:
    loopbacks = {socket.AF_INET: "127.0.0.1"} | ({socket.AF_INET6: "::1"} if has_ipv6() else {})
    for family, host in loopbacks.items():
        with socket.create_server((host, 0), family=family) as server:
            with socket.create_connection(server.getsockname()[:2]):
                fd, address = server._accept()  # type: ignore[attr-defined]
                with socket_of((fd, address)) as sock:
                    assert (sock.family, sock.getpeername(), sock.getblocking()) == (family, address, False)
