r"""The speaker of frames: gob requests in, gob replies out, for original peers and for ours.

RULES: a peer that sends an ID is ours: it is answered as soon as its picture is done, in any order, and
refusals and errors are replies. A peer without ID is an original one: its replies keep the order of its
requests, a full queue makes it wait, and a picture it cannot have ends the connection, since it would take
an error for an empty picture. What needs no picture (dry runs, refusals) is answered at once and needs no
slot.

    head of a big frame --- ID in it: ours ---- refused? answer now, let the kernel throw the rest away
           |                                \--- else  slot -> rest of it -> queue (or refused there)
           '-- not to be told yet -------------------- slot -> rest of it -> judge -> queue
"""

import socket
from collections import deque
from dataclasses import dataclass

from workers.imaging.limits import PictureRefused
from workers.resizer import tally
from workers.resizer.client import Client
from workers.resizer.intake import SPARE, Intake, Step
from workers.resizer.orders import Result
from workers.resizer.replies import response_to, task_of
from workers.resizer.speaking import Block, Life
from workers.resizer.task import BUSY, DRAINING, OK, Task, refusal
from workers.wire.frames import FrameError
from workers.wire.messages import (
    MessageError,
    Request,
    check_request_tail,
    decode_request,
    decode_request_head,
    encode_response_parts,
)

LEAVING = "this resizer is shutting down; ask another"
ANSWER_BYTES = 8 << 20  # of answers unsent: a client that does not read is not read from


@dataclass(slots=True, eq=False)
class Owed:
    """A request of an original peer that has not been answered; `result` waits here for its turn."""

    request: Request
    task: Task | None = None
    result: Result | None = None


class Framed:
    """One connection's frames. `order`: what an original peer is owed; `tasks`: what is worked on for either."""

    def __init__(self, client: Client, max_frame: int) -> None:
        self.client = client
        self.desk = client.desk
        self.intake = Intake(max_frame)
        self.room = self.intake.room
        self.fill = self.intake.fill
        self.take = self.intake.take
        self.is_between = self.intake.is_between_frames
        self.tasks: set[Task] = set()
        self.order: deque[Owed] = deque()
        self.slot = -1  # being read into
        self.coming: Task | None = None  # of the frame being read, if its head has told
        self.data_at = 0  # where its picture begins in the payload
        self.parked: Task | None = None  # complete, but there was no slot or no place in the queue
        self.is_original = False

    # -- reading --

    def owes(self) -> int:
        return max(len(self.tasks), len(self.order)) + (self.parked is not None)

    def advance(self) -> None:
        client, intake = self.client, self.intake
        try:
            while client.blocked is None and client.life is Life.OPEN:
                if self.parked is not None:
                    self._place(self.parked)
                    continue
                if self.owes() >= self.desk.settings.pipeline or client.outbox.pending > ANSWER_BYTES:
                    client.blocked = Block.PIPELINE
                    return
                match intake.step():
                    case Step.READ:
                        return
                    case Step.SMALL:
                        self._whole(intake.small(), -1)
                    case Step.HEAD:
                        self._begin()
                    case Step.FULL if self.slot < 0:
                        self._forget()
                    case Step.FULL:
                        slot, self.slot = self.slot, -1
                        self._whole(intake.full(), slot)
        except (FrameError, MessageError) as error:
            client.fail(str(error))

    def _begin(self) -> None:
        """The head of a big frame is here: the rest goes into a slot, or nowhere."""
        client, desk, intake = self.client, self.desk, self.intake
        if self.coming is None:
            foreseen = decode_request_head(intake.head(), intake.length)
            if foreseen is not None and foreseen[0].id:
                request, self.data_at, stop = foreseen
                self.coming = self._judge(request, stop - self.data_at)
                if self.coming is None:
                    self._discard()
                    return
        if self.coming is None and self.is_original and desk.is_full():
            client.blocked = Block.QUEUE
            desk.wait_for_queue(client.resume)
            return
        if self.coming is not None and desk.is_full_for(self.coming):
            self._refuse(self.coming.context, desk.busy())
            self._discard()
            return
        slot = desk.claim(client.resume)
        if slot is None:
            client.blocked = Block.SLOT
            return
        self.slot = slot
        desk.expect(self.coming, slot, intake.length + SPARE)
        intake.provide(desk.arena.slot(slot))

    def _discard(self) -> None:
        """It has been answered: nobody wants the rest of this frame."""
        self.coming = None
        self.intake.provide(self.desk.void[: self.intake.length])  # and not a byte more
        self.client.reading_flags = socket.MSG_TRUNC  # the kernel counts the bytes and copies none

    def _forget(self) -> None:
        self.client.reading_flags = 0
        self.client.mark()
        self.intake.drop()
        self._end_when_drained()

    # -- one request --

    def _whole(self, payload: bytes | memoryview, slot: int) -> None:
        """A payload is complete."""
        self.client.mark()
        task, self.coming = self.coming, None
        try:
            task = self._read(payload, slot) if task is None else self._foreseen(task, payload, slot)
        except MessageError:
            self.desk.release(slot)
            raise
        if task is None:
            self.desk.release(slot)
        else:
            self._place(task)

    def _read(self, payload: bytes | memoryview, slot: int) -> Task | None:
        """The task of a payload whose head has not told; None when it has been answered."""
        request = decode_request(payload)
        data = request.data
        task = self._judge(request, len(data))
        if task is not None and slot >= 0:
            assert isinstance(data, memoryview)
            task.slot, task.offset = slot, self.desk.arena.offset_of(data)
            request.data = b""
        return task

    def _foreseen(self, task: Task, payload: bytes | memoryview, slot: int) -> Task | None:
        """The task that the head has told, now with its picture; None when it has been answered."""
        check_request_tail(payload)
        if self.desk.draining:
            self._refuse(task.context, refusal(DRAINING, LEAVING))
            return None
        task.slot, task.offset = slot, self.desk.arena.start(slot) + self.data_at
        return task

    def _judge(self, request: Request, size: int) -> Task | None:
        """The task of a request for a picture of `size` bytes; None when it has been answered instead."""
        desk = self.desk
        desk.cells[tally.REQUESTS] += 1
        self.is_original = not request.id
        if request.dry_run:
            self._dry_run(request)
            return None
        try:
            if desk.draining:
                raise PictureRefused(DRAINING, LEAVING)
            if self.client.is_late:
                raise PictureRefused(BUSY, "busy: too many connections; try again")
            return task_of(request, size, self, desk.serial(), desk.settings)
        except PictureRefused as refused:
            self._refuse(request, refusal(refused.status, refused.sentence))
            return None

    def _place(self, task: Task) -> None:
        """Into the queue, or parked until there is a slot and a place, or refused."""
        client, desk = self.client, self.desk
        request: Request = task.context
        self.parked = None
        if task.slot < 0:
            if not desk.settle(task, request.data, client.resume):
                self.parked = task
                client.blocked = Block.SLOT
                return
            request.data = b""
        self.tasks.add(task)
        if not request.id:
            self.order.append(Owed(request, task))
        if desk.submit(task):
            return
        self.tasks.discard(task)
        if request.id:
            self.desk.release(task.slot)
            self._refuse(request, desk.busy())
            return
        self.order.pop()
        self.parked = task
        client.blocked = Block.QUEUE
        desk.wait_for_queue(client.resume)

    # -- answers --

    def answer(self, task: Task, result: Result) -> None:
        self.tasks.discard(task)
        request: Request = task.context
        if request.id:
            self._reply(request, task, result)
        else:
            next(owed for owed in self.order if owed.task is task).result = result
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
            self.desk.release(parked.slot)
            self._refuse(parked.context, refusal(DRAINING, LEAVING))
        self._end_when_drained()

    def _end_when_drained(self) -> None:
        if self.desk.draining and not self.owes() and (self.is_original or self.is_between()):
            self.client.finish()

    def drop(self) -> None:
        slot, self.slot = self.slot, -1
        self.desk.release(slot)
        self.coming = None
        self.intake.drop()
        parked, self.parked = self.parked, None
        if parked is not None:
            self.desk.release(parked.slot)
        for owed in self.order:  # done, but its turn had not come
            if owed.task is not None and owed.result is not None and owed.result.status == OK:
                self.desk.release(owed.task.slot)
                owed.task.slot = -1
        self.order.clear()
        tasks, self.tasks = self.tasks, set()
        for task in tasks:
            self.desk.abandon(task)
