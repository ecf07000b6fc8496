"""What the methods of the pool return: the tasks that an event has ended or set free."""

import os
import socket
from collections.abc import Iterator

import pytest

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.workers.resizer.scheduler_fixture import FakeProcesses
from workers.imaging.job import ResizeJob
from workers.resizer.idle_set import WorkerSlot, WorkerState
from workers.resizer.orders import Bye, Hello, Ping, Result, encode
from workers.resizer.task import OK, Task, TaskStage
from workers.resizer.worker_pool import MOST_IGNORED, ProcessControl, WorkerPool

PID = 11


class NoRequester:
    def answer(self, task: Task, result: Result) -> None:
        raise AssertionError("the pool answers no task")


class PoolFixture:
    """A pool with one worker; what its handlers are called for is in `calls`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop(lambda: self.now)
        channel, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker = WorkerSlot("cpu 0", False, channel)
        self.processes = FakeProcesses()
        self.calls: list[str] = []
        self.pool = WorkerPool(
            self.loop,
            Log("front", os.devnull),
            [self.worker],
            10.0,
            4096,
            True,
            lambda worker, mask: self.calls.append("packet"),
            lambda worker, mask: self.calls.append("exit"),
            self.processes,
        )
        self.pool.start({})

    def close(self) -> None:
        self.loop.close()
        self.worker.channel.close()
        self.end.close()
        for fd in self.processes.life.values():
            os.close(fd)

    def give(self, *serials: int) -> list[Task]:
        """Tasks given to the worker, which is idle."""
        self.pool.idle.cpus.clear()
        tasks = [Task(serial, NoRequester(), ResizeJob(9, 9), slot=serial) for serial in serials]
        for task in tasks:
            task.stage = TaskStage.WORKING
            assert self.pool.give(self.worker, task, memoryview(b"picture"))
        return tasks


@pytest.fixture
def fixture() -> Iterator[PoolFixture]:
    fixture = PoolFixture()
    assert fixture.pool.welcome(fixture.worker, Hello(PID, 0))
    yield fixture
    fixture.close()


def test_handlers_are_called_for_packets_and_for_the_end_of_a_process(fixture: PoolFixture) -> None:
    fixture.end.send(encode(Bye(PID)))
    fixture.loop.run_once(0)
    assert fixture.calls == ["packet"] and fixture.pool.receive(fixture.worker) == Bye(PID)
    os.close(fixture.processes.life.pop(PID))
    fixture.loop.run_once(0)
    assert fixture.calls == ["packet", "exit"]


def test_packets_that_are_no_message_of_a_process_are_skipped(fixture: PoolFixture) -> None:
    for packet in (b"nonsense", encode(Ping(3)), encode(Hello(PID, 0))):
        fixture.end.send(packet)
    assert fixture.pool.receive(fixture.worker) == Hello(PID, 0)
    assert fixture.pool.receive(fixture.worker) is None


def test_a_packet_that_names_another_process_than_its_sender_is_ignored(fixture: PoolFixture) -> None:
    fixture.processes.sender = PID + 1
    fixture.end.send(encode(Bye(PID)))
    assert fixture.pool.receive(fixture.worker) is None
    fixture.processes.sender = PID
    fixture.end.send(encode(Bye(PID)))
    assert fixture.pool.receive(fixture.worker) == Bye(PID)


def test_a_process_that_sends_nonsense_only_does_not_hold_the_front(fixture: PoolFixture) -> None:
    for _ in range(MOST_IGNORED):
        fixture.end.send(b"nonsense")
    fixture.end.send(encode(Bye(PID)))
    assert fixture.pool.receive(fixture.worker) is None
    assert fixture.pool.receive(fixture.worker) == Bye(PID), "in the next turn"


def test_the_kernel_says_who_has_sent_a_packet() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    far.send(encode(Bye(PID)))
    assert ProcessControl().receive(near) == (encode(Bye(PID)), os.getpid())
    near.close()
    far.close()


def test_a_result_ends_the_current_task_and_begins_the_prefetched_one(fixture: PoolFixture) -> None:
    first, second = fixture.give(1, 2)
    fixture.now += 1
    fixture.loop.run_once(0)
    assert fixture.pool.finish(fixture.worker, Result(PID, 2, OK)) is None
    assert fixture.pool.finish(fixture.worker, Result(PID, 1, OK)) is first
    assert fixture.worker.task is second and second.begun_at == fixture.now
    assert fixture.pool.finish(fixture.worker, Result(PID, 2, OK)) is second
    assert fixture.worker.state is WorkerState.IDLE and fixture.pool.idle.cpus == [fixture.worker]


def test_bye_returns_what_was_not_begun_latest_first(fixture: PoolFixture) -> None:
    first, second = fixture.give(1, 2)
    assert fixture.pool.dismiss(fixture.worker, Bye(PID + 1)) == []
    assert fixture.pool.dismiss(fixture.worker, Bye(PID)) == [second, first]
    assert fixture.worker.state is WorkerState.ABSENT


def test_a_death_returns_the_begun_task_and_the_prefetched_one(fixture: PoolFixture) -> None:
    first, second = fixture.give(1, 2)
    assert fixture.pool.bury(fixture.worker) == (first, second)
    assert fixture.worker.state is WorkerState.ABSENT and fixture.pool.idle.worker_count == 0


def test_a_killed_process_keeps_its_task_until_its_result_or_its_death(fixture: PoolFixture) -> None:
    first, second = fixture.give(1, 2)
    assert fixture.pool.overdue(fixture.now + 9.9) == []
    assert fixture.pool.overdue(fixture.now + 10.1) == [fixture.worker]
    assert fixture.pool.kill(fixture.worker, "timeout") is first
    assert len(fixture.processes.killed) == 1 and fixture.pool.overdue(fixture.now + 10.1) == []
    assert fixture.pool.dismiss(fixture.worker, Bye(PID)) == []
    assert fixture.pool.finish(fixture.worker, Result(PID, 1, OK)) is first
    assert fixture.pool.bury(fixture.worker) == (second, None), "it went on before the kill"


def test_the_answer_to_the_ping_of_another_front_makes_no_worker_idle(fixture: PoolFixture) -> None:
    fixture.pool.bury(fixture.worker)
    assert not fixture.pool.welcome(fixture.worker, Hello(21, fixture.pool.pid + 1))
    assert fixture.worker.state is WorkerState.ABSENT
    assert fixture.pool.welcome(fixture.worker, Hello(21, fixture.pool.pid))
    assert not fixture.pool.welcome(fixture.worker, Hello(21, fixture.pool.pid)), "it is idle already"


def test_a_sibling_has_the_same_parent() -> None:
    control = ProcessControl()
    assert control.is_sibling(os.getpid())
    assert not control.is_sibling(1) and not control.is_sibling(2**22 + 1)
