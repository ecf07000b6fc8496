"""Descriptors handed in by a former master or a service manager."""

import os
import socket

from balancer.prefork.upgrade import (
    InheritedFds,
    InheritedSocket,
    activated_fds,
    adopt_sockets,
    format_listeners,
    parse_listeners,
    read_inheritance,
)


def test_activation_is_for_the_named_process_only() -> None:
    environ = {"LISTEN_PID": "42", "LISTEN_FDS": "3"}
    assert activated_fds(environ, 42) == (3, 4, 5)
    assert activated_fds(environ, 43) == ()
    assert activated_fds({"LISTEN_FDS": "3"}, 42) == ()
    assert activated_fds({"LISTEN_PID": "42", "LISTEN_FDS": "many"}, 42) == ()


def test_listeners_survive_the_environment() -> None:
    items = (InheritedSocket(7, "worker", "127.0.0.1:0"), InheritedSocket(9, "console", "unix:/run/a b,c"))
    assert parse_listeners(format_listeners(items)) == items
    for nonsense in ("", "7,8", "[1]", '[["x", "y", "z"]]', "{}", "null"):
        assert parse_listeners(nonsense) == ()


def test_a_former_master_comes_before_the_manager() -> None:
    environ = {
        "PREFORK_LISTENERS": format_listeners([InheritedSocket(7, "worker", "a:1")]),
        "PREFORK_READY_FD": "8",
        "PREFORK_PIDFILE_FD": "9",
        "LISTEN_PID": "42",
        "LISTEN_FDS": "1",
    }
    assert read_inheritance(environ, 42) == InheritedFds((InheritedSocket(7, "worker", "a:1"),), 8, 9)
    assert read_inheritance({"LISTEN_PID": "42", "LISTEN_FDS": "1"}, 42) == InheritedFds(
        (InheritedSocket(3),)
    )
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
