"""A front and its CPU processes that live by chance: pictures come and are given up, work is slow, processes die, leave,
are killed and followed by others, the front itself is followed by another.

    town = Town(monkeypatch, seed); town.live(); ...; town.calm(1); town.leave()

RULES: nobody is forked or killed. The processes here keep to the contract of `orders` and know nothing else. Every
picture has content of its own and its answer is made of it, so that a slot in two hands shows as somebody else's answer.
"""

import os
import random
import signal
import socket
from dataclasses import dataclass, replace

import pytest

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.workers.resizer.house import SETTINGS
from workers.imaging.job import ResizeJob
from workers.resizer import tally
from workers.resizer.arena import Arena
from workers.resizer.crew import SLOW_SECONDS
from workers.resizer.desk import SPOILT, Desk
from workers.resizer.orders import LONGEST, Bye, Hello, Message, Order, Result, Roll, decode, encode
from workers.resizer.seats import Seat
from workers.resizer.task import DRAINING, OK, TIMEOUT, Task


@dataclass(eq=False)
class Process:
    """What a CPU process has begun, with the picture as it was then. Who `has_left` said Bye."""

    end: socket.socket
    pid: int = 0
    life: int = -1  # its closing is the death,
    death: int = -1  # which is seen here
    order: Order | None = None
    picture: bytes = b""
    has_left: bool = False

    def say(self, message: Message) -> None:
        self.end.send(encode(message))

    def hear(self) -> Message | None:
        try:
            return decode(self.end.recv(LONGEST))
        except BlockingIOError:
            return None

    def work(self, arena: Arena) -> None:
        """Finish what it has begun, or begin something."""
        order, self.order = self.order, None
        if order is None:
            message = self.hear()
            if isinstance(message, Roll):
                self.say(Hello(self.pid, message.front))
            elif isinstance(message, Order) and message.worker == self.pid:
                self.order, self.picture = message, bytes(arena.piece(message.offset, message.length))
        elif self.picture.startswith(SPOILT):
            self.say(Result(self.pid, order.serial, 415, text="none"))
        else:
            arena.slot(order.slot)[: order.length] = self.picture[::-1]
            self.say(Result(self.pid, order.serial, OK, order.length, text="jpeg"))

    def die(self, arena: Arena) -> None:
        """Perhaps while it writes its answer."""
        if self.order is not None:
            arena.slot(self.order.slot)[:20] = bytes(20)
        os.close(self.life)
        self.life = -1


class Town:
    """Seats with their processes, and the front of the day. Owns all pictures: `tasks` are those unanswered."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int) -> None:
        self.chance = random.Random(seed)
        cpus = self.chance.randint(1, 3)
        self.settings = replace(SETTINGS, cpus=cpus, queue=6, fills_machine=self.chance.random() < 0.7)
        self.arena = Arena(self.settings.slots, self.settings.slot_bytes)
        self.now, self.front, self.count = 100.0, 0, 0
        self.watched: dict[int, int] = {}  # pidfd -> pid
        self.doomed: set[int] = set()  # killed; they live on for a moment
        patch.setattr(os, "pidfd_open", self.pidfd_open)
        patch.setattr(os, "getpid", lambda: self.front)
        patch.setattr(signal, "pidfd_send_signal", lambda fd, number: self.doomed.add(self.watched[fd]))
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(cpus + 1)]
        self.channels = [theirs for theirs, _ in pairs]
        self.processes = [Process(ours) for _, ours in pairs]
        for _, ours in pairs:
            ours.setblocking(False)
        self.open()

    def pidfd_open(self, pid: int) -> int:
        for one in self.processes:
            if one.pid == pid:
                pidfd = os.dup(one.death)
                self.watched[pidfd] = pid
                return pidfd
        raise ProcessLookupError

    def open(self) -> None:
        """Another front, in the place of the last."""
        self.front += 1
        self.loop = Loop(lambda: self.now)
        log, cells = Log("front", os.devnull), memoryview(bytearray(8 * tally.COLUMNS)).cast("q")
        slots = range(self.settings.slots)
        self.desk = Desk(self.loop, log, self.settings, self.arena, slots, cells)
        copy = self.desk.copy  # before and after it the processes go on
        self.desk.copy = lambda task: (self.work(3), copy(task), self.work(3))[1]  # type: ignore
        self.tasks: dict[Task, bytes] = {}
        self.sending: list[int] = []
        self.hoarded: list[int] = []
        alive = [(str(n), one.pid) for n, one in enumerate(self.processes) if one.life >= 0]
        last = self.channels[-1]
        self.desk.hire([Seat(str(n), end is last, end) for n, end in enumerate(self.channels)], alive)

    def close(self) -> None:
        """The front is no more."""
        for seat in self.desk.crew.seats:
            if seat.pid:
                os.close(seat.pidfd)
        self.loop.close()

    def answer(self, task: Task, result: Result) -> None:
        picture = self.tasks.pop(task)  # KeyError: answered twice, or given up before
        assert result.status in (OK, DRAINING, TIMEOUT)
        if result.status == OK:
            assert self.arena.slot(task.slot)[: result.length] == picture[::-1]
            self.sending.append(task.slot)

    def ask(self, length: int) -> None:
        slot = self.desk.claim(lambda: None)
        if slot is not None:
            picture = self.chance.randbytes(length)
            self.arena.slot(slot)[:length] = picture
            small, start = length <= self.settings.express_bytes, self.arena.start(slot)
            task = Task(self.desk.serial(), self, ResizeJob(9, 9), slot, start, length, small)
            self.tasks[task] = picture
            if not self.desk.submit(task):
                del self.tasks[task]
                self.desk.release(slot)

    def give_up(self, task: Task) -> None:
        del self.tasks[task]
        self.desk.abandon(task)

    def release(self, slots: list[int]) -> None:
        while slots:
            self.desk.release(slots.pop())

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.desk.sweep(self.now)
        self.loop.run_once(0)  # the tick is one of its timers

    def work(self, times: int) -> None:
        for one in self.chance.choices(self.processes, k=times):
            if one.life >= 0 and not one.has_left:
                one.work(self.arena)

    def follow(self, number: int) -> None:
        """Who was killed or has left is gone; the successor speaks, perhaps before the death was seen."""
        one = self.processes[number]
        if one.life >= 0 and (one.pid in self.doomed or one.has_left):
            one.die(self.arena)
        if one.life < 0:
            while one.hear() is not None:
                pass
            self.count += 1
            death, life = os.pipe()
            self.processes[number] = Process(one.end, self.count, life, death)
            self.processes[number].say(Hello(self.count, 0))
            if one.pid:
                os.close(one.death)

    def live(self) -> None:
        """One event."""
        chance, event, one = self.chance, self.chance.randrange(230), self.chance.choice(self.processes)
        if event < 46:
            self.ask(64 if event < 40 else 1200)
        elif event < 150:
            self.work(1) if event < 130 else self.release(self.sending)
        elif event < 182:
            self.pass_time(SLOW_SECONDS * chance.uniform(0.5, 1.2) if event < 180 else 11)
        elif event < 188 and self.tasks:
            self.give_up(chance.choice([*self.tasks]))
        elif event < 190 and self.hoarded:
            self.release(self.hoarded)
        elif event < 190:
            self.hoarded = [self.desk.shelf.take() or 0 for _ in range(len(self.desk.shelf))]
        elif event < 191:
            self.close()
            self.open()
        elif event < 194 and one.life >= 0:
            one.die(self.arena)
        elif event < 199 and one.life >= 0 and not one.has_left and one.order is None:
            one.has_left = True
            one.say(Bye(one.pid))
        elif event < 212:
            self.follow(chance.randrange(len(self.processes)))
        else:
            self.loop.run_once(0)

    def calm(self, turn: int) -> None:
        """Nothing new; everybody comes to an end."""
        self.release(self.hoarded)
        self.release(self.sending)
        self.follow(turn % len(self.processes))
        self.work(3)
        self.loop.run_once(0)

    def leave(self) -> None:
        """The town is no more."""
        self.close()
        for one, channel in zip(self.processes, self.channels, strict=True):
            one.end.close()
            channel.close()
            os.close(one.life)
            os.close(one.death)
