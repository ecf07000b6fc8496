"""Which way the clients of a listener go: the first route whose network holds the client's address.

RULES: pure. An IPv4 address that a dual-stack socket reports as ::ffff:a.b.c.d is the IPv4 address. A client without an
address (a unix socket) matches only a route without network. Numbers are compared: `ipaddress` would cost a session a
fifth of its instructions.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Generic, TypeVar

Way = TypeVar("Way")
Network = IPv4Network | IPv6Network

_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96


class RouteTable(Generic[Way]):
    """Routes in their order; `default` is the way of the clients that no network before it holds, None: refused."""

    __slots__ = ("_four", "_six", "default")

    def __init__(self, routes: Iterable[tuple[Network | None, Way]]) -> None:
        self._four: list[tuple[int, int, Way]] = []  # (mask, network, way)
        self._six: list[tuple[int, int, Way]] = []
        self.default: Way | None = None
        for network, way in routes:
            if network is None:
                self.default = way
                break  # what follows is never reached
            one = (int(network.netmask), int(network.network_address), way)
            (self._four if network.version == 4 else self._six).append(one)

    def is_direct(self) -> bool:
        """Return whether every client goes the default way."""
        return self.default is not None and not self._four and not self._six

    def find(self, source_ip: str) -> Way | None:
        """Return the way of a client, None when no route matches."""
        if not source_ip:
            return self.default
        networks = self._four
        if ":" in source_ip:
            packed = inet_pton(AF_INET6, source_ip.partition("%")[0])
            if packed.startswith(_MAPPED):
                packed = packed[12:]
            else:
                networks = self._six
        else:
            packed = inet_pton(AF_INET, source_ip)
        number = int.from_bytes(packed)
        for mask, network, way in networks:
            if number & mask == network:
                return way
        return self.default
