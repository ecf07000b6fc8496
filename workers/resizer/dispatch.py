"""The dispatch rule: a bounded queue of two classes, and which task goes to which worker next.

RULES: pure. Within each class the clients have their turns (fair_queue.py). Nothing here waits, sends or reads a clock.

    small  ----->  any idle cpu                        (an idle core is better used than reserved)
           ----->  else express                        (unless every core is at short work already and it has not
                                                        overtaken more others than there are cpus)
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

from collections.abc import Iterator
from itertools import chain, count

from workers.resizer.fair_queue import FairQueue
from workers.resizer.idle_set import IdleSet, WorkerSlot
from workers.resizer.task import Task


class TaskQueue:
    """Tasks that wait: at most `limit` in all, and one place fewer for big ones. Up to `reserve` more for clients whose
    turn is early, so that one that asks now and then is not refused because of those that ask always: the last place is
    for a client whose turn is first, the one before it for one whose turn is second.

    0 <= len(big) <= big_limit + reserve; len(small) + len(big) <= limit + reserve; tasks put back are not counted again.
    Without the place kept a burst of big tasks would cause small ones to be refused that express has time for.
    """

    __slots__ = ("_big_limit", "big", "limit", "reserve", "small")

    def __init__(self, limit: int) -> None:
        self.resize(limit)
        picks = count(1)
        self.small = FairQueue(picks)
        self.big = FairQueue(picks)

    def resize(self, limit: int) -> None:
        """Change the limit; what waits already stays."""
        self.limit = limit
        self._big_limit = limit - (limit >= 4)
        self.reserve = reserve_of(limit)

    def __len__(self) -> int:
        return len(self.small) + len(self.big)

    def __iter__(self) -> Iterator[Task]:
        return chain(self.small, self.big)

    def is_full_for(self, task: Task, ahead: int = 0) -> bool:
        """True when `task` would be over the limit once `ahead` others have arrived before it."""
        over = len(self.small) + len(self.big) + ahead - self.limit
        if not task.is_small:
            over = max(over, len(self.big) + ahead - self._big_limit)
        return over >= 0 and over + self._of(task).turns_before(task.client) >= self.reserve

    def put(self, task: Task) -> bool:
        """Queue `task`; False when the queue is full for its class."""
        if self.is_full_for(task):
            return False
        queue = self._of(task)
        task.overtaken = len(queue) - queue.turns_before(task.client)
        queue.append(task)
        return True

    def put_back(self, task: Task) -> None:
        """Put a task that was taken out and not begun at the head of its class. Not subject to the limit."""
        self._of(task).appendleft(task)

    def cancel(self, task: Task) -> bool:
        """Take `task` out; False when it does not wait any more."""
        try:
            self._of(task).remove(task)
        except ValueError:
            return False
        return True

    def pop_next(self) -> Task:
        """Take out the head of one class, the one whose turn is first of both. Raises IndexError when none waits."""
        small, big = self.small, self.big
        if not small or (big and big.turn < small.turn):
            return big.popleft()
        return small.popleft()

    def _of(self, task: Task) -> FairQueue:
        return self.small if task.is_small else self.big


def reserve_of(limit: int) -> int:
    """Places beyond the limit of a queue for those whose turn is first."""
    return limit // 8


def pairs(queue: TaskQueue, idle: IdleSet) -> Iterator[tuple[Task, WorkerSlot]]:
    """Tasks and the workers that get them, to begin at once or to prefetch. Takes both out of `queue` and `idle`. The
    caller updates the worker of each pair before it asks for the next."""
    small, big = queue.small, queue.big
    cpus, express, can_prefetch = idle.cpus, idle.express, idle.can_prefetch
    while cpus and (small or big):
        if small and big and express and len(cpus) == 1:
            yield big.popleft(), cpus.pop()
        else:
            yield queue.pop_next(), cpus.pop()
    while small and express and (idle.wants_express or small.head.overtaken > idle.worker_count):
        yield small.popleft(), express.pop()
    while small and can_prefetch and not big:
        worker = next(iter(can_prefetch))
        del can_prefetch[worker]
        yield small.popleft(), worker
