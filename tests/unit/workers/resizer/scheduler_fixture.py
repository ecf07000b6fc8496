"""A scheduler and its pool, with processes that are only the other ends of socket pairs.

    fixture = SchedulerFixture(monkeypatch); fixture.open(); fixture.hello(fixture.cpu, 11)
    task = fixture.ask(500); fixture.scheduler.submit(task); fixture.order(fixture.cpu)
    fixture.finish(fixture.cpu, 11, task.serial)

RULES: no fork, no kill. Time passes only when a test says so.
"""

import os
import signal
import socket
from dataclasses import dataclass, field

import pytest

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.imaging.job import ResizeJob
from workers.resizer import counters
from workers.resizer.arena import Arena
from workers.resizer.idle_set import WorkerSlot
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import LONGEST, Hello, Order, Ping, Result, decode, encode
from workers.resizer.scheduler import Scheduler
from workers.resizer.task import OK, Task

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


class SchedulerFixture:
    """A scheduler with one cpu and one express worker. `life`: pipe ends; closing one is the death of a process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.loop = Loop(lambda: self.now)
        self.killed: list[int] = []
        self.life: dict[int, int] = {}
        patch.setattr(os, "pidfd_open", self._pidfd_open)
        patch.setattr(signal, "pidfd_send_signal", lambda fd, number: self.killed.append(fd))
        self.arena = Arena(OPTIONS.slots, OPTIONS.slot_bytes)
        cells = memoryview(bytearray(8 * counters.COLUMNS)).cast("q")
        slots = range(OPTIONS.slots)
        self.scheduler = Scheduler(self.loop, Log("front", os.devnull), OPTIONS, self.arena, slots, cells)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.cpu, self.express = (ours for _, ours in pairs)
        self.workers = [WorkerSlot("cpu 0", False, pairs[0][0]), WorkerSlot("express 0", True, pairs[1][0])]
        self.requester = RecordingRequester(self.scheduler)

    def _pidfd_open(self, pid: int) -> int:
        reader, self.life[pid] = os.pipe()
        return reader

    def open(self, alive: list[tuple[str, int]] | None = None) -> None:
        self.scheduler.start(self.workers, alive or [])
        for end in (self.cpu, self.express):
            end.setblocking(False)
            assert isinstance(decode(end.recv(LONGEST)), Ping)

    def turn(self, count: int = 2) -> None:
        for _ in range(count):
            self.loop.run_once(0)

    def hello(self, end: socket.socket, pid: int, front: int = 0) -> None:
        end.send(encode(Hello(pid, front)))
        self.turn()

    def die(self, pid: int) -> None:
        os.close(self.life.pop(pid))
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
        order = decode(end.recv(LONGEST))
        assert isinstance(order, Order)
        return order

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
