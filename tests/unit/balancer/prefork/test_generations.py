"""Generations without a fork: which sockets each one has, what is closed when, how an old one ends."""

import errno
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from math import inf

import pytest

from balancer.prefork.generations import LOOK, MOST_GENERATIONS, QUEUE_GRACE, SETTLE_WITHIN
from balancer.prefork.plan import Role
from balancer.prefork.retirement import KILL_GRACE, Retirement, first_to_go
from balancer.shm.layout import ACCEPTING, DRAINING, MASTER_RELOADS, READY, STATE
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
    master.replace_generation(*web("a"))
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
    master.replace_generation(*web("a"))
    assert master.generations.next_moment() is not None
    master.turn(SETTLE_WITHIN / 2)
    assert not refused(ports["b"]), (
        "its clients would be reset, and a busy machine has let no process empty its queue"
    )
    master.turn(SETTLE_WITHIN / 2)
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


@pytest.mark.parametrize("state, accepting", [(READY, 1), (READY, 0), (DRAINING, 1)])
@pytest.mark.parametrize("end", ["drained", "dead", "late", "stop"])
def test_a_reload_is_reported_when_no_old_process_accepts_any_more(
    master: MasterSimulation, state: int, accepting: int, end: str
) -> None:
    """Fails where the line is written at the commit: who has read it may still meet the old configuration. One that stays
    at its limit or hangs accepts again when it goes on."""
    master.replace_generation(*web("a", "c"))
    (worker,) = master.old_workers()
    worker[STATE], worker[ACCEPTING] = state, accepting
    master.turn(SETTLE_WITHIN / 2)
    assert master.processes.current == 2 and master.report() == {}
    assert master.generations.is_changing
    master.generations.ask_reload()
    master.turn()
    assert master.generations.owed_signals() == [signal.SIGHUP], "the next reload waits for this one's report"
    moment = master.generations.next_moment()
    assert moment is not None and moment <= master.now + LOOK
    match end:
        case "drained":
            worker[STATE], worker[ACCEPTING] = DRAINING, 0
            master.turn(LOOK)
        case "dead":
            master.leave(1)
            master.turn(LOOK)
        case "late":
            master.turn(SETTLE_WITHIN / 2)
        case "stop":
            master.generations.retire_all(master.now, is_final=True)
    first = master.report()
    assert first["ok"] and first["serial"] == (2 if end != "stop" else 1)
    assert first["text"] == ("nothing changed" if end != "stop" else str(first["text"])) and first["text"]
    assert master.generations.next_moment() is None


def test_a_second_cut_does_not_put_off_the_kill(master: MasterSimulation) -> None:
    """A reload that waits for the oldest generation asks every turn; so does an operator who is in a hurry."""
    worker = master.processes.children.holder(1, "worker", 0)
    assert worker is not None
    going = Retirement(master.processes, 1, is_final=False, now=10.0, within=5.0)
    now = 11.0
    while now < 11.0 + KILL_GRACE + 0.5:
        going.cut(now)
        going.advance(now)
        now += 0.25
    sent = [number for pid, number in master.sent if pid == worker.pid]
    assert sent[:2] == [signal.SIGTERM, signal.SIGQUIT] and set(sent[2:]) == {signal.SIGKILL}


def test_a_reload_that_changes_nothing_forks_nothing_and_says_so(master: MasterSimulation) -> None:
    before = dict(master.processes.children.processes)
    for serial in (1, 2, 3):
        outcome = master.reload(*master.binds)
        assert (outcome["serial"], outcome["ok"], outcome["text"]) == (serial, True, "nothing changed")
    assert master.processes.children.processes == before and master.sent == []
    assert master.processes.current == 1 and master.retired_generations == [2, 2, 2]
    assert master.reload(*web("a", "c"))["changed"] and master.processes.current == 2


def test_each_reload_that_succeeds_is_counted_and_no_other_outcome(master: MasterSimulation) -> None:
    """What operators have added until the next reload goes by it."""
    row = master.processes.row
    assert row[MASTER_RELOADS] == 0
    master.reload(*master.binds)
    assert row[MASTER_RELOADS] == 1, "nothing changed"
    master.reload(*web("a", "c"))
    assert row[MASTER_RELOADS] == 2
    assert master.reload(*web("a", "d"), error="line 3 is wrong")["ok"] is False
    master.generations.refresh(master.now)
    assert row[MASTER_RELOADS] == 2


def test_a_reload_brings_the_configured_number_of_processes_back(master: MasterSimulation) -> None:
    master.generations.scale(3, master.now)
    master.fork()
    assert master.reload(*master.binds)["changed"] == ["workers 3 -> 1"]
    assert master.processes.current == 2


def reloaded(master: MasterSimulation, times: int) -> None:
    """Reloads, each with another name; sessions hold every generation."""
    master.reload_timeout = inf
    for _ in range(times):
        master.reload(*web(f"name{master.processes.current}", "b"))


def told(master: MasterSimulation, generation: int) -> list[int]:
    pids = {process.pid for process in master.processes.children.living(generation)}
    return [number for pid, number in master.sent if pid in pids]


def test_sessions_of_an_old_generation_go_on_until_they_end(master: MasterSimulation) -> None:
    """Fails where a reload cuts after the drain timeout: a long session ends for a change that is none of its own."""
    reloaded(master, 2)  # the first of them brings the timeout
    for _ in range(100):
        master.turn(1000.0)
    assert told(master, 2) == [signal.SIGTERM]
    assert len(list(master.processes.children.living(2))) == 2
    master.leave(2)
    master.turn()
    assert 2 in master.retired_generations


@pytest.mark.parametrize("is_final", [True, False], ids=["stop", "upgrade"])
def test_a_stop_ends_every_generation_within_the_drain_timeout(
    master: MasterSimulation, is_final: bool
) -> None:
    reloaded(master, 4)
    master.generations.retire_all(master.now, is_final)
    master.turn(PLAN.drain_timeout)
    assert not any(signal.SIGQUIT in told(master, generation) for generation in range(1, 6))
    master.turn(1.0)
    assert all(signal.SIGQUIT in told(master, generation) for generation in range(2, 6))


def test_the_oldest_of_too_many_generations_has_the_drain_timeout(master: MasterSimulation) -> None:
    """Fails where it is cut at once, and where there is no limit."""
    reloaded(master, 1)
    master.leave(1)
    master.turn()
    reloaded(master, MOST_GENERATIONS - 1)
    assert len(master.processes.children.generations()) == MOST_GENERATIONS
    newest = master.processes.current
    assert master.reload(*master.binds)["text"] == "nothing changed"
    assert told(master, 2) == [signal.SIGTERM]  # nothing is forked, so nothing has to go
    master.reload(*web("one more", "b"))
    assert master.processes.current == newest
    assert told(master, 2) == [signal.SIGTERM, signal.SIGTERM] and told(master, 3) == [signal.SIGTERM]
    for _ in range(4):
        master.turn(1.0)
    assert signal.SIGQUIT not in told(master, 2)
    master.turn(2.0)
    assert told(master, 2)[-1] == signal.SIGQUIT and signal.SIGQUIT not in told(master, 3)
    master.leave(2)
    master.turn()
    master.fork()
    master.turn()
    assert master.processes.current == newest + 1
    assert len(master.processes.children.generations()) == MOST_GENERATIONS


def sockets_of(master: MasterSimulation) -> int:
    return sum(len(group.sockets) for group in master.processes.sockets.groups)


def ask_for(master: MasterSimulation, what: str) -> None:
    """What makes listening sockets: growth, more workers or another address by a reload."""
    if what == "growth":
        master.generations.scale(master.generations.wanted_at_last + 1, master.now)
        master.generations.scale(master.generations.wanted_at_last + 1, master.now)
        return
    if what == "workers":
        master.workers = 3
    else:
        master.binds = web("a", "b", "c")
    master.generations.ask_reload()


@pytest.mark.parametrize("what", ["growth", "workers", "address"])
def test_nothing_binds_while_a_successor_starts(master: MasterSimulation, what: str) -> None:
    """Fails where a socket is made that the successor does not know: its clients hang, and are reset at our end."""
    before = sockets_of(master)
    master.may_bind = False
    master.turn()
    ask_for(master, what)
    for _ in range(3):
        master.turn(1.0)
        assert sockets_of(master) == before and master.processes.children.next_due() is None
    owed = [signal.SIGTTIN] * 2 if what == "growth" else [signal.SIGHUP]
    assert master.generations.owed_signals() == owed
    master.may_bind = True  # the successor was given up
    master.turn()
    assert sockets_of(master) > before
    master.fork()
    master.turn()
    assert master.generations.owed_signals() == []


def test_growth_that_waits_can_be_taken_back(master: MasterSimulation) -> None:
    master.may_bind = False
    master.turn()
    ask_for(master, "growth")
    master.generations.scale(1, master.now)
    assert master.generations.owed_signals() == [] and master.generations.wanted_at_last == 1
