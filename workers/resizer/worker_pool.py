"""The worker pool of a front: the processes behind its workers, their messages, and the tasks they have.

RULES: sends orders, receives messages, and is the only one to kill. Decides nothing about tasks: each method returns the
tasks that its event has ended or set free, and the scheduler goes on from there. A process may die at any instant: its
death is seen on its pidfd. It never had more of a task than a copy in its own memory. The master forks the successor,
which sends Hello on the same channel and gets a memory of its own.

    ABSENT --Hello--> IDLE --order--> BUSY --Result--> IDLE, or BUSY with the prefetched task
                       |               |--kill--> KILLED  (its death not seen yet)
      pidfd: death     v               v            |
    ABSENT <----------------------------------------+

    A process carries its orders out one after the other, so it begins a prefetched task exactly when it has sent the
    Result of the task before.
    A process older than this front is ABSENT until it has answered the Ping: it is through with its predecessor's orders
    then. Pictures do not wait for it, and one that is silent for SILENT_SECONDS is killed.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from struct import Struct

from balancer.eventloop.errnos import CAPACITY
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.resizer.idle_set import IdleSet, WorkerSlot, WorkerState, tombstone_of
from workers.resizer.orders import (
    LONGEST,
    Bye,
    Hello,
    Order,
    OrderError,
    Ping,
    Result,
    Transfer,
    decode,
    encode,
)
from workers.resizer.task import Task, TaskStage, order_of
from workers.resizer.transfer import make_transfer

SLOW_SECONDS = 0.02  # a small picture at work for longer is not short work (it usually takes 1 to 5 ms)
MOST_IGNORED = 16  # packets of one turn, so that a process gone wrong cannot hold the front
_CREDENTIALS = Struct("=iII")  # struct ucred: pid, uid, gid
_CREDENTIALS_SPACE = socket.CMSG_SPACE(_CREDENTIALS.size)
_SCM = 2  # SCM_CREDENTIALS
INVALID = bytes(16)  # the first bytes of no picture
SILENT_SECONDS = 0.5  # for a process older than this front to answer; an idle one takes a millisecond
RETRY_SECONDS = 0.2  # until a process that could not be watched gets another Ping


class ProcessControl:
    """The system calls that see and end the processes of a pool, which are no children of the front."""

    def own_pid(self) -> int:
        return os.getpid()

    def open(self, pid: int) -> int:
        """A pidfd; readable once the process has ended. Raises OSError."""
        return os.pidfd_open(pid)

    def is_sibling(self, pid: int) -> bool:
        """Whether a process is a child of the master too; False when it has ended or cannot be seen."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                return int(stat.read().rpartition(b")")[2].split()[1]) == os.getppid()
        except (OSError, IndexError, ValueError):
            return False

    def kill(self, pidfd: int) -> None:
        """Raises OSError when the process has ended."""
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def receive(self, channel: socket.socket) -> tuple[bytes, int]:
        """The next packet and the pid of its sender as the kernel knows it. Raises OSError."""
        packet, found, _flags, _address = channel.recvmsg(LONGEST, _CREDENTIALS_SPACE)
        return packet, next((_CREDENTIALS.unpack(data)[0] for _, kind, data in found if kind == _SCM), 0)


class WorkerPool:
    """`timeout`: seconds that one picture may take. `place_bytes`: of the biggest picture or answer. `fills_machine`: as
    in IdleSet. `on_packet` and `on_exit` are the loop's handlers: the channel of a worker is readable, the process of a
    worker has ended.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        workers: Iterable[WorkerSlot],
        timeout: float,
        place_bytes: int,
        fills_machine: bool,
        on_packet: Callable[[WorkerSlot, int], object],
        on_exit: Callable[[WorkerSlot, int], object],
        control: ProcessControl,
    ) -> None:
        self.loop = loop
        self.log = log
        self.workers = list(workers)
        self.timeout = timeout
        self.place_bytes = place_bytes
        self.idle = IdleSet(fills_machine)
        self.pid = control.own_pid()
        self._on_packet = on_packet
        self._on_exit = on_exit
        self._control = control
        self._older: dict[int, int] = {}  # pid -> pidfd, until they have answered

    def start(self, older: Mapping[str, int]) -> None:
        """Watch the channels and send Ping. `older`: pids of processes that were ready before this front, by worker."""
        for worker in self.workers:
            worker.channel.setblocking(False)
            self.loop.watch_level(worker.channel.fileno(), partial(self._on_packet, worker))
            self._send(worker, Ping(self.pid))
        self._older = {pid: pidfd for pid in older.values() if (pidfd := self._opened(pid)) >= 0}
        if self._older:
            self.loop.call_later(SILENT_SECONDS, self._kill_silent)

    def _opened(self, pid: int) -> int:
        """A pidfd; -1 when it has ended, or is no process of this resizer: the pid is the word of the process itself."""
        try:
            pidfd = self._control.open(pid)
        except OSError:
            return -1
        if not self._control.is_sibling(pid):  # asked now, so it is the process of the descriptor
            os.close(pidfd)
            return -1
        return pidfd

    def _kill_silent(self) -> None:
        """Kill the older processes that have not answered: they work for the front before, whose clients are gone, or are
        stopped or hang. Their successors take pictures sooner.
        """
        known = {worker.pid for worker in self.workers}
        for pid, pidfd in self._older.items():
            if pid not in known:
                try:
                    self._control.kill(pidfd)
                    then = "the master forks another"
                    self.log.warning("kill", child=pid, reason="no answer to a new front", then=then)
                except OSError:
                    pass  # it has ended
            os.close(pidfd)
        self._older = {}

    @property
    def working(self) -> int:
        """Pictures being worked on."""
        tasks = [worker.task for worker in self.workers]
        return sum(task is not None and task.stage is TaskStage.WORKING for task in tasks)

    @property
    def prefetched(self) -> int:
        """Pictures sent and not begun."""
        tasks = [worker.prefetched for worker in self.workers]
        return sum(task is not None and task.stage is TaskStage.WORKING for task in tasks)

    # -- messages --

    def receive(self, worker: WorkerSlot) -> Result | Hello | Bye | None:
        """The next message of a worker; None when there is none."""
        for _ in range(MOST_IGNORED):
            try:
                packet, sender = self._control.receive(worker.channel)
            except BlockingIOError:
                return None
            except OSError as error:
                self.log.warning("receive", role=worker.name, error=error.strerror)
                return None
            if not packet:
                return None
            try:
                message = decode(packet)
            except OrderError as error:
                self.log.error("receive", role=worker.name, error=error, then="ignore")
                continue
            if not isinstance(message, (Result, Hello, Bye)):  # a union would be built for each message
                self.log.error("receive", role=worker.name, error="not for a front", then="ignore")
            elif message.worker_pid == sender:
                return message
            else:  # else it could have another process killed in its place
                reason = f"it names pid {message.worker_pid} for its own"
                self.log.error("receive", role=worker.name, child=sender, error=reason, then="ignore")
        return None

    def _send(self, worker: WorkerSlot, message: Order | Ping) -> bool:
        try:
            worker.channel.send(encode(message))
        except OSError as error:
            self.log.warning("order", role=worker.name, child=worker.pid, error=error.strerror)
            return False
        return True

    def welcome(self, worker: WorkerSlot, hello: Hello) -> bool:
        """Take Hello; True when the worker is idle now. A predecessor of the process was detached before."""
        # front_pid 0: sent at its start and not read by any front since, so no front has given it work.
        if hello.front_pid not in (0, self.pid) or worker.pid == hello.worker_pid:
            return False
        try:
            self._attach(worker, hello.worker_pid)
        except OSError as error:
            if (
                error.errno in CAPACITY
            ):  # alive, but this process is out of descriptors: ask for another Hello
                self.loop.call_later(RETRY_SECONDS, partial(self._send, worker, Ping(self.pid)))
            return False  # else dead already; its successor will send Hello
        return True

    def _attach(self, worker: WorkerSlot, pid: int) -> None:
        """Watch the process and send it the memory for its orders. Raises OSError."""
        pidfd = self._control.open(pid)
        try:
            worker.memory, fd = make_transfer(self.place_bytes)
            try:
                socket.send_fds(worker.channel, [encode(Transfer(pid, self.place_bytes))], [fd])
            finally:
                os.close(fd)
        except OSError:
            worker.memory = None
            os.close(pidfd)
            raise
        worker.pid, worker.pidfd = pid, pidfd
        self.idle.attach(worker)
        self.loop.watch_level(pidfd, partial(self._on_exit, worker))

    # -- tasks --

    def give(self, worker: WorkerSlot, task: Task, picture: memoryview) -> bool:
        """Order a worker, which the caller took out of the idle set, to work on `task`, now or next. False when the order
        could not be sent: the worker does not have a prefetched task then, and is to be killed.
        """
        assert worker.memory is not None
        place = worker.place
        if worker.task is None:
            self._begin(worker, task)
        else:
            place = 1 - place
            self.idle.prefetch(worker, task)
        worker.memory.put(place, picture, self.loop.now)
        if self._send(worker, order_of(task, place, worker.pid, self.pid)):
            return True
        worker.prefetched = None
        return False

    def _begin(self, worker: WorkerSlot, task: Task) -> None:
        self.idle.begin(worker, task)
        task.begun_at = self.loop.now

    def finish(self, worker: WorkerSlot, result: Result) -> Task | None:
        """Take the result of the current task. Returns the task; None when the result is of another one, or of the
        front before. The worker is idle now, or begins its prefetched task; or it was killed, and its death follows.
        """
        task = worker.task
        if result.worker_pid != worker.pid or task is None or result.serial != task.serial:
            return None
        if worker.state is WorkerState.KILLED:
            worker.task = None
            return task
        prefetched = self.idle.end(worker)
        if prefetched is None:
            self.idle.set_idle(worker)
        else:
            self._begin(worker, prefetched)
        return task

    def answer_in(self, worker: WorkerSlot, place: int, result: Result) -> memoryview:
        """The answer that `result` announces. `place`: of its task; valid until the worker gets another order."""
        assert worker.memory is not None
        worker.memory.touch(place, result.length, self.loop.now)
        return worker.memory.view(place, result.length)

    def find_slow(self) -> list[WorkerSlot]:
        """Mark tasks that are not short work any more. Returns the workers with a task prefetched behind slow work."""
        slow = self.loop.now - SLOW_SECONDS
        for worker in self.workers:
            if worker.is_short and worker.task is not None and worker.task.begun_at < slow:
                self.idle.mark_slow(worker)
        return [
            worker
            for worker in self.workers
            if worker.state is WorkerState.BUSY
            and not worker.is_short
            and worker.prefetched is not None
            and worker.prefetched.stage is not TaskStage.ABANDONED
        ]

    def take_back(self, worker: WorkerSlot) -> None:
        """Leave a tombstone in the place of the prefetched task, which needs no answer of this worker any more. The first
        bytes of its copy are overwritten, so that it is refused at once: harmless if the process works on it by now.
        """
        assert worker.prefetched is not None and worker.memory is not None
        length = min(worker.prefetched.length, len(INVALID))
        worker.memory.view(1 - worker.place, length)[:] = INVALID[:length]
        worker.prefetched = tombstone_of(worker.prefetched)

    def sweep(self, now: float) -> None:
        """Give back the memory of idle workers that they have not used for a while."""
        for worker in self.workers:
            if worker.state is WorkerState.IDLE and worker.memory is not None:
                worker.memory.sweep(now)

    # -- ends --

    def overdue(self, now: float) -> list[WorkerSlot]:
        """Workers whose task has been worked on for longer than `timeout`."""
        due = now - self.timeout
        return [
            worker
            for worker in self.workers
            if worker.state is WorkerState.BUSY and worker.task is not None and worker.task.begun_at < due
        ]

    def kill(self, worker: WorkerSlot, reason: str) -> Task:
        """Kill a busy process. Returns its task, which `finish` or `bury` returns again."""
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
            self._control.kill(worker.pidfd)
        except OSError:
            pass  # dead already: the event of its pidfd follows
        return task

    def dismiss(self, worker: WorkerSlot, bye: Bye) -> list[Task]:
        """Take Bye: the process exits and has begun nothing since its last result. Returns its tasks, latest first."""
        if bye.worker_pid != worker.pid or worker.state is WorkerState.KILLED:
            return []
        task, prefetched = worker.task, self.idle.end(worker)
        self._detach(worker)
        return [one for one in (prefetched, task) if one is not None]

    def bury(self, worker: WorkerSlot) -> tuple[Task | None, Task | None]:
        """The process of a worker has ended. Returns the task it worked on and the one it had not begun."""
        task, state, pid = worker.task, worker.state, worker.pid
        prefetched = self.idle.end(worker)
        self._detach(worker)
        if state is WorkerState.KILLED and task is None:
            task, prefetched = prefetched, None  # it went on before the kill arrived
        elif state is not WorkerState.KILLED and task is None:
            self.log.info("leave", role=worker.name, child=pid, state=state.value)
        if task is not None and task.stage is not TaskStage.DONE:
            then = "answer an error, no retry here"
            self.log.warning("death", role=worker.name, child=pid, task=task.serial, then=then)
        return task, prefetched

    def _detach(self, worker: WorkerSlot) -> None:
        pidfd, memory, worker.memory = worker.pidfd, worker.memory, None
        self.idle.detach(worker)
        if memory is not None:
            memory.close()
        self.loop.forget(pidfd)
        self.loop.retire(partial(os.close, pidfd))
