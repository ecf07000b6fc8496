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
    """Tasks that wait: at most `limit` in all, at most three quarters of it big. `small` and `big`: oldest first, changed
    by the methods here and by `pairs` only.

    0 <= len(big) <= big_limit <= limit; len(small) + len(big) <= limit; tasks put back are not counted again. Without the
    limit of big tasks a burst of them would cause small ones to be refused that express has time for.
    """

    __slots__ = ("_big_limit", "big", "limit", "small")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._big_limit = limit - limit // 4
        self.small: deque[Task] = deque()
        self.big: deque[Task] = deque()

    def __len__(self) -> int:
        return len(self.small) + len(self.big)

    def __iter__(self) -> Iterator[Task]:
        return chain(self.small, self.big)

    def is_full_for(self, task: Task, ahead: int = 0) -> bool:
        """True when `task` would be over the limit once `ahead` others have arrived before it."""
        if len(self.small) + len(self.big) + ahead >= self.limit:
            return True
        return not task.is_small and len(self.big) + ahead >= self._big_limit

    def put(self, task: Task) -> bool:
        """Queue `task`; False when the queue is full for its class."""
        if self.is_full_for(task):
            return False
        (self.small if task.is_small else self.big).append(task)
        return True

    def put_back(self, task: Task) -> None:
        """Put a task that was taken out and not begun at the head of its class. Not subject to the limit."""
        (self.small if task.is_small else self.big).appendleft(task)

    def cancel(self, task: Task) -> bool:
        """Take `task` out; False when it does not wait any more."""
        queue = self.small if task.is_small else self.big
        try:
            queue.remove(task)
        except ValueError:
            return False
        return True

    def pop_oldest(self) -> Task:
        """Take out the oldest task of both classes. Raises IndexError when none waits."""
        small, big = self.small, self.big
        if not small or (big and big[0].serial < small[0].serial):
            return big.popleft()
        return small.popleft()


def pairs(queue: TaskQueue, idle: IdleSet) -> Iterator[tuple[Task, WorkerSlot]]:
    """Tasks and the workers that get them, to begin at once or to prefetch. Takes both out of `queue` and `idle`. The
    caller updates the worker of each pair before it asks for the next."""
    small, big = queue.small, queue.big
    cpus, express, can_prefetch = idle.cpus, idle.express, idle.can_prefetch
    while cpus and (small or big):
        if small and big and express and len(cpus) == 1:
            yield big.popleft(), cpus.pop()
        else:
            yield queue.pop_oldest(), cpus.pop()
    while small and express and idle.wants_express:
        yield small.popleft(), express.pop()
    while small and can_prefetch and not big:
        worker = next(iter(can_prefetch))
        del can_prefetch[worker]
        yield small.popleft(), worker
