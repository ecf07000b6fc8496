"""The declared options: a field for each, and the readers of single values."""

import dataclasses
from ipaddress import ip_network

import pytest

from balancer.config.units import Address
from balancer.edge.route import Route, parse_pool_name, parse_route
from balancer.option_values import parse_one_in
from balancer.options import EVERY_OPTION, OPTIONS, Listener, Pool, ProcessOptions


def test_every_field_of_a_record_is_an_option_or_computed() -> None:
    asked = {"set", "check_config", "print_config", "print_sample", "version", "help"}
    fields = {f.name for record in (ProcessOptions, Listener, Pool) for f in dataclasses.fields(record)}
    computed = {"name", "index", "addresses", "routes", "backends"}
    declared = {option.field for option in EVERY_OPTION} - asked
    assert declared == fields - computed | {"port", "bind", "upstream", "pool", "route"}


def test_what_only_a_section_with_a_name_takes_has_no_flag() -> None:
    assert {option.name for option in EVERY_OPTION} - {option.name for option in OPTIONS} == {"pool", "route"}


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("-> web", Route("web")),
        ("->web", Route("web")),
        ("from 10.0.0.0/8 -> a.b-c_1", Route("a.b-c_1", ip_network("10.0.0.0/8"))),
        ("from 192.0.2.7 -> a", Route("a", ip_network("192.0.2.7/32"))),
        ("from 2001:db8::/32 -> a", Route("a", ip_network("2001:db8::/32"))),
        ("sni A.Example. -> a", Route("a", None, "a.example")),
        ("sni *.a.example -> a", Route("a", None, "*.a.example")),
        (
            "from 10.0.0.0/8 and sni a.example -> reject",
            Route("reject", ip_network("10.0.0.0/8"), "a.example"),
        ),
    ],
)
def test_routes(text: str, route: Route) -> None:
    assert parse_route(text) == route
    assert parse_route(str(route)) == route


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("web", "'web' is no route: write from NETWORK -> POOL, sni NAME -> POOL, or -> POOL"),
        ("from 10.0.0.0/8 ->", "names no pool"),
        ("-> Web", "'Web' is no name of a pool: write that of a section [pool NAME]"),
        (
            "host a.example -> web",
            "has 'host' where a condition should be: write from NETWORK -> POOL, sni NAME -> POOL, or -> POOL",
        ),
        ("from -> web", "does not name one network"),
        ("sni a.example sni b.example -> web", "does not name one name"),
        ("sni a.example and sni b.example -> web", "says sni twice"),
        ("sni a_b..example -> web", "'a_b..example' is no host name: write a.example.com, or *.example.com"),
        ("sni * -> web", "'*' is no host name"),
        ("sni a.*.example -> web", "'a.*.example' is no host name"),
        ("and -> web", "has 'and' where a condition should be"),
        ("from 10.0.0.0/8 11.0.0.0/8 -> web", "does not name one network"),
        ("from 10.0.0.5/8 -> web", "names an address within its network; did you mean 10.0.0.0/8?"),
        ("from office -> web", "'office' is no network: write 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32"),
    ],
)
def test_what_is_no_route(text: str, why: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_route(text)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a:1 source=10.0.0.5,10.0.0.6, b:2", ["a:1 source=10.0.0.5,10.0.0.6", "b:2"]),
        ("a:1 source=10.0.0.5, ::6 weight=2, [::1]:80", ["a:1 source=10.0.0.5,::6 weight=2", "[::1]:80"]),
        ("a:1, 10.0.0.6", ["a:1", "10.0.0.6"]),
        ('unix:"/a, b" weight=2, "unix:/c"', ['unix:"/a, b" weight=2', '"unix:/c"']),
    ],
)
def test_a_comma_between_sources_or_quotes_begins_no_other_backend(text: str, items: list[str]) -> None:
    [upstream] = [option for option in OPTIONS if option.name == "upstream"]
    assert upstream.split(text) == items
    assert upstream.split(",".join(items)) == items


def test_the_admin_socket_may_be_off() -> None:
    assert ProcessOptions(admin="off").admin_address is None
    assert ProcessOptions(admin="/run/a b").admin_address == Address("unix", path="/run/a b")


def test_names_of_pools() -> None:
    assert [parse_pool_name(name) for name in ("", "a", "9.b_c-d")] == ["", "a", "9.b_c-d"]
    with pytest.raises(ValueError, match="no name of a pool"):
        parse_pool_name("-a")


@pytest.mark.parametrize(
    ("text", "value"), [("off", "off"), ("1/1", "1/1"), (" 1 / 100 ".strip(), "1/100"), ("1/010", "1/10")]
)
def test_one_in_n(text: str, value: str) -> None:
    assert parse_one_in(text) == value


@pytest.mark.parametrize(
    "text", ["", "1", "100", "2/100", "1/", "1/0", "1/-5", "1/1.5", "1/1000001", "all", "on", "/"]
)
def test_what_is_not_one_in_n_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"one in N|is (below|above)|number"):
        parse_one_in(text)
