"""The crew: the seats of one front, and the processes that sit in them.

RULES: lives in the front; sends orders, takes results, and is the only one to kill. A seat's process may
die at any instant: its death is seen on its pidfd, its task then ends with an error, and the slot it may
have been writing to is free only from that moment on. The master forks the successor, which says Hello on
the same channel.

    ABSENT --Hello--> IDLE --order--> BUSY --Result--> IDLE
                       |               |--deadline--> CONDEMNED   (killed; answered already; death not seen
                       yet)
      pidfd: death     v               v                 |
    ABSENT <------------------------------------------- -+
    SUSPECT: alive when this front was born; may still be working for its predecessor. Until every suspect
    has answered the roll or died no slot may be used: it could write an old answer into a slot that is
    somebody else's by now.
"""

import errno
import os
import signal
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

from balancer.prefork.log import Log
from balancer.prefork.loop import Loop
from workers.resizer.orders import (
    LONGEST,
    Hello,
    Order,
    OrderError,
    Result,
    Roll,
    decode,
    encode,
)
from workers.resizer.task import DRAINING, TIMEOUT, Task, refusal

CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
RETRY_SECONDS = 0.2  # until a process that could not be watched is asked for its Hello again


class State(Enum):
    """Of a seat."""

    ABSENT = "absent"
    SUSPECT = "suspect"
    IDLE = "idle"
    BUSY = "busy"
    CONDEMNED = "condemned"


@dataclass(slots=True, eq=False)
class Seat:
    """`task` is set in BUSY and CONDEMNED; `pid` and `pidfd` in every state but ABSENT."""

    name: str
    is_express: bool
    channel: socket.socket
    state: State = State.ABSENT
    pid: int = 0
    pidfd: int = -1
    task: Task | None = None


class Employer(Protocol):
    """Whom the crew works for."""

    def done(self, task: Task, result: Result, slot_is_safe: bool) -> None:
        """Called once per task handed out. When the slot is not safe (somebody may still write there), `late`
        follows.
        """

    def late(self, task: Task) -> None:
        """Nobody can write into the slot of this task any more."""

    def died(self, task: Task) -> None:
        """A process died by itself while it worked on this task; `done` follows."""

    def assign(self) -> None:
        """A seat has become idle, or the last suspect is gone."""


class Crew:
    """`cpus` and `express` are the idle seats, the last to become idle at the end: its caches are warm."""

    def __init__(
        self, loop: Loop, log: Log, seats: Iterable[Seat], timeout: float, employer: Employer
    ) -> None:
        self.loop = loop
        self.log = log
        self.seats = list(seats)
        self.timeout = timeout
        self.employer = employer
        self.cpus: list[Seat] = []
        self.express: list[Seat] = []
        self.workers = 0  # processes that take any picture
        self.pid = os.getpid()
        self._may_have_suspects = True

    def start(self, alive: Iterable[tuple[str, int]]) -> None:
        """Watch the channels and call the roll. `alive`: (seat name, pid) of those older than this front."""
        known = dict(alive)
        for seat in self.seats:
            seat.channel.setblocking(False)
            self.loop.watch_level(seat.channel.fileno(), partial(self._on_channel, seat))
            if seat.name in known:
                self._seat(seat, known[seat.name], State.SUSPECT)
            self._send(seat, Roll(self.pid))

    @property
    def has_suspects(self) -> bool:
        """True until the first time that nobody is; a process that says hello later has worked for no other."""
        if self._may_have_suspects:
            self._may_have_suspects = any(seat.state is State.SUSPECT for seat in self.seats)
        return self._may_have_suspects

    @property
    def busy(self) -> int:
        return sum(seat.task is not None for seat in self.seats)

    def hand(self, task: Task, seat: Seat) -> None:
        """Order `seat`, which the caller took from `cpus` or `express`, to work on `task`."""
        job = task.job
        order = Order(
            seat.pid,
            self.pid,
            task.serial,
            task.offset,
            task.length,
            task.slot,
            job.width,
            job.height,
            job.fit,
            job.quality,
            job.orient,
            job.format,
        )
        seat.task, seat.state = task, State.BUSY
        task.begun_at = self.loop.now
        if not self._send(seat, order):
            self._condemn(seat, refusal(DRAINING, "the CPU process takes no orders; try again"), "deaf")

    def listen(self, seat: Seat) -> bool:
        """One packet of a seat's; False when there was none. The loop calls again while there are more."""
        try:
            packet = seat.channel.recv(LONGEST)
        except BlockingIOError:
            return False
        except OSError as error:
            self.log.warning("listen", seat=seat.name, reason=error.strerror)
            return False
        if not packet:
            return False
        try:
            message = decode(packet)
        except OrderError as error:
            self.log.error("listen", seat=seat.name, reason=str(error), then="ignored")
            return True
        if isinstance(message, Result):
            self._result(seat, message)
        elif isinstance(message, Hello):
            self._hello(seat, message)
        else:
            self.log.error("listen", seat=seat.name, reason="not for a front", then="ignored")
        return True

    def sweep(self, now: float) -> None:
        """Kill what is over its time. Called on every tick (0.25 s)."""
        for seat in self.seats:
            task = seat.task
            if seat.state is State.BUSY and task is not None and now - task.begun_at > self.timeout:
                sentence = f"the picture took longer than {self.timeout:g} s"
                self._condemn(seat, refusal(TIMEOUT, sentence), "timeout")

    def _send(self, seat: Seat, message: Order | Roll) -> bool:
        try:
            seat.channel.send(encode(message))
        except OSError as error:
            self.log.warning("order", seat=seat.name, pid=seat.pid, reason=error.strerror)
            return False
        return True

    def _hello(self, seat: Seat, hello: Hello) -> None:
        if seat.pid == hello.worker:
            # 0: it said so at its start and no front has read it since, so none has given it work.
            if seat.state is State.SUSPECT and hello.front in (0, self.pid):
                self._rest(seat)
            return
        if seat.pid:
            self._death(seat)  # its successor speaks before the pidfd of the dead was looked at
        if hello.front not in (0, self.pid):
            return
        self._seat(seat, hello.worker, State.SUSPECT)
        if seat.pid:
            self._rest(seat)

    def _seat(self, seat: Seat, pid: int, state: State) -> None:
        try:
            seat.pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in CAPACITY:  # alive, but we are out of descriptors: ask for another Hello
                self.loop.call_later(RETRY_SECONDS, partial(self._send, seat, Roll(self.pid)))
            return  # else dead already; its successor will say Hello
        seat.pid, seat.state = pid, state
        self.workers += not seat.is_express
        self.loop.watch_level(seat.pidfd, partial(self._on_death, seat))

    def _rest(self, seat: Seat) -> None:
        seat.state = State.IDLE
        (self.express if seat.is_express else self.cpus).append(seat)
        self.employer.assign()

    def _result(self, seat: Seat, result: Result) -> None:
        task = seat.task
        if result.worker != seat.pid or task is None or result.serial != task.serial:
            return  # of a task of this front's predecessor
        if seat.state is State.CONDEMNED:
            return  # answered with its timeout; the kill is on its way
        seat.task = None
        if result.leaving:
            self._vacate(seat)
        else:
            self._rest(seat)  # its next order first: it need not wait while this answer is written
        self.employer.done(task, result, True)

    def _condemn(self, seat: Seat, result: Result, reason: str) -> None:
        """Answer now, kill now; the slot waits for the death."""
        task = seat.task
        assert task is not None
        self.log.warning(
            "kill",
            seat=seat.name,
            cpu=seat.pid,
            reason=reason,
            seconds=f"{self.loop.now - task.begun_at:.1f}/{self.timeout:g}",
            then="answer an error; the master forks another",
        )
        seat.state = State.CONDEMNED
        try:
            signal.pidfd_send_signal(seat.pidfd, signal.SIGKILL)
        except OSError:
            pass  # dead already: its pidfd will say so
        self.employer.done(task, result, False)

    def _on_channel(self, seat: Seat, mask: int) -> None:
        self.listen(seat)

    def _on_death(self, seat: Seat, mask: int) -> None:
        pid = seat.pid
        while self.listen(seat):  # its last result may still lie in the channel
            pass
        if pid and seat.pid == pid:
            self._death(seat)

    def _death(self, seat: Seat) -> None:
        task, state, pid = seat.task, seat.state, seat.pid
        if state is State.IDLE:
            (self.express if seat.is_express else self.cpus).remove(seat)
        seat.task = None
        self._vacate(seat)
        if task is None:
            self.log.info("leave", seat=seat.name, cpu=pid, state=state.value)
        elif state is State.CONDEMNED:
            self.employer.late(task)
        else:
            self.log.warning(
                "death", seat=seat.name, cpu=pid, task=task.serial, then="answer an error, no retry here"
            )
            sentence = "the CPU process died while it worked on this picture"
            self.employer.died(task)
            self.employer.done(task, refusal(DRAINING, sentence), True)
        self.employer.assign()

    def _vacate(self, seat: Seat) -> None:
        pidfd, seat.pidfd, seat.pid, seat.state = seat.pidfd, -1, 0, State.ABSENT
        self.workers -= not seat.is_express
        self.loop.forget(pidfd)
        self.loop.retire(lambda: os.close(pidfd))
