"""A desk and its crew with processes that are only the other ends of socket pairs.

    house = House(monkeypatch); house.open(); house.hello(house.cpu, 11)
    task = house.ask(500); house.desk.submit(task); house.order(house.cpu); house.finish(house.cpu, 11, task)

RULES: nobody is forked or killed; time passes only when a test says so.
"""

import os
import signal
import socket
from dataclasses import dataclass, field

import pytest

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.imaging.job import ResizeJob
from workers.resizer import tally
from workers.resizer.arena import Arena
from workers.resizer.desk import Desk
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import LONGEST, Hello, Order, Result, Roll, decode, encode
from workers.resizer.seats import Seat
from workers.resizer.task import OK, Task

SETTINGS = ResizerOptions(
    cpus=1, fills_machine=True, queue=4, express_bytes=1000, max_frame=4096, job_timeout=10.0
)
SMALL, BIG = 500, 3000  # bytes of a picture


@dataclass
class Client:
    """An Owner that remembers."""

    desk: Desk
    heard: list[Result] = field(default_factory=list)

    def answer(self, task: Task, result: Result) -> None:
        self.heard.append(result)
        if result.status == OK:
            self.desk.release(task.slot)


class House:
    """A desk with one cpu and one express seat. `life` are the write ends whose closing is a process's death."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.loop = Loop(lambda: self.now)
        self.killed: list[int] = []
        self.life: dict[int, int] = {}
        patch.setattr(os, "pidfd_open", self._pidfd_open)
        patch.setattr(signal, "pidfd_send_signal", lambda fd, number: self.killed.append(fd))
        self.arena = Arena(SETTINGS.slots, SETTINGS.slot_bytes)
        cells = memoryview(bytearray(8 * tally.COLUMNS)).cast("q")
        slots = range(SETTINGS.slots)
        self.desk = Desk(self.loop, Log("front", os.devnull), SETTINGS, self.arena, slots, cells)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.cpu, self.express = (ours for _, ours in pairs)
        self.seats = [Seat("cpu 0", False, pairs[0][0]), Seat("express 0", True, pairs[1][0])]
        self.client = Client(self.desk)

    def _pidfd_open(self, pid: int) -> int:
        reader, self.life[pid] = os.pipe()
        return reader

    def open(self, alive: list[tuple[str, int]] | None = None) -> None:
        self.desk.hire(self.seats, alive or [])
        for end in (self.cpu, self.express):
            end.setblocking(False)
            assert isinstance(decode(end.recv(LONGEST)), Roll)

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
        """A task of `length` bytes; not yet submitted."""
        slot = self.desk.claim(lambda: None)
        assert slot is not None
        place = self.arena.slot(slot)
        place[: len(data)] = data
        small = length <= SETTINGS.express_bytes
        offset = self.arena.offset_of(place)
        return Task(self.desk.serial(), self.client, ResizeJob(9, 9), slot, offset, length, small)

    def submit(self, *lengths: int) -> list[Task]:
        """Pictures of these lengths, each with content of its own, in the queue."""
        tasks = [self.ask(length, bytes([65 + number]) * length) for number, length in enumerate(lengths)]
        for task in tasks:
            assert self.desk.submit(task)
        return tasks

    def order(self, end: socket.socket) -> Order:
        order = decode(end.recv(LONGEST))
        assert isinstance(order, Order)
        return order

    def is_asked(self, end: socket.socket) -> bool:
        """Whether an order lies in the channel; it is taken out."""
        try:
            self.order(end)
        except BlockingIOError:
            return False
        return True

    def finish(self, end: socket.socket, pid: int, serial: int, status: int = OK) -> None:
        """The process at `end` has done what it was ordered."""
        end.send(encode(Result(pid, serial, status, 5, text="jpeg")))
        self.turn()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def free(self) -> int:
        return len(self.desk.shelf)

    def statuses(self) -> list[int]:
        return [result.status for result in self.client.heard]
