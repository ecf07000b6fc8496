"""A task: one picture asked for, whatever language it was asked in; and the judgement before any work is
done.

RULES: pure. Who asked is behind the `Owner` protocol, who has it done behind `Employer`: a task ends in exactly
one call of `owner.answer`, or in none when its client is gone. Requests are judged here by their numbers and
words alone; nobody looks at a picture in the front.
"""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol

from workers.imaging.job import ResizeJob, check_job, parse_format
from workers.imaging.limits import PictureLimits, check_request, check_target
from workers.resizer.orders import Order, Result

OK, BUSY, DRAINING, TIMEOUT = 200, 429, 503, 504


class Stage(Enum):
    """Where a task stands."""

    MADE = "made"
    WAITING = "waiting"
    WORKING = "working"
    DONE = "done"
    ABANDONED = "abandoned"  # its client is gone; the slot is freed when nobody can write into it any more


class Owner(Protocol):
    """Who asked."""

    def answer(self, task: "Task", result: Result) -> None:
        """The task is done. From here on the owner frees the task's slot."""


@dataclass(slots=True, eq=False)
class Task:
    """`slot` holds the payload (-1: none yet), the picture is `length` bytes at `offset` of the arena.

    Times are the loop's, in seconds. `context` is the owner's own.
    """

    serial: int
    owner: Owner
    job: ResizeJob
    slot: int = -1
    offset: int = 0
    length: int = 0
    is_small: bool = True
    context: Any = None
    begun_at: float = 0.0
    stage: Stage = Stage.MADE
    fingerprint: int = 0


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

    def retake(self, task: Task) -> None:
        """A task handed out that was not begun and will not be: it is first in the queue again."""

    def copy(self, task: Task) -> int:
        """The number of a slot with a copy of the task's picture; -1 when none is free."""

    def move(self, task: Task, slot: int) -> None:
        """The task's picture is in `slot` now, and it is first in the queue again; its old slot is not free."""

    def release(self, slot: int) -> None:
        """A slot that is of no use (any more)."""

    def assign(self) -> None:
        """A seat can take something, or the last suspect is gone."""


@lru_cache(maxsize=256)  # a service is asked for few sizes, for each of them many times
def wanted(
    width: int,
    height: int,
    fit: str,
    format_name: str,
    quality: int,
    orient: bool,
    icc: str,
    limits: PictureLimits,
) -> ResizeJob:
    """The ResizeJob of a request. Raises PictureRefused (400, 422) for what nobody should try."""
    job = ResizeJob(
        width=width,
        height=height,
        fit=fit or "stretch",
        format=parse_format(format_name) if format_name else "",
        quality=quality,
        orient=orient,
        icc=icc,
    )
    check_job(job)
    check_request(width, height, limits)
    if width and height:
        check_target(width, height, limits)
    return job


def order_of(task: Task, worker: int, front: int) -> Order:
    """What process `worker` is told by process `front` (pids) to do."""
    job = task.job
    return Order(
        worker,
        front,
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


def refusal(status: int, sentence: str) -> Result:
    """The result of a task nobody worked on."""
    return Result(worker=0, serial=0, status=status, text=sentence)
