"""Generations without a fork: which sockets each one has, what is closed when, how an old one ends."""

import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from balancer.config.option import ConfigError
from balancer.config.units import parse_address
from balancer.eventloop.log import Log
from balancer.prefork.bind import Bind
from balancer.prefork.generations import KILL_GRACE, QUEUE_GRACE, Generations, Retirement, first_to_go
from balancer.prefork.notify import Notifier
from balancer.prefork.plan import Plan, Role
from balancer.prefork.processes import ProcessManager
from balancer.prefork.sockets import ListeningSocket, Sockets
from balancer.shm.layout import ACCEPTING, DRAINING, READY, STATE, Shared, make_shared

PLAN = Plan(
    "toy",
    (Role("worker", 1, lambda _child: 0), Role("cpu", 1, lambda _child: 0, channel=True)),
    (),
    columns=16,
    drain_timeout=5.0,
)


def web(*names: str, host: str = "127.0.0.1") -> tuple[Bind, ...]:
    """Listeners at port 0, each its own address."""
    return tuple(Bind("worker", parse_address(f"{host}:0"), name=name) for name in names)


class Machine:
    """A master's processes and generations, with pids made up; `binds` is what the configuration says now."""

    def __init__(self, *binds: Bind) -> None:
        self.binds = binds
        self.error = ""
        self.sent: list[tuple[int, int]] = []
        self.now = 10.0
        log = Log("master", os.devnull)
        self.processes = ProcessManager(
            make_shared(16, rows=32),
            Sockets(),
            log,
            self.now,
            send=lambda pid, number: self.sent.append((pid, number)),
        )
        self.generations = Generations(self.processes, self, Notifier({}))
        listening = self.processes.sockets.open(binds, 1)
        self.generations.begin(self.plan(None), listening, self.now)
        self.fork()

    def plan(self, shared: Shared | None) -> Plan:
        if self.error:
            raise ConfigError(self.error)
        return replace(PLAN, binds=self.binds)

    def retired(self, generation: int) -> None:
        pass

    def fork(self, ready: bool = True) -> None:
        """Every process that is due, at once ready."""
        children = self.processes.children
        for place in children.due(self.now):
            row = children.leases.take()
            pid = 1000 + row
            children.spawned(place, pid, row, self.now)
            if ready:
                children.became_ready(pid, self.now)
                self.processes.shared.rows.row(row)[STATE] = READY
                self.processes.shared.rows.row(row)[ACCEPTING] = 1

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.generations.advance(self.now, may_reload=True)

    def reload(self, *binds: Bind, error: str = "") -> dict[str, object]:
        """A whole reload; what it reports."""
        self.binds, self.error = binds, error
        self.generations.ask_reload()
        self.turn()
        self.fork()
        self.turn()
        found: dict[str, object] = json.loads(self.processes.shared.notice.read()[1])
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

    def close(self) -> None:
        for group in self.processes.sockets.groups:
            group.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine(*web("a", "b"))
    yield made
    made.close()


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_a_generation_sees_the_sockets_of_its_own_plan_by_its_own_names(machine: Machine) -> None:
    """Fails where a process that is replaced in the old generation is given the address that a reload has just added: its
    configuration does not know that listener."""
    before = machine.names(1)
    a, b = before
    machine.binds = (*web("c", "b"), *web("new", host="127.0.0.2"))
    machine.generations.ask_reload()
    machine.turn()
    assert machine.names(1) == before
    assert [one.name for one in machine.seen(2)] == ["c", "b", "new"]
    assert {one.name: one.address.port for one in machine.seen(2)[:2]} == {"c": a, "b": b}
    machine.fork()
    machine.turn()
    assert machine.processes.current == 2
    assert machine.names(1) == before


def test_a_rename_closes_nothing_and_is_reported(machine: Machine) -> None:
    ports = machine.names(1)
    outcome = machine.reload(*web("a", "c"))
    assert outcome["ok"] and outcome["added"] == [] and outcome["removed"] == []
    assert "worker b" in str(outcome["changed"]) and "worker c" in str(outcome["changed"])
    machine.turn(QUEUE_GRACE)
    assert machine.names(2).keys() == ports.keys()
    assert not any(map(refused, ports))
    assert {group.bind.name for group in machine.processes.sockets.groups} == {"a", "c"}


def test_a_removed_address_is_closed_when_its_old_processes_accept_no_more(machine: Machine) -> None:
    """Fails where it is closed at the commit: clients in the queue of a worker would be reset."""
    ports = {name: port for port, name in machine.names(1).items()}
    machine.reload(*web("a"))
    (worker,) = machine.old_workers()
    machine.turn(QUEUE_GRACE / 2)
    assert not refused(ports["b"])
    worker[STATE], worker[ACCEPTING] = DRAINING, 1
    machine.turn(QUEUE_GRACE / 8)
    assert not refused(ports["b"])
    worker[ACCEPTING] = 0
    machine.turn(QUEUE_GRACE / 8)
    assert refused(ports["b"]) and not refused(ports["a"])
    assert machine.generations.next_moment() is None


def test_a_removed_address_is_closed_in_time_whatever_its_processes_do(machine: Machine) -> None:
    ports = {name: port for port, name in machine.names(1).items()}
    machine.reload(*web("a"))
    assert machine.generations.next_moment() is not None
    machine.turn(QUEUE_GRACE)
    assert refused(ports["b"])


def test_an_address_may_come_back_in_the_next_reload(machine: Machine) -> None:
    machine.reload(*web("a"))
    machine.reload(*web("a", "b"))
    machine.turn(QUEUE_GRACE)
    assert sorted(machine.names(3).values()) == ["a", "b"]
    assert not any(map(refused, machine.names(3)))


def test_a_refused_reload_leaves_names_and_sockets_as_they_were(machine: Machine) -> None:
    before = machine.names(1)
    assert machine.reload(*web("x"), error="c.ini:3: no") == {
        "serial": 1,
        "ok": False,
        "at_ms": 10_000,
        "text": "c.ini:3: no",
        "added": [],
        "removed": [],
        "changed": [],
    }
    assert machine.names(1) == before and machine.processes.current == 1


def test_what_a_reload_that_fails_has_bound_is_closed_again(machine: Machine) -> None:
    machine.binds = web("a", "b", "c")
    machine.generations.ask_reload()
    machine.turn()
    (added,) = [port for port, name in machine.names(2).items() if name == "c"]
    assert not refused(added)
    machine.fork(ready=False)
    place = next(p for p in machine.processes.children.of_generation(2) if p.process is not None)
    assert place.process is not None
    machine.processes.children.reaped(place.process.pid, machine.now)
    machine.turn()
    assert refused(added)
    assert machine.processes.current == 1 and len(machine.processes.sockets.groups) == 2


def test_processes_that_serve_the_workers_go_last() -> None:
    roles = (*PLAN.roles, Role("prober", 1, lambda _child: 0))
    assert first_to_go(replace(PLAN, roles=roles), is_final=False) == {"worker", "prober"}
    assert first_to_go(replace(PLAN, roles=roles), is_final=True) == {"worker"}


def test_a_second_cut_does_not_put_off_the_kill(machine: Machine) -> None:
    """A reload that waits for the oldest generation asks every turn; so does an operator who is in a hurry."""
    worker = machine.processes.children.holder(1, "worker", 0)
    assert worker is not None
    going = Retirement(machine.processes, 1, is_final=False, now=10.0)
    now = 11.0
    while now < 11.0 + KILL_GRACE + 0.5:
        going.cut(now)
        going.advance(now)
        now += 0.25
    sent = [number for pid, number in machine.sent if pid == worker.pid]
    assert sent[:2] == [signal.SIGTERM, signal.SIGQUIT] and set(sent[2:]) == {signal.SIGKILL}
