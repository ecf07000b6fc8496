"""The texts that --upstream takes, and the sentences about wrong ones."""

import pytest

from balancer.config.units import Address
from balancer.pool.backend import Backend, parse_upstream, with_indexes


def test_address_alone_takes_the_defaults_and_names_itself() -> None:
    backend = parse_upstream("10.0.0.1:9000")
    assert backend == Backend("10.0.0.1:9000", Address("inet", "10.0.0.1", 9000), 1, 0, False, -1)


def test_every_word() -> None:
    backend = parse_upstream("  [::1]:80   weight=2 maxconn=8  backup name=spare ")
    assert backend == Backend("spare", Address("inet6", "::1", 80), 2, 8, True, -1)


def test_unix_path_and_host_name() -> None:
    assert parse_upstream("unix:/run/x.sock").address == Address("unix", path="/run/x.sock")
    assert parse_upstream("backend-1:9000").address.family == "name"


@pytest.mark.parametrize(
    "text, culprit",
    [
        ("", "no address"),
        ("10.0.0.1", "port"),
        ("10.0.0.1:0", "port 0"),
        ("10.0.0.1:99999", "99999"),
        ("10.0.0.1:9000 weight=0", "weight"),
        ("10.0.0.1:9000 weight=257", "weight"),
        ("10.0.0.1:9000 weight=two", "weight"),
        ("10.0.0.1:9000 weight=١", "weight"),
        ("10.0.0.1:9000 weight", "'weight'"),
        ("10.0.0.1:9000 maxconn=-1", "maxconn"),
        ("10.0.0.1:9000 backup=yes", "'backup=yes'"),
        ("10.0.0.1:9000 wieght=2", "'wieght=2'"),
        ("10.0.0.1:9000 weight=1 weight=2", "twice"),
        ("10.0.0.1:9000 name=", "name"),
    ],
)
def test_a_mistake_is_named(text: str, culprit: str) -> None:
    with pytest.raises(ValueError, match="upstream") as failure:
        parse_upstream(text)
    assert culprit in str(failure.value)
    assert "\n" not in str(failure.value)


def test_with_indexes_gives_each_its_block() -> None:
    backends = [parse_upstream("h:1 name=a"), parse_upstream("h:2 name=b")]
    assert [b.index for b in with_indexes(backends, {"b": 4, "a": 7})] == [7, 4]
