"""Durations, sizes and addresses: what people write is read as they mean it, or refused with what they wrote."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.units import (
    Address,
    format_count,
    format_duration,
    format_size,
    parse_address,
    parse_count,
    parse_duration,
    parse_port,
    parse_positive_duration,
    parse_size,
    resolve,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("5s", 5),
        ("10m", 600),
        ("1h", 3600),
        ("1d", 86400),
        ("0", 0),
        ("30", 30),
        ("1.5", 1.5),
        ("1m30s", 90),
        (" 2S ", 2),
        ("1.5h", 5400),
        ("500us", 0.0005),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "d", "1m" + "9" * 308 + "d", "9" * 308 + "h" + "5s"])
def test_a_duration_beyond_all_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of seconds that could be counted") as refused:
        parse_duration(text)
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize(
    "text", ["", "s", "5x", "-1s", "5 s", "1e3", "nan", "inf", "5s5", "s5", "٣s"[1:] + "x"]
)
def test_what_is_no_duration_is_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write 250ms") as refused:
        parse_duration(text)
    assert repr(text) in str(refused.value)


def test_a_timeout_of_no_time_is_refused_where_it_makes_no_sense() -> None:
    assert parse_positive_duration("1ms") == 0.001
    with pytest.raises(ValueError, match="no time at all"):
        parse_positive_duration("0")


@given(st.integers(min_value=0, max_value=10**12))
def test_a_formatted_duration_reads_back(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds / 1e6)) == pytest.approx(
        microseconds / 1e6, rel=1e-5, abs=1e-6
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0"), (0.25, "250ms"), (90, "90s"), (600, "10m"), (86400, "1d")]
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("64k", 65536), ("32m", 32 << 20), ("1g", 1 << 30), ("7", 7), ("1.5k", 1536), ("2MiB", 2 << 20)],
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_counts_are_decimal() -> None:
    assert parse_count("50m") == 50_000_000
    assert format_count(50_000_000) == "50m"


@pytest.mark.parametrize("text", ["", "-1", "k", "1t", "0.3", "1 k", "0x10", "1_000"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_formatted_sizes_and_counts_read_back_exactly(number: int) -> None:
    assert parse_size(format_size(number)) == number
    assert parse_count(format_count(number)) == number


@pytest.mark.parametrize(
    ("text", "address", "sockaddr"),
    [
        ("10.0.0.1:80", Address("inet", "10.0.0.1", 80), ("10.0.0.1", 80)),
        (":80", Address("inet", "0.0.0.0", 80), ("0.0.0.0", 80)),
        ("*:80", Address("inet", "0.0.0.0", 80), ("0.0.0.0", 80)),
        ("[::1]:80", Address("inet6", "::1", 80), ("::1", 80, 0, 0)),
        ("[fe80::1%7]:80", Address("inet6", "fe80::1%7", 80), ("fe80::1", 80, 0, 7)),
        ("unix:/run/a.sock", Address("unix", path="/run/a.sock"), "/run/a.sock"),
        ("unix:@abstract", Address("unix", path="@abstract"), "\0abstract"),
    ],
)
def test_addresses(text: str, address: Address, sockaddr: object) -> None:
    parsed = parse_address(text)
    assert parsed == address
    assert parsed.sockaddr() == sockaddr
    assert parse_address(str(parsed)) == parsed


def test_a_port_may_come_from_elsewhere() -> None:
    written = ("10.0.0.1", "[::1]", "::1", "10.0.0.1:9", "web-1.example", "unix:/x")
    parsed = [str(parse_address(text, port=7)) for text in written]
    assert parsed == ["10.0.0.1:7", "[::1]:7", "[::1]:7", "10.0.0.1:9", "web-1.example:7", "unix:/x"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "::1",
        "host:",
        "host:x",
        "host:65536",
        "1.2.3:4",
        "1.2.3.256:4",
        "[::1",
        "[x]:1",
        "a b:1",
        "-a:1",
        "unix:",
        "unix:relative",
        "unix:/" + "x" * 107,
        "a\n:1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_a_name_must_be_resolved_before_a_socket_can_use_it() -> None:
    name = parse_address("localhost:80")
    assert name.family == "name"
    for ask in (name.sockaddr, lambda: name.socket_family):
        with pytest.raises(ValueError, match="localhost:80 has to be resolved first"):
            ask()
    assert {found.port for found in resolve(name)} == {80}
    assert all(found.family in ("inet", "inet6") for found in resolve(name))


def test_families_are_the_socket_modules() -> None:
    families = [parse_address(text).socket_family for text in ("1.1.1.1:1", "[::1]:1", "unix:/x")]
    assert families == [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX]


@pytest.mark.parametrize("text", ["-1", "65536", "http", "", "٣"])
def test_ports_out_of_range(text: str) -> None:
    with pytest.raises(ValueError, match="is not a port"):
        parse_port(text)


@pytest.mark.parametrize(
    ("text", "is_certain", "is_private"),
    [
        ("127.0.0.9:0", False, True),
        ("[::1]:5", True, True),
        ("unix:/x", True, True),
        ("*:5", True, False),
        ("[::]:0", False, False),
        ("10.0.0.1:5", True, False),
    ],
)
def test_where_an_address_is_and_for_whom(text: str, is_certain: bool, is_private: bool) -> None:
    address = parse_address(text)
    assert (address.is_certain, address.is_private) == (is_certain, is_private)
