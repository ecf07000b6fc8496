"""The speaker of frames: gob requests in, gob replies out, for original peers and for ours.

RULES: a peer that sends an ID is ours: it is answered as soon as its picture is done, in any order, and
refusals and errors are replies. A peer without ID is an original one: its replies keep the order of its
requests, a full queue makes it wait, and a picture it cannot have ends the connection, since it would take
an error for an empty picture. What needs no picture (dry runs, refusals) is answered at once and needs no
slot.
"""

from collections import deque
from dataclasses import dataclass

from workers.imaging.limits import Refused
from workers.resizer import tally
from workers.resizer.client import Client
from workers.resizer.intake import Intake, Step
from workers.resizer.orders import Result
from workers.resizer.replies import response_to
from workers.resizer.speaking import Block
from workers.resizer.task import BUSY, DRAINING, OK, Task, refusal, wanted
from workers.wire.frames import FrameError
from workers.wire.messages import MessageError, Request, decode_request, encode_response_parts

LEAVING = "this resizer is shutting down; ask another"
ANSWER_BYTES = 8 << 20  # of answers unsent: a client that does not read is not read from


@dataclass(slots=True, eq=False)
class Owed:
    """A request that has not been answered; `result` waits here for its turn (original peers)."""

    request: Request
    task: Task | None = None
    result: Result | None = None


class Framed:
    """One connection's frames. `order` is what an original peer is owed, `tasks` what is being worked on for
    either.
    """

    def __init__(self, client: Client, max_frame: int) -> None:
        self.client = client
        self.desk = client.desk
        self.intake = Intake(max_frame)
        self.tasks: dict[Task, Owed] = {}
        self.order: deque[Owed] = deque()
        self.slot = -1  # being read into
        self.parked: Task | None = None  # complete, but there was no slot or no place in the queue
        self.is_original = False

    # -- reading --

    def room(self) -> memoryview | None:
        return self.intake.room()

    def fill(self, count: int) -> None:
        self.intake.fill(count)

    def take(self, data: memoryview) -> None:
        self.intake.take(data)

    def is_between(self) -> bool:
        return self.intake.is_between_frames()

    def owes(self) -> int:
        return max(len(self.tasks), len(self.order)) + (self.parked is not None)

    def advance(self) -> None:
        client = self.client
        try:
            while client.may_read():
                if self.parked is not None:
                    self._place(self.parked)
                    continue
                if self.owes() >= self.desk.settings.pipeline or client.outbox.pending > ANSWER_BYTES:
                    client.blocked = Block.PIPELINE
                    return
                match self.intake.step():
                    case Step.READ:
                        return
                    case Step.SMALL:
                        self._request(self.intake.small(), -1)
                    case Step.SLOT:
                        self._claim()
                    case Step.FULL:
                        slot, self.slot = self.slot, -1
                        self._request(self.intake.full(), slot)
        except (FrameError, MessageError) as error:
            client.fail(str(error))

    def _claim(self) -> None:
        client, desk = self.client, self.desk
        if self.is_original and desk.is_full():
            client.blocked = Block.QUEUE
            desk.wait_for_queue(client.resume)
            return
        slot = desk.claim(client.resume)
        if slot is None:
            client.blocked = Block.SLOT
            return
        self.slot = slot
        desk.shelf.touch(slot, self.intake.length)
        self.intake.provide(desk.arena.slot(slot))

    # -- one request --

    def _request(self, payload: bytes | memoryview, slot: int) -> None:
        desk = self.desk
        self.client.mark()
        desk.cells[tally.REQUESTS] += 1
        try:
            request = decode_request(payload)
        except MessageError:
            self._give_up(slot)
            raise
        self.is_original = not request.id
        if request.dry_run:
            self._give_up(slot)
            self._dry_run(request)
            return
        try:
            task = self._task(request, slot)
        except Refused as refused:
            self._give_up(slot)
            self._refuse(request, refusal(refused.status, refused.sentence))
            return
        self._place(task)

    def _give_up(self, slot: int) -> None:
        if slot >= 0:
            self.desk.release(slot)

    def _task(self, request: Request, slot: int) -> Task:
        """The task of a request. Raises Refused."""
        desk, settings = self.desk, self.desk.settings
        data, request.data = request.data, b""
        if desk.draining:
            raise Refused(DRAINING, LEAVING)
        if self.client.is_late:
            raise Refused(BUSY, "busy: too many connections; try again")
        job = wanted(
            request.target_width,
            request.target_height,
            request.fit,
            request.format,
            request.quality,
            settings.wants_upright(bool(request.id)),
            settings.icc,
            settings.limits,
        )
        if not len(data):
            raise Refused(415, "no picture in the request")
        is_small = len(data) <= settings.express_bytes
        task = Task(desk.serial(), self, job, slot, 0, len(data), is_small, request)
        if slot >= 0:
            assert isinstance(data, memoryview)
            task.offset = desk.arena.offset_of(data)
        else:
            request.data = data
        return task

    def _place(self, task: Task) -> None:
        """Into the queue, or parked until there is a slot and a place, or refused."""
        client, desk = self.client, self.desk
        request: Request = task.context
        self.parked = None
        if task.slot < 0 and not self._settle(task):
            self.parked = task
            client.blocked = Block.SLOT
            return
        owed = self.tasks[task] = Owed(request, task)
        if not request.id:
            self.order.append(owed)
        if desk.submit(task):
            return
        del self.tasks[task]
        if request.id:
            self._give_up(task.slot)
            self._refuse(request, desk.busy())
            return
        self.order.pop()
        self.parked = task
        client.blocked = Block.QUEUE
        desk.wait_for_queue(client.resume)

    def _settle(self, task: Task) -> bool:
        """A small payload moves from ordinary memory into a slot; False when there is none."""
        desk = self.desk
        slot = desk.claim(self.client.resume)
        if slot is None:
            return False
        request: Request = task.context
        place = desk.arena.slot(slot)
        place[: task.length] = request.data
        request.data = b""
        task.slot, task.offset = slot, desk.arena.offset_of(place)
        desk.shelf.touch(slot, task.length)
        return True

    # -- answers --

    def answer(self, task: Task, result: Result) -> None:
        owed = self.tasks.pop(task)
        if owed.request.id:
            self._reply(owed.request, task, result)
        else:
            owed.result = result
            self._reply_in_order()
        client = self.client
        if client.outbox.pending or client.blocked is Block.PIPELINE:
            client.flush()
        self._end_when_drained()

    def _dry_run(self, request: Request) -> None:
        self.desk.cells[tally.DRY_RUNS] += 1
        self._answer_now(request, Result(0, 0, OK, width=request.target_width, height=request.target_height))

    def _refuse(self, request: Request, result: Result) -> None:
        if result.status == DRAINING:
            self.desk.count(tally.DRAINED)
        self._answer_now(request, result)
        self._end_when_drained()

    def _answer_now(self, request: Request, result: Result) -> None:
        if request.id or (not self.order and result.status == OK):
            self._reply(request, None, result)
        else:
            self.order.append(Owed(request, None, result))
            self._reply_in_order()

    def _reply_in_order(self) -> None:
        """What an original peer is owed and is done, up to the first that is not."""
        while self.order and (result := self.order[0].result) is not None:
            owed = self.order.popleft()
            if result.status != OK:
                self.desk.count_status(result.status)
                self.client.fail(f"{result.status} {result.text}")
                return
            self._reply(owed.request, owed.task, result)

    def _reply(self, request: Request, task: Task | None, result: Result) -> None:
        desk = self.desk
        desk.count_status(result.status)
        load = (desk.settings.name, len(desk.waiting), desk.crew.workers)
        response = response_to(request, result, load)
        slot = -1
        if task is not None and result.status == OK:
            slot, task.slot = task.slot, -1
            response.data = desk.arena.slot(slot)[: result.length]
        self.client.put(encode_response_parts(response), slot)

    # -- ending --

    def drain(self) -> None:
        """What found no place yet is not begun any more."""
        parked, self.parked = self.parked, None
        if parked is not None:
            self._give_up(parked.slot)
            self._refuse(parked.context, refusal(DRAINING, LEAVING))
        self._end_when_drained()

    def _end_when_drained(self) -> None:
        if self.desk.draining and not self.owes() and (self.is_original or self.is_between()):
            self.client.finish()

    def drop(self) -> None:
        slot, self.slot = self.slot, -1
        self._give_up(slot)
        self.intake.drop()
        parked, self.parked = self.parked, None
        if parked is not None:
            self._give_up(parked.slot)
        for owed in self.order:  # done, but its turn had not come
            if owed.task is not None and owed.result is not None:
                self._give_up(owed.task.slot)
                owed.task.slot = -1
        self.order.clear()
        tasks, self.tasks = self.tasks, {}
        for task in tasks:
            self.desk.abandon(task)
