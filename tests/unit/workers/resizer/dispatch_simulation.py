"""A front and its CPU processes under random events: pictures are submitted and abandoned, work is slow, processes die,
leave, are killed and replaced, and the front itself is replaced.

    simulation = DispatchSimulation(seed); simulation.event(); ...; simulation.settle(1); simulation.close()

RULES: no fork, no kill. The processes here keep to the contract of `orders` and know nothing else. Every picture has its
own content, and its answer is made of it, so that a slot in use twice shows as a wrong answer.
"""

import os
import random
import socket
from dataclasses import dataclass, replace

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.workers.resizer.scheduler_fixture import OPTIONS, receive_from, row_of_cells
from workers.imaging.job import ResizeJob
from workers.resizer.arena import Arena
from workers.resizer.idle_set import WorkerSlot
from workers.resizer.orders import (
    LONGEST,
    Bye,
    Hello,
    Message,
    Order,
    Ping,
    Result,
    Transfer,
    decode,
    encode,
)
from workers.resizer.scheduler import Scheduler
from workers.resizer.task import DRAINING, OK, TIMEOUT, Task
from workers.resizer.transfer import TransferMemory
from workers.resizer.worker_pool import INVALID, SLOW_SECONDS, ProcessControl


@dataclass(eq=False)
class SimulatedProcess:
    """A CPU process: the order that it has begun, and the picture as it was then. `has_left`: it has sent Bye."""

    end: socket.socket
    pid: int = 0
    life: int = -1  # pipe end; closing it is the death of the process,
    death: int = -1  # seen at this end
    order: Order | None = None
    picture: bytes = b""
    memory: TransferMemory | None = None
    has_left: bool = False

    def send(self, message: Message) -> None:
        self.end.send(encode(message))

    def receive(self) -> Message | None:
        try:
            packet, fds, _, _ = socket.recv_fds(self.end, LONGEST, 1)
        except BlockingIOError:
            return None
        message = decode(packet)
        for fd in fds:
            assert isinstance(message, Transfer)
            if message.worker_pid == self.pid:
                self.memory = TransferMemory(fd, message.place_bytes)
            os.close(fd)
        return message

    def place(self, order: Order) -> memoryview:
        assert self.memory is not None
        return self.memory.view(order.place, order.length)

    def work(self) -> None:
        """Finish the order that it has begun, or begin one."""
        order, self.order = self.order, None
        if order is None:
            message = self.receive()
            if isinstance(message, Ping):
                self.send(Hello(self.pid, message.front_pid))
            elif isinstance(message, Order) and message.worker_pid == self.pid:
                self.order, self.picture = message, bytes(self.place(message))
        elif self.picture.startswith(INVALID):
            self.send(Result(self.pid, order.serial, 415, text="none"))
        else:
            self.place(order)[:] = self.picture[::-1]
            self.send(Result(self.pid, order.serial, OK, order.length, text="jpeg"))

    def die(self) -> None:
        """Die, with an order perhaps while the answer is written."""
        if self.order is not None:
            self.place(self.order)[:20] = bytes(20)
        os.close(self.life)
        self.life = -1


class DispatchSimulation(ProcessControl):
    """The workers with their processes, and the current front. The requester of all tasks; `tasks`: unanswered ones."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        cpus = self.chance.randint(1, 3)
        self.options = replace(OPTIONS, cpus=cpus, queue=6, fills_machine=self.chance.random() < 0.7)
        self.now, self.front, self.count = 100.0, 0, 0
        self.watched: dict[int, int] = {}  # pidfd -> pid
        self.doomed: set[int] = set()  # killed; they go on for a moment
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(cpus + 1)]
        self.channels = [channel for channel, _ in pairs]
        self.processes = [SimulatedProcess(end) for _, end in pairs]
        for _, end in pairs:
            end.setblocking(False)
        self.open_front()

    def own_pid(self) -> int:
        return self.front

    def open(self, pid: int) -> int:
        for one in self.processes:
            if one.pid == pid:
                pidfd = os.dup(one.death)
                self.watched[pidfd] = pid
                return pidfd
        raise ProcessLookupError

    def is_sibling(self, pid: int) -> bool:
        return True

    def receive(self, channel: socket.socket) -> tuple[bytes, int]:
        return receive_from(channel)

    def kill(self, pidfd: int) -> None:
        self.doomed.add(self.watched[pidfd])

    def open_front(self) -> None:
        """A new front in place of the last one."""
        self.front += 1
        self.loop = Loop(lambda: self.now)
        log = Log("front", os.devnull)
        self.arena = Arena(self.options.slots, self.options.slot_bytes)
        last = self.channels[-1]
        workers = [WorkerSlot(str(n), end is last, end) for n, end in enumerate(self.channels)]
        self.scheduler = Scheduler(self.loop, log, self.options, self.arena, row_of_cells(), workers, self)
        self.tasks: dict[Task, bytes] = {}
        self.sending: list[int] = []
        self.hoarded: list[int] = []
        self.scheduler.start({})

    def close_front(self) -> None:
        """The front ends."""
        for worker in self.scheduler.pool.workers:
            if worker.pid:
                os.close(worker.pidfd)
        self.loop.close()

    def answer(self, task: Task, result: Result) -> None:
        picture = self.tasks.pop(task)  # KeyError: answered twice, or abandoned before
        assert result.status in (OK, DRAINING, TIMEOUT)
        if result.status == OK:
            assert self.arena.slot(task.slot)[: result.length] == picture[::-1]
            self.sending.append(task.slot)

    def ask(self, length: int) -> None:
        slot = self.scheduler.claim_slot(lambda: None)
        if slot is not None:
            picture = self.chance.randbytes(length)
            self.arena.slot(slot)[:length] = picture
            small, start = length <= self.options.express_bytes, self.arena.start(slot)
            task = Task(self.scheduler.next_serial(), self, ResizeJob(9, 9), slot, start, length, small)
            self.tasks[task] = picture
            if not self.scheduler.submit(task):
                del self.tasks[task]
                self.scheduler.release_slot(slot)

    def abandon(self, task: Task) -> None:
        del self.tasks[task]
        self.scheduler.abandon(task)

    def release(self, slots: list[int]) -> None:
        while slots:
            self.scheduler.release_slot(slots.pop())

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.scheduler.tick(self.now)
        self.loop.run_once(0)  # timers

    def work(self, times: int) -> None:
        for one in self.chance.choices(self.processes, k=times):
            if one.life >= 0 and not one.has_left:
                one.work()

    def replace(self, number: int) -> None:
        """A process that was killed or has left ends; its successor sends Hello, perhaps before the death is seen."""
        one = self.processes[number]
        if one.life >= 0 and (one.pid in self.doomed or one.has_left):
            one.die()
        if one.life < 0:
            while one.receive() is not None:
                pass
            self.count += 1
            death, life = os.pipe()
            self.processes[number] = SimulatedProcess(one.end, self.count, life, death)
            self.processes[number].send(Hello(self.count, 0))
            if one.pid:
                os.close(one.death)

    def event(self) -> None:
        """One event."""
        chance, event, one = self.chance, self.chance.randrange(230), self.chance.choice(self.processes)
        if event < 46:
            self.ask(64 if event < 40 else 1200)
        elif event < 150:
            self.work(1) if event < 130 else self.release(self.sending)
        elif event < 182:
            self.pass_time(SLOW_SECONDS * chance.uniform(0.5, 1.2) if event < 180 else 11)
        elif event < 188 and self.tasks:
            self.abandon(chance.choice([*self.tasks]))
        elif event < 190 and self.hoarded:
            self.release(self.hoarded)
        elif event < 190:
            self.hoarded = [self.scheduler.slots.allocate() or 0 for _ in range(len(self.scheduler.slots))]
        elif event < 191:
            self.close_front()
            self.open_front()
        elif event < 194 and one.life >= 0:
            one.die()
        elif event < 199 and one.life >= 0 and not one.has_left and one.order is None:
            one.has_left = True
            one.send(Bye(one.pid))
        elif event < 212:
            self.replace(chance.randrange(len(self.processes)))
        else:
            self.loop.run_once(0)

    def settle(self, turn: int) -> None:
        """Nothing new is submitted; all work comes to an end."""
        self.release(self.hoarded)
        self.release(self.sending)
        self.replace(turn % len(self.processes))
        self.work(3)
        self.loop.run_once(0)

    def close(self) -> None:
        """End the simulation."""
        self.close_front()
        for one, channel in zip(self.processes, self.channels, strict=True):
            one.end.close()
            channel.close()
            os.close(one.life)
            os.close(one.death)
