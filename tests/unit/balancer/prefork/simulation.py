"""A master without a fork: its sockets and generations are real, its processes are rows and made-up pids."""

import json
import os
from dataclasses import replace

from balancer.config.option import ConfigError
from balancer.config.units import parse_address
from balancer.eventloop.log import Log
from balancer.prefork.bind import Bind
from balancer.prefork.generations import Generations
from balancer.prefork.notify import Notifier
from balancer.prefork.plan import Plan, Role
from balancer.prefork.processes import ProcessManager
from balancer.prefork.sockets import ListeningSocket, Sockets
from balancer.shm.layout import ACCEPTING, BEAT_MS, DRAINING, READY, STATE, Shared, make_shared

WORKER = Role("worker", 1, lambda _child: 0)
CPU = Role("cpu", 1, lambda _child: 0, hang_after=0, channel=True)
PLAN = Plan(
    "toy",
    (WORKER, CPU),
    (),
    columns=16,
    drain_timeout=5.0,
)


def web(*names: str, host: str = "127.0.0.1") -> tuple[Bind, ...]:
    """Listeners at port 0, each its own address."""
    return tuple(Bind("worker", parse_address(f"{host}:0"), name=name) for name in names)


class MasterSimulation:
    """A master's processes and generations, with pids made up; `binds` is what the configuration says now."""

    def __init__(self, *binds: Bind, workers: int = 1) -> None:
        self.binds = binds
        self.workers = workers
        self.error = ""
        self.may_bind = True
        self.reload_timeout: float | None = None
        self.retired_generations: list[int] = []
        self.sent: list[tuple[int, int]] = []
        self.now = 10.0
        log = Log("master", os.devnull)
        self.processes = ProcessManager(
            make_shared(16, rows=64),
            Sockets(),
            log,
            self.now,
            send=lambda pid, number: self.sent.append((pid, number)),
        )
        self.generations = Generations(self.processes, self, Notifier({}))
        listening = self.processes.sockets.open(binds, workers)
        self.generations.begin(self.plan(None), listening, self.now)
        self.fork()

    def plan(self, shared: Shared | None) -> Plan:
        if self.error:
            raise ConfigError(self.error)
        roles = (replace(WORKER, count=self.workers), CPU)
        return replace(PLAN, roles=roles, binds=self.binds, reload_timeout=self.reload_timeout)

    def retired(self, generation: int) -> None:
        self.retired_generations.append(generation)

    def fork(self, ready: bool = True) -> None:
        """Every process that is due, at once ready."""
        children = self.processes.children
        for place in children.due(self.now):
            row = children.leases.take()
            pid = 1000 + row
            process = children.spawned(place, pid, row, self.now)
            process.reach = self.processes.listening[place.generation].slots(place.role)
            if ready:
                children.became_ready(pid, self.now)
                cells = self.processes.shared.rows.row(row)
                cells[STATE], cells[ACCEPTING], cells[BEAT_MS] = READY, 1, int(self.now * 1000)

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.generations.advance(self.now, may_bind=self.may_bind)

    def reload(self, *binds: Bind, error: str = "") -> dict[str, object]:
        """A whole reload; what it reports."""
        self.replace_generation(*binds, error=error)
        for cells in self.old_workers():
            cells[STATE], cells[ACCEPTING] = DRAINING, 0
        self.turn()
        return self.report()

    def replace_generation(self, *binds: Bind, error: str = "") -> None:
        """A reload up to the moment at which the new generation serves and the old one is told to drain."""
        self.binds, self.error = binds, error
        self.generations.ask_reload()
        self.turn()
        self.fork()
        self.turn()

    def report(self) -> dict[str, object]:
        """The last reload's."""
        text = self.processes.shared.notice.read()[1]
        found: dict[str, object] = json.loads(text) if text else {}
        return found

    def seen(self, generation: int) -> tuple[ListeningSocket, ...]:
        """What the worker of a generation listens on."""
        return self.processes.listening[generation].by_slot("worker").get(0, ())

    def names(self, generation: int) -> dict[int, str]:
        return {one.address.port: one.name for one in self.seen(generation)}

    def old_workers(self) -> list[memoryview]:
        """Rows of the workers that drain."""
        living = self.processes.children.living()
        return [self.processes.shared.rows.row(p.row) for p in living if p.role == "worker" and p.draining]

    def leave(self, generation: int) -> None:
        """Every process of a generation ends. Its rows, and so its pids, are not used again."""
        for process in self.processes.children.living(generation):
            self.processes.children.reaped(process.pid, self.now)

    def close(self) -> None:
        for group in self.processes.sockets.groups:
            group.close()
