"""A long frame that is spliced at once: what lies behind it is never left where no event tells of it."""

import fcntl
import socket
from contextlib import ExitStack
from fcntl import ioctl
from termios import FIONREAD

import pytest

from balancer.relay.framed.transfer import DONE, splice_whole
from balancer.relay.pipes import Pipes
from tests.unit.balancer.relay.simulation import read_all

PAGE = 4096
FRAME = 16 * PAGE


def connected(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection with room for a frame."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    ours = stack.enter_context(socket.create_connection(server.getsockname()))
    theirs = stack.enter_context(server.accept()[0])
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    theirs.setblocking(False)
    return ours, theirs


def waiting_at(sock: socket.socket) -> int:
    return int.from_bytes(ioctl(sock, FIONREAD, bytes(4)), "little")


@pytest.mark.parametrize("beyond", [0, 1, 6])
@pytest.mark.parametrize("pages", [8, 16, 256])
def test_bytes_behind_a_frame_that_fills_the_slots_of_its_pipe_are_seen(pages: int, beyond: int) -> None:
    """A pipe of 16 slots, as where pipe-user-pages-soft is used up, is full with the last byte of the frame."""
    with ExitStack() as stack:
        backend, source = connected(stack)
        sink, client = connected(stack)
        sink.setblocking(False)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        pipes = Pipes(1)
        stack.callback(pipes.close)
        pipe = pipes.take()
        assert pipe is not None
        fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, pages * PAGE)
        pipes.give_back(pipe, 0)
        for _ in range(0, FRAME, PAGE):
            backend.sendall(b"r" * PAGE)
        backend.sendall(b"x" * beyond)
        while waiting_at(source) < FRAME + beyond:
            pass
        transfer = splice_whole(source.fileno(), sink.fileno(), FRAME, pipes)
        if transfer is not None:
            assert transfer.pump() == DONE
        is_seen = transfer is not None and bool(transfer.beyond or waiting_at(source))
        assert is_seen == bool(beyond)
        heard = b""
        while len(heard) < FRAME:
            heard += read_all(client)
        assert heard == b"r" * FRAME
