"""The loop over socket pairs, with a clock that the test turns."""

import os
import selectors
import socket
from collections.abc import Iterator

import pytest

from balancer.eventloop.loop import READ, WRITE, EdgeSelector, Loop

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    with a, b:
        yield a, b


def test_an_edge_is_reported_once(pair: Pair) -> None:
    loop, seen = Loop(), []
    loop.watch(pair[0].fileno(), seen.append)
    pair[1].send(b"x")
    loop.run_once(0)
    loop.run_once(0)
    assert [mask & (READ | WRITE) for mask in seen] == [READ | WRITE]
    pair[1].send(b"y")
    loop.run_once(0)
    assert len(seen) == 2
    loop.close()


def test_room_for_writing_is_reported_from_watch_writing_on_and_then_at_once(pair: Pair) -> None:
    loop, seen = Loop(), []
    loop.watch_reading(pair[0].fileno(), seen.append)
    loop.run_once(0)
    assert seen == []
    pair[1].send(b"x")
    loop.run_once(0)
    assert seen == [READ]
    loop.watch_writing(pair[0].fileno())
    loop.run_once(0)
    assert seen == [READ, READ | WRITE]
    loop.close()


def test_a_level_is_reported_until_it_is_gone(pair: Pair) -> None:
    loop, seen = Loop(), []
    loop.watch_level(pair[0].fileno(), seen.append)
    pair[1].send(b"x")
    loop.run_once(0)
    loop.run_once(0)
    assert seen == [READ, READ]
    pair[0].recv(1)
    loop.run_once(0)
    assert len(seen) == 2
    loop.close()


@pytest.mark.parametrize("how", ["forget", "forget_closing"])
def test_a_forgotten_descriptor_gets_no_more_events_of_the_batch(how: str, pair: Pair) -> None:
    """The handler that runs first forgets the other one; stale events must not reach it."""
    loop, seen = Loop(), []
    fds = [pair[0].fileno(), pair[1].fileno()]

    def handler(fd: int) -> None:
        seen.append(fd)
        getattr(loop, how)(fds[1] if fd == fds[0] else fds[0])

    for fd in fds:
        loop.watch(fd, lambda mask, fd=fd: handler(fd))
    loop.run_once(0)
    assert len(seen) == 1
    loop.close()


def test_descriptors_are_closed_after_the_batch(pair: Pair) -> None:
    loop, order = Loop(), []
    loop.watch(
        pair[0].fileno(), lambda mask: loop.retire(lambda: order.append("closed")) or order.append("first")
    )
    loop.watch(pair[1].fileno(), lambda mask: order.append("second"))
    loop.at_turn_end(lambda: order.append("end"))
    loop.run_once(0)
    assert sorted(order[:2]) == ["first", "second"]
    assert order[2:] == ["closed", "end"]
    loop.close()


def test_an_act_runs_in_the_next_turn_after_its_events(pair: Pair) -> None:
    loop, order = Loop(), []
    loop.call_next_turn(
        lambda: order.append("again") or loop.call_next_turn(lambda: order.append("and again"))
    )
    loop.watch(pair[0].fileno(), lambda mask: order.append("event"))
    loop.run_once()
    assert order == ["event", "again"]
    loop.run_once()  # does not wait: something is left to do
    assert order == ["event", "again", "and again"]
    loop.close()


def test_what_a_handler_asks_for_runs_once_and_in_the_next_turn(pair: Pair) -> None:
    """Else a bulk flow would have one turn after the other without a look at the other sockets."""
    loop, order = Loop(), []

    def act() -> None:
        order.append(loop.turns)
        if len(order) < 3:
            loop.call_next_turn(act)

    loop.watch(pair[0].fileno(), lambda mask: loop.call_next_turn(act))
    for _ in range(6):
        loop.run_once(0)
    assert order == [2, 3, 4]
    loop.close()


def test_timers_run_by_the_clock_of_the_turn() -> None:
    now = [100.0]
    loop, ran = Loop(clock=lambda: now[0]), []
    loop.call_later(5, lambda: ran.append("later"))
    loop.every(2, lambda: ran.append("every"))
    loop.run_once(0)
    assert ran == []
    now[0] = 104.5
    loop.run_once(0)
    assert ran == ["every"]
    now[0] = 106.0
    loop.run_once(0)
    assert sorted(ran) == ["every", "every", "later"]
    loop.close()


def test_a_failing_handler_is_reported_by_its_descriptor_or_fatal(pair: Pair) -> None:
    def fail(mask: int) -> None:
        raise ValueError("no")

    loop = Loop()
    loop.watch(pair[0].fileno(), fail)
    reported: list[tuple[int, str]] = []
    loop.on_error = lambda fd, error: reported.append((fd, str(error)))
    loop.run_once(0)
    loop.call_next_turn(lambda: fail(0), 99)
    loop.call_next_turn(lambda: fail(0))
    loop.run_once(0)
    assert reported == [(pair[0].fileno(), "no"), (99, "no"), (-1, "no")]
    loop.on_error = None
    pair[1].send(b"x")
    with pytest.raises(ValueError, match="no"):
        loop.run_once(0)
    loop.close()


def test_a_stop_before_run_counts() -> None:
    loop = Loop()
    loop.stop()
    loop.run()
    assert loop.turns == 0
    loop.close()


def test_the_selector_is_a_selectors_selector(pair: Pair) -> None:
    with EdgeSelector() as selector:
        key = selector.register(pair[0], selectors.EVENT_READ, "data")
        with pytest.raises(KeyError):
            selector.register(pair[0], selectors.EVENT_READ)
        with pytest.raises(ValueError, match="invalid events"):
            selector.register(pair[1], 0)
        assert selector.select(0) == []
        pair[1].send(b"x")
        assert selector.select(0) == [(key, selectors.EVENT_READ)]
        assert selector.select(0) == []
        selector.modify(pair[0], selectors.EVENT_READ, "other")
        [(again, _)] = selector.select(0)
        assert again.data == "other"
        assert selector.get_key(pair[0]).fd == pair[0].fileno()
        assert list(selector.get_map()) == [pair[0].fileno()]
        selector.unregister(pair[0])
        with pytest.raises(KeyError):
            selector.unregister(pair[0])


def test_a_regular_file_is_refused(tmp_path: object) -> None:
    fd = os.open(f"{tmp_path}/file", os.O_CREAT | os.O_RDWR)
    with EdgeSelector() as selector, pytest.raises(PermissionError):
        selector.add(fd, None)
    os.close(fd)
