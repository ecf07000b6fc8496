"""The scheduler of a front: slots of the arena, places in the queue, workers, and the clients that wait for them.

RULES: the only caller of SlotAllocator, TaskQueue and WorkerPool; calls go front -> protocols -> scheduler -> pool, and a
result goes back to the requester of its task. A slot has one holder at a time: the client that reads into it, the task,
the output queue that sends from it. CPU processes work on a copy. `release_slot` frees it, nothing else. Back-pressure is
not reading: a client that finds no slot, or a full queue and cannot be refused, stops reading and is called again in the
order of asking.

    claim_slot -> payload -> submit ---> queue ---> worker ---> requester.answer -> output -> release_slot
                               | full: BUSY, or wait (an original peer would not understand a refusal)
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.resizer import counters
from workers.resizer.arena import Arena, SlotAllocator
from workers.resizer.cost import is_light
from workers.resizer.dispatch import TaskQueue, pairs
from workers.resizer.holders import SlotHolder, SlotHolders
from workers.resizer.idle_set import WorkerSlot, WorkerState
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import Bye, Hello, Result
from workers.resizer.quarantine import QUARANTINE_CRASHES, Quarantine, fingerprint_of
from workers.resizer.retry import RetrySchedule
from workers.resizer.task import BUSY, DRAINING, OK, TIMEOUT, QueueClient, Task, TaskStage, refusal
from workers.resizer.worker_pool import SLOW_SECONDS, ProcessControl, WorkerPool

STARVED_SECONDS = 1.0  # without a slot or a CPU process, until health says so
PROMPT = 0.25  # seconds in which a payload that has begun to arrive is expected to be complete

Retry = Callable[[], object]


class Scheduler:
    """One per front. `cells`: its row."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        options: ResizerOptions,
        arena: Arena,
        cells: memoryview,
        workers: Iterable[WorkerSlot],
        control: ProcessControl | None = None,
    ) -> None:
        self.loop = loop
        self.log = log
        self.options = options
        self.arena = arena
        self.cells = cells
        self.draining = False
        self.slots = SlotAllocator(range(arena.slots), arena.give_back)
        self.queue = TaskQueue(options.queue)
        self.holders = SlotHolders()
        self.retries = RetrySchedule()
        self.quarantine = Quarantine()
        self.pool = WorkerPool(
            loop,
            log,
            workers,
            options.job_timeout,
            options.slot_bytes,
            options.fills_machine,
            self.on_packet,
            self.on_exit,
            control or ProcessControl(),
        )
        self.discard = Arena(1, options.max_frame).slot(0)  # the place of bytes that are thrown away
        self.is_watching_slow = False
        self._serial = 0
        self._served_at = loop.now  # when there was a process that takes any picture
        self._want_slot: deque[Retry] = deque()
        self._starved_at = loop.now  # when those that wait for a slot moved last
        self._want_queue: deque[Retry] = deque()
        self._arriving: dict[Task, float] = {}  # tasks whose payload is arriving in a slot, and since when

    def start(self, older: Mapping[str, int]) -> None:
        """Take over the workers; `older` as in WorkerPool. Called once, before any client is served."""
        self.pool.start(older)

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

    def claim_slot(self, retry: Retry, holder: SlotHolder | None = None) -> int | None:
        """A slot for a payload, which `holder` is to read into; None when there is none now. `retry` is called when there
        may be one: the slowest holder yields if need be.
        """
        slot = self.slots.allocate()
        if slot is not None:
            if holder is not None:
                self.holders.begin(slot, holder, self.loop.now)
            return slot
        if not self._want_slot:
            self._starved_at = self.loop.now
        self._want_slot.append(retry)
        self._make_room(1)
        return None

    def _make_room(self, slots: int) -> None:
        """Let so many holders yield, if there are slow ones."""
        for _ in range(slots):
            holder = self.holders.slowest(self.loop.now)
            if holder is None:
                return
            holder.yield_slot()

    def send_from(self, slot: int, holder: SlotHolder) -> Retry:
        """`holder` is sent the answer in `slot`. Returns what frees the slot."""
        self.holders.begin(slot, holder, self.loop.now)
        return partial(self.release_slot, slot)

    def store(self, task: Task, data: bytes | memoryview, retry: Retry) -> bool:
        """Give a task a slot and copy its picture there; False when there is none, as `claim_slot`."""
        slot = self.claim_slot(retry)
        if slot is None:
            return False
        self.arena.slot(slot)[: task.length] = data
        task.slot, task.offset = slot, self.arena.start(slot)
        self.slots.touch(slot, task.length)
        return True

    def expect(self, task: Task) -> None:
        """The picture of `task` arrives: it counts when others ask for a place in the queue."""
        self._arriving[task] = task.announced_at = self.loop.now

    def release_slot(self, slot: int) -> None:
        """Free a slot (-1: none): no client reads into it, no task has it, no output is sent from it any more."""
        if slot < 0:
            return
        self.holders.end(slot)
        self.slots.release(slot, self.loop.now)
        if self._want_slot:
            self.loop.call_next_turn(self._serve_want_slot)

    def _serve_want_slot(self) -> None:
        for _ in range(len(self._want_slot)):
            if not len(self.slots):
                break
            self._starved_at = self.loop.now
            self._want_slot.popleft()()

    def _release_slot_of(self, task: Task) -> None:
        slot, task.slot = task.slot, -1
        self.release_slot(slot)

    # -- the queue --

    def submit(self, task: Task) -> bool:
        """Queue a task whose picture is in its slot; False when the queue is full for it."""
        self._arriving.pop(task, None)
        self.holders.end(task.slot)
        task.queued_at = self.loop.now
        task.announced_at = task.announced_at or task.queued_at
        if self.quarantine.crashes and self._is_quarantined(task):
            sentence = f"this picture has killed {QUARANTINE_CRASHES} CPU processes here"
            self._end(task, refusal(422, sentence))
            return True
        if task.is_small and not is_light(self.arena.piece(task.offset, task.length), task.job):
            task.is_small = False
        if not self.queue.put(task):
            return False
        task.stage = TaskStage.WAITING
        self.assign()
        return True

    def _is_quarantined(self, task: Task) -> bool:
        task.fingerprint = fingerprint_of(self.arena.piece(task.offset, task.length))
        return self.quarantine.is_quarantined(task.fingerprint)

    @property
    def queued(self) -> int:
        """Complete pictures that no process works on yet."""
        return len(self.queue) + self.pool.prefetched

    @property
    def working(self) -> int:
        """Pictures being worked on."""
        return self.pool.working

    @property
    def worker_count(self) -> int:
        """Processes that take any picture."""
        return self.pool.idle.worker_count

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
        places = idle.free_places() if task.is_small else len(idle.cpus)
        return self.queue.is_full_for(task, max(0, len(arriving) - places))

    def wait_for_queue(self, retry: Retry) -> None:
        """Call `retry` when the queue has moved."""
        self._want_queue.append(retry)

    def _queue_moved(self) -> None:
        if self._want_queue:
            self.loop.call_next_turn(self._serve_want_queue)

    def _serve_want_queue(self) -> None:
        for _ in range(len(self._want_queue)):
            if self.is_queue_full():
                break
            self._want_queue.popleft()()

    def retry_seconds(self, client: QueueClient) -> int:
        """Seconds after which a client that is refused now may come again."""
        waiting = len(self.queue) + len(self._arriving)
        return self.retries.seconds_for(client, self.loop.now, waiting, self.worker_count)

    def reason_not_ready(self) -> str:
        """Why no picture could be taken now, a sentence; "" when one could, or would be asked to wait for its turn."""
        if self.draining:
            return "this resizer is shutting down"
        if not self.worker_count and self.loop.now - self._served_at > STARVED_SECONDS:
            return "no CPU process is there"
        if self._want_slot and self.loop.now - self._starved_at > STARVED_SECONDS:
            return f"no place for a picture: {len(self._want_slot)} wait for one of {self.arena.slots}"
        return ""

    def agent_text(self) -> str:
        """State and weight as HAProxy's agents say them: the part of the queue that is free, at least 5 %. Only
        `ready` ends a drain that the one before it has asked for."""
        if self.draining:
            return "drain"
        if reason := self.reason_not_ready():
            return f"down #{reason}"
        free = max(0, self.queue.limit - len(self.queue))
        return f"ready up {max(5, 100 * free // self.queue.limit)}%"

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
            self._queue_moved()
        for worker in self.pool.workers:
            if worker.prefetched is task:
                self.pool.take_back(worker)
                self._release_slot_of(task)
        task.stage = TaskStage.ABANDONED

    # -- work --

    def assign(self) -> None:
        """Give the tasks that wait to workers."""
        pool, queue = self.pool, self.queue
        if not queue.small and not queue.big:
            return
        for task, worker in pairs(queue, pool.idle):
            task.stage = TaskStage.WORKING
            if not pool.give(worker, task, self.arena.piece(task.offset, task.length)):
                if worker.task is not task:
                    self._requeue(task)
                self._kill(worker, refusal(DRAINING, "the CPU process takes no orders; try again"), "deaf")
        if pool.idle.short and not self.is_watching_slow:
            self._watch_slow()
        if self._want_queue:
            self._queue_moved()

    def _requeue(self, task: Task) -> None:
        """A task that was given to a worker, and not begun, is the first of its class again."""
        if task.stage is TaskStage.ABANDONED:
            self._release_slot_of(task)
        else:
            task.stage = TaskStage.WAITING
            self.queue.put_back(task)

    def _watch_slow(self) -> None:
        if self.pool.idle.short and not self.is_watching_slow:
            self.is_watching_slow = True
            self.loop.call_later(SLOW_SECONDS, self._take_back_slow)

    def _take_back_slow(self) -> None:
        """Take back tasks prefetched behind slow work. Called every SLOW_SECONDS while there is short work."""
        for worker in self.pool.find_slow():
            task = worker.prefetched
            self._receive_all(worker)  # has it begun meanwhile, it stays
            if task is not None and worker.prefetched is task:
                self.pool.take_back(worker)
                self._requeue(task)
        self.is_watching_slow = False
        self._watch_slow()
        self.assign()

    def tick(self, now: float) -> None:
        """Enforce deadlines, and empty a queue that no worker is left for. Called every 0.25 s.

        Without a CPU process (the master backs off when they die at once) a picture waits as long as one may be worked
        on, then its client is asked to retry elsewhere.
        """
        timeout = self.options.job_timeout
        for worker in self.pool.overdue(now):
            self._kill(worker, refusal(TIMEOUT, f"the picture took longer than {timeout:g} s"), "timeout")
        self.quarantine.expire(now)
        self._make_room(len(self._want_slot))
        if self.worker_count:
            self._served_at = now
        elif now - self._served_at > timeout:
            while len(self.queue):
                self._end(
                    self.queue.pop_next(), refusal(DRAINING, "no CPU process is left here; ask another")
                )
            self._queue_moved()

    def sweep(self, now: float) -> None:
        """Give back memory that has not been used for a while. Called about once a second."""
        self.slots.sweep(now)
        self.pool.sweep(now)

    def _kill(self, worker: WorkerSlot, result: Result, reason: str) -> None:
        """Kill a process and answer its task."""
        self._end(self.pool.kill(worker, reason), result)

    # -- messages and ends of processes --

    def on_packet(self, worker: WorkerSlot, mask: int = 0) -> bool:
        """The channel of a worker is readable: handle one message; False when there is none. The loop calls again while
        there are more.
        """
        message = self.pool.receive(worker)
        if isinstance(message, Result):
            self._on_result(worker, message)
        elif isinstance(message, Hello):
            if worker.pid not in (0, message.worker_pid):
                self._on_death(worker)  # the Hello of the successor came before the event of the pidfd
            if self.pool.welcome(worker, message):
                self.assign()
        elif isinstance(message, Bye):
            self._see_cpu_process(worker)
            for task in self.pool.dismiss(worker, message):
                self._requeue(task)
            self.assign()
        return message is not None

    def on_exit(self, worker: WorkerSlot, mask: int = 0) -> None:
        """The process of a worker has ended; its last result may still be in the channel."""
        pid = worker.pid
        self._receive_all(worker)
        if pid and worker.pid == pid:
            self._on_death(worker)

    def _receive_all(self, worker: WorkerSlot) -> None:
        while self.on_packet(worker):
            pass

    def _on_result(self, worker: WorkerSlot, result: Result) -> None:
        place = worker.place
        task = self.pool.finish(worker, result)
        if task is None or task.stage is TaskStage.DONE:  # was answered when its process was killed
            return
        self._observe(task, result)
        if result.status == OK and task.slot >= 0:
            answer = self.pool.answer_in(worker, place, result)
            self.slots.touch(task.slot, len(answer))
            self.arena.slot(task.slot)[: len(answer)] = answer
        if worker.state is WorkerState.IDLE:
            self.assign()  # the next order first: the process works while this answer is written
            self._end(task, result)
        else:
            self._watch_slow()
            self._end(task, result)
            self.assign()

    def _observe(self, task: Task, result: Result) -> None:
        """Count a picture that was worked on, and how long it took."""
        cells, now = self.cells, self.loop.now
        counters.observe(cells, counters.WAIT, task.begun_at - task.queued_at)
        counters.observe(cells, counters.WORK, now - task.begun_at)
        counters.observe(cells, counters.WHOLE, now - task.announced_at)
        if result.status == OK:
            self.retries.record(now - task.begun_at)
            if column := counters.PICTURES_AS.get(result.text):
                cells[column] += 1

    def _on_death(self, worker: WorkerSlot) -> None:
        was_killed = worker.state is WorkerState.KILLED
        self._see_cpu_process(worker)
        task, prefetched = self.pool.bury(worker)
        if prefetched is not None:
            self._requeue(prefetched)
        if task is None:
            pass
        elif task.stage is not TaskStage.DONE:  # else it was answered when its process was killed
            if not was_killed and task.slot >= 0:
                self._record_crash(task)
            self._end(task, refusal(DRAINING, "the CPU process died while it worked on this picture"))
        self.assign()

    def _see_cpu_process(self, worker: WorkerSlot) -> None:
        """The process was there until now. The last tick may be long ago: this front may have been stopped meanwhile."""
        if not worker.is_express:
            self._served_at = self.loop.now

    def _record_crash(self, task: Task) -> None:
        self.count(counters.DIED)
        task.fingerprint = fingerprint_of(self.arena.piece(task.offset, task.length))
        self.quarantine.record(task.fingerprint, self.loop.now)

    def _end(self, task: Task, result: Result) -> None:
        """A task has ended: answer its requester, who releases the slot of an answer."""
        is_abandoned = task.stage is TaskStage.ABANDONED
        task.stage = TaskStage.DONE
        if result.status == OK and task.fingerprint:
            self.quarantine.forgive(task.fingerprint)
        if is_abandoned or result.status != OK:
            self._release_slot_of(task)
        if not is_abandoned:
            task.requester.answer(task, result)
