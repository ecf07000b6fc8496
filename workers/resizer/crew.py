"""The crew: the seats of one front, and the processes that sit in them.

RULES: lives in the front; sends orders, takes results, and is the only one to kill. A seat's process may
die at any instant: its death is seen on its pidfd, its task then ends with an error, and the slot it may
have been writing to is free only from that moment on. The master forks the successor, which says Hello on
the same channel.

    ABSENT --Hello--> IDLE --order--> BUSY --Result--> IDLE, or BUSY with the next order, if it was there already
                       |               |--deadline--> CONDEMNED  (killed and answered; its death not seen yet)
      pidfd: death     v               v                 |
    ABSENT <---------------------------------------------+

    A process carries its orders out one after the other, so an order that lies behind work is begun exactly when
    the Result of that work has been sent. Work that turns out slow keeps nobody waiting: what is behind it is taken
    back (the employer moves the picture to another slot and leaves one there that is refused at once).
    SUSPECT: alive when this front was born; may still be working for its predecessor. Until every suspect
    has answered the roll or died no slot may be used: it could write an old answer into a slot that is
    somebody else's by now.
"""

import os
import signal
from collections.abc import Iterable
from functools import partial

from balancer.eventloop.errnos import CAPACITY
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.resizer.orders import LONGEST, Bye, Hello, Order, OrderError, Result, Roll, decode, encode
from workers.resizer.seats import Roster, Seat, State, ghost_of
from workers.resizer.task import DRAINING, TIMEOUT, Employer, Stage, Task, order_of, refusal

SLOW_SECONDS = 0.02  # at work for longer, a small picture is no short work (it usually takes 1 to 5 ms)
RETRY_SECONDS = 0.2  # until a process that could not be watched is asked for its Hello again


class Crew:
    """`fills_machine`: as Roster's. `timeout`: seconds that one picture may take."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        seats: Iterable[Seat],
        timeout: float,
        fills_machine: bool,
        employer: Employer,
    ) -> None:
        self.loop = loop
        self.log = log
        self.seats = list(seats)
        self.timeout = timeout
        self.employer = employer
        self.roster = Roster(fills_machine)
        self.pid = os.getpid()
        self._may_have_suspects = True
        self._is_looking = False

    def start(self, alive: Iterable[tuple[str, int]]) -> None:
        """Watch the channels and call the roll. `alive`: (seat name, pid) of those older than this front.

        Raises OSError when one of them cannot be watched: without knowing its end no slot may be used.
        """
        known = dict(alive)
        for seat in self.seats:
            seat.channel.setblocking(False)
            self.loop.watch_level(seat.channel.fileno(), partial(self.listen, seat))
            if seat.name in known:
                self._seat(seat, known[seat.name], is_old=True)
            self._send(seat, Roll(self.pid))

    @property
    def has_suspects(self) -> bool:
        """True until the first time that nobody is; a process that says hello later has worked for no other."""
        if self._may_have_suspects:
            self._may_have_suspects = any(seat.state is State.SUSPECT for seat in self.seats)
        return self._may_have_suspects

    @property
    def workers(self) -> int:
        """Processes that take any picture."""
        return self.roster.workers

    @property
    def busy(self) -> int:
        """Pictures at work."""
        return sum(seat.task is not None and seat.task.stage is Stage.WORKING for seat in self.seats)

    @property
    def behind(self) -> int:
        """Pictures that have been sent and not been begun."""
        return sum(seat.behind is not None and seat.behind.stage is Stage.WORKING for seat in self.seats)

    def hand(self, task: Task, seat: Seat) -> None:
        """Order `seat`, which the caller took out of the roster, to work on `task`, now or next."""
        if seat.task is None:
            self._begin(seat, task)
        else:
            self.roster.follow(seat, task)
        if self._send(seat, order_of(task, seat.pid, self.pid)):
            return
        if seat.behind is task:
            seat.behind = None
            self.employer.retake(task)
        self._condemn(seat, refusal(DRAINING, "the CPU process takes no orders; try again"), "deaf")

    def listen(self, seat: Seat, mask: int = 0) -> bool:
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
        elif isinstance(message, Bye):
            self._bye(seat, message)
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
        self._seat(seat, hello.worker)
        if seat.pid:
            self._rest(seat)

    def _seat(self, seat: Seat, pid: int, is_old: bool = False) -> None:
        try:
            seat.pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in CAPACITY and is_old:
                raise
            if error.errno in CAPACITY:  # alive, but we are out of descriptors: ask for another Hello
                self.loop.call_later(RETRY_SECONDS, partial(self._send, seat, Roll(self.pid)))
            return  # else dead already; its successor will say Hello
        seat.pid = pid
        self.roster.sit(seat)
        self.loop.watch_level(seat.pidfd, partial(self._on_death, seat))

    def _rest(self, seat: Seat) -> None:
        self.roster.rest(seat)
        self.employer.assign()

    # -- at work --

    def _begin(self, seat: Seat, task: Task) -> None:
        self.roster.begin(seat, task)
        task.begun_at = self.loop.now
        if seat.is_short and not self._is_looking:
            self._is_looking = True
            self.loop.call_later(SLOW_SECONDS, self._look)

    def _result(self, seat: Seat, result: Result) -> None:
        task = seat.task
        if result.worker != seat.pid or task is None or result.serial != task.serial:
            return  # of a task of this front's predecessor
        if seat.state is State.CONDEMNED:  # answered with its timeout; the kill is on its way
            seat.task = None
            self.employer.late(task)
            return
        behind = self.roster.end(seat)
        if behind is None:
            self._rest(seat)  # its next order first: it need not wait while this answer is written
            self.employer.done(task, result, True)
        else:
            self._begin(seat, behind)
            self.employer.done(task, result, True)
            self.employer.assign()

    def _look(self) -> None:
        """Whose short work is none? Every SLOW_SECONDS while there is any."""
        slow = self.loop.now - SLOW_SECONDS
        is_owing = False
        for seat in self.seats:
            if seat.is_short and seat.task is not None and seat.task.begun_at < slow:
                self.roster.slow(seat)
            if seat.behind is not None and not seat.is_short:
                is_owing |= not self._take_back(seat, seat.behind)
        self._is_looking = is_owing or self.roster.short > 0
        if self._is_looking:
            self.loop.call_later(SLOW_SECONDS, self._look)
        self.employer.assign()

    def _take_back(self, seat: Seat, behind: Task) -> bool:
        """Have what is behind slow work done elsewhere; False when there is no slot for it now."""
        if seat.state is not State.BUSY or behind.stage is Stage.ABANDONED:
            return True
        slot = self.employer.copy(behind)
        while self.listen(seat):
            pass  # had it been begun while it was copied, the result of the work before would be here by now
        if seat.behind is behind and slot >= 0:
            seat.behind = ghost_of(behind)
            self.employer.move(behind, slot)
        elif slot >= 0:
            self.employer.release(slot)
        return slot >= 0

    # -- ends --

    def _condemn(self, seat: Seat, result: Result, reason: str) -> None:
        """Answer now, kill now; the slot waits for the death."""
        task = seat.task
        assert task is not None
        seconds = f"{self.loop.now - task.begun_at:.1f}/{self.timeout:g}"
        then = "answer an error; the master forks another"
        self.log.warning("kill", seat=seat.name, cpu=seat.pid, reason=reason, seconds=seconds, then=then)
        seat.state = State.CONDEMNED
        self.roster.slow(seat)
        try:
            signal.pidfd_send_signal(seat.pidfd, signal.SIGKILL)
        except OSError:
            pass  # dead already: its pidfd will say so
        self.employer.done(task, result, False)

    def _on_death(self, seat: Seat, mask: int) -> None:
        pid = seat.pid
        while self.listen(seat):  # its last result may still lie in the channel
            pass
        if pid and seat.pid == pid:
            self._death(seat)

    def _bye(self, seat: Seat, bye: Bye) -> None:
        """Nothing that was sent after its last result was begun, or ever will be."""
        if bye.worker != seat.pid or seat.state is State.CONDEMNED:
            return
        task, behind = seat.task, self.roster.end(seat)
        self._vacate(seat)
        for one in (behind, task):
            if one is not None:
                self.employer.retake(one)
        self.employer.assign()

    def _death(self, seat: Seat) -> None:
        task, state, pid = seat.task, seat.state, seat.pid
        behind = self.roster.end(seat)
        self._vacate(seat)
        if state is State.CONDEMNED and task is None:
            task, behind = behind, None  # it went on before the kill arrived
        elif state is State.CONDEMNED and task is not None:
            self.employer.late(task)
            task = None
        if behind is not None:
            self.employer.retake(behind)
        if task is not None:
            self.log.warning(
                "death", seat=seat.name, cpu=pid, task=task.serial, then="answer an error, no retry here"
            )
            sentence = "the CPU process died while it worked on this picture"
            if state is not State.CONDEMNED:
                self.employer.died(task)
            self.employer.done(task, refusal(DRAINING, sentence), True)
        elif state is not State.CONDEMNED:
            self.log.info("leave", seat=seat.name, cpu=pid, state=state.value)
        self.employer.assign()

    def _vacate(self, seat: Seat) -> None:
        pidfd = seat.pidfd
        self.roster.leave(seat)
        self.loop.forget(pidfd)
        self.loop.retire(lambda: os.close(pidfd))
