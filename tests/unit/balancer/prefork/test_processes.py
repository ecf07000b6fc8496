"""The process manager without a fork: sockets for living processes, and the end of hung ones."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.config.units import parse_address
from balancer.prefork.bind import Bind
from balancer.prefork.children import ChildProcess
from balancer.prefork.slots import DUMP_TIME
from balancer.shm.layout import BEAT_MS, MASTER_HANGS
from tests.unit.balancer.prefork.simulation import MasterSimulation, web


@pytest.fixture
def master() -> Iterator[MasterSimulation]:
    made = MasterSimulation(*web("a", "b"))
    yield made
    made.close()


def worker_of(master: MasterSimulation) -> ChildProcess:
    worker = master.processes.children.holder(1, "worker", 0)
    assert worker is not None
    return worker


def test_a_living_process_is_sent_the_sockets_of_later_slots(master: MasterSimulation) -> None:
    """Fails where a process counts as able to adopt a slot whose sockets it has not got."""
    worker = worker_of(master)
    worker.given = 2
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with ours, childs:
        worker.control = ours
        master.generations.scale(3, master.now)
        assert (worker.given, worker.reach) == (6, 3)
        _words, fds, _flags, _address = socket.recv_fds(childs, 65536, 16)
        assert len(fds) == 4
        for fd in fds:
            os.close(fd)
        master.processes.extend_reach()
        with pytest.raises(BlockingIOError):
            childs.recv(1)


def test_a_child_that_takes_no_sockets_reaches_no_further(master: MasterSimulation) -> None:
    worker = worker_of(master)
    worker.given = 2
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    childs.close()
    with ours:
        worker.control = ours
        master.generations.scale(2, master.now)
    assert (worker.given, worker.reach) == (2, 1)


def test_a_hung_process_dumps_its_stack_before_it_is_killed(master: MasterSimulation) -> None:
    processes, worker = master.processes, worker_of(master)
    cells = processes.shared.rows.row(worker.row)
    processes.watch.look(master.now)
    for quarter in range(1, 13):  # awake all the time
        processes.watch.look(master.now + quarter / 4)
    cells[BEAT_MS] = int(master.now * 1000)
    assert processes.end_the_hung(master.now + 3.0) is None
    again = processes.end_the_hung(master.now + 3.01)
    assert again == pytest.approx(master.now + 3.01 + DUMP_TIME)
    assert processes.end_the_hung(again - 0.01) is not None
    processes.end_the_hung(again)
    assert [number for pid, number in master.sent if pid == worker.pid] == [signal.SIGABRT, signal.SIGKILL]
    assert processes.row[MASTER_HANGS] == 1


def test_a_living_process_is_sent_a_socket_that_was_bound_again(tmp_path: Path) -> None:
    """At once, or when a process that was stopped takes it; one of another role is sent nothing."""
    bind = Bind("worker", parse_address(f"unix:{tmp_path}/s"), name="a")
    master = MasterSimulation(bind, workers=2)
    processes = master.processes
    group = processes.sockets.groups[0]
    (tmp_path / "s").unlink()
    group.bind_again()
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with ours, childs:
        worker_of(master).control = ours
        while True:
            try:
                ours.send(b"x" * 1000)
            except BlockingIOError:
                break
        processes.send_again([group])
        while True:
            try:
                childs.recv(2000)
            except BlockingIOError:
                break
        for tick in range(2):
            processes.send_again([])
            if tick:
                with pytest.raises(BlockingIOError):
                    childs.recv(1)
                continue
            words, fds, _flags, _address = socket.recv_fds(childs, 65536, 16)
            assert [slot for slot, _, _ in json.loads(words)] == [0, 1]
            with socket.socket(socket.AF_UNIX) as client, socket.socket(fileno=fds[0]) as listening:
                client.connect(f"{tmp_path}/s")
                listening.accept()[0].close()
            os.close(fds[1])
    master.close()
