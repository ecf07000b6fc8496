"""Generations without a fork: which sockets each one has, what is closed when, how an old one ends."""

import errno
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from balancer.prefork.generations import KILL_GRACE, QUEUE_GRACE, Retirement, first_to_go
from balancer.prefork.plan import Role
from balancer.shm.layout import ACCEPTING, DRAINING, STATE
from tests.unit.balancer.prefork.simulation import PLAN, MasterSimulation, web


@pytest.fixture
def master() -> Iterator[MasterSimulation]:
    made = MasterSimulation(*web("a", "b"))
    yield made
    made.close()


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_a_generation_sees_the_sockets_of_its_own_plan_by_its_own_names(master: MasterSimulation) -> None:
    """Fails where a process that is replaced in the old generation is given the address that a reload has just added: its
    configuration does not know that listener."""
    before = master.names(1)
    a, b = before
    master.binds = (*web("c", "b"), *web("new", host="127.0.0.2"))
    master.generations.ask_reload()
    master.turn()
    assert master.names(1) == before
    assert [one.name for one in master.seen(2)] == ["c", "b", "new"]
    assert {one.name: one.address.port for one in master.seen(2)[:2]} == {"c": a, "b": b}
    master.fork()
    master.turn()
    assert master.processes.current == 2
    assert master.names(1) == before


def test_a_rename_closes_nothing_and_is_reported(master: MasterSimulation) -> None:
    ports = master.names(1)
    outcome = master.reload(*web("a", "c"))
    assert outcome["ok"] and outcome["added"] == [] and outcome["removed"] == []
    assert "worker b" in str(outcome["changed"]) and "worker c" in str(outcome["changed"])
    master.turn(QUEUE_GRACE)
    assert master.names(2).keys() == ports.keys()
    assert not any(map(refused, ports))
    assert {group.bind.name for group in master.processes.sockets.groups} == {"a", "c"}


def test_a_removed_address_is_closed_when_its_old_processes_accept_no_more(master: MasterSimulation) -> None:
    """Fails where it is closed at the commit: clients in the queue of a worker would be reset."""
    ports = {name: port for port, name in master.names(1).items()}
    master.reload(*web("a"))
    (worker,) = master.old_workers()
    master.turn(QUEUE_GRACE / 2)
    assert not refused(ports["b"])
    worker[STATE], worker[ACCEPTING] = DRAINING, 1
    master.turn(QUEUE_GRACE / 8)
    assert not refused(ports["b"])
    worker[ACCEPTING] = 0
    master.turn(QUEUE_GRACE / 8)
    assert refused(ports["b"]) and not refused(ports["a"])
    assert master.generations.next_moment() is None


def test_a_removed_address_is_closed_in_time_whatever_its_processes_do(master: MasterSimulation) -> None:
    ports = {name: port for port, name in master.names(1).items()}
    master.reload(*web("a"))
    assert master.generations.next_moment() is not None
    master.turn(QUEUE_GRACE)
    assert refused(ports["b"])


def test_an_address_may_come_back_in_the_next_reload(master: MasterSimulation) -> None:
    master.reload(*web("a"))
    master.reload(*web("a", "b"))
    master.turn(QUEUE_GRACE)
    assert sorted(master.names(3).values()) == ["a", "b"]
    assert not any(map(refused, master.names(3)))


def test_a_refused_reload_leaves_names_and_sockets_as_they_were(master: MasterSimulation) -> None:
    before = master.names(1)
    assert master.reload(*web("x"), error="c.ini:3: no") == {
        "serial": 1,
        "ok": False,
        "at_ms": 10_000,
        "text": "c.ini:3: no",
        "added": [],
        "removed": [],
        "changed": [],
    }
    assert master.names(1) == before and master.processes.current == 1


def test_what_a_reload_that_fails_has_bound_is_closed_again(master: MasterSimulation) -> None:
    master.binds = web("a", "b", "c")
    master.generations.ask_reload()
    master.turn()
    (added,) = [port for port, name in master.names(2).items() if name == "c"]
    assert not refused(added)
    master.fork(ready=False)
    place = next(p for p in master.processes.children.of_generation(2) if p.process is not None)
    assert place.process is not None
    master.processes.children.reaped(place.process.pid, master.now)
    master.turn()
    assert refused(added)
    assert master.processes.current == 1 and len(master.processes.sockets.groups) == 2


def test_processes_that_serve_the_workers_go_last() -> None:
    roles = (*PLAN.roles, Role("prober", 1, lambda _child: 0))
    assert first_to_go(replace(PLAN, roles=roles), is_final=False) == {"worker", "prober"}
    assert first_to_go(replace(PLAN, roles=roles), is_final=True) == {"worker"}


def test_a_second_cut_does_not_put_off_the_kill(master: MasterSimulation) -> None:
    """A reload that waits for the oldest generation asks every turn; so does an operator who is in a hurry."""
    worker = master.processes.children.holder(1, "worker", 0)
    assert worker is not None
    going = Retirement(master.processes, 1, is_final=False, now=10.0)
    now = 11.0
    while now < 11.0 + KILL_GRACE + 0.5:
        going.cut(now)
        going.advance(now)
        now += 0.25
    sent = [number for pid, number in master.sent if pid == worker.pid]
    assert sent[:2] == [signal.SIGTERM, signal.SIGQUIT] and set(sent[2:]) == {signal.SIGKILL}
