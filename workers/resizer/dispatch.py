"""The dispatch rule: a bounded queue of two classes, and which task goes to which worker next.

RULES: pure. First in, first out within each class. Nothing here waits, sends or reads a clock.

    small  ----->  any idle cpu                        (an idle core is better used than reserved)
           ----->  else express                        (unless every core is at short work already)
           ----->  else prefetched by a cpu            (sent while short work runs there: no CPU process waits for the
                                                        front between two pictures)
    big    ----->  idle cpu only                       (a big picture must not occupy express)

Nothing is prefetched while a big task waits: a cpu that always has another small one would never be idle, and the big
task would starve. When both classes wait for the one idle cpu, the older head gets it; when express is idle too, the big
one gets the cpu and the small one gets express.

Rejected, as measured with two clients sending 20-megapixel pictures: one FIFO (small pictures wait 0.3 to 1.9 s),
shortest first (150 ms), one cpu reserved for small pictures (8 ms, but half the rate of big ones is lost). This rule:
13 ms at 96 % of the rate.
"""

from collections import deque
from collections.abc import Iterator
from itertools import chain

from workers.resizer.idle_set import IdleSet, WorkerSlot
from workers.resizer.task import Task


class TaskQueue:
    """Tasks that wait: at most `limit` in all, at most three quarters of it big.

    0 <= len(big) <= big_limit <= limit; len(small) + len(big) <= limit; tasks put back are not counted again. Without the
    limit of big tasks a burst of them would cause small ones to be refused that express has time for.
    """

    __slots__ = ("_big", "_big_limit", "_limit", "_small")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._big_limit = limit - limit // 4
        self._small: deque[Task] = deque()
        self._big: deque[Task] = deque()

    def __len__(self) -> int:
        return len(self._small) + len(self._big)

    def __iter__(self) -> Iterator[Task]:
        return chain(self._small, self._big)

    @property
    def limit(self) -> int:
        return self._limit

    def is_full_for(self, task: Task, ahead: int = 0) -> bool:
        """True when `task` would be over the limit once `ahead` others have arrived before it."""
        if len(self) + ahead >= self._limit:
            return True
        return not task.is_small and len(self._big) + ahead >= self._big_limit

    def put(self, task: Task) -> bool:
        """Queue `task`; False when the queue is full for its class."""
        if self.is_full_for(task):
            return False
        (self._small if task.is_small else self._big).append(task)
        return True

    def put_back(self, task: Task) -> None:
        """Put a task that was taken out and not begun at the head of its class. Not subject to the limit."""
        (self._small if task.is_small else self._big).appendleft(task)

    def cancel(self, task: Task) -> bool:
        """Take `task` out; False when it does not wait any more."""
        queue = self._small if task.is_small else self._big
        try:
            queue.remove(task)
        except ValueError:
            return False
        return True

    def pop_small(self) -> Task | None:
        """Take out the oldest small task."""
        return self._small.popleft() if self._small else None

    def pop_oldest(self) -> Task | None:
        """Take out the oldest task of both classes."""
        if not self._small:
            return self._big.popleft() if self._big else None
        if self._big and self._big[0].serial < self._small[0].serial:
            return self._big.popleft()
        return self._small.popleft()

    def pop_big(self) -> Task | None:
        """Take out the oldest big task."""
        return self._big.popleft() if self._big else None

    @property
    def has_big(self) -> bool:
        return bool(self._big)

    @property
    def has_both(self) -> bool:
        return bool(self._small and self._big)


def pairs(queue: TaskQueue, idle: IdleSet) -> Iterator[tuple[Task, WorkerSlot]]:
    """Tasks and the workers that get them, to begin at once or to prefetch. Takes both out of `queue` and `idle`. The
    caller updates the worker of each pair before it asks for the next."""
    cpus, express, can_prefetch = idle.cpus, idle.express, idle.can_prefetch
    while cpus and len(queue):
        if express and queue.has_both and len(cpus) == 1:
            task = queue.pop_big()
        else:
            task = queue.pop_oldest()
        if task is None:
            break
        yield task, cpus.pop()
    while express and idle.wants_express:
        task = queue.pop_small()
        if task is None:
            return
        yield task, express.pop()
    while can_prefetch and not queue.has_big:
        task = queue.pop_small()
        if task is None:
            return
        worker = next(iter(can_prefetch))
        del can_prefetch[worker]
        yield task, worker
