"""Sockets that a child is sent after its fork."""

import json
import os
import socket
from collections.abc import Iterator

import pytest

from balancer.config.units import parse_address
from balancer.prefork.child import MOST_FDS, send_sockets, with_socket
from balancer.prefork.sockets import ListeningSocket

ADDRESS = parse_address("127.0.0.1:80")


@pytest.fixture
def control() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The master's end and the child's."""
    masters, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with masters, childs:
        yield masters, childs


def received(childs: socket.socket) -> list[tuple[int, str]]:
    """Slot and listener of each socket in one packet; the descriptors are closed."""
    words, fds, _flags, _address = socket.recv_fds(childs, 65536, 253)
    for fd in fds:
        os.close(fd)
    found = [(slot, name) for slot, _address, name in json.loads(words)]
    assert len(fds) == len(found)
    return found


def test_more_sockets_than_a_packet_holds_come_in_several(
    control: tuple[socket.socket, socket.socket],
) -> None:
    """Fails where what did not fit counts as given: a process would adopt a queue whose socket it has not."""
    masters, childs = control
    names = ("web", "mail")
    sockets = [
        ListeningSocket(ADDRESS, slot, childs.fileno(), childs, name)
        for slot in range(MOST_FDS // 2 + 20)
        for name in names
    ]
    given = send_sockets(masters, sockets, 2)
    assert given == 2 + MOST_FDS
    assert send_sockets(masters, sockets, given) == len(sockets)
    found = received(childs) + received(childs)
    assert found == [(one.slot, one.name) for one in sockets[2:]]
    assert send_sockets(masters, sockets, len(sockets)) == len(sockets)
    with pytest.raises(BlockingIOError):
        received(childs)


def test_a_child_that_is_gone_is_given_nothing(control: tuple[socket.socket, socket.socket]) -> None:
    masters, childs = control
    sockets = [ListeningSocket(ADDRESS, 0, masters.fileno(), masters)]
    childs.close()
    assert send_sockets(masters, sockets, 0) == 0


def test_a_socket_bound_again_is_served_beside_the_one_before_it(
    control: tuple[socket.socket, socket.socket],
) -> None:
    """Clients may wait in the queue whose file was removed; of three, the oldest is closed."""
    file = parse_address("unix:/run/x")
    made = [
        ListeningSocket(address, 0, number, control[0])
        for number, address in enumerate((file, ADDRESS, file, file, file))
    ]
    sockets: tuple[ListeningSocket, ...] = ()
    closed = []
    for one in made:
        sockets, outdated = with_socket(sockets, one)
        closed += outdated
    assert [one.fd for one in sockets] == [1, 3, 4] and [one.fd for one in closed] == [0, 2]
