"""Networks that are let in or kept out."""

import random
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from balancer.edge.access import AccessList, NetworkItem, NetworkSet, number_of, parse_networks


def networks(*texts: str) -> list[NetworkItem]:
    return [parse_networks(text) for text in texts]


@pytest.mark.parametrize(
    ("allow", "deny", "address", "why"),
    [
        ((), (), "10.0.0.1", ""),
        ((), ("10.0.0.0/8",), "10.0.0.1", "deny"),
        ((), ("10.0.0.0/8",), "11.0.0.1", ""),
        (("10.0.0.0/8",), (), "11.0.0.1", "allow"),
        (("10.0.0.0/8",), (), "10.255.255.255", ""),
        (("10.0.0.0/8",), ("10.1.0.0/16",), "10.1.2.3", "deny"),
        (("10.0.0.0/8",), ("10.1.0.0/16",), "10.2.2.3", ""),
        ((), ("10.0.0.0/8",), "::ffff:10.0.0.1", "deny"),
        ((), ("::/0",), "::ffff:10.0.0.1", ""),
        ((), ("0.0.0.0/0",), "2001:db8::1", ""),
        (("2001:db8::/32",), (), "2001:db8:ffff::1", ""),
        (("2001:db8::/32",), (), "10.0.0.1", "allow"),
        ((), ("fe80::/10",), "fe80::1%eth0", "deny"),
        (("10.0.0.0/8",), (), "", ""),
        ((), ("0.0.0.0/0",), "255.255.255.255", "deny"),
    ],
)
def test_deny_first_then_allow(allow: tuple[str, ...], deny: tuple[str, ...], address: str, why: str) -> None:
    assert AccessList(networks(*allow), networks(*deny)).why_not(address) == why


def test_a_file_of_networks(tmp_path: Path) -> None:
    path = tmp_path / "office"
    path.write_text("# head office\n10.0.0.0/8\n\n  192.0.2.7   # the printer\n")
    access = AccessList(networks(f"@{path}"), ())
    assert [access.why_not(one) for one in ("10.9.9.9", "192.0.2.7", "192.0.2.8")] == ["", "", "allow"]
    path.write_text("10.0.0.0/8\n10.0.0.1/8\n")
    with pytest.raises(
        ValueError, match=r"office:2: '10.0.0.1/8' names an address .* did you mean 10.0.0.0/8\?"
    ):
        parse_networks(f"@{path}")
    with pytest.raises(ValueError, match=r"cannot read /nowhere/at/all: No such file or directory"):
        parse_networks("@/nowhere/at/all")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="it is no text"):
        parse_networks(f"@{path}")


def test_an_empty_file_denies_and_allows_nothing(tmp_path: Path) -> None:
    """`allow = @empty` lets nobody in: an access list that lost its content must not become an open door."""
    path = tmp_path / "empty"
    path.write_text("")
    assert AccessList(networks(f"@{path}"), ()).why_not("10.0.0.1") == "allow"


def test_ranges_say_what_the_networks_say() -> None:
    rng = random.Random(5)
    for _ in range(200):
        some = [
            ip_network(
                (rng.getrandbits(8) << 24 | rng.getrandbits(4) << 20, rng.randint(4, 32)), strict=False
            )
            for _ in range(rng.randint(0, 12))
        ]
        ranges = NetworkSet(some)
        edges = [
            int(one.network_address) + step
            for one in some
            for step in (-1, 0, one.num_addresses - 1, one.num_addresses)
        ]
        for number in [*edges, *(rng.getrandbits(32) for _ in range(20))]:
            if 0 <= number < 1 << 32:
                address = ip_address(number)
                assert ranges.holds(number_of(str(address))) == any(address in one for one in some)
