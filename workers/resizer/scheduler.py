"""The scheduler of a front: slots of the arena, places in the queue, workers, and the clients that wait for them.

RULES: the only caller of SlotAllocator, TaskQueue and WorkerPool. A slot has one holder at a time: the client that reads
into it, the task, the process that works on it, the outbox that sends from it. `release_slot` frees it, nothing else.
Back-pressure is not reading: a client that finds no slot, or a full queue and cannot be refused, stops reading and is
called again in the order of asking.

    claim_slot -> payload -> submit ---> queue ---> worker ---> answer(result) -> outbox -> release_slot
                               | full: BUSY, or wait (an original peer would not understand a refusal)
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from zlib import crc32

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.resizer import counters
from workers.resizer.arena import Arena, SlotAllocator
from workers.resizer.dispatch import TaskQueue, pairs
from workers.resizer.idle_set import WorkerSlot
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import Result
from workers.resizer.task import BUSY, DRAINING, OK, Task, TaskStage, refusal
from workers.resizer.worker_pool import WorkerPool

REMEMBERED = 64  # pictures that have crashed a CPU process
QUARANTINE_SECONDS = 600.0  # for which a crash is remembered; meanwhile every picture is compared with it
QUARANTINE_DEATHS = 3  # crashes in a row after which a picture is refused
PROMPT = 0.25  # seconds in which a payload that has begun to arrive is expected to be complete
INVALID = bytes(16)  # the first bytes of no picture


class Scheduler:
    """One per front. `cells` is the front's own row."""

    def __init__(
        self, loop: Loop, log: Log, options: ResizerOptions, arena: Arena, slots: range, cells: memoryview
    ) -> None:
        self.loop = loop
        self.log = log
        self.options = options
        self.arena = arena
        self.cells = cells
        self.draining = False
        self.slots = SlotAllocator(slots, arena.give_back)
        self.discard = Arena(1, options.max_frame).slot(0)  # the place of bytes that are thrown away
        self.queue: TaskQueue[Task] = TaskQueue(options.queue)
        self.pool: WorkerPool
        self._serial = 0
        self._served_at = loop.now
        self._want_slot: deque[Callable[[], object]] = deque()
        self._want_queue: deque[Callable[[], object]] = deque()
        self._arriving: dict[Task, float] = {}  # tasks whose payload is arriving in a slot, and since when
        # fingerprint of a picture -> crashes in a row, and the time of the last one; the latest at the end
        self._deaths: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def start(self, workers: list[WorkerSlot], alive: list[tuple[str, int]]) -> None:
        """Take over the workers. Called once, before any client is served."""
        options = self.options
        self.pool = WorkerPool(self.loop, self.log, workers, options.job_timeout, options.fills_machine, self)
        self.pool.start(alive)

    def count(self, column: int, amount: int = 1) -> None:
        """Add to a cell of this front's row, whose only writer it is."""
        self.cells[column] += amount

    def count_status(self, status: int) -> None:
        """Count an answer by its status (503 is counted where its reason is known)."""
        if status == OK:
            self.cells[counters.ANSWERS] += 1
        elif status != DRAINING:
            self.cells[counters.OF_STATUS.get(status, counters.OTHER_ERROR)] += 1

    def next_serial(self) -> int:
        """A number that no other task of this front has."""
        self._serial += 1
        return self._serial

    # -- slots --

    def claim_slot(self, retry: Callable[[], object]) -> int | None:
        """A slot for a payload; None when there is none now. `retry` is called when there may be one."""
        slot = None if self.pool.has_unverified else self.slots.allocate()
        if slot is None:
            self._want_slot.append(retry)
        return slot

    def store(self, task: Task, data: bytes | memoryview, retry: Callable[[], object]) -> bool:
        """Give a task a slot and copy its picture there; False when there is none, as `claim_slot`."""
        slot = self.claim_slot(retry)
        if slot is None:
            return False
        self.arena.slot(slot)[: task.length] = data
        task.slot, task.offset = slot, self.arena.start(slot)
        self.slots.touch(slot, task.length)
        return True

    def expect(self, task: Task | None, slot: int, length: int) -> None:
        """Up to `length` bytes arrive in a slot. `task`, if known, counts when others ask for a place in the queue."""
        self.slots.touch(slot, length)
        if task is not None:
            self._arriving[task] = self.loop.now

    def release_slot(self, slot: int) -> None:
        """Free a slot (-1: none): no client reads into it, no process works on it, no outbox sends from it any more."""
        if slot < 0:
            return
        self.slots.release(slot, self.loop.now)
        if self._want_slot:
            self.loop.call_next_turn(self._call_next_for_slot)

    def _call_next_for_slot(self) -> None:
        for _ in range(len(self._want_slot)):
            if not len(self.slots):
                break
            self._want_slot.popleft()()

    # -- the queue --

    def submit(self, task: Task) -> bool:
        """Queue a task whose picture is in its slot; False when the queue is full for it."""
        self._arriving.pop(task, None)
        if self._deaths and self._is_quarantined(task):
            sentence = f"this picture has killed {QUARANTINE_DEATHS} CPU processes here"
            self.done(task, refusal(422, sentence), True)
            return True
        if not self.queue.put(task):
            return False
        task.stage = TaskStage.WAITING
        self.assign()
        return True

    @property
    def queued(self) -> int:
        """Complete pictures that no process works on yet."""
        return len(self.queue) + self.pool.prefetched

    def is_queue_full(self) -> bool:
        return len(self.queue) >= self.queue.limit

    def is_full_for(self, task: Task) -> bool:
        """True when no place will be left for `task`: found before it has arrived, so that it is refused at its head.

        Tasks on their way count as long as they are prompt. Slow ones keep no place, or clients that send nothing would
        cause all others to be refused.
        """
        arriving, due = self._arriving, self.loop.now - PROMPT
        while arriving and next(iter(arriving.values())) < due:
            del arriving[next(iter(arriving))]
        idle = self.pool.idle
        room = idle.free_places() if task.is_small else len(idle.cpus)
        return self.queue.is_full_for(task, max(0, len(arriving) - room))

    def wait_for_queue(self, retry: Callable[[], object]) -> None:
        """Call `retry` when the queue has moved."""
        self._want_queue.append(retry)

    def busy_result(self) -> Result:
        """The refusal of a task when the queue is full."""
        known = len(self.queue) + len(self._arriving)
        return refusal(BUSY, f"busy: {known}/{self.queue.limit} pictures wait; try again")

    def abandon(self, task: Task) -> None:
        """The client of `task` is gone."""
        self.count(counters.ABANDONED)
        if task.stage is TaskStage.WAITING and self.queue.cancel(task):
            self.release_slot(task.slot)
            self.assign()
            self._moved()
        elif any(worker.prefetched is task for worker in self.pool.workers):
            self._invalidate(task)
        task.stage = TaskStage.ABANDONED

    def assign(self) -> None:
        """Give the tasks that wait to workers."""
        pool = self.pool
        if self._want_slot and len(self.slots) and not pool.has_unverified:
            self.loop.call_next_turn(self._call_next_for_slot)
        if not len(self.queue):
            return
        for task, worker in pairs(self.queue, pool.idle):
            task.stage = TaskStage.WORKING
            pool.give(task, worker)
        self._moved()

    def tick(self, now: float) -> None:
        """Enforce deadlines, and empty a queue that no worker is left for. Called on every tick.

        Without a CPU process (the master backs off when they die at once) a picture waits as long as one may be worked
        on, then its client is asked to retry elsewhere.
        """
        self.pool.kill_overdue(now)
        while self._deaths and next(iter(self._deaths.values()))[1] < now - QUARANTINE_SECONDS:
            self._deaths.popitem(last=False)
        if self.pool.worker_count:
            self._served_at = now
        elif now - self._served_at > self.options.job_timeout:
            while (task := self.queue.pop_oldest()) is not None:
                self.done(task, refusal(DRAINING, "no CPU process is left here; ask another"), True)
            self._moved()

    def _moved(self) -> None:
        if self._want_queue:
            self.loop.call_next_turn(self._call_next_for_queue)

    def _call_next_for_queue(self) -> None:
        for _ in range(len(self._want_queue)):
            if self.is_queue_full():
                break
            self._want_queue.popleft()()

    # -- results --

    def done(self, task: Task, result: Result, slot_is_safe: bool) -> None:
        """A task has ended. Unless `slot_is_safe`, the pool frees its slot later."""
        if result.status == OK:
            self.slots.touch(task.slot, result.length)
            if task.fingerprint:
                self._deaths.pop(task.fingerprint, None)
        abandoned = task.stage is TaskStage.ABANDONED
        keeps_slot = result.status == OK and not abandoned
        slot, task.stage = task.slot, TaskStage.DONE
        if slot >= 0 and not keeps_slot and slot_is_safe:
            task.slot = -1
            self.release_slot(slot)
        if not abandoned:
            task.requester.answer(task, result)

    def late(self, task: Task) -> None:
        slot, task.slot = task.slot, -1
        self.release_slot(slot)

    # -- tasks that come back from the pool --

    def requeue(self, task: Task) -> None:
        if task.stage is TaskStage.ABANDONED:
            self.late(task)
        else:
            task.stage = TaskStage.WAITING
            self.queue.put_back(task)

    def copy(self, task: Task) -> int:
        slot = self.slots.allocate()
        if slot is None:
            return -1
        self.slots.touch(slot, task.length)
        self.arena.slot(slot)[: task.length] = self.arena.piece(task.offset, task.length)
        return slot

    def move(self, task: Task, slot: int) -> None:
        self._invalidate(task)
        task.slot, task.offset = slot, self.arena.start(slot)
        self.requeue(task)

    def _invalidate(self, task: Task) -> None:
        """Overwrite the first bytes of a picture that needs no answer any more, so that it is refused at once. Harmless
        if a process works on it by now."""
        self.arena.piece(task.offset, min(task.length, len(INVALID)))[:] = INVALID[: task.length]

    # -- quarantine --

    def died(self, task: Task) -> None:
        """A picture that crashed a CPU process may be sent again (the kernel may have been short of memory, an operator
        may have killed the process), but not for ever: after three crashes in a row the picture is the cause.
        """
        if self.arena.piece(task.offset, min(task.length, len(INVALID))) == INVALID[: task.length]:
            return  # not caused by a picture
        self.count(counters.DIED)
        mark = task.fingerprint = self._fingerprint(task)
        self._deaths[mark] = self._deaths.pop(mark, (0, 0.0))[0] + 1, self.loop.now
        if len(self._deaths) > REMEMBERED:
            self._deaths.popitem(last=False)

    def _is_quarantined(self, task: Task) -> bool:
        """Costs nothing until a process has crashed, and then a millisecond per megabyte."""
        task.fingerprint = self._fingerprint(task)
        return self._deaths.get(task.fingerprint, (0, 0.0))[0] >= QUARANTINE_DEATHS

    def _fingerprint(self, task: Task) -> int:
        return crc32(self.arena.piece(task.offset, task.length), task.length) << 32 | task.length
