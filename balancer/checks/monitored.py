"""What the prober knows of each backend and each pool.

RULES: data, and questions about it; nothing here writes to the board or to the log.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from balancer.checks.check import Check
from balancer.checks.race import RunningProbe
from balancer.edge.proxy_protocol import SendProxy
from balancer.eventloop.timers import Timer
from balancer.options import Pool
from balancer.pool.backend import MAIN_POOL, Backend
from balancer.pool.early_ends import EarlyEnds
from balancer.pool.health import HealthState, PassiveHealth, Schedule
from balancer.pool.serving import BackendState, Serving
from balancer.pool.targets import NameAddresses, Target, target_at, text_at

NOT_COUNTED = Serving(0, 0, False, "")
NO_ADDRESS = NameAddresses()
BOTH = frozenset({4, 6})


@dataclass(slots=True)
class MonitoredPool:
    """One pool, and how its backends are checked."""

    pool: Pool
    timeout: float  # seconds a check may take
    backends: "list[MonitoredBackend]" = field(default_factory=list)
    is_panic: bool = False  # as the log has said
    judged: tuple[int, int] | None = None  # versions of the board that `serving` was found at
    serving: Serving = NOT_COUNTED
    # with panic: the states of its backends then, those of backups apart
    tiers: tuple[Counter[BackendState], Counter[BackendState]] = field(
        default_factory=lambda: (Counter(), Counter())
    )
    counted: tuple[int, int] | None = (
        None  # without checks: backends that are out, and all, until one more is
    )
    has_changed: bool = False  # something that the log may have to tell

    def labels(self) -> dict[str, object]:
        """The field that names it in the log; the pool main needs none."""
        return {} if self.pool.name == MAIN_POOL else {"pool": self.pool.name}

    def names(self) -> set[str]:
        """The names that its backends are given by."""
        addresses = [one.backend.address for one in self.backends]
        return {address.host for address in addresses if address.family == "name"}

    def share(self) -> str:
        """Backends that are up, of all."""
        return f"{self.serving.up}/{self.serving.all}"


@dataclass(slots=True)
class MonitoredBackend:
    """One backend, its health and its next check."""

    backend: Backend
    pool: MonitoredPool
    health: HealthState | PassiveHealth
    schedule: Schedule
    early: EarlyEnds
    was_up: bool = True  # the verdict as it is published
    since: float = 0.0  # monotonic seconds of its last change
    addresses: NameAddresses = NO_ADDRESS  # of a name
    port: int = 0  # of the tenant of a slot
    failures: int = 0  # connect failures of all workers, as last seen
    address_failures: int = 0  # the same of single addresses
    probe: RunningProbe | None = None
    timer: Timer | None = None
    reason: str = ""
    came: str = ""  # instead of the answer that was expected, printable
    ramp_from: float = 0.0  # when its slow start began, 0 while there is none
    is_itself: bool = False  # this balancer listens on every address of it

    @property
    def name(self) -> str:
        """What is looked up, "" for a numeric address or a path."""
        address = self.backend.address
        return address.host if address.family == "name" and self.backend.set is None else ""

    @property
    def tls_host(self) -> str:
        """The host that its certificate is for: in a spare slot the address of the tenant."""
        return self.addresses.host if self.backend.is_spare else self.backend.tls_host

    @property
    def families(self) -> frozenset[int]:
        """The IP versions that it can be dialled by: those of its source addresses, if it has some."""
        return frozenset(4 if one.family == "inet" else 6 for one in self.backend.sources) or BOTH

    def lacks_address(self) -> bool:
        """It is given by a name of which no address is known."""
        return bool(self.name) and not self.addresses.hosts

    def is_empty(self) -> bool:
        """It is a slot without a backend."""
        return self.backend.set is not None and not self.addresses.hosts

    def is_up(self) -> bool:
        """The verdict: neither checks and failed connects nor a penalty take it out."""
        return self.health.up and not self.early.is_out

    def where(self) -> dict[str, object]:
        """The field of the log that tells where it is: as configured, and the address in use of a name."""
        address = self.backend.address
        at = text_at(self.addresses.host, self.port or address.port) if self.addresses.hosts else ""
        return {"address": self.backend.set or address} | ({"at": at} if at else {})

    def labels(self) -> dict[str, object]:
        """The fields that name it in the log."""
        return {**self.pool.labels(), "backend": self.backend.name}


def check_targets(check: Check, targets: Iterable[Target]) -> list[Target]:
    """Where the backend with these targets is checked: there, or at the port and the address of the check. A unix
    socket's service is on this machine."""
    if not check.port and not check.address:
        return list(targets)
    found = []
    for _, where in targets:
        host, port = ("127.0.0.1", 0) if isinstance(where, str) else where[:2]
        found.append(target_at(check.address or host, check.port or port))
    return list(dict.fromkeys(found))


def header_of(pool: Pool) -> SendProxy | None:
    """The PROXY header of a check: the pool's, unless the check goes elsewhere or says otherwise."""
    check = pool.check
    if check.proxy is None:
        return None if check.port or check.address else pool.send_proxy
    return pool.send_proxy or SendProxy(2) if check.proxy else None


def host_of(target: Target) -> str:
    """The target as a header Host names it."""
    return "localhost" if isinstance(target[1], str) else text_at(*target[1][:2])


def monitor(pool: Pool) -> MonitoredPool:
    """A pool with its backends, all up until the board or a check says otherwise."""
    # connect-timeout 0 means the kernel's patience, which is longer than any interval.
    timeout = pool.check.timeout or min(pool.connect_timeout or pool.check_interval, pool.check_interval)
    monitored_pool = MonitoredPool(pool, timeout)
    monitored_pool.backends += [monitored(backend, monitored_pool) for backend in pool.backends]
    return monitored_pool


def monitored(backend: Backend, pool: MonitoredPool) -> MonitoredBackend:
    """One backend of which nothing is known yet."""
    options = pool.pool
    health: HealthState | PassiveHealth
    if options.check.kind == "none":
        health = PassiveHealth(options.check_fall, options.check_interval)
    else:
        health = HealthState(options.check_rise, options.check_fall)
    schedule, early = Schedule(options.check_interval, 0.0), EarlyEnds(options.check_fall)
    return MonitoredBackend(backend, pool, health, schedule, early)
