"""Addresses that travel as words, and the order in which they are dialled."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.board import MOST_ADDRESSES, W_ADDRESSES, W_IN_USE, W_SUBJECT, Board
from balancer.pool.targets import (
    NameAddresses,
    address_in_use,
    addresses_of,
    chain,
    is_near,
    links,
    pack_addresses,
    targets_of,
)
from balancer.pool.verdicts import VerdictWriter
from balancer.shm.layout import FIRST_LEASE
from tests.unit.balancer.pool.boards import make_board, target_of

PLAIN_V6 = st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None)
ADDRESSES = st.lists(
    st.one_of(st.ip_addresses(v=4), PLAIN_V6), min_size=1, max_size=MOST_ADDRESSES, unique=True
)
(WEB, NUMERIC, PATH) = with_indexes(
    [parse_upstream("web:80"), parse_upstream("[::1]:81"), parse_upstream("unix:/run/x name=path")],
    {"web:80": 0, "[::1]:81": 1, "path": 2},
)


def published(board: Board, backend: Backend, *hosts: str, in_use: int = 0) -> VerdictWriter:
    writer = VerdictWriter(board, FIRST_LEASE)
    writer.restore(backend, 0.0)
    writer.write_addresses(backend.index, NameAddresses(hosts, in_use))
    return writer


@given(ADDRESSES, st.integers(0, MOST_ADDRESSES - 1))
def test_addresses_survive_the_words(
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address], in_use: int
) -> None:
    board, hosts = make_board(), tuple(map(str, addresses))
    known = NameAddresses(hosts, in_use % len(hosts))
    published(board, WEB, *hosts, in_use=known.in_use)
    assert addresses_of(board, WEB) == known
    targets = targets_of(board, WEB)
    assert [target[1][:2] for target in targets] == [(host, 80) for host in known.in_turn()]
    assert [target[0] for target in targets] == [
        socket.AF_INET6 if ":" in host else socket.AF_INET for host in known.in_turn()
    ]
    assert all(-(2**63) <= word < 2**63 for word in pack_addresses(hosts))


def test_a_name_has_targets_once_the_prober_has_written_them() -> None:
    board = make_board()
    assert targets_of(board, WEB) == [] and target_of(board, WEB) is None
    assert address_in_use(board, WEB) == ""
    writer = published(board, WEB, "::1", "127.0.0.1")
    assert targets_of(board, WEB) == [
        (socket.AF_INET6, ("::1", 80, 0, 0)),
        (socket.AF_INET, ("127.0.0.1", 80)),
    ]
    assert address_in_use(board, WEB) == "[::1]:80"
    writer.write_in_use(0, 1)
    assert target_of(board, WEB) == (socket.AF_INET, ("127.0.0.1", 80))
    assert address_in_use(board, WEB) == "127.0.0.1:80"


def test_what_is_no_name_has_one_target_from_its_configuration() -> None:
    board = make_board()
    assert targets_of(board, NUMERIC) == [(socket.AF_INET6, ("::1", 81, 0, 0))]
    assert targets_of(board, PATH) == [(socket.AF_UNIX, "/run/x")]
    assert address_in_use(board, NUMERIC) == ""


@pytest.mark.parametrize(("column", "value"), [(W_ADDRESSES, 99), (W_ADDRESSES, -1), (W_SUBJECT, 7)])
def test_words_that_make_no_sense_or_are_of_another_address_are_none(column: int, value: int) -> None:
    """A reload may give a backend another name; until its prober has begun, the words are about the old one."""
    board = make_board()
    published(board, WEB, "10.0.0.1")
    board.write_verdict(0, [(column, value)])
    assert targets_of(board, WEB) == []


def test_a_place_beyond_the_addresses_is_the_first() -> None:
    board = make_board()
    published(board, WEB, "10.0.0.1", "10.0.0.2")
    board.write_verdict(0, [(W_IN_USE, 5)])
    assert target_of(board, WEB) == (socket.AF_INET, ("10.0.0.1", 80))


def test_each_target_knows_what_to_dial_when_it_fails() -> None:
    targets = [(socket.AF_INET6, ("::1", 80, 0, 0)), (socket.AF_INET, ("10.0.0.1", 80))]
    first = chain(targets)
    assert first is not None
    assert [link[:3] for link in links(first)] == [(*targets[0], True), (*targets[1], False)]
    assert chain([]) is None


@pytest.mark.parametrize(
    ("host", "near"), [("127.0.0.77", True), ("::1", True), ("10.0.0.1", False), ("2001:db8::1", False)]
)
def test_loopback_and_paths_are_near(host: str, near: bool) -> None:
    assert is_near((socket.AF_INET, (host, 80))) is near
    assert is_near((socket.AF_UNIX, "/run/x"))
