"""Greedy clients and a modest one at the queue and its workers, in virtual time.

    simulation = FairnessSimulation(Crowd(greedy=80), cpus=2); simulation.run(20); simulation.waits

RULES: the real queue, idle set and pairing rule, and nothing else. A greedy client sends the next picture when it has the
answer, or RETRY seconds after a refusal. The modest client asks half as often as its share of the rate is.
"""

import heapq
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

from workers.imaging.job import ResizeJob
from workers.resizer.dispatch import TaskQueue, pairs
from workers.resizer.idle_set import IdleSet, WorkerSlot
from workers.resizer.task import Origin, QueueClient, Requester, Task

RETRY = 1.0
THINK = 0.0005  # seconds from an answer to the next picture of a greedy client


@dataclass(frozen=True)
class Crowd:
    """`has_one_address`: the modest client has the address of the greedy ones. `pipeline`: pictures of one greedy client
    at once. `work`: mean seconds of a picture."""

    greedy: int
    has_one_address: bool = False
    is_small: bool = True
    pipeline: int = 1
    work: float = 0.002


class FairnessSimulation:
    """`begun`: pictures of greedy clients. `overtakers`: of each picture of the modest client, those begun between its
    arrival and its own begin; `waits`: in the same order, seconds."""

    def __init__(self, crowd: Crowd, cpus: int, queue: int = 64) -> None:
        self.crowd = crowd
        self.chance = random.Random(cpus * 1000 + crowd.greedy)
        self.queue, self.idle = TaskQueue(queue), IdleSet(fills_machine=True)
        for number in range(cpus + 1):
            channel = cast(socket.socket, None)
            self.idle.attach(WorkerSlot(str(number), is_express=number == cpus, channel=channel))
        self.now, self.begun, self.refused, self.express = 0.0, 0, 0, 0
        self.overtakers: list[int] = []
        self.waits: list[float] = []
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serials, self._numbers = count(1), count(1)
        origin = Origin()
        self.modest = QueueClient(origin if crowd.has_one_address else Origin())
        sharers = crowd.greedy + 1 if crowd.has_one_address else 2
        self.period = 2 * sharers * crowd.work / cpus
        for _ in range(crowd.greedy):
            client = QueueClient(origin)
            for _ in range(crowd.pipeline):
                self._after(self.chance.random() * 0.01, self._ask, client)
        self._after(0.5, self._ask_modestly)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events[0][0] < end:
            self.now, _, event, arguments = heapq.heappop(self._events)
            event(*arguments)

    def _after(self, seconds: float, event: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event, arguments))

    def _ask_modestly(self) -> None:
        self._after(self.period * self.chance.uniform(0.5, 1.5), self._ask_modestly)
        self._ask(self.modest)

    def _ask(self, client: QueueClient) -> None:
        requester = cast(Requester, None)
        small = self.crowd.is_small
        task = Task(next(self._serials), requester, ResizeJob(9, 9), is_small=small, client=client)
        task.queued_at, task.context = self.now, self.begun
        if self.queue.put(task):
            self._assign()
        elif client is self.modest:
            self.refused += 1
        else:
            self._after(RETRY, self._ask, client)

    def _assign(self) -> None:
        for task, worker in pairs(self.queue, self.idle):
            if worker.task is None:
                self._begin(worker, task)
            else:
                self.idle.prefetch(worker, task)

    def _begin(self, worker: WorkerSlot, task: Task) -> None:
        self.idle.begin(worker, task)
        if task.client is self.modest:
            self.overtakers.append(self.begun - task.context)
            self.waits.append(self.now - task.queued_at)
        else:
            self.begun += 1
            self.express += worker.is_express
        self._after(self.crowd.work * self.chance.uniform(0.7, 1.3), self._finish, worker)

    def _finish(self, worker: WorkerSlot) -> None:
        task = worker.task
        assert task is not None
        prefetched = self.idle.end(worker)
        if prefetched is None:
            self.idle.set_idle(worker)
        else:
            self._begin(worker, prefetched)
        if task.client is not self.modest:
            self._after(THINK * self.chance.uniform(0.5, 1.5), self._ask, task.client)
        self._assign()
