"""Which way a client goes, by its address alone."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.relay.routes import RouteTable

INSIDE, SIX, HOST = IPv4Network("10.0.0.0/8"), IPv6Network("2001:db8::/32"), IPv4Network("10.0.0.7/32")


@pytest.mark.parametrize(
    ("address", "way"),
    [
        ("10.0.0.7", "host"),
        ("10.0.0.8", "inside"),
        ("11.0.0.8", "rest"),
        ("::ffff:10.0.0.8", "inside"),  # as a dual-stack socket reports it
        ("2001:db8::1", "six"),
        ("fe80::1%lo", "rest"),
        ("", "rest"),  # a unix socket
    ],
)
def test_the_first_match_decides(address: str, way: str) -> None:
    table = RouteTable([(HOST, "host"), (INSIDE, "inside"), (SIX, "six"), (None, "rest"), (INSIDE, "never")])
    assert table.find(address) == way


def test_without_a_match_there_is_no_way() -> None:
    table = RouteTable([(INSIDE, "inside")])
    assert table.find("11.0.0.1") is None
    assert table.find("") is None
    assert not table.is_direct()


def test_one_way_for_all_needs_no_look() -> None:
    assert RouteTable([(None, "all"), (INSIDE, "never")]).is_direct()
    assert not RouteTable([(INSIDE, "inside"), (None, "rest")]).is_direct()


ADDRESSES = st.ip_addresses().map(str) | st.ip_addresses(v=4).map(
    lambda address: f"10.0.0.{int(address) % 256}"
)
NETWORKS = st.tuples(st.ip_addresses(), st.integers(0, 32)).map(lambda pair: ip_network(pair, strict=False))


@given(st.lists(NETWORKS | st.just(INSIDE) | st.just(HOST), max_size=4), ADDRESSES)
def test_networks_hold_what_ipaddress_says(networks: list[IPv4Network | IPv6Network], address: str) -> None:
    table = RouteTable([(network, str(network)) for network in networks])
    mapped = getattr(ip_address(address), "ipv4_mapped", None) or ip_address(address)
    assert table.find(address) == next((str(network) for network in networks if mapped in network), None)
