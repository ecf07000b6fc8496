"""Whether a backend is this balancer itself: by another of its addresses, by a name, by an address that has moved here.

RULES: used by the prober only, so it costs a session nothing. Asks the kernel's routes which addresses are this
machine's, and only for backends on a port or a path that the balancer listens on. A loop through another process (a
second balancer that points back) cannot be told from a backend: `maxconns` bounds it.
"""

from collections.abc import Callable, Iterable

from balancer.config.machine import is_own_address, reaches
from balancer.config.units import Address


class OwnListeners:
    """`listening` are the addresses of all listeners, with their real ports."""

    def __init__(self, listening: Iterable[Address], is_own: Callable[[str], bool] = is_own_address) -> None:
        self._listening = tuple(listening)
        self._is_own = is_own

    def has(self, address: Address) -> bool:
        """Whether a connect to a numeric address or a path comes back to this balancer."""
        return any(reaches(address, one, self._is_own) for one in self._listening)

    def others(self, name: Address, hosts: Iterable[str]) -> list[str]:
        """Those of a name's numeric addresses that are not this balancer's."""
        return [host for host in hosts if not self.has(numeric(host, name.port))]


def numeric(host: str, port: int) -> Address:
    """One address of a name."""
    return Address("inet6" if ":" in host else "inet", host, port)
