"""What is to be done and what is to be done again: jobs, and the queue of one lane.

RULES: pure; time comes in as an argument. A job that failed on a connection is never given to that connection or an
older one again, so the balancer elects anew; a job whose connection broke is a suspect and is tried alone, so that a
picture that ends connections takes its neighbours down once at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.client.judge import Header
from workers.client.scan import Picture
from workers.wire.messages import Request

BACK_OFF = (0.15, 0.6, 2.0)  # seconds before the first, second, each further retry


@dataclass(slots=True, eq=False)
class Job:
    """One picture to be asked for once: its record from scan to report."""

    picture: Picture
    target: str
    keep: bool = True  # False: the reply is counted, not saved
    tries: int = 0
    after: int = 0  # only connections with a higher serial may have it
    due: float = 0.0
    is_suspect: bool = False
    began: float = 0.0  # when its first request went out
    deadline: float = 0.0
    asked: Request = field(default_factory=Request)
    source: Header | None = None


def back_off(tries: int, dice: float) -> float:
    """Seconds to wait before try number `tries` + 1; `dice` in [0, 1) spreads clients that failed together."""
    return BACK_OFF[min(tries, len(BACK_OFF)) - 1] * (0.5 + dice)


class Queue:
    """`total` fresh jobs in order, made as they are needed, and those that come again."""

    def __init__(self, fresh: Iterator[Job], total: int) -> None:
        self._fresh = fresh
        self._left = total
        self._again: list[Job] = []

    def put_back(self, job: Job, due: float, after: int, is_suspect: bool) -> None:
        """Try `job` again from `due` on, on a connection dialled after number `after`."""
        job.due, job.after, job.is_suspect = due, after, is_suspect
        self._again.append(job)

    def take(self, serial: int, now: float, is_idle: bool) -> Job | None:
        """The next job for connection number `serial`; `is_idle`: it has nothing in flight.

        A connection that may have a suspect but is busy gets nothing until it has run dry: kept busy with fresh
        jobs it would never be idle, and the suspects would wait for the end of the whole run.
        """
        for job in self._again:
            if job.after < serial and job.due <= now:
                if job.is_suspect and not is_idle:
                    return None
                self._again.remove(job)
                return job
        if not self._left:
            return None
        self._left -= 1
        return next(self._fresh)

    def ready(self, now: float) -> int:
        """How many jobs could be handed out now to a new connection."""
        return self._left + sum(job.due <= now for job in self._again)

    def is_waiting_for(self, serial: int, now: float) -> bool:
        """True when all that is left and due may only go to connections after number `serial`."""
        return not self._left and any(job.due <= now and job.after >= serial for job in self._again)

    def give_up(self) -> Iterator[Job]:
        """Everything that is left, taken out."""
        again, self._again = self._again, []
        yield from again
        while self._left:
            self._left -= 1
            yield next(self._fresh)
