"""What is handed to a child after its birth."""

import json
import os
import socket

import pytest

from balancer.config.units import parse_address
from balancer.prefork.children import ChildProcess
from balancer.prefork.fork import MOST_FDS, Nursery
from balancer.prefork.sockets import ListeningSocket


def told(ours: socket.socket) -> list[int]:
    """The slots of one packet; the descriptors are closed."""
    words, fds, _flags, _address = socket.recv_fds(ours, 65536, 253)
    for fd in fds:
        os.close(fd)
    slots = [slot for slot, _address in json.loads(words)]
    assert len(fds) == len(slots)
    return slots


def test_more_sockets_than_a_packet_holds_come_in_several() -> None:
    """Fails where what did not fit counts as given: a queue would be adopted by one that cannot accept from it."""
    address, slots = parse_address("127.0.0.1:80"), MOST_FDS // 2 + 20
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with theirs, ours:
        sockets = {
            slot: tuple(ListeningSocket(address, slot, ours.fileno(), ours) for _ in range(2))
            for slot in range(slots)
        }
        process = ChildProcess(4711, "worker", 0, 1, 3, 0.0, reach=1, control=theirs)
        Nursery.extend(process, sockets)
        assert process.reach == 1 + MOST_FDS // 2
        Nursery.extend(process, sockets)
        assert process.reach == slots
        assert told(ours) + told(ours) == [slot for slot in range(1, slots) for _ in range(2)]
        Nursery.extend(process, sockets)
        with pytest.raises(BlockingIOError):
            told(ours)


def test_a_child_that_is_gone_has_no_further_reach() -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    ours.close()
    with theirs, socket.socket() as sock:
        process = ChildProcess(4711, "worker", 0, 1, 3, 0.0, reach=0, control=theirs)
        Nursery.extend(
            process, {0: (ListeningSocket(parse_address("127.0.0.1:80"), 0, sock.fileno(), sock),)}
        )
        assert process.reach == 0
