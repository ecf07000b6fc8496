"""What --check-config of the balancer tries without binding and without connecting: files, addresses, names, sources.

RULES: changes nothing. What would stop the balancer is a ConfigError, what may hinder it is a note. Name servers are
asked for LOOKUP_SECONDS at most.
"""

from collections.abc import Iterable, Iterator, Sequence

from balancer.config.machine import Lookup, look_up_all, reaches
from balancer.config.option import SectionSettings
from balancer.config.units import Address, resolve
from balancer.configuration import ListenerSection, PoolSection, bound
from balancer.options import ProcessOptions
from balancer.pool.backend import Backend
from balancer.prefork.preflight import Listening, Machine, listening_of, try_addresses, try_files, try_user

LOOKUP_SECONDS = 5.0


class Preflight:
    """Tries what one reading of the configuration asks for."""

    def __init__(self, machine: Machine, lookup: Lookup = resolve, seconds: float = LOOKUP_SECONDS) -> None:
        self._machine, self._lookup, self._seconds = machine, lookup, seconds

    def __call__(
        self,
        main: SectionSettings,
        process: ProcessOptions,
        listeners: Sequence[ListenerSection],
        pools: Sequence[PoolSection],
    ) -> tuple[str, ...]:
        """The notes. Raises ConfigError."""
        try_files(main, "log", "pidfile")
        notes = try_user(main, self._machine)
        notes += try_addresses(_listening(main, process, listeners), self._machine)
        addresses = [address for _, _, address in bound(listeners)]
        return notes + tuple(self._try_backends(pools, addresses))

    def _try_backends(self, pools: Sequence[PoolSection], listening: Sequence[Address]) -> Iterator[str]:
        # One slot of each set; a service has SRV records, which the system's resolver does not ask for.
        given: dict[tuple[str, int], tuple[Backend, SectionSettings]] = {}
        for pool in pools:
            for item, backend in zip(pool.items, pool.record.backends, strict=True):
                if backend.set is None or backend.set.kind == "dns":
                    given.setdefault((pool.record.name, item), (backend, pool.settings))
        names = [backend.address for backend, _ in given.values() if backend.address.family == "name"]
        found = look_up_all(names, self._seconds, self._lookup)
        for (_, item), (backend, settings) in given.items():
            where = settings.where("upstream", item)
            numeric = found.get(backend.address, (backend.address,))
            if isinstance(numeric, str):
                yield f"{where}: {backend.address} has no address: {numeric}"
                continue
            own = [
                one for one in numeric if any(reaches(one, each, self._machine.is_own) for each in listening)
            ]
            if own and len(own) == len(numeric):
                sentence = f"{backend.address} is {_hosts(own)}, where this balancer itself listens"
                raise settings.refuse("upstream", sentence, item)
            if own:
                yield f"{where}: of the addresses of {backend.address}, this balancer itself listens on {_hosts(own)}"
            yield from (f"{where}: {note}" for note in self._obstacles(backend, numeric))

    def _obstacles(self, backend: Backend, numeric: Sequence[Address]) -> Iterator[str]:
        if not any(self._machine.has_family(one) for one in numeric):
            yield f"{backend.address}: this machine has no IPv6"
        for source in backend.sources:
            if not self._machine.is_own(source.host):
                yield f"source {source.host} is no address of this machine"


def _hosts(addresses: Iterable[Address]) -> str:
    return " and ".join(one.host for one in addresses)


def _listening(
    main: SectionSettings, process: ProcessOptions, listeners: Sequence[ListenerSection]
) -> Iterator[Listening]:
    for each in listeners:
        yield from listening_of(each.settings, each.record.addresses)
    if process.metrics is not None:
        yield process.metrics, main, "metrics", None
