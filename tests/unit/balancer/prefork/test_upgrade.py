"""Descriptors left by a former master or a service manager, and the old master's side of an upgrade."""

import os
import signal
import socket

import pytest

from balancer.eventloop.log import Log
from balancer.prefork.inherited import InheritedSocket, adopt_sockets
from balancer.prefork.sockets import Sockets
from balancer.prefork.upgrade import (
    InheritedFds,
    Successor,
    Upgrade,
    activated_sockets,
    format_listeners,
    parse_listeners,
    read_inheritance,
)


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
