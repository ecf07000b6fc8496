"""Addresses that travel as words."""

import ipaddress
import socket

from hypothesis import given
from hypothesis import strategies as st

from balancer.pool.backend import parse_upstream, with_indexes
from balancer.pool.targets import pack_address, target_of, unpack_address
from balancer.pool.verdicts import VerdictWriter
from balancer.shm.layout import FIRST_LEASE
from tests.unit.balancer.pool.boards import make_board


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_an_address_survives_the_words(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    family, high, low = pack_address(str(address))
    assert all(-(2**63) <= word < 2**63 for word in (high, low))
    target = unpack_address(family, high, low, 80)
    assert target is not None
    assert target[0] == (socket.AF_INET if address.version == 4 else socket.AF_INET6)
    assert target[1][:2] == (str(address), 80)


def test_a_half_written_address_is_no_target_rather_than_a_wrong_family() -> None:
    assert unpack_address(0, 0, 1, 80) is None
    assert unpack_address(4, 1, 1, 80) is None


def test_a_name_has_a_target_once_the_prober_has_written_it() -> None:
    board = make_board()
    (name, numeric) = with_indexes(
        [parse_upstream("web:80"), parse_upstream("[::1]:81")], {"web:80": 0, "[::1]:81": 1}
    )
    assert target_of(board, name) is None
    assert target_of(board, numeric) == (socket.AF_INET6, ("::1", 81, 0, 0))
    VerdictWriter(board, FIRST_LEASE).write_address(0, "10.1.2.3")
    assert target_of(board, name) == (socket.AF_INET, ("10.1.2.3", 80))
