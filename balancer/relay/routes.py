"""Which way the clients of a listener go: the first route that their address and the name they ask for match.

RULES: pure. Addresses are compared as edge/access.py reads them. A client without an address (a unix socket) matches only
routes without network, one without a name only routes without name. A way of None turns the client away.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

from balancer.edge.access import NOWHERE, mask_and_number, number_of
from balancer.edge.route import Route

Way = TypeVar("Way")


class RouteTable(Generic[Way]):
    """Routes in their order; `default` is the way of the clients that none before it matches, None: refused. `first` is
    the first way that there is."""

    __slots__ = ("_rules", "default", "first")

    def __init__(self, routes: Iterable[tuple[Route, Way | None]]) -> None:
        self._rules: list[tuple[int, int, str, Way | None]] = []  # (mask, number, name, way)
        self.default: Way | None = None
        self.first: Way | None = None
        for route, way in routes:
            self.first = self.first or way
            if route.network is None and not route.name:
                self.default = way
                break  # what follows is never reached
            place = (0, 0) if route.network is None else mask_and_number(route.network)
            self._rules.append((*place, route.name, way))

    def is_direct(self) -> bool:
        """Return whether every client goes the default way."""
        return self.default is not None and not self._rules

    def find(self, source_ip: str, name: str = "") -> Way | None:
        """Return the way of a client that asks for this name, None when no route matches."""
        number = number_of(source_ip) if source_ip else NOWHERE
        for mask, network, pattern, way in self._rules:
            if number & mask == network and (not pattern or matches(pattern, name)):
                return way
        return self.default


def matches(pattern: str, name: str) -> bool:
    """Whether a name is the one of a route, or below "*.example.com" by one label or more."""
    return name.endswith(pattern[1:]) if pattern[0] == "*" else name == pattern
