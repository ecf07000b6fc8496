"""Which source address a connect uses, and what happens when one has no free port."""

import errno
import socket
from typing import Any

import pytest

from balancer.config.units import parse_address
from balancer.relay.sockets import STREAM
from balancer.relay.sources import connect_from

SOURCES = [parse_address(f"127.0.0.{n}:0") for n in (2, 3, 4)]


@pytest.mark.parametrize("turn", range(4))
def test_sources_take_turns(turn: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock, code = connect_from(
            SOURCES, turn, socket.socket(socket.AF_INET, STREAM), server.getsockname(), socket.socket
        )
        with sock:
            assert code in (0, errno.EINPROGRESS)
            assert sock.getsockname()[0] == SOURCES[turn % 3].host


@pytest.mark.parametrize(
    ("exhausted", "found"), [((), "127.0.0.2"), ((2,), "127.0.0.3"), ((2, 3), "127.0.0.4")]
)
def test_a_source_without_a_free_port_is_passed_by(exhausted: tuple[int, ...], found: str) -> None:
    class Portless(socket.socket):
        def connect_ex(self, address: Any) -> int:
            mine = self.getsockname()[0]
            return (
                errno.EADDRNOTAVAIL
                if mine in [f"127.0.0.{n}" for n in exhausted]
                else super().connect_ex(address)
            )

    with socket.create_server(("127.0.0.1", 0)) as server:
        first = Portless(socket.AF_INET, STREAM)
        sock, code = connect_from(SOURCES, 0, first, server.getsockname(), Portless)
        with sock:
            assert code in (0, errno.EINPROGRESS) and sock.getsockname()[0] == found


def test_when_every_source_is_used_up_the_errno_says_so() -> None:
    class Portless(socket.socket):
        def connect_ex(self, address: Any) -> int:
            return errno.EADDRNOTAVAIL

    first = Portless(socket.AF_INET, STREAM)
    sock, code = connect_from(SOURCES, 0, first, ("127.0.0.1", 1), Portless)
    assert code == errno.EADDRNOTAVAIL
    sock.close()
