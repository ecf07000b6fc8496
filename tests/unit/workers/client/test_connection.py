"""One connection of the client: its replies, and the reason that it reports when it ends."""

import socket
from collections.abc import Iterator
from itertools import count

import pytest

from balancer.config.units import Address, parse_address
from balancer.eventloop.loop import Loop
from workers.client.connection import SEND_AT_ONCE, ClientConnection
from workers.client.jobs import ClientJob
from workers.client.scan import Picture
from workers.wire.frames import FrameReader, frame
from workers.wire.messages import Request, Response, decode_request, encode_response


class Server:
    """A listening socket, one connection of the client to it, and the client's callbacks in order."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.peer: socket.socket | None = None
        self.calls: list[str] = []

    def address(self) -> Address:
        return parse_address("127.0.0.1:{1}".format(*self.listener.getsockname()))

    def dialled(self) -> ClientConnection:
        connection = ClientConnection(self.loop, self.address(), 1, count(1).__next__, 10_000_000)
        connection.on_open = lambda _: self.calls.append("open")
        connection.on_replies = lambda _, answers: self.calls.extend(
            f"{reply.status}" for _, reply in answers
        )
        connection.on_lost = lambda _, reason: self.calls.append(f"lost {reason!r}")
        connection.dial()
        return connection

    def connected(self) -> ClientConnection:
        connection = self.dialled()
        self.turn()
        self.peer, _ = self.listener.accept()
        return connection

    def turn(self, turns: int = 3) -> None:
        for _ in range(turns):
            self.loop.run_once(0.2)

    def close(self) -> None:
        self.listener.close()
        if self.peer is not None:
            self.peer.close()
        self.loop.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(Loop())
    yield made
    made.close()


def job() -> ClientJob:
    return ClientJob(Picture("x.jpg", 1, 1, "jpeg"), "x-2x2.jpg")


def reply(id: int, status: int = 200) -> bytes:
    return frame(encode_response(Response(id=id, status=status)))


def test_a_request_and_its_reply(server: Server) -> None:
    connection = server.connected()
    assert server.peer is not None
    connection.send(job(), Request("x.jpg", data=b"small"))
    assert connection.bytes_out == 0, "a small request waits for flush()"
    connection.flush()
    (payload,) = FrameReader().feed(server.peer.recv(10_000))
    assert decode_request(payload).id == 1
    server.peer.sendall(reply(1))
    server.turn(1)
    assert server.calls == ["open", "200"]
    assert (connection.is_open, connection.is_idle(), connection.is_closed) == (True, True, False)
    connection.close("")
    connection.close("again")
    assert server.calls[2:] == ["lost ''"]
    assert connection.is_closed


def test_a_large_picture_is_sent_at_once(server: Server) -> None:
    connection = server.connected()
    connection.send(job(), Request("x.jpg", data=bytes(SEND_AT_ONCE)))
    assert connection.bytes_out > SEND_AT_ONCE


def test_a_refused_dial(server: Server) -> None:
    server.listener.close()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.listener = unused.dup()
        connection = server.dialled()
        server.turn(2)
    assert server.calls == ["lost 'cannot connect: Connection refused'"]
    assert connection.is_closed


@pytest.mark.parametrize(
    ("sent", "calls"),
    [
        (b"", ["lost 'lost: closed by the other side'"]),
        (reply(1), ["200", "lost 'lost: closed by the other side'"]),
        (reply(7), ["lost 'protocol: unknown ID 7'"]),
        (reply(1) + b"HTTP/1.1", ["200", "lost 'protocol: not a frame: begins with 48 54 54 50 2f 31 2e 31'"]),
    ],
)  # fmt: skip
def test_the_end_by_the_server(server: Server, sent: bytes, calls: list[str]) -> None:
    connection = server.connected()
    connection.send(job(), Request("x.jpg"))
    connection.flush()
    assert server.peer is not None
    server.peer.recv(10_000)
    server.peer.sendall(sent)
    server.peer.close()
    server.turn()
    assert server.calls == ["open", *calls]


def test_replies_before_a_reset_count(server: Server) -> None:
    connection = server.connected()
    connection.send(job(), Request("x.jpg"))
    connection.send(job(), Request("x.jpg"))
    connection.flush()
    assert server.peer is not None
    server.peer.sendall(reply(1))
    server.peer.close()  # with the second request unread: the kernel sends a reset
    server.turn()
    assert server.calls == ["open", "200", "lost 'lost: Connection reset by peer'"]
