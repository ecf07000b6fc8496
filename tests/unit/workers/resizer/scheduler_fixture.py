"""A scheduler and its pool, with processes that are only the other ends of socket pairs.

    fixture = SchedulerFixture(); fixture.open(); fixture.hello(fixture.cpu, 11)
    task = fixture.ask(500); fixture.scheduler.submit(task); fixture.order(fixture.cpu)
    fixture.finish(fixture.cpu, 11, task.serial)

RULES: no fork, no kill. Time passes only when a test says so.
"""

import os
import socket
from dataclasses import dataclass, field
from typing import cast

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.imaging.job import ResizeJob
from workers.resizer import counters
from workers.resizer.arena import Arena
from workers.resizer.idle_set import WorkerSlot
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import (
    LONGEST,
    Hello,
    Message,
    Order,
    OrderError,
    Ping,
    Result,
    Transfer,
    decode,
    encode,
)
from workers.resizer.scheduler import Scheduler
from workers.resizer.task import OK, Task
from workers.resizer.worker_pool import ProcessControl

OPTIONS = ResizerOptions(
    cpus=1, fills_machine=True, queue=4, express_bytes=1000, max_frame=4096, job_timeout=10.0
)
SMALL, BIG = 500, 3000  # bytes of a picture


@dataclass
class RecordingRequester:
    """A Requester that keeps the results."""

    scheduler: Scheduler
    results: list[Result] = field(default_factory=list)

    def answer(self, task: Task, result: Result) -> None:
        self.results.append(result)
        if result.status == OK:
            self.scheduler.release_slot(task.slot)


def worker_without_channel(name: str, is_express: bool = False) -> WorkerSlot:
    """For tests that send nothing."""
    return WorkerSlot(name, is_express, cast(socket.socket, None))


def receive_from(channel: socket.socket) -> tuple[bytes, int]:
    """A packet for the front, sent by the process that it names."""
    packet = channel.recv(LONGEST)
    try:
        return packet, getattr(decode(packet), "worker_pid", 0)
    except OrderError:
        return packet, 0


def receive(end: socket.socket) -> Message:
    """The next message at a process's end of a channel, Transfer excepted. Raises BlockingIOError."""
    while isinstance(message := decode(end.recv(LONGEST)), Transfer):
        pass
    return message


class FakeProcesses(ProcessControl):
    """Processes that are pipes: closing the end in `life` is the death of a process. `open_error`: what `open` raises."""

    def __init__(self) -> None:
        self.life: dict[int, int] = {}
        self.killed: list[int] = []
        self.open_error: OSError | None = None
        self.strangers: set[int] = set()  # pids that are no processes of the resizer
        self.sender = 0  # of all packets; 0: the process that each names

    def open(self, pid: int) -> int:
        if self.open_error is not None:
            raise self.open_error
        pidfd, self.life[pid] = os.pipe()
        return pidfd

    def is_sibling(self, pid: int) -> bool:
        return pid not in self.strangers

    def kill(self, pidfd: int) -> None:
        self.killed.append(pidfd)

    def receive(self, channel: socket.socket) -> tuple[bytes, int]:
        packet, named = receive_from(channel)
        return packet, self.sender or named


def row_of_cells() -> memoryview:
    """The row of a front in the shared table."""
    return memoryview(bytearray(8 * counters.COLUMNS)).cast("q")


class SchedulerFixture:
    """A scheduler with one cpu and one express worker. `cpu` and `express`: the processes' ends of the channels."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop(lambda: self.now)
        self.processes = FakeProcesses()
        self.arena = Arena(OPTIONS.slots, OPTIONS.slot_bytes)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.cpu, self.express = (end for _, end in pairs)
        self.workers = [WorkerSlot("cpu 0", False, pairs[0][0]), WorkerSlot("express 0", True, pairs[1][0])]
        self.scheduler = Scheduler(
            self.loop,
            Log("front", os.devnull),
            OPTIONS,
            self.arena,
            row_of_cells(),
            self.workers,
            self.processes,
        )
        self.requester = RecordingRequester(self.scheduler)

    def open(self, **older: int) -> None:
        self.scheduler.start(older)
        for end in (self.cpu, self.express):
            end.setblocking(False)
            assert isinstance(receive(end), Ping)

    def close(self) -> None:
        self.loop.close()
        for end in (self.cpu, self.express, *(worker.channel for worker in self.workers)):
            end.close()
        for fd in self.processes.life.values():
            os.close(fd)

    def turn(self, count: int = 2) -> None:
        for _ in range(count):
            self.loop.run_once(0)

    def hello(self, end: socket.socket, pid: int, front: int = 0) -> None:
        end.send(encode(Hello(pid, front)))
        self.turn()

    def die(self, pid: int) -> None:
        os.close(self.processes.life.pop(pid))
        self.turn()

    def ask(self, length: int, data: bytes = b"") -> Task:
        """A task of `length` bytes, not submitted."""
        slot = self.scheduler.claim_slot(lambda: None)
        assert slot is not None
        place = self.arena.slot(slot)
        place[: len(data)] = data
        small = length <= OPTIONS.express_bytes
        offset = self.arena.offset_of(place)
        return Task(
            self.scheduler.next_serial(), self.requester, ResizeJob(9, 9), slot, offset, length, small
        )

    def submit(self, *lengths: int) -> list[Task]:
        """Submit pictures of these lengths, each with its own content."""
        tasks = [self.ask(length, bytes([65 + number]) * length) for number, length in enumerate(lengths)]
        for task in tasks:
            assert self.scheduler.submit(task)
        return tasks

    def order(self, end: socket.socket) -> Order:
        order = receive(end)
        assert isinstance(order, Order)
        return order

    def picture(self, worker: int, order: Order) -> bytes:
        """What the process of a worker finds in the place of an order."""
        memory = self.workers[worker].memory
        assert memory is not None
        return bytes(memory.view(order.place, order.length))

    def is_asked(self, end: socket.socket) -> bool:
        """Take an order out of the channel; False when there is none."""
        try:
            self.order(end)
        except BlockingIOError:
            return False
        return True

    def finish(self, end: socket.socket, pid: int, serial: int, status: int = OK) -> None:
        """The process at `end` sends the result of an order."""
        end.send(encode(Result(pid, serial, status, 5, text="jpeg")))
        self.turn()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def free(self) -> int:
        return len(self.scheduler.slots)

    def statuses(self) -> list[int]:
        return [result.status for result in self.requester.results]
