"""The desk: what a front has to give (slots, places in the queue, seats) and who waits for it.

RULES: the only caller of Shelf, Waiting and Crew. A slot has one holder at a time: the client that reads
into it, the task, the process that works on it, the outbox that sends from it; it comes back by `release`
and nowhere else. Back-pressure is not reading: whoever finds no slot, or a full queue and cannot be
refused, stops reading and is called again in the order of asking.

    claim a slot -> payload -> submit ---> queue ---> seat ---> answer(result) -> outbox -> release
                                 | full: BUSY, or wait (a peer that would not understand a refusal)
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from zlib import crc32

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.resizer import tally
from workers.resizer.arena import Arena, Shelf
from workers.resizer.crew import Crew
from workers.resizer.dispatch import Waiting, pairs
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import Result
from workers.resizer.seats import Seat
from workers.resizer.task import BUSY, DRAINING, OK, Stage, Task, refusal

REMEMBERED = 64  # pictures that killed a CPU process,
GRUDGE = 600.0  # seconds for which each of them is: while any is, every picture is compared with it
PROMPT = 0.25  # seconds in which a payload that has begun to arrive is expected to be complete
SPOILT = bytes(16)  # how no picture begins
DEADLY = 3  # deaths in a row after which a picture is refused


class Desk:
    """One per front. `cells` is the front's own row."""

    def __init__(
        self, loop: Loop, log: Log, settings: ResizerOptions, arena: Arena, slots: range, cells: memoryview
    ) -> None:
        self.loop = loop
        self.log = log
        self.settings = settings
        self.arena = arena
        self.cells = cells
        self.draining = False
        self.shelf = Shelf(slots, arena.give_back)
        self.void = Arena(1, settings.max_frame).slot(0)  # where what nobody wants is said to go
        self.waiting: Waiting[Task] = Waiting(settings.queue)
        self.crew: Crew
        self._serial = 0
        self._served_at = loop.now
        self._want_slot: deque[Callable[[], object]] = deque()
        self._want_queue: deque[Callable[[], object]] = deque()
        self._coming: dict[Task, float] = {}  # those that arrive in a slot just now, and since when
        # picture's fingerprint -> deaths in a row, and when the last was; the latest at the end
        self._deaths: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def hire(self, seats: list[Seat], alive: list[tuple[str, int]]) -> None:
        """Take the crew on. Called once, before any client is served."""
        settings = self.settings
        self.crew = Crew(self.loop, self.log, seats, settings.job_timeout, settings.fills_machine, self)
        self.crew.start(alive)

    def count(self, column: int, amount: int = 1) -> None:
        """One writer per cell: this front's own row."""
        self.cells[column] += amount

    def count_status(self, status: int) -> None:
        """An answer of this status leaves (503 is counted where its reason is known)."""
        if status == OK:
            self.cells[tally.ANSWERS] += 1
        elif status != DRAINING:
            self.cells[tally.OF_STATUS.get(status, tally.OTHER_ERROR)] += 1

    def serial(self) -> int:
        """A number no other task of this front has."""
        self._serial += 1
        return self._serial

    # -- slots --

    def claim(self, again: Callable[[], object]) -> int | None:
        """A slot for a payload; None when there is none now: `again` is called when that has changed."""
        slot = None if self.crew.has_suspects else self.shelf.take()
        if slot is None:
            self._want_slot.append(again)
        return slot

    def settle(self, task: Task, data: bytes | memoryview, again: Callable[[], object]) -> bool:
        """Give a task a slot and put its picture there; False when there is none, as `claim`."""
        slot = self.claim(again)
        if slot is None:
            return False
        self.arena.slot(slot)[: task.length] = data
        task.slot, task.offset = slot, self.arena.start(slot)
        self.shelf.touch(slot, task.length)
        return True

    def expect(self, task: Task | None, slot: int, length: int) -> None:
        """Up to `length` bytes arrive in a slot; of `task`, if known: it counts when others ask for a place."""
        self.shelf.touch(slot, length)
        if task is not None:
            self._coming[task] = self.loop.now

    def release(self, slot: int) -> None:
        """The slot (-1: none) is nobody's: no client reads into it, no process works on it, no outbox sends from it."""
        if slot < 0:
            return
        self.shelf.release(slot, self.loop.now)
        if self._want_slot:
            self.loop.call_next_turn(self._call_next_for_slot)

    def _call_next_for_slot(self) -> None:
        for _ in range(len(self._want_slot)):
            if not len(self.shelf):
                break
            self._want_slot.popleft()()

    # -- the queue --

    def submit(self, task: Task) -> bool:
        """Queue a task whose picture lies in its slot; False when the queue is full for it."""
        self._coming.pop(task, None)
        if self._deaths and self._is_deadly(task):
            sentence = f"this picture has killed {DEADLY} CPU processes here"
            self.done(task, refusal(422, sentence), True)
            return True
        if not self.waiting.put(task):
            return False
        task.stage = Stage.WAITING
        self.assign()
        return True

    @property
    def queued(self) -> int:
        """Pictures that are complete and that nobody works on yet."""
        return len(self.waiting) + self.crew.behind

    def is_full(self) -> bool:
        return len(self.waiting) >= self.waiting.limit

    def is_full_for(self, task: Task) -> bool:
        """True when no place will be left for it: told before it has arrived, as its sender can then stop waiting.

        Those on their way count as long as they are prompt; slow ones keep no place, or a crowd that sends nothing
        would have everybody refused.
        """
        coming, due = self._coming, self.loop.now - PROMPT
        while coming and next(iter(coming.values())) < due:
            del coming[next(iter(coming))]
        roster = self.crew.roster
        room = roster.room() if task.is_small else len(roster.cpus)
        return self.waiting.is_full_for(task, max(0, len(coming) - room))

    def wait_for_queue(self, again: Callable[[], object]) -> None:
        """`again` is called when the queue has moved."""
        self._want_queue.append(again)

    def busy(self) -> Result:
        """How a task is refused when the queue is full."""
        known = len(self.waiting) + len(self._coming)
        return refusal(BUSY, f"busy: {known}/{self.waiting.limit} pictures wait; try again")

    def abandon(self, task: Task) -> None:
        """Its client is gone."""
        self.count(tally.ABANDONED)
        if task.stage is Stage.WAITING and self.waiting.cancel(task):
            self.release(task.slot)
            self.assign()
            self._moved()
        elif any(seat.behind is task for seat in self.crew.seats):
            self._spoil(task)
        task.stage = Stage.ABANDONED

    def assign(self) -> None:
        """Give seats what waits."""
        crew = self.crew
        if self._want_slot and len(self.shelf) and not crew.has_suspects:
            self.loop.call_next_turn(self._call_next_for_slot)
        if not len(self.waiting):
            return
        for task, seat in pairs(self.waiting, crew.roster):
            task.stage = Stage.WORKING
            crew.hand(task, seat)
        self._moved()

    def sweep(self, now: float) -> None:
        """Called on every tick: deadlines, and a queue that nobody is left to serve.

        Without a CPU process (the master backs off when they die at once) a picture waits as long as one may
        be worked on, then its client is told to ask elsewhere.
        """
        self.crew.sweep(now)
        while self._deaths and next(iter(self._deaths.values()))[1] < now - GRUDGE:
            self._deaths.popitem(last=False)
        if self.crew.workers:
            self._served_at = now
        elif now - self._served_at > self.settings.job_timeout:
            while (task := self.waiting.pop_oldest()) is not None:
                self.done(task, refusal(DRAINING, "no CPU process is left here; ask another"), True)
            self._moved()

    def _moved(self) -> None:
        if self._want_queue:
            self.loop.call_next_turn(self._call_next_for_queue)

    def _call_next_for_queue(self) -> None:
        for _ in range(len(self._want_queue)):
            if self.is_full():
                break
            self._want_queue.popleft()()

    # -- results --

    def done(self, task: Task, result: Result, slot_is_safe: bool) -> None:
        """A task has ended; unless `slot_is_safe`, its slot comes back by the crew's word later."""
        if result.status == OK:
            self.shelf.touch(task.slot, result.length)
            if task.fingerprint:
                self._deaths.pop(task.fingerprint, None)
        abandoned = task.stage is Stage.ABANDONED
        keeps_slot = result.status == OK and not abandoned
        slot, task.stage = task.slot, Stage.DONE
        if slot >= 0 and not keeps_slot and slot_is_safe:
            task.slot = -1
            self.release(slot)
        if not abandoned:
            task.owner.answer(task, result)

    def late(self, task: Task) -> None:
        slot, task.slot = task.slot, -1
        self.release(slot)

    # -- work that was handed out and comes back --

    def retake(self, task: Task) -> None:
        if task.stage is Stage.ABANDONED:
            self.late(task)
        else:
            task.stage = Stage.WAITING
            self.waiting.put_back(task)

    def copy(self, task: Task) -> int:
        slot = self.shelf.take()
        if slot is None:
            return -1
        self.shelf.touch(slot, task.length)
        self.arena.slot(slot)[: task.length] = self.arena.piece(task.offset, task.length)
        return slot

    def move(self, task: Task, slot: int) -> None:
        self._spoil(task)
        task.slot, task.offset = slot, self.arena.start(slot)
        self.retake(task)

    def _spoil(self, task: Task) -> None:
        """Nobody wants what will be made of this picture: make it one that is refused at its first bytes. No harm is
        done if it is being worked on by now."""
        self.arena.piece(task.offset, min(task.length, len(SPOILT)))[:] = SPOILT[: task.length]

    # -- pictures that kill --

    def died(self, task: Task) -> None:
        """A picture that took a CPU process with it may be asked for again (the kernel may have been short of
        memory, an operator may have killed it), but not for ever: three deaths in a row are its own doing.
        """
        if self.arena.piece(task.offset, min(task.length, len(SPOILT))) == SPOILT[: task.length]:
            return  # not a picture's doing
        self.count(tally.DIED)
        mark = task.fingerprint = self._fingerprint(task)
        self._deaths[mark] = self._deaths.pop(mark, (0, 0.0))[0] + 1, self.loop.now
        if len(self._deaths) > REMEMBERED:
            self._deaths.popitem(last=False)

    def _is_deadly(self, task: Task) -> bool:
        """Costs nothing until a process has died, and then a millisecond for a megabyte."""
        task.fingerprint = self._fingerprint(task)
        return self._deaths.get(task.fingerprint, (0, 0.0))[0] >= DEADLY

    def _fingerprint(self, task: Task) -> int:
        return crc32(self.arena.piece(task.offset, task.length), task.length) << 32 | task.length
