"""The workers of one front: which process works on what, and which of them may be given a task.

RULES: pure, no process, no clock. `dispatch` chooses from the sets, the pool moves workers between them. A worker is in
at most one of `cpus`, `express` and `can_prefetch`.

    cpus          idle CPU workers        } the last one to become idle at the end: its caches are warm
    express       idle express workers    }
    can_prefetch  CPU workers at short work and without a prefetched task, the longest at work first. The next small
                  picture may be sent there before this one is done, so that no CPU process waits for the front between
                  two

Short work is a small picture that has not turned out to be slow. Nothing is prefetched behind other work or by express:
to take a prefetched task back costs a copy of its picture.
"""

import socket
from dataclasses import dataclass, field
from enum import Enum

from workers.resizer.task import Task, TaskStage
from workers.resizer.transfer import TransferMemory


class WorkerState(Enum):
    """What is known of the process of a worker."""

    ABSENT = "absent"
    IDLE = "idle"
    BUSY = "busy"
    KILLED = "killed"


@dataclass(slots=True, eq=False)
class WorkerSlot:
    """The place of a CPU process; its channel stays when the process is replaced.

    `task`: being worked on, in BUSY; in KILLED until its result arrives after all. `prefetched`: sent already, begun
    next; only in these two states. `pid`, `pidfd` and `memory`: in every state but ABSENT. `place`: where in the memory
    `task` is; `prefetched` is in the other one.
    """

    name: str
    is_express: bool
    channel: socket.socket
    state: WorkerState = WorkerState.ABSENT
    pid: int = 0
    pidfd: int = -1
    memory: TransferMemory | None = None
    place: int = 0
    task: Task | None = None
    prefetched: Task | None = None
    is_short: bool = False  # `task` is short work, as far as is known


@dataclass(slots=True)
class IdleSet:
    """`fills_machine`: there are as many CPU workers as cores, so express takes its time from them."""

    fills_machine: bool
    cpus: list[WorkerSlot] = field(default_factory=list)
    express: list[WorkerSlot] = field(default_factory=list)
    can_prefetch: dict[WorkerSlot, None] = field(default_factory=dict)
    worker_count: int = 0  # CPU workers with a process
    short: int = 0  # of them at short work

    @property
    def wants_express(self) -> bool:
        """False when every core is at short work: one more process finishes a small picture no sooner and costs context
        switches (6 % of the rate). The picture waits for the next CPU worker instead.
        """
        return not self.fills_machine or self.short < self.worker_count or not self.worker_count

    def free_places(self) -> int:
        """Small pictures that would not have to wait in the queue."""
        return len(self.cpus) + len(self.can_prefetch) + (len(self.express) if self.wants_express else 0)

    def attach(self, worker: WorkerSlot) -> None:
        """The worker has a process, which has nothing to do."""
        self.worker_count += not worker.is_express
        self.set_idle(worker)

    def set_idle(self, worker: WorkerSlot) -> None:
        """The process has nothing to do."""
        worker.state = WorkerState.IDLE
        (self.express if worker.is_express else self.cpus).append(worker)

    def begin(self, worker: WorkerSlot, task: Task) -> None:
        """The process works on `task` now. The worker is in no set."""
        worker.task, worker.state = task, WorkerState.BUSY
        if task.is_small and not worker.is_express:
            worker.is_short = True
            self.short += 1
            self.can_prefetch[worker] = None

    def prefetch(self, worker: WorkerSlot, task: Task) -> None:
        """The process begins `task` next. The worker is in no set."""
        worker.prefetched = task

    def mark_slow(self, worker: WorkerSlot) -> None:
        """The task of the worker is not short work, or not any more."""
        if worker.is_short:
            worker.is_short = False
            self.short -= 1
            self.can_prefetch.pop(worker, None)

    def end(self, worker: WorkerSlot) -> Task | None:
        """The process has finished its task, or will never finish it. Returns the prefetched task."""
        self.mark_slow(worker)
        prefetched, worker.task, worker.prefetched = worker.prefetched, None, None
        if prefetched is not None:
            worker.place = 1 - worker.place
        return prefetched

    def detach(self, worker: WorkerSlot) -> None:
        """The process is gone; `end` has taken its tasks."""
        if worker.state is WorkerState.IDLE:
            (self.express if worker.is_express else self.cpus).remove(worker)
        worker.pid, worker.pidfd, worker.state = 0, -1, WorkerState.ABSENT
        self.worker_count -= not worker.is_express


def tombstone_of(task: Task) -> Task:
    """The stand-in for `task` at a worker that it was taken back from, without its slot. Its answer goes to no client."""
    return Task(
        task.serial,
        task.requester,
        task.job,
        length=task.length,
        is_small=False,
        stage=TaskStage.ABANDONED,
    )
