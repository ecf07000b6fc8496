"""What a service asks of the prefork machine: roles to fork, addresses to bind, limits to keep.

RULES: frozen data and one protocol; no sockets, no processes, no traffic. A plan is made anew at every reload and
compared with the one before, so everything in it compares by value, except functions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from balancer.eventloop.log_format import LogSettings
from balancer.prefork.bind import Bind
from balancer.prefork.child import Child
from balancer.shm.layout import Shared


@dataclass(frozen=True)
class Role:
    """One kind of process. `run` is called in the forked child; its return value is the exit code.

    `hang_after`: seconds without heartbeat until the process is killed and replaced, 0 = never.
    `channel`: each slot of this role owns a SOCK_SEQPACKET pair (channels.py); one end is the process's
    (`child.channel`), the other belongs to every process of the roles without channel (`child.channels[name]`).
    """

    name: str
    count: int
    run: Callable[[Child], int]
    hang_after: float = 3.0
    channel: bool = False


@dataclass(frozen=True)
class Plan:
    """One reading of the configuration, as far as the machine must know it.

    `totals`: columns that only grow; they are folded when their process is reaped, every other cell is zeroed.
    `reload_timeout`: seconds that sessions of an old generation have after a reload, inf for ever, None as a stop.
    `made_from`: all that the roles' `run` were closed over, compared by value; a reload to an equal plan forks nothing.
    What is not given counts as changed.
    `most`: processes the listening role may be scaled to while it runs, 0 = as many as the machine has slots for.
    `summary`: (name, value) pairs that a reload compares and reports, e.g. ("backend a", "10.0.0.1:80 weight=2").
    `handover_state`: gives a text that a successor (USR2) reads from a descriptor: what only the memory of this master
    knows.
    `refresh`: reads again what living processes can take over, and tells in a few words what has changed. Raises
    ConfigError, and then nothing has.
    `notes`: settings that look like a mistake; logged as warnings at boot and at a reload that gets so far.
    """

    title: str
    roles: tuple[Role, ...]
    binds: tuple[Bind, ...]
    columns: int
    totals: tuple[range, ...] = ()
    drain_timeout: float = 30.0
    reload_timeout: float | None = None
    config_path: str = ""
    log_path: str = ""
    log: LogSettings = field(default_factory=LogSettings)
    pidfile: str = ""
    user: str = ""
    group: str = ""
    debug_dir: str | None = None
    steering: bool = True
    most: int = 0
    summary: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    handover_state: Callable[[], str] = str
    refresh: Callable[[], str] | None = None
    made_from: object = field(default_factory=object)

    def role(self, name: str) -> Role:
        """Raises KeyError."""
        return self.roles[self.role_index(name)]

    def role_index(self, name: str) -> int:
        """Position of a role; raises KeyError."""
        for index, role in enumerate(self.roles):
            if role.name == name:
                return index
        raise KeyError(name)

    def listening(self) -> str:
        """Name of the role whose slots own the SO_REUSEPORT sockets; the first role when nothing is bound per slot."""
        for bind in self.binds:
            if bind.per_slot:
                return bind.role
        return self.roles[0].name


class Service(Protocol):
    """What `run_master` runs."""

    def plan(self, shared: Shared | None) -> Plan:
        """Parse and validate everything, without side effects that cannot be repeated.

        Called once with None before anything is bound, and with the shared memory at boot and at each reload.
        Raises ConfigError with a sentence.
        """

    def retired(self, generation: int) -> None:
        """Called in the master when the last process of that generation is gone."""
