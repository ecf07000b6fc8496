"""The texts that --upstream takes, and the sentences about wrong ones."""

from dataclasses import replace

import pytest

from balancer.config.units import Address, parse_address
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


def test_a_path_with_a_blank_and_no_quotes_says_where_they_go() -> None:
    with pytest.raises(ValueError, match="stands in quotes") as failure:
        parse_upstream("unix:/run/my app.sock weight=2")
    assert str(failure.value).endswith('a path with a blank stands in quotes: unix:"/run/my app.sock"')
    assert parse_upstream('unix:"/run/my app.sock" weight=2').weight == 2
    for text, end in (
        ("unix:/a weigth=2", "did you mean weight?"),
        ("unix:/a backup x", "'x' is not understood"),
    ):
        with pytest.raises(ValueError, match="not understood") as failure:
            parse_upstream(text)
        assert end in str(failure.value) and "quotes" not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('unix:"/run/my app/x.sock" weight=2', "/run/my app/x.sock"),
        ('"unix:/run/my app/x.sock" weight=2', "/run/my app/x.sock"),
        ("unix:'/run/a, b' weight=2", "/run/a, b"),
        (r'unix:"/run/\"x\"" weight=2', '/run/"x"'),
    ],
)
def test_a_path_between_quotes_may_have_blanks(text: str, path: str) -> None:
    backend = parse_upstream(text)
    assert (backend.address, backend.weight) == (Address("unix", path=path), 2)
    assert parse_upstream(str(backend.address)).address == backend.address
    assert parse_upstream(backend.terms()).address == backend.address


def test_a_name_may_have_blanks() -> None:
    assert parse_upstream('10.0.0.1:80 name="first one" backup').name == "first one"


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("10.0.0.1:80 source=10.0.0.5", [("10.0.0.5", 0)]),
        ("10.0.0.1:80 source=10.0.0.5,10.0.0.6 backup", [("10.0.0.5", 0), ("10.0.0.6", 0)]),
        ("[::1]:80 source=2001:db8::5,[2001:DB8::6]", [("2001:db8::5", 0, 0, 0), ("2001:db8::6", 0, 0, 0)]),
        ("host:80 source=10.0.0.5,::5", [("10.0.0.5", 0), ("::5", 0, 0, 0)]),
        ("10.0.0.1:80", []),
    ],
)
def test_source_addresses(text: str, sources: list[object]) -> None:
    backend = parse_upstream(text)
    assert [one.sockaddr() for one in backend.sources] == sources
    assert parse_upstream(backend.terms()) == backend


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
        ("10.0.0.1:9000 wieght=2", "did you mean weight?"),
        ("10.0.0.1:9000 sources=::1", "did you mean source?"),
        ("10.0.0.1:9000 source=", "source '' is no numeric address"),
        ("10.0.0.1:9000 source=10.0.0.5,", "source '' is no numeric address"),
        ("10.0.0.1:9000 source=10.0.0.5:80", "without port"),
        ("10.0.0.1:9000 source=eth0", "source 'eth0' is no numeric address"),
        ("10.0.0.1:9000 source=::1", "another family"),
        ("[::1]:9000 source=10.0.0.5", "another family"),
        ("10.0.0.1:9000 source=0.0.0.0", "every address"),
        ("h:9000 source=[::]", "every address"),
        ("10.0.0.1:9000 source=10.0.0.5,10.0.0.5", "twice"),
        ("unix:/x source=10.0.0.5", "unix socket"),
        ("unix:/run/my app/x", "'app/x' is not understood"),
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


@pytest.mark.parametrize(
    "text, host",
    [
        ("web.internal.:443", "web.internal"),
        ("10.0.0.1:443", "10.0.0.1"),
        ("unix:/run/web", ""),
        ("dns:web.internal.:443", "web.internal"),
        ("srv:_https._tcp.web.internal.", "web.internal"),
    ],
)
def test_certificates_are_for_the_configured_host_whoever_has_the_slot(text: str, host: str) -> None:
    slot = parse_upstream(text).expanded()[0]
    assert slot.tls_host == host
    if slot.set:
        assert replace(slot, address=parse_address("10.0.0.7:443")).tls_host == host
