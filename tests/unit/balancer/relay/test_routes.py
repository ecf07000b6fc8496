"""Which way a client goes, by its address and the name it asks for."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.edge.route import Route, parse_route
from balancer.relay.routes import RouteTable


def to(network: IPv4Network | IPv6Network | None) -> Route:
    return Route("somewhere", network)


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
    table = RouteTable(
        [
            (to(HOST), "host"),
            (to(INSIDE), "inside"),
            (to(SIX), "six"),
            (to(None), "rest"),
            (to(INSIDE), "never"),
        ]
    )
    assert table.find(address) == way


def test_without_a_match_there_is_no_way() -> None:
    table = RouteTable([(to(INSIDE), "inside")])
    assert table.find("11.0.0.1") is None
    assert table.find("") is None
    assert not table.is_direct()


def test_one_way_for_all_needs_no_look() -> None:
    assert RouteTable([(to(None), "all"), (to(INSIDE), "never")]).is_direct()
    assert not RouteTable([(to(INSIDE), "inside"), (to(None), "rest")]).is_direct()


ADDRESSES = st.ip_addresses().map(str) | st.ip_addresses(v=4).map(
    lambda address: f"10.0.0.{int(address) % 256}"
)
NETWORKS = st.tuples(st.ip_addresses(), st.integers(0, 32)).map(lambda pair: ip_network(pair, strict=False))


@given(st.lists(NETWORKS | st.just(INSIDE) | st.just(HOST), max_size=4), ADDRESSES)
def test_networks_hold_what_ipaddress_says(networks: list[IPv4Network | IPv6Network], address: str) -> None:
    table = RouteTable([(to(network), str(network)) for network in networks])
    mapped = getattr(ip_address(address), "ipv4_mapped", None) or ip_address(address)
    assert table.find(address) == next((str(network) for network in networks if mapped in network), None)


NAMED = (
    "sni a.example -> a",
    "sni *.b.example and from 10.0.0.0/8 -> inside",
    "sni *.b.example -> b",
    "sni *.closed.example -> reject",
    "from 10.0.0.0/8 -> nameless",
)


@pytest.mark.parametrize(
    ("address", "name", "way"),
    [
        ("11.0.0.1", "a.example", "a"),
        ("11.0.0.1", "x.a.example", None),
        ("11.0.0.1", "b.example", None),
        ("11.0.0.1", "x.b.example", "b"),
        ("11.0.0.1", "x.y.b.example", "b"),
        ("11.0.0.1", "xb.example", None),
        ("10.0.0.1", "x.b.example", "inside"),
        ("10.0.0.1", "x.closed.example", None),
        ("10.0.0.1", "c.example", "nameless"),
        ("10.0.0.1", "", "nameless"),
        ("11.0.0.1", "", None),
        ("", "a.example", "a"),
        ("", "x.b.example", "b"),
    ],
)
def test_a_name_and_an_address_both_have_to_match(address: str, name: str, way: str | None) -> None:
    routes = [parse_route(text) for text in NAMED]
    table = RouteTable((route, None if route.pool == "reject" else route.pool) for route in routes)
    assert table.find(address, name) == way


def test_a_client_without_an_address_is_in_no_network() -> None:
    for network in ("0.0.0.0/0", "::/0", "255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"):
        assert RouteTable([(to(ip_network(network)), "way")]).find("") is None
