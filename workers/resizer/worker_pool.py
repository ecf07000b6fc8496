"""The worker pool of a front: the processes behind its workers and the tasks they have.

RULES: sends orders, receives results, and is the only one to kill. A process may die at any instant: its death is seen on
its pidfd, its task then ends with an error, and the slot it may have been writing to is free only from that moment on.
The master forks the successor, which sends Hello on the same channel.

    ABSENT --Hello--> IDLE --order--> BUSY --Result--> IDLE, or BUSY with the prefetched task
                       |               |--deadline--> KILLED  (answered; its death not seen yet)
      pidfd: death     v               v                 |
    ABSENT <---------------------------------------------+

    A process carries its orders out one after the other, so it begins a prefetched task exactly when it has sent the
    Result of the task before. When that task turns out slow, the prefetched one is taken back: the scheduler copies the
    picture to another slot and leaves one in the old slot that is refused at once.
    UNVERIFIED: older than this front, may still work for its predecessor. Until every such process has answered the Ping
    or died no slot may be used: the process could write an old answer to a slot that holds another picture by then.
"""

import os
import signal
from collections.abc import Iterable
from functools import partial

from balancer.eventloop.errnos import CAPACITY
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.resizer.idle_set import IdleSet, WorkerSlot, WorkerState, tombstone_of
from workers.resizer.orders import LONGEST, Bye, Hello, Order, OrderError, Ping, Result, decode, encode
from workers.resizer.task import DRAINING, TIMEOUT, Task, TaskOwner, TaskStage, order_of, refusal

SLOW_SECONDS = 0.02  # a small picture at work for longer is not short work (it usually takes 1 to 5 ms)
RETRY_SECONDS = 0.2  # until a process that could not be watched gets another Ping


class WorkerPool:
    """`fills_machine`: as in IdleSet. `timeout`: seconds that one picture may take."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        workers: Iterable[WorkerSlot],
        timeout: float,
        fills_machine: bool,
        owner: TaskOwner,
    ) -> None:
        self.loop = loop
        self.log = log
        self.workers = list(workers)
        self.timeout = timeout
        self.owner = owner
        self.idle = IdleSet(fills_machine)
        self.pid = os.getpid()
        self._may_have_unverified = True
        self._is_looking = False

    def start(self, alive: Iterable[tuple[str, int]]) -> None:
        """Watch the channels and send Ping. `alive`: (worker name, pid) of the processes older than this front.

        Raises OSError when one of them cannot be watched: no slot may be used before its end is known.
        """
        known = dict(alive)
        for worker in self.workers:
            worker.channel.setblocking(False)
            self.loop.watch_level(worker.channel.fileno(), partial(self.receive, worker))
            if worker.name in known:
                self._attach(worker, known[worker.name], is_old=True)
            self._send(worker, Ping(self.pid))

    @property
    def has_unverified(self) -> bool:
        """True until no process is UNVERIFIED; one that sends Hello later has worked for no other front."""
        if self._may_have_unverified:
            self._may_have_unverified = any(worker.state is WorkerState.UNVERIFIED for worker in self.workers)
        return self._may_have_unverified

    @property
    def worker_count(self) -> int:
        """Processes that take any picture."""
        return self.idle.worker_count

    @property
    def busy(self) -> int:
        """Pictures being worked on."""
        return sum(
            worker.task is not None and worker.task.stage is TaskStage.WORKING for worker in self.workers
        )

    @property
    def prefetched(self) -> int:
        """Pictures sent and not begun."""
        return sum(
            worker.prefetched is not None and worker.prefetched.stage is TaskStage.WORKING
            for worker in self.workers
        )

    def give(self, task: Task, worker: WorkerSlot) -> None:
        """Order `worker`, which the caller took out of the idle set, to work on `task`, now or next."""
        if worker.task is None:
            self._begin(worker, task)
        else:
            self.idle.prefetch(worker, task)
        if self._send(worker, order_of(task, worker.pid, self.pid)):
            return
        if worker.prefetched is task:
            worker.prefetched = None
            self.owner.requeue(task)
        self._kill(worker, refusal(DRAINING, "the CPU process takes no orders; try again"), "deaf")

    def receive(self, worker: WorkerSlot, mask: int = 0) -> bool:
        """Handle one packet of a worker; False when there was none. The loop calls again while there are more."""
        try:
            packet = worker.channel.recv(LONGEST)
        except BlockingIOError:
            return False
        except OSError as error:
            self.log.warning("receive", role=worker.name, error=error.strerror)
            return False
        if not packet:
            return False
        try:
            message = decode(packet)
        except OrderError as error:
            self.log.error("receive", role=worker.name, error=error, then="ignore")
            return True
        if isinstance(message, Result):
            self._result(worker, message)
        elif isinstance(message, Hello):
            self._hello(worker, message)
        elif isinstance(message, Bye):
            self._bye(worker, message)
        else:
            self.log.error("receive", role=worker.name, error="not for a front", then="ignore")
        return True

    def kill_overdue(self, now: float) -> None:
        """Kill processes whose task is over its time. Called on every tick (0.25 s)."""
        for worker in self.workers:
            task = worker.task
            if worker.state is WorkerState.BUSY and task is not None and now - task.begun_at > self.timeout:
                sentence = f"the picture took longer than {self.timeout:g} s"
                self._kill(worker, refusal(TIMEOUT, sentence), "timeout")

    def _send(self, worker: WorkerSlot, message: Order | Ping) -> bool:
        try:
            worker.channel.send(encode(message))
        except OSError as error:
            self.log.warning("order", role=worker.name, child=worker.pid, error=error.strerror)
            return False
        return True

    def _hello(self, worker: WorkerSlot, hello: Hello) -> None:
        if worker.pid == hello.worker_pid:
            # 0: sent at its start and not read by any front since, so no front has given it work.
            if worker.state is WorkerState.UNVERIFIED and hello.front_pid in (0, self.pid):
                self._set_idle(worker)
            return
        if worker.pid:
            self._death(worker)  # the Hello of its successor came before the event of the pidfd
        if hello.front_pid not in (0, self.pid):
            return
        self._attach(worker, hello.worker_pid)
        if worker.pid:
            self._set_idle(worker)

    def _attach(self, worker: WorkerSlot, pid: int, is_old: bool = False) -> None:
        try:
            worker.pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in CAPACITY and is_old:
                raise
            if (
                error.errno in CAPACITY
            ):  # alive, but this process is out of descriptors: ask for another Hello
                self.loop.call_later(RETRY_SECONDS, partial(self._send, worker, Ping(self.pid)))
            return  # else dead already; its successor will send Hello
        worker.pid = pid
        self.idle.attach(worker)
        self.loop.watch_level(worker.pidfd, partial(self._on_death, worker))

    def _set_idle(self, worker: WorkerSlot) -> None:
        self.idle.set_idle(worker)
        self.owner.assign()

    # -- at work --

    def _begin(self, worker: WorkerSlot, task: Task) -> None:
        self.idle.begin(worker, task)
        task.begun_at = self.loop.now
        if worker.is_short and not self._is_looking:
            self._is_looking = True
            self.loop.call_later(SLOW_SECONDS, self._look)

    def _result(self, worker: WorkerSlot, result: Result) -> None:
        task = worker.task
        if result.worker_pid != worker.pid or task is None or result.serial != task.serial:
            return  # of a task of the front before
        if worker.state is WorkerState.KILLED:  # its task was answered with a timeout; the kill is under way
            worker.task = None
            self.owner.late(task)
            return
        prefetched = self.idle.end(worker)
        if prefetched is None:
            self._set_idle(worker)  # its next order first: the process works while this answer is written
            self.owner.done(task, result, True)
        else:
            self._begin(worker, prefetched)
            self.owner.done(task, result, True)
            self.owner.assign()

    def _look(self) -> None:
        """Find tasks that are not short work any more. Every SLOW_SECONDS while there is short work."""
        slow = self.loop.now - SLOW_SECONDS
        is_owing = False
        for worker in self.workers:
            if worker.is_short and worker.task is not None and worker.task.begun_at < slow:
                self.idle.mark_slow(worker)
            if worker.prefetched is not None and not worker.is_short:
                is_owing |= not self._take_back(worker, worker.prefetched)
        self._is_looking = is_owing or self.idle.short > 0
        if self._is_looking:
            self.loop.call_later(SLOW_SECONDS, self._look)
        self.owner.assign()

    def _take_back(self, worker: WorkerSlot, prefetched: Task) -> bool:
        """Take back the task prefetched behind slow work; False when there is no slot for it now."""
        if worker.state is not WorkerState.BUSY or prefetched.stage is TaskStage.ABANDONED:
            return True
        slot = self.owner.copy(prefetched)
        while self.receive(worker):
            pass  # had it been begun while it was copied, the result of the task before would be here by now
        if worker.prefetched is prefetched and slot >= 0:
            worker.prefetched = tombstone_of(prefetched)
            self.owner.move(prefetched, slot)
        elif slot >= 0:
            self.owner.release_slot(slot)
        return slot >= 0

    # -- ends --

    def _kill(self, worker: WorkerSlot, result: Result, reason: str) -> None:
        """Answer the task and kill the process. The slot is free with the death."""
        task = worker.task
        assert task is not None
        seconds = f"{self.loop.now - task.begun_at:.1f}/{self.timeout:g}"
        then = "answer an error; the master forks another"
        self.log.warning(
            "kill", role=worker.name, child=worker.pid, reason=reason, seconds=seconds, then=then
        )
        worker.state = WorkerState.KILLED
        self.idle.mark_slow(worker)
        try:
            signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
        except OSError:
            pass  # dead already: the event of its pidfd follows
        self.owner.done(task, result, False)

    def _on_death(self, worker: WorkerSlot, mask: int) -> None:
        pid = worker.pid
        while self.receive(worker):  # its last result may still be in the channel
            pass
        if pid and worker.pid == pid:
            self._death(worker)

    def _bye(self, worker: WorkerSlot, bye: Bye) -> None:
        """The process exits. Orders sent after its last result were not begun and will not be."""
        if bye.worker_pid != worker.pid or worker.state is WorkerState.KILLED:
            return
        task, prefetched = worker.task, self.idle.end(worker)
        self._detach(worker)
        for one in (prefetched, task):
            if one is not None:
                self.owner.requeue(one)
        self.owner.assign()

    def _death(self, worker: WorkerSlot) -> None:
        task, state, pid = worker.task, worker.state, worker.pid
        prefetched = self.idle.end(worker)
        self._detach(worker)
        if state is WorkerState.KILLED and task is None:
            task, prefetched = prefetched, None  # it went on before the kill arrived
        elif state is WorkerState.KILLED and task is not None:
            self.owner.late(task)
            task = None
        if prefetched is not None:
            self.owner.requeue(prefetched)
        if task is not None:
            self.log.warning(
                "death", role=worker.name, child=pid, task=task.serial, then="answer an error, no retry here"
            )
            sentence = "the CPU process died while it worked on this picture"
            if state is not WorkerState.KILLED:
                self.owner.died(task)
            self.owner.done(task, refusal(DRAINING, sentence), True)
        elif state is not WorkerState.KILLED:
            self.log.info("leave", role=worker.name, child=pid, state=state.value)
        self.owner.assign()

    def _detach(self, worker: WorkerSlot) -> None:
        pidfd = worker.pidfd
        self.idle.detach(worker)
        self.loop.forget(pidfd)
        self.loop.retire(lambda: os.close(pidfd))
