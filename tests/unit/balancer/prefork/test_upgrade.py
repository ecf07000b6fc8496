"""Descriptors left by a former master or a service manager, and the old master's side of an upgrade."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.config.units import parse_address
from balancer.eventloop.log import Log
from balancer.eventloop.signals import IGNORED_BY_MASTER, MASTER_SIGNALS, signals_blocked
from balancer.prefork.bind import Bind
from balancer.prefork.inherited import InheritedSocket, adopt_sockets
from balancer.prefork.sockets import Sockets
from balancer.prefork.upgrade import (
    HANDOVER_FD,
    HANDOVER_STATE,
    READY_FD,
    InheritedFds,
    Successor,
    Upgrade,
    activated_sockets,
    become,
    format_listeners,
    parse_listeners,
    read_handover,
    read_inheritance,
    say_ready,
    written,
)
from balancer.shm.events import EventRing, EventWriter

EVENTS = EventWriter(EventRing(1), 0)


def external(fd: int, name: str = "") -> InheritedSocket:
    return InheritedSocket(fd, name=name, is_external=True)


def test_activation_is_for_the_named_process_only() -> None:
    environ = {"LISTEN_PID": "42", "LISTEN_FDS": "3"}
    assert activated_sockets(environ, 42) == (external(3), external(4), external(5))
    assert activated_sockets(environ, 43) == ()
    assert activated_sockets({"LISTEN_FDS": "3"}, 42) == ()
    assert activated_sockets({"LISTEN_PID": "42", "LISTEN_FDS": "many"}, 42) == ()


def test_the_manager_may_name_its_sockets() -> None:
    environ = {"LISTEN_PID": "42", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:mail"}
    assert activated_sockets(environ, 42) == (external(3, "web"), external(4, "mail"), external(5))


def test_listeners_survive_the_environment() -> None:
    items = (
        InheritedSocket(7, "worker", "127.0.0.1:0", "web"),
        InheritedSocket(8, "worker", "127.0.0.1:80", "mail", is_external=True),
        InheritedSocket(9, "console", "unix:/run/a b,c"),
    )
    assert parse_listeners(format_listeners(items)) == items
    for nonsense in ("", "7,8", "[1]", '[["x", "y", "z"]]', "{}", "null"):
        assert parse_listeners(nonsense) == ()


def test_sockets_of_a_version_without_names_are_read() -> None:
    assert parse_listeners('[[7, "worker", "127.0.0.1:80"]]') == (
        InheritedSocket(7, "worker", "127.0.0.1:80"),
    )


def test_a_former_master_comes_before_the_manager() -> None:
    handed = InheritedSocket(7, "worker", "a:1", "web")
    environ = {
        "PREFORK_LISTENERS": format_listeners([handed]),
        "PREFORK_READY_FD": "8",
        "PREFORK_PIDFILE_FD": "9",
        "LISTEN_PID": "42",
        "LISTEN_FDS": "1",
    }
    assert read_inheritance(environ, 42) == InheritedFds((handed,), 8, 9)
    assert read_inheritance({"LISTEN_PID": "42", "LISTEN_FDS": "1"}, 42) == InheritedFds((external(3),))
    assert read_inheritance({}, 42) == InheritedFds()


def test_only_listening_stream_sockets_are_adopted() -> None:
    with (
        socket.socket() as listening,
        socket.socket() as idle,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
    ):
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        reader, writer = os.pipe()
        fds = [listening.fileno(), idle.fileno(), datagram.fileno(), reader, 99_999]
        adopted = adopt_sockets(InheritedSocket(fd) for fd in fds)
        assert [item.fd for item, _ in adopted] == [listening.fileno()]
        assert not os.get_inheritable(listening.fileno())
        adopted[0][1].detach()
        for fd in (idle.fileno(), datagram.fileno(), reader, writer):
            os.fstat(fd)  # not ours: left open
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("is_reaped", [False, True])
def test_only_a_successor_that_is_not_reaped_yet_is_killed(is_reaped: bool) -> None:
    """The kernel may have given the pid of a reaped process to another one."""
    sent: list[tuple[int, int]] = []
    reader, writer = os.pipe2(os.O_NONBLOCK)
    upgrade = Upgrade(
        Log("master", os.devnull),
        Sockets(),
        EVENTS,
        start_successor=lambda _sockets, _pidfile_fd, _state, now: Successor(4711, reader, now + 30),
        send=lambda pid, number: sent.append((pid, number)),
    )
    upgrade.start(1.0, None)
    assert not upgrade.hear(1.0) and upgrade.fds() == [reader]
    if is_reaped:
        upgrade.unknown_child_died(4711, -9)
    os.close(writer)
    assert not upgrade.hear(2.0) and upgrade.fds() == []
    assert sent == ([] if is_reaped else [(4711, signal.SIGKILL)])


@pytest.fixture
def started() -> Iterator[tuple[Upgrade, list[tuple[int, int]], int]]:
    """An upgrade under way, the signals that were sent, and the end that the successor speaks on."""
    sent: list[tuple[int, int]] = []
    reader, writer = os.pipe2(os.O_NONBLOCK)
    upgrade = Upgrade(
        Log("master", os.devnull),
        Sockets(),
        EVENTS,
        start_successor=lambda _sockets, _pidfile_fd, _state, now: Successor(4711, reader, now + 30),
        send=lambda pid, number: sent.append((pid, number)),
    )
    assert not upgrade.is_under_way
    upgrade.start(1.0, None)
    yield upgrade, sent, writer
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.parametrize("speaks", [False, True])
def test_a_successor_that_is_not_wanted_is_told_and_waited_for(
    started: tuple[Upgrade, list[tuple[int, int]], int], number: int, speaks: bool
) -> None:
    """Fails where a stop leaves it: a whole balancer goes on. Its word that it serves, on its way, changes nothing."""
    upgrade, sent, writer = started
    if speaks:
        os.write(writer, b"1")
    upgrade.call_off(number, 5.0)
    assert sent == [(4711, number)]
    assert not upgrade.hear(2.0) and upgrade.is_under_way and upgrade.fds() == []
    assert not upgrade.hear(5.1) and sent[1:] == [(4711, signal.SIGKILL)]
    assert upgrade.is_under_way
    upgrade.unknown_child_died(4711, -9)
    assert not upgrade.is_under_way
    assert not upgrade.hear(9.0) and len(sent) == 2


def test_a_successor_that_serves_is_not_called_off(
    started: tuple[Upgrade, list[tuple[int, int]], int],
) -> None:
    upgrade, sent, writer = started
    os.write(writer, b"1")
    assert upgrade.hear(2.0) and not upgrade.is_under_way
    upgrade.call_off(signal.SIGTERM, 5.0)
    assert sent == []


def test_a_socket_that_the_successor_was_not_given_is_named() -> None:
    sockets = Sockets()
    sockets.open([Bind("worker", parse_address("127.0.0.1:0"))], 1)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    upgrade = Upgrade(
        Log("master", os.devnull), sockets, EVENTS, start_successor=lambda *_: Successor(4711, reader, 30.0)
    )
    upgrade.start(1.0, None)
    assert upgrade.not_handed_over() == []
    sockets.grow(2)
    assert upgrade.not_handed_over() == ["127.0.0.1:0"]
    for group in sockets.groups:
        group.close()
    os.close(reader)
    os.close(writer)


def test_before_its_exec_a_successor_has_default_dispositions() -> None:
    """Fails where a handler of the old master is left: it swallows a stop that comes before the exec."""
    before = {number: signal.getsignal(number) for number in (*MASTER_SIGNALS, *IGNORED_BY_MASTER)}
    for number in before:
        signal.signal(number, lambda *_: None)
    reader, writer = os.pipe()
    seen: list[object] = []

    def execve(_program: str, _arguments: list[str], environ: dict[str, str]) -> None:
        seen.append({number for number in before if signal.getsignal(number) != signal.SIG_DFL})
        seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        seen.append((environ[READY_FD], os.get_inheritable(writer)))

    try:
        with signals_blocked():
            become([], writer, -1, -1, execve)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
    assert seen == [set(), set(), (str(writer), True)]


@pytest.mark.parametrize("size", [1, 200_000, 3_000_000])
def test_a_handover_state_of_any_size_is_read_once_by_its_descriptor(size: int) -> None:
    state = "\u00e9" * size
    with written(state) as fd:
        inherited = os.dup(fd)
    assert read_handover({HANDOVER_FD: str(inherited)}) == state
    assert read_handover({HANDOVER_FD: str(inherited)}) == "", "it was closed"


def test_a_version_before_left_its_state_in_the_environment() -> None:
    assert read_handover({HANDOVER_STATE: '{"a": 1}'}) == '{"a": 1}'
    assert read_handover({}) == ""


def test_what_an_older_version_was_left_and_could_not_read_is_not_the_state_it_leaves() -> None:
    """From this version back to one before, and forward again: that one does not close the descriptor."""
    for text in ("", "of the one before"):
        with written("of the first one") as fd:
            stale = os.dup(fd)
        assert read_handover({HANDOVER_FD: str(stale), HANDOVER_STATE: text}) == text
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(stale)


def test_a_descriptor_that_is_no_handover_state_is_left_alone(tmp_path: Path) -> None:
    """The number may come from an environment that was copied, and be a log file's here."""
    path = tmp_path / "log"
    path.write_text("lines of a log")
    with path.open("rb") as file:
        assert read_handover({HANDOVER_FD: str(file.fileno())}) == ""
        assert file.read() == b"lines of a log"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_successor_learns_whether_the_former_master_is_there_to_hear_it(is_there: bool) -> None:
    reader, writer = os.pipe()
    if not is_there:
        os.close(reader)
    assert say_ready(writer) is is_there
    if is_there:
        assert os.read(reader, 2) == b"1"
        os.close(reader)


def test_without_a_state_a_successor_is_given_no_descriptor() -> None:
    """A service that has none would not read it, and every process of it would hold it."""
    found: list[int] = []

    def start(_sockets: object, _pidfile_fd: int, handover_fd: int, now: float) -> Successor:
        found.append(handover_fd)
        return Successor(4711, -1, now + 30)

    upgrade = Upgrade(Log("master", os.devnull), Sockets(), EVENTS, start_successor=start)
    upgrade.start(1.0, None)
    assert found == [-1]


def test_what_is_no_file_is_no_handover_state_and_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    for text in (str(reader), "x", "-1", "99999"):
        assert read_handover({HANDOVER_FD: text}) == ""
    os.close(writer)
    os.close(reader)


def test_a_successor_gets_the_state_that_the_old_master_had() -> None:
    found: list[str] = []

    def start(_sockets: object, _pidfile_fd: int, handover_fd: int, now: float) -> Successor:
        found.append(read_handover({HANDOVER_FD: str(os.dup(handover_fd))}))
        return Successor(4711, -1, now + 30)

    upgrade = Upgrade(Log("master", os.devnull), Sockets(), EVENTS, start_successor=start)
    upgrade.start(1.0, None, "all that is known\nof it")
    assert found == ["all that is known\nof it"]
