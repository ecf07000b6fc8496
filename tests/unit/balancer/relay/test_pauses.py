"""Peers that stop reading: who is kept, for how long, and what the kernel is told."""

import socket
from math import inf

import pytest

from balancer.relay.pauses import PauseGuard, leave_socket
from balancer.relay.sockets import set_user_timeout, unacknowledged, window_state

LIMIT = 30.0  # --user-timeout


class Kernel:
    """One socket as the guard sees it."""

    def __init__(self, queued: int = 1000, is_closed: bool = True, since_ack: float = 0.0) -> None:
        self.queued, self.is_closed, self.since_ack = queued, is_closed, since_ack
        self.timeouts: list[float] = []
        self.guard = PauseGuard(
            1.0, lambda fd: self.queued, lambda fd: (self.is_closed, self.since_ack), self.set_user_timeout
        )

    def set_user_timeout(self, fd: int, seconds: float) -> None:
        self.timeouts.append(seconds)

    def look(self, since: float, now: float, limit: float = LIMIT) -> tuple[bool, float]:
        return self.guard.look(5, since, now, limit)


@pytest.mark.parametrize("since_ack", [0.0, LIMIT - 1, LIMIT + 1.9])  # an answer may come just before a look
def test_a_closed_window_moves_the_timeout_ahead_while_the_peer_answers(since_ack: float) -> None:
    kernel = Kernel(since_ack=since_ack)
    since = 0.0
    for now in range(100, 400, 10):
        is_under_way, since = kernel.look(since, float(now))
        assert is_under_way and since == 100.0
        assert (
            kernel.timeouts[-1] > now - since + LIMIT
        )  # what the kernel has counted so far, and the whole limit


def test_a_peer_that_answers_no_more_is_left_to_the_kernel() -> None:
    kernel = Kernel()
    _, since = kernel.look(0.0, 100.0)
    told = len(kernel.timeouts)
    for now in (133.0, 140.0, 150.0):
        kernel.since_ack = now - 100.0
        kernel.look(since, now)
    assert len(kernel.timeouts) == told


@pytest.mark.parametrize(("queued", "is_closed"), [(0, True), (1, True), (1000, False)])
def test_the_configured_timeout_is_back_once_the_window_is_open(queued: int, is_closed: bool) -> None:
    """Nothing queued, a FIN alone, or bytes on their way: the peer has to acknowledge within the limit again."""
    kernel = Kernel(queued, is_closed)
    is_under_way, since = kernel.look(100.0, 160.0)
    assert (is_under_way, since) == (queued > 1, 0.0)
    assert kernel.timeouts == [LIMIT]
    assert kernel.look(0.0, 161.0)[1] == 0.0 and kernel.timeouts == [LIMIT]  # told once


def test_without_a_limit_the_kernel_is_told_nothing() -> None:
    kernel = Kernel()
    assert kernel.look(0.0, 100.0, limit=0.0) == (True, 100.0)
    assert kernel.timeouts == []


def test_a_socket_without_tcp_has_bytes_under_way_and_no_window() -> None:
    kernel = Kernel(is_closed=False, since_ack=inf)
    assert kernel.look(0.0, 100.0) == (True, 0.0)
    assert kernel.guard.look(-1, 0.0, 100.0, LIMIT) == (False, 0.0)


def test_a_socket_is_left_to_the_kernels_own_limits_only_with_bytes_under_way() -> None:
    told: list[float] = []
    for queued in (0, 1, 2):
        leave_socket(5, lambda fd, queued=queued: queued, lambda fd, seconds: told.append(seconds))
    leave_socket(-1, lambda fd: 9, lambda fd, seconds: told.append(seconds))
    assert told == [0.0]


def test_the_kernels_answers_on_a_real_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.create_connection(server.getsockname()) as sender, server.accept()[0]:
            sender.setblocking(False)
            try:
                while True:
                    sender.send(b"x" * 65536)
            except BlockingIOError:
                pass
            assert unacknowledged(sender.fileno()) > 1
            is_closed, since_ack = window_state(sender.fileno())
            assert isinstance(is_closed, bool) and since_ack < 60
            set_user_timeout(sender.fileno(), 12.5)
            assert sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12500
    near, far = socket.socketpair()
    with near, far:
        assert window_state(near.fileno()) == (False, inf)
        set_user_timeout(near.fileno(), 1.0)
