"""Access lists: `allow` and `deny` networks, compared with the address of a client.

RULES: reads the files that are named, nothing else. `deny` is compared first. With an `allow` list every client that no
network of it holds is denied. An IPv4 address that a dual-stack socket reports as ::ffff:a.b.c.d is the IPv4 address. A
client without an address (a unix socket) is allowed: the mode of the socket file protects it. Networks become sorted
ranges, so that a list of 10,000 costs a client one bisection.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from socket import AF_INET, AF_INET6, inet_pton

Network = IPv4Network | IPv6Network

SIX = 1 << 128
NOWHERE = 1 << 130  # stands for a client without an address
_SIX_BYTE = b"\1"  # before the 16 bytes of an IPv6 address: SIX
_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96


def number_of(address: str) -> int:
    """The number of an address: IPv4 below 2^32, IPv6 from SIX on. `ipaddress` would cost a session a fifth of its
    instructions."""
    if ":" not in address:
        return int.from_bytes(inet_pton(AF_INET, address))
    packed = inet_pton(AF_INET6, address.partition("%")[0])
    return int.from_bytes(packed[12:] if packed.startswith(_MAPPED) else _SIX_BYTE + packed)


def mask_and_number(network: Network) -> tuple[int, int]:
    """What `number & mask == wanted` asks whether the network has the address with that number; NOWHERE is in none."""
    family = 0 if network.version == 4 else SIX
    return int(network.netmask) | SIX | NOWHERE, int(network.network_address) + family


class NetworkSet:
    """Networks, asked for an address."""

    __slots__ = ("_edges",)

    def __init__(self, networks: Iterable[Network]) -> None:
        self._edges: list[
            int
        ] = []  # first, behind the last, first, ...: ascending, merged where networks touch
        edges = self._edges
        for network in sorted(networks, key=lambda one: mask_and_number(one)[1]):
            first = mask_and_number(network)[1]
            behind = first + network.num_addresses
            if edges and first <= edges[-1]:
                edges[-1] = max(edges[-1], behind)
            else:
                edges += (first, behind)

    def holds(self, number: int) -> bool:
        """Whether one of the networks has the address with that number."""
        return bisect_right(self._edges, number) % 2 == 1


class AccessList:
    """What `allow` and `deny` of a listener say of a client."""

    __slots__ = ("_allowed", "_denied", "_is_open")

    def __init__(self, allow: Iterable["NetworkItem"], deny: Iterable["NetworkItem"]) -> None:
        allow = tuple(allow)
        self._is_open = not allow  # an `allow` list without a network allows no client
        self._allowed, self._denied = (
            NetworkSet(network for item in items for network in item.networks) for items in (allow, deny)
        )

    def why_not(self, address: str) -> str:
        """Return the list that refuses a client with this address, "deny" or "allow"; "" when none does."""
        if not address:
            return ""
        number = number_of(address)
        if self._denied.holds(number):
            return "deny"
        return "" if self._is_open or self._allowed.holds(number) else "allow"


@dataclass(frozen=True, slots=True)
class NetworkItem:
    """What one item of `allow` or `deny` came to: a network, or the networks of a file."""

    text: str
    networks: tuple[Network, ...]

    def __str__(self) -> str:
        return self.text


def parse_network(text: str) -> Network:
    """The network of "10.0.0.0/8", "192.0.2.7" or "2001:db8::/32". Raises ValueError with what was meant."""
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        near = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network: write 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32") from None
    raise ValueError(f"{text!r} names an address within its network; did you mean {near}?")


def parse_networks(text: str) -> NetworkItem:
    """A network, or those of a file: "@/etc/balancer/office", one a line, # begins a comment. Raises ValueError."""
    if not text.startswith("@"):
        return NetworkItem(text, (parse_network(text),))
    path = text[1:]
    try:
        with open(path, encoding="utf-8") as lines:
            numbered = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"cannot read {path}: {reason}") from None
    networks = []
    for number, line in numbered:
        if line:
            try:
                networks.append(parse_network(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    return NetworkItem(text, tuple(networks))
