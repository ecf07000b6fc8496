"""The buffered connection over socket pairs: bytes both ways, limits, and every way to end."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from balancer.eventloop.connection import (
    BufferedConnection,
    ConnectionLimits,
    ConnectionProtocol,
    ConnectionState,
)
from balancer.eventloop.loop import Loop
from tests.unit.balancer.eventloop.sockets import received, reset, tcp_pair, unix_pair


class Record(ConnectionProtocol):
    """A protocol that notes its calls. `where`: the place to read into; `then`: called after each read."""

    def __init__(self) -> None:
        self.connection: BufferedConnection
        self.calls: list[object] = []
        self.data = b""
        self.where: memoryview | None = None
        self.then: Any = lambda: None

    def opened(self) -> None:
        self.calls.append("opened")

    def place(self) -> memoryview | None:
        return self.where

    def received(self, data: memoryview) -> None:
        self.data += bytes(data)
        self.then()

    def ended(self) -> None:
        self.calls.append("ended")

    def sent(self, count: int) -> None:
        self.calls.append(count)

    def expired(self) -> None:
        self.calls.append("expired")

    def closed(self, reason: str) -> None:
        self.calls.append(f"closed {reason}")


class Fixture:
    """A connection on one end of a pair; `far` is the peer's."""

    def __init__(self, over_tcp: bool = True, **limits: Any) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        near, self.far = tcp_pair() if over_tcp else unix_pair()
        self.owner: list[str] = []
        self.protocol = Record()
        self.connection = BufferedConnection(
            self.loop, near, lambda _, reason: self.owner.append(reason), ConnectionLimits(**limits)
        )
        self.protocol.connection = self.connection
        self.connection.start(self.protocol)

    def turn(self, turns: int = 4) -> None:
        for _ in range(turns):
            self.loop.run_once(0)

    def say(self, data: bytes) -> None:
        assert self.far.send(data) == len(data)
        self.turn()

    def close(self) -> None:
        self.connection.close("the test is over")
        self.turn()
        self.far.close()
        self.loop.close()
        assert self.connection.sock.fileno() == -1


@pytest.fixture(params=[True, False], ids=["tcp", "unix"])
def fixture(request: pytest.FixtureRequest) -> Iterator[Fixture]:
    fixture = Fixture(request.param)
    yield fixture
    fixture.close()


def test_bytes_both_ways(fixture: Fixture) -> None:
    fixture.say(b"hello")
    fixture.connection.write((b"an", memoryview(b"swer")))
    fixture.connection.write((b"!",))
    assert received(fixture.far) == b"|open", "queued until flush"
    fixture.connection.flush()
    assert received(fixture.far) == b"answer!|open"
    assert (fixture.protocol.data, fixture.protocol.calls) == (b"hello", [7])
    assert (fixture.connection.bytes_in, fixture.connection.bytes_out) == (5, 7)


def test_what_is_written_while_reading_goes_out_in_one_call(fixture: Fixture) -> None:
    fixture.protocol.where = memoryview(bytearray(2))
    fixture.protocol.then = lambda: fixture.connection.write((b"x",))
    fixture.say(b"12345")
    assert received(fixture.far) == b"xxx|open"
    assert fixture.protocol.calls == [3]


def test_it_reads_straight_into_the_place_and_not_a_byte_beyond(fixture: Fixture) -> None:
    place = memoryview(bytearray(8))
    fixture.protocol.where = place[:4]
    fixture.protocol.then = lambda: setattr(fixture.connection, "is_paused", True)
    fixture.say(b"123456")
    assert (bytes(place), fixture.protocol.data) == (b"1234\0\0\0\0", b"1234")
    fixture.say(b"78")
    assert fixture.protocol.data == b"1234", "it is paused"
    fixture.connection.is_paused = False
    fixture.connection.read()
    assert fixture.protocol.data == b"12345678"


def test_a_turn_is_bounded() -> None:
    fixture = Fixture(turn_bytes=10)
    fixture.protocol.where = memoryview(bytearray(4))
    fixture.far.send(b"x" * 30)
    fixture.loop.run_once(0)
    assert len(fixture.protocol.data) == 12
    fixture.loop.run_once(0)
    assert len(fixture.protocol.data) == 24
    fixture.turn()
    assert len(fixture.protocol.data) == 30
    fixture.close()


def test_the_rest_follows_when_the_socket_has_room(fixture: Fixture) -> None:
    data = os.urandom(4 << 20)
    released: list[str] = []
    fixture.connection.write((data,), lambda: released.append("once"))
    fixture.connection.flush()
    assert 0 < fixture.connection.output.pending < len(data) and not released
    found = b""
    while len(found) < len(data):
        found += received(fixture.far).removesuffix(b"|open")
        fixture.loop.run_once(0)
    assert found == data
    assert (released, sum(fixture.protocol.calls)) == (["once"], len(data))  # type: ignore[arg-type]


def test_a_slow_peer_keeps_no_borrowed_memory() -> None:
    fixture = Fixture(copy_bytes=64)
    released: list[str] = []
    with contextlib.suppress(BlockingIOError):
        while fixture.connection.sock.send(bytes(1 << 20)):
            pass
    fixture.connection.write((bytes(64),), lambda: released.append("once"))
    fixture.connection.flush()
    assert (released, fixture.connection.output.pending) == (["once"], 64)
    fixture.close()


# -- ends


def test_the_peers_fin_is_seen_behind_its_data_and_the_answer_still_goes(fixture: Fixture) -> None:
    fixture.far.send(b"last")
    fixture.far.shutdown(socket.SHUT_WR)
    fixture.turn()
    assert (fixture.protocol.data, fixture.protocol.calls) == (b"last", ["ended"])
    assert fixture.connection.state is ConnectionState.ENDED
    fixture.connection.write((b"answer",))
    fixture.connection.finish()
    fixture.connection.flush()
    assert fixture.connection.state is ConnectionState.CLOSED
    assert received(fixture.far) == b"answer|end"
    assert (fixture.protocol.calls, fixture.owner) == (["ended", 6, "closed done"], ["done"])


def test_an_answer_survives_what_the_peer_still_sends(fixture: Fixture) -> None:
    """close(2) over unread bytes would send a reset, which overtakes the answer."""
    fixture.protocol.then = fixture.connection.finish
    fixture.connection.write((b"refused",))
    for _ in range(8):
        fixture.say(b"x" * 50_000)
    assert received(fixture.far) == b"refused|end"
    assert len(fixture.protocol.data) <= 1 << 16, "thrown away unseen"
    assert fixture.connection.state is ConnectionState.LINGERING
    fixture.far.close()
    fixture.turn()
    assert fixture.owner == ["done"]


def test_lingering_is_bounded_in_time_and_bytes() -> None:
    slow, eager = Fixture(linger_seconds=2.0), Fixture(linger_bytes=1000)
    for fixture in (slow, eager):
        fixture.connection.finish()
        assert received(fixture.far) == b"|end"
    slow.now += 1.9
    slow.turn()
    assert slow.owner == []
    slow.now += 0.2
    slow.turn()
    assert slow.owner == ["done"]
    eager.say(bytes(999))
    assert eager.owner == []
    eager.say(bytes(1))
    assert eager.owner == ["done"]
    slow.close()
    eager.close()


def test_a_reset_closes_at_once_and_releases_what_was_queued(fixture: Fixture) -> None:
    released: list[str] = []
    fixture.connection.write((b"1",), lambda: released.append("once"))
    fixture.far.send(b"unread")
    reset(fixture.far)
    fixture.turn()
    assert fixture.owner == ["reset"] and released == ["once"] and fixture.protocol.data == b""
    fixture.connection.write((b"2",), lambda: released.append("twice"))
    fixture.connection.flush()
    fixture.connection.finish()
    fixture.connection.close("again")
    assert (fixture.owner, released) == (["reset"], ["once", "twice"])
    assert fixture.protocol.calls == ["closed reset"]


@pytest.mark.parametrize("over_tcp", [True, False])
def test_a_client_reads_what_was_sent_before_the_reset(over_tcp: bool) -> None:
    fixture = Fixture(over_tcp, reads_after_reset=True)
    fixture.far.send(b"answer")
    if over_tcp:
        fixture.connection.sock.send(b"unread there")
    fixture.far.close()  # over unread bytes: TCP sends a reset
    fixture.turn()
    assert fixture.protocol.data == b"answer"
    if over_tcp:
        assert fixture.owner == ["reset"] and fixture.connection.error is not None
        assert fixture.connection.error.errno == errno.ECONNRESET
    else:
        assert fixture.protocol.calls == ["ended"]
    fixture.close()


@pytest.mark.parametrize(("reads", "data"), [(True, b"answer"), (False, b"")])
def test_a_send_that_fails_ends_it_after_what_there_is_to_read(reads: bool, data: bytes) -> None:
    fixture = Fixture(over_tcp=False, reads_after_reset=reads)
    fixture.far.send(b"answer")
    fixture.far.close()
    fixture.connection.write((b"x",))
    fixture.connection.flush()
    assert (fixture.protocol.data, fixture.owner) == (data, ["reset"])
    assert isinstance(fixture.connection.error, BrokenPipeError)
    fixture.close()


def test_nothing_reaches_a_connection_closed_in_the_same_batch(fixture: Fixture) -> None:
    fixture.far.send(b"data")
    fixture.loop.call_next_turn(fixture.connection.read)
    fixture.connection.close("first")
    fixture.turn()
    assert (fixture.protocol.data, fixture.owner) == (b"", ["first"])


# -- deadlines


def test_a_deadline_may_move_both_ways(fixture: Fixture) -> None:
    fixture.connection.set_deadline(5.0)
    for seconds, calls in ((4.0, 0), (2.0, 0)):
        fixture.now += seconds
        fixture.connection.set_deadline(5.0)
        fixture.turn()
        assert len(fixture.protocol.calls) == calls
    fixture.connection.set_deadline(1.0)
    fixture.now += 1.1
    fixture.turn()
    assert fixture.protocol.calls == ["expired"]
    fixture.connection.set_deadline(1.0)
    fixture.connection.set_deadline(float("inf"))
    fixture.now += 99
    fixture.turn()
    assert fixture.protocol.calls == ["expired"]


def test_many_deadlines_are_one_timer(fixture: Fixture) -> None:
    timers: list[float] = []
    call_at = fixture.loop.call_at
    fixture.loop.call_at = lambda when, act: timers.append(when) or call_at(when, act)  # type: ignore[method-assign]
    for _ in range(100):
        fixture.now += 0.01
        fixture.turn(1)
        fixture.connection.set_deadline(5.0)
    assert len(timers) == 1


# -- connecting


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_connect_that_succeeds(family: int) -> None:
    server = socket.socket(family)
    server.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
    server.listen()
    loop, protocol = Loop(), Record()
    connection = BufferedConnection(loop, socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    connection.connect(server.getsockname(), protocol)
    assert connection.state is ConnectionState.CONNECTING
    connection.write((b"early",))
    connection.flush()
    for _ in range(4):
        loop.run_once(0)
    peer, _ = server.accept()
    assert protocol.calls == ["opened", 5] and peer.recv(9) == b"early"
    for end in (peer, server):
        end.close()
    connection.close("")
    loop.run_once(0)
    loop.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_connect_that_fails_is_told_from_the_loop(family: int) -> None:
    with socket.socket(family) as server:  # bound, not listening
        server.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
        loop, protocol = Loop(), Record()
        connection = BufferedConnection(
            loop, socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        )
        connection.connect(server.getsockname(), protocol)
        assert protocol.calls == []
        for _ in range(4):
            loop.run_once(0)
        assert protocol.calls == ["closed connect"]
        assert connection.error is not None and connection.error.errno == errno.ECONNREFUSED
        loop.close()
