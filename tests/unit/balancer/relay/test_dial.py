"""From an accepted client to a backend that has answered: what is counted, tried again, and held against whom."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balancer.pool.backend import parse_upstream, with_indexes
from balancer.pool.board import (
    B_CONNECT_FAILURES,
    B_SESSIONS,
    B_SESSIONS_TOTAL,
    BYTES_IN,
    BYTES_OUT,
    FAILED,
    REFUSED,
    RETRIES,
    SESSIONS,
    base,
)
from balancer.pool.election import Elector
from balancer.relay import dial, session
from balancer.relay.flow import BULK
from tests.unit.balancer.relay.world import OWN, World, heard, reset

Make = Callable[..., World]


@pytest.fixture
def make() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def build(**choices: Any) -> World:
            world = World(**choices)
            stack.callback(world.close)
            return world

        yield build


def clog(server: socket.socket) -> list[socket.socket]:
    """From now on connects to it neither succeed nor fail."""
    server.listen(0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(server.getsockname())
        fillers.append(filler)
    return fillers


def test_a_refused_dial_goes_to_the_next_backend(make: Make) -> None:
    world = make(backends=2)
    world.servers[0].close()
    clients = [world.connect() for _ in range(4)]
    world.settle()
    for _ in clients:
        world.accept(server=1).send(b"hi")
    world.settle()
    assert [heard(client) for client in clients] == ["hi|open"] * 4
    failed = world.backend_cell(B_CONNECT_FAILURES, 0)
    assert failed == world.cell(RETRIES) > 0
    assert world.backend_cell(B_SESSIONS, 0) == 0
    assert world.backend_cell(B_SESSIONS, 1) == 4


def test_when_all_refuse_the_client_is_closed(make: Make) -> None:
    world = make(backends=2, retries=5)
    for server in world.servers:
        server.close()
    client = world.connect()
    world.settle()
    assert heard(client) == "|end"
    assert world.ends == ["SC all backends tried"]
    assert world.cell(FAILED) == 1
    assert world.cell(SESSIONS) == 0


def test_retries_are_bounded(make: Make) -> None:
    world = make(backends=4, retries=2)
    for server in world.servers:
        server.close()
    world.connect()
    world.settle()
    assert world.ends == ["SC ECONNREFUSED"]
    assert world.cell(RETRIES) == 2
    assert sum(world.backend_cell(B_CONNECT_FAILURES, n) for n in range(4)) == 3


def test_a_dial_counts_before_it_has_an_outcome_and_ends_with_its_timeout(make: Make) -> None:
    world = make(retries=0, connect_timeout=1.0)
    fillers = clog(world.servers[0])
    client = world.connect()
    world.settle()
    assert (world.backend_cell(B_SESSIONS), world.backend_cell(B_SESSIONS_TOTAL)) == (1, 1)
    world.pass_time(0.9, 0.1)
    assert heard(client) == "|open"
    world.pass_time(0.3, 0.1)
    assert heard(client) == "|end"
    assert world.ends == ["sC ETIMEDOUT"]
    assert world.backend_cell(B_SESSIONS) == 0
    for filler in fillers:
        filler.close()


def test_a_client_that_resets_while_we_dial_is_forgotten(make: Make) -> None:
    world = make()
    fillers = clog(world.servers[0])
    client = world.connect()
    world.settle()
    reset(client)
    world.settle()
    assert world.ends == ["CC"]
    assert not world.hub.dialling
    assert world.backend_cell(B_SESSIONS) == world.backend_cell(B_CONNECT_FAILURES) == 0
    for filler in fillers:
        filler.close()


def test_our_own_shortage_is_not_held_against_the_backend(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    world = make(backends=2)
    monkeypatch.setattr(dial, "Socket", none_left)
    client = world.connect()
    world.settle()
    assert heard(client) == "|end"
    assert world.ends == ["RC EMFILE"]
    assert world.backend_cell(B_CONNECT_FAILURES, 0) == world.backend_cell(B_CONNECT_FAILURES, 1) == 0
    assert world.cell(RETRIES) == 0
    assert world.cell(FAILED) == 1


def test_a_family_this_machine_lacks_costs_one_backend_not_the_client(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [errno.EAFNOSUPPORT]

    def lacking(*about: int) -> socket.socket:
        if refused:
            raise OSError(refused.pop(), "no such family")
        return socket.socket(*about)

    world = make(backends=2)
    monkeypatch.setattr(dial, "Socket", lacking)
    world.connect()
    world.settle()
    assert world.cell(RETRIES) == 1
    assert world.backend_cell(B_SESSIONS, 0) + world.backend_cell(B_SESSIONS, 1) == 1
    assert world.ends == []


def test_a_backend_that_resets_at_once_is_replaced_while_nothing_was_said(make: Make) -> None:
    world = make(backends=2)
    client = world.connect()
    world.settle()
    [session] = world.hub.sessions
    assert session.backend is not None
    first = session.backend.index
    reset(world.accept(first))
    world.settle()
    world.accept(1 - first).send(b"second")
    world.settle()
    assert heard(client) == "second|open"
    assert world.backend_cell(B_SESSIONS, first) == 0
    assert session.backend_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_session_that_ends_during_its_second_dial_waits_for_no_deadline(make: Make) -> None:
    world = make(backends=2)
    world.connect()
    world.settle()
    [session] = world.hub.sessions
    assert session.backend is not None
    reset(world.accept(session.backend.index))
    while session not in world.hub.dialling:
        world.turn()
    session.close("CC")
    world.turn()
    assert not world.hub.dialling


def test_deferred_dials_wait_for_the_first_byte(make: Make) -> None:
    world = make(defer_connect=True)
    client = world.connect()
    world.settle()
    assert world.backend_cell(B_SESSIONS_TOTAL) == 0
    client.send(b"ask")
    world.settle()
    assert heard(world.accept()) == "ask|open"


def test_without_an_eligible_backend_the_client_is_refused(make: Make) -> None:
    world = make(backends=0)
    client = world.connect()
    world.settle()
    assert heard(client) == "|end"
    assert world.ends == ["SC no backend is up"]
    assert world.cell(REFUSED) == 1


def spoken(world: World, text: bytes = b"ask") -> socket.socket:
    """A client in the queue that has already said something."""
    client = world.connect()
    client.send(text)
    return client


def test_a_client_that_has_spoken_reaches_a_near_backend_within_the_turn(make: Make) -> None:
    world = make()
    client = spoken(world)
    world.turn()
    backend = world.accept()
    assert heard(backend) == "ask|open"
    assert not world.hub.dialling
    backend.send(b"answer")
    backend.close()
    world.settle()
    assert heard(client) == "answer|end"
    client.close()
    world.settle()
    assert world.ends == ["--"]
    assert (world.cell(BYTES_IN), world.cell(BYTES_OUT)) == (3, 6)


def test_a_far_backend_is_given_time(make: Make) -> None:
    world = make()
    [backend] = world.backends
    family, address, _ = world.hub.elector.target(backend)
    world.hub.elector._targets[backend.index] = (family, address, False)
    spoken(world)
    world.turn()
    assert len(world.hub.dialling) == 1
    world.settle()
    assert heard(world.accept()) == "ask|open"


@pytest.mark.parametrize("text", [b"ask", bytes(60_000)])
def test_what_was_read_too_early_is_given_once_the_backend_takes_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    """A queue that is full for a moment: connect(2) returns before there is a connection."""
    answers: list[int | None] = [None, 1]  # EAGAIN, then room for one byte, then as the kernel has it

    def write(fd: int, data: bytes) -> int:
        most = answers.pop(0) if answers else len(data)
        if most is None:
            raise BlockingIOError(errno.EAGAIN, "not connected yet")
        return os.write(fd, data[:most])

    world = make()
    client = spoken(world, text)
    monkeypatch.setattr(session, "write", write)
    world.settle()
    client.send(b"more")
    world.settle()
    backend = world.accept()
    assert backend.recv(1 << 20) == text + b"more"
    world.pass_time(2.0)
    assert world.cell(BYTES_IN) == len(text) + 4


def test_a_client_that_had_spoken_is_passed_on_whole_by_the_next_backend(make: Make) -> None:
    world = make(backends=2)
    world.servers[0].close()
    clients = [spoken(world) for _ in range(4)]
    world.settle()
    assert [heard(world.accept(server=1)) for _ in clients] == ["ask|open"] * 4
    assert world.cell(RETRIES) > 0


def test_a_client_that_has_spoken_and_left_is_heard_to_the_end(make: Make) -> None:
    world = make()
    client = spoken(world)
    client.shutdown(socket.SHUT_WR)
    world.settle()
    backend = world.accept()
    assert heard(backend) == "ask|end"
    backend.send(b"late")
    backend.close()
    world.settle()
    assert heard(client) == "late|end"


def test_small_writes_are_not_delayed_from_the_second_thing_said_on(make: Make) -> None:
    def is_prompt() -> bool:
        [session] = world.hub.sessions
        assert session.backend_socket is not None
        return bool(session.backend_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    world = make()
    client = spoken(world)
    world.settle()
    assert not is_prompt()
    client.send(b"again")
    world.settle()
    assert is_prompt()
    client.close()
    world.accept().close()
    world.settle()
    world.connect()  # silent: dialled in the patient way
    world.settle()
    assert is_prompt()


def test_the_careful_relay_does_not_delay_small_writes_either(make: Make) -> None:
    world = make()
    spoken(world)
    world.settle()
    world.accept().send(bytes(BULK))
    world.settle()
    [session] = world.hub.sessions
    assert session.duplex is not None and session.backend_socket is not None
    assert session.backend_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_silent_clients_are_asked_ever_more_rarely(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(fd: int, size: int) -> bytes:
        asked.append(fd)
        return os.read(fd, size)

    world = make()
    monkeypatch.setattr(session, "read", read)
    for _ in range(40):
        world.connect()
        world.settle()
    assert len(asked) == 6  # the 1st, 2nd, 4th, 8th, 16th and 32nd
    for _ in range(40):
        spoken(world)
        world.settle()
    assert world.hub.doubt == world.hub.hesitation == 0


@pytest.mark.parametrize("choices", [{"defer_connect": True}, {"upstream": "maxconn=1"}])
def test_an_end_that_came_before_the_dial_is_told_after_it(make: Make, choices: dict[str, Any]) -> None:
    """The loop has told of it once, while there was no backend to tell."""
    world = make(**choices)
    if "upstream" in choices:
        first = spoken(world)
        world.settle()
        ahead = world.accept()
    client = spoken(world)
    client.shutdown(socket.SHUT_WR)
    world.settle()
    if "upstream" in choices:
        first.close()
        ahead.close()
        world.pass_time(0.3)
    assert heard(world.accept()) == "ask|end"


def test_what_a_client_says_during_a_dial_in_vain_is_not_forgotten(make: Make) -> None:
    world = make(backends=2)
    fillers = clog(world.servers[0])
    clients = [spoken(world) for _ in range(2)]
    world.settle()
    for client in clients:
        client.send(b"more")
        client.shutdown(socket.SHUT_WR)
    world.pass_time(1.5, 0.1)
    assert [heard(world.accept(server=1)) for _ in clients] == ["askmore|end"] * 2
    assert all(not session.first for session in world.hub.sessions)
    for filler in fillers:
        filler.close()


def with_unix_backend(world: World, path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(8)
    server.setblocking(False)
    world.servers.append(server)
    world.backends = with_indexes([parse_upstream(f"unix:{path}")], {f"unix:{path}": 0})
    world.hub.elector = Elector(world.board, world.backends, "roundrobin", OWN)
    return server


@pytest.mark.parametrize("is_unix", [False, True])
def test_a_client_that_reset_before_it_was_accepted_is_gone(
    make: Make, tmp_path: Path, is_unix: bool
) -> None:
    world = make()
    server = with_unix_backend(world, tmp_path / "s") if is_unix else world.servers[0]
    reset(world.connect())
    world.settle()
    assert world.ends == ["CC"]
    backend, _ = server.accept()
    with backend:
        assert heard(backend) in ("|end", "|reset")


@pytest.mark.parametrize("text", [b"", b"ask"])
def test_a_unix_backend_that_answers_and_hangs_up_has_answered(
    make: Make, tmp_path: Path, text: bytes
) -> None:
    world = make()
    server = with_unix_backend(world, tmp_path / "s")
    client = world.connect()
    if text:
        client.send(text)
        world.hub.hesitation = 1  # so that it is passed on in the patient way
    world.turn()
    backend, _ = server.accept()
    backend.send(b"banner")
    backend.close()
    world.settle()
    assert heard(client) == "banner|end"
    assert world.cell(base(0) + B_CONNECT_FAILURES) == 0


def test_a_unix_backend_is_reached_within_the_turn(make: Make, tmp_path: Path) -> None:
    world = make()
    server = with_unix_backend(world, tmp_path / "s")
    client = spoken(world)
    world.turn()
    backend, _ = server.accept()
    with backend:
        backend.setblocking(False)
        assert heard(backend) == "ask|open"
        backend.send(b"answer")
        world.settle()
        assert heard(client) == "answer|open"
