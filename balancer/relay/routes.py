"""Which way the clients of a listener go: the first route whose network holds the client's address.

RULES: pure. An IPv4 address that a dual-stack socket reports as ::ffff:a.b.c.d is the IPv4 address. A client without an
address (a unix socket) matches only a route without network.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Generic, TypeVar

Way = TypeVar("Way")
Network = IPv4Network | IPv6Network


class RouteTable(Generic[Way]):
    """Routes in their order; `default` is the way of the clients that no network before it holds, None: refused."""

    __slots__ = ("_networks", "default")

    def __init__(self, routes: Iterable[tuple[Network | None, Way]]) -> None:
        self._networks: list[tuple[Network, Way]] = []
        self.default: Way | None = None
        for network, way in routes:
            if network is None:
                self.default = way
                break  # what follows is never reached
            self._networks.append((network, way))

    def is_direct(self) -> bool:
        """Return whether every client goes the default way."""
        return self.default is not None and not self._networks

    def find(self, source_ip: str) -> Way | None:
        """Return the way of a client, None when no route matches."""
        if source_ip:
            address = ip_address(source_ip)
            if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
                address = address.ipv4_mapped
            for network, way in self._networks:
                if address in network:
                    return way
        return self.default
