"""The seats of one front: who sits there, what he works on, and which seats may be given what.

RULES: pure, no process, no clock. `dispatch` chooses from what is offered here, the crew says what became of it.
A seat is in at most one of `cpus`, `express` and `open`.

    cpus      idle CPU seats        } the last to become idle at the end: its caches are warm
    express   idle express seats    }
    open      CPU seats at short work and with nothing behind it, the longest at work first: the next small picture
              may be sent there before this one is done, so that no CPU process waits for the front between two

Short work is a small picture that has not turned out to be slow. Nothing is sent behind other work, nor to
express: what is behind cannot be had back for nothing.
"""

import socket
from dataclasses import dataclass, field
from enum import Enum

from workers.resizer.task import Stage, Task


class State(Enum):
    """Of a seat."""

    ABSENT = "absent"
    SUSPECT = "suspect"
    IDLE = "idle"
    BUSY = "busy"
    CONDEMNED = "condemned"


@dataclass(slots=True, eq=False)
class Seat:
    """`task` is set in BUSY, and in CONDEMNED until its result comes all the same; `behind` (sent already, to be begun
    next) at most in these two; `pid` and `pidfd` in every state but ABSENT.
    """

    name: str
    is_express: bool
    channel: socket.socket
    state: State = State.ABSENT
    pid: int = 0
    pidfd: int = -1
    task: Task | None = None
    behind: Task | None = None
    is_short: bool = False  # what is at work here is short work, as far as one knows


@dataclass(slots=True)
class Roster:
    """`fills_machine`: there are as many CPU seats as cores, so that express takes its time from them."""

    fills_machine: bool
    cpus: list[Seat] = field(default_factory=list)
    express: list[Seat] = field(default_factory=list)
    open: dict[Seat, None] = field(default_factory=dict)
    workers: int = 0  # CPU seats with a process
    short: int = 0  # of them at short work

    @property
    def wants_express(self) -> bool:
        """False when every core is at short work: a small picture is done no sooner by one process more, only its
        cores are switched more often (6 % of the rate). It waits for the next CPU seat instead.
        """
        return not self.fills_machine or self.short < self.workers or not self.workers

    def room(self) -> int:
        """Pictures that would not have to wait."""
        return len(self.cpus) + len(self.open) + (len(self.express) if self.wants_express else 0)

    def sit(self, seat: Seat) -> None:
        """A process has taken the seat; what it is doing is not known yet."""
        seat.state = State.SUSPECT
        self.workers += not seat.is_express

    def rest(self, seat: Seat) -> None:
        """Its process has nothing to do."""
        seat.state = State.IDLE
        (self.express if seat.is_express else self.cpus).append(seat)

    def begin(self, seat: Seat, task: Task) -> None:
        """`task` is what its process works on now. The seat is in no list."""
        seat.task, seat.state = task, State.BUSY
        if task.is_small and not seat.is_express:
            seat.is_short = True
            self.short += 1
            self.open[seat] = None

    def follow(self, seat: Seat, task: Task) -> None:
        """`task` is next. The seat was open, and is in no list."""
        seat.behind = task

    def slow(self, seat: Seat) -> None:
        """What is at work there is no short work (any more)."""
        if seat.is_short:
            seat.is_short = False
            self.short -= 1
            self.open.pop(seat, None)

    def end(self, seat: Seat) -> Task | None:
        """Its process has finished, or will never finish, what it worked on; what is behind that."""
        self.slow(seat)
        behind, seat.task, seat.behind = seat.behind, None, None
        return behind

    def leave(self, seat: Seat) -> None:
        """Its process is gone, and whatever it had was taken by `end`."""
        if seat.state is State.IDLE:
            (self.express if seat.is_express else self.cpus).remove(seat)
        seat.pid, seat.pidfd, seat.state = 0, -1, State.ABSENT
        self.workers -= not seat.is_express


def ghost_of(task: Task) -> Task:
    """What stays behind in a seat when `task` is taken back from there: nobody's work, its slot still used by it."""
    return Task(
        task.serial, task.owner, task.job, task.slot, task.offset, task.length, False, stage=Stage.ABANDONED
    )
