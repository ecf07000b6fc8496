"""A peer that stops reading for a while gets every byte; idle-timeout alone ends a pause."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from scripts.lab.backends import Scripted
from scripts.lab.load import receive
from scripts.lab.network import Address
from tests.system.harness import Balancer

USER_TIMEOUT, HALF_CLOSE, PAUSE = 1, 2, 6.0  # seconds: the pause outlasts both limits several times
SOON = 3  # seconds of a trickle that ends, and with it the session, in the middle of the pause
BIG, SMALL = (
    20_000_000,
    400_000,
)  # more than all buffers hold, and less: the relay has written it all and closed


def small_window(address: Address) -> socket.socket:
    client = socket.socket()
    client.settimeout(30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect(address)
    return client


def read_all(conn: socket.socket) -> int:
    got = 0
    while data := conn.recv(1 << 20):
        got += len(data)
    return got


def answer(conn: socket.socket) -> None:
    """Answer with as many bytes as asked for, whole or (`trickle`) in pieces over the pause; then end."""
    head = receive(conn, 8)
    size = int.from_bytes(head, "big")
    if size < 1000:  # seconds of a trickle
        for _ in range(size * 10):
            conn.sendall(bytes(1000))
            time.sleep(0.1)
    else:
        conn.sendall(bytes(size))
    conn.shutdown(socket.SHUT_WR)
    read_all(conn)


def reader_pauses(address: Address, size: int, ends_first: bool) -> bool:
    with small_window(address) as client:
        client.sendall(size.to_bytes(8, "big"))
        if ends_first:
            client.shutdown(socket.SHUT_WR)
        time.sleep(PAUSE)
        return read_all(client) == (size if size >= 1000 else size * 10_000)


def backend_pauses(address: Address) -> bool:
    with socket.create_connection(address, 30) as client:
        client.sendall(BIG.to_bytes(8, "big") + bytes(BIG))
        client.shutdown(socket.SHUT_WR)
        return receive(client, 2) == b"ok" and client.recv(1) == b""


def read_late(received: list[int]) -> Callable[[socket.socket], None]:
    def serve(conn: socket.socket) -> None:
        size = int.from_bytes(receive(conn, 8), "big")
        time.sleep(PAUSE)
        received.append(read_all(conn))
        if received[-1] == size:
            conn.sendall(b"ok")

    return serve


@pytest.mark.parametrize("splice", ["yes", "no"])
def test_a_peer_that_pauses_gets_every_byte(splice: str) -> None:
    times = {"user_timeout": f"{USER_TIMEOUT}s", "half_close_timeout": f"{HALF_CLOSE}s"}
    limits = times | {"splice": splice, "check": "none", "loglevel": 1}
    received: list[int] = []
    with (
        Scripted(answer) as server,
        Scripted(read_late(received)) as reader,
        Balancer(upstreams=[server.address], **limits) as to_server,
        Balancer(upstreams=[reader.address], **limits) as to_reader,
        ThreadPoolExecutor(8) as pool,
    ):
        pauses = [
            pool.submit(reader_pauses, to_server.address, size, ends_first)
            for size in (BIG, SMALL, int(PAUSE), SOON)
            for ends_first in (False, True)
        ]
        pauses.append(pool.submit(backend_pauses, to_reader.address))
        assert [pause.result(60) for pause in pauses] == [True] * len(pauses)


def test_idle_timeout_ends_a_pause() -> None:
    with (
        Scripted(answer) as server,
        Balancer(
            upstreams=[server.address], user_timeout="1s", idle_timeout="3s", check="none", loglevel=1
        ) as lb,
        small_window(lb.address) as client,
    ):
        client.sendall(BIG.to_bytes(8, "big"))
        lb.wait_line(r"session .* end=cD .*idle-timeout", 15)
