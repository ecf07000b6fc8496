"""A task: one picture to be resized, from the request to its result; and the checks before any work is done.

RULES: pure. A task ends in exactly one call of `requester.answer`, or in none when its client is gone. Requests are
checked by their numbers and words alone; the front reads no picture.
"""

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol

from workers.imaging.job import ResizeJob, check_job, parameters_of, parse_format, parse_parameters
from workers.imaging.limits import PictureLimits, check_request
from workers.resizer.orders import Order, Result

OK, BUSY, DRAINING, TIMEOUT = 200, 429, 503, 504


class TaskStage(Enum):
    """Where a task stands."""

    MADE = "made"
    WAITING = "waiting"  # in the queue
    WORKING = "working"  # sent to a CPU process
    DONE = "done"
    ABANDONED = "abandoned"  # its client is gone; its slot is released when its process is through with it


class Requester(Protocol):
    """The protocol of the connection that asked."""

    def answer(self, task: "Task", result: Result) -> None:
        """The task has ended. The requester releases the slot of an answer once it has been sent."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Origin:
    """Where clients come from, for the queue: an address. `served`: the pick at which one of them was served last, 0 for
    never. `waiting`: tasks of theirs that wait."""

    name: str = ""
    served: int = 0
    waiting: int = 0


@dataclass(slots=True, eq=False)
class QueueClient:
    """One connection, as the queue sees it. `served` and `waiting` as in an Origin. `retry_at`: loop time, seconds, at
    which it may come again if it was refused."""

    origin: Origin = field(default_factory=Origin)
    served: int = 0
    waiting: int = 0
    retry_at: float = 0.0


@dataclass(slots=True, eq=False)
class Task:
    """`slot` holds the payload (-1: none yet); the picture is the `length` bytes at `offset` of the arena.

    `overtaken`: tasks of its class that were queued before it and whose turn was after its own when it was queued.
    `announced_at`, `queued_at`, `begun_at`: loop times in seconds of its head, its last byte, and its work. `context`
    belongs to the requester.
    """

    serial: int
    requester: Requester
    job: ResizeJob
    slot: int = -1
    offset: int = 0
    length: int = 0
    is_small: bool = True
    overtaken: int = 0
    context: Any = None
    announced_at: float = 0.0
    queued_at: float = 0.0
    begun_at: float = 0.0
    stage: TaskStage = TaskStage.MADE
    fingerprint: int = 0
    client: QueueClient = field(default_factory=QueueClient)


@lru_cache(maxsize=256)  # requests name few different sizes, each of them many times
def job_for(
    width: int,
    height: int,
    fit: str,
    format_name: str,
    quality: int,
    orient: bool,
    parameters: str,
    limits: PictureLimits,
) -> ResizeJob:
    """The ResizeJob of a request; `parameters` as parse_parameters takes them. Raises PictureRefused (400, 422) for a
    request that no picture can satisfy."""
    job = ResizeJob(
        width=width,
        height=height,
        fit=fit or "stretch",
        format=parse_format(format_name) if format_name else "",
        quality=quality,
        orient=orient,
        **parse_parameters(parameters),
    )
    check_job(job)
    check_request(width, height, limits, job.is_exact)
    return job


def order_of(task: Task, place: int, worker_pid: int, front_pid: int) -> Order:
    """The order for `task`, whose picture is in `place`, from process `front_pid` to process `worker_pid`."""
    job = task.job
    return Order(
        worker_pid,
        front_pid,
        task.serial,
        place,
        task.length,
        job.width,
        job.height,
        job.fit,
        job.quality,
        job.orient,
        job.format,
        parameters_of(job),
    )


def refusal(status: int, sentence: str) -> Result:
    """The result of a task that no process has worked on."""
    return Result(worker_pid=0, serial=0, status=status, text=sentence)
