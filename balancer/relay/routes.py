"""Which way the clients of a listener go: the first route whose network holds the client's address.

RULES: pure. Addresses are compared as edge/access.py reads them. A client without an address (a unix socket) matches only
a route without network.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

from balancer.edge.access import Network, mask_and_number, number_of

Way = TypeVar("Way")


class RouteTable(Generic[Way]):
    """Routes in their order; `default` is the way of the clients that no network before it holds, None: refused. `first`
    is the way of the first route, whatever its network."""

    __slots__ = ("_networks", "default", "first")

    def __init__(self, routes: Iterable[tuple[Network | None, Way]]) -> None:
        self._networks: list[tuple[int, int, Way]] = []  # (mask, number, way)
        self.default: Way | None = None
        self.first: Way | None = None
        for network, way in routes:
            self.first = self.first or way
            if network is None:
                self.default = way
                break  # what follows is never reached
            self._networks.append((*mask_and_number(network), way))

    def is_direct(self) -> bool:
        """Return whether every client goes the default way."""
        return self.default is not None and not self._networks

    def find(self, source_ip: str) -> Way | None:
        """Return the way of a client, None when no route matches."""
        if not source_ip:
            return self.default
        number = number_of(source_ip)
        for mask, network, way in self._networks:
            if number & mask == network:
                return way
        return self.default
