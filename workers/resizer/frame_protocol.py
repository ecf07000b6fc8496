r"""The protocol of frames: gob requests in, gob replies out.

RULES: a request with an ID comes from our client. It is answered as soon as its picture is done, in any order, and
refusals and errors are replies. A request without ID comes from an original peer: replies keep the order of the requests,
a full queue makes the peer wait, and a picture that is refused ends the connection, because the peer would take an error
for an empty picture. Dry runs and refusals need no slot and are answered at once.

    head of a big frame --- with an ID ---- refused? answer now, let the kernel throw the rest away
           |                           \--- else  slot -> rest of it -> queue (or refused there)
           '-- ID not in the head ---------------- slot -> rest of it -> check -> queue
"""

import socket
from collections import deque
from dataclasses import dataclass
from enum import Enum

from balancer.eventloop.connection import ENDED, OPEN
from workers.imaging.limits import PictureRefused
from workers.resizer import counters
from workers.resizer.frame_assembler import SPARE, FrameAssembler, FrameStep
from workers.resizer.front_connection import FrontConnection
from workers.resizer.orders import Result
from workers.resizer.protocol import ClientProtocol
from workers.resizer.replies import response_to, task_of
from workers.resizer.scheduler import Scheduler
from workers.resizer.task import BUSY, DRAINING, OK, QueueClient, Task, refusal
from workers.wire.frames import FrameError
from workers.wire.messages import (
    MessageError,
    Request,
    check_request_tail,
    decode_request,
    decode_request_head,
    encode_response_parts,
)

SHUTTING_DOWN = "this resizer is shutting down; ask another"
ANSWER_BYTES = 8 << 20  # of unsent answers, from which on the client is not read
# One read without a slot. More would be copied twice when it is the beginning of a big payload.
SCRATCH = FrontConnection.scratch[: 16 * 1024]


class PauseReason(Enum):
    """What a connection that is not read from waits for."""

    SLOT = "slot"
    QUEUE = "queue"
    PIPELINE = "pipeline"  # too many requests or answers of this connection in flight


@dataclass(slots=True, eq=False)
class PendingReply:
    """An unanswered request of an original peer; `result` waits here for its turn."""

    request: Request
    task: Task | None = None
    result: Result | None = None


class FrameProtocol(ClientProtocol):
    """The frames of one connection. `order`: unanswered requests of an original peer; `tasks`: of either kind, in
    work."""

    def __init__(
        self, connection: FrontConnection, scheduler: Scheduler, answer_bytes: int = ANSWER_BYTES
    ) -> None:
        self.connection = connection
        self.scheduler = scheduler
        self.answer_bytes = answer_bytes
        self.frames = FrameAssembler(scheduler.options.max_frame)
        self.paused_for: PauseReason | None = None
        self.tasks: set[Task] = set()
        self.order: deque[PendingReply] = deque()
        self.slot = -1  # being read into
        self.announced: Task | None = None  # of the frame being read, if its head was enough
        self.data_at = 0  # offset of its picture in the payload
        self.parked: Task | None = None  # complete, but without a slot or a place in the queue
        self.is_original = False

    # -- ConnectionProtocol and ClientProtocol --

    def place(self) -> memoryview:
        place = self.frames.place()
        return SCRATCH if place is None else place

    def received(self, data: memoryview) -> None:
        self.connection.count_received(len(data))
        if self.frames.received(data):
            self._advance()

    def ended(self) -> None:
        if not self._in_flight() and not self.connection.output.pending:
            self.connection.close("done" if self.frames.is_between_frames() else "cut-short")

    def sent(self, count: int) -> None:
        connection = self.connection
        connection.count_sent(count)
        if connection.output.pending:
            return
        if connection.state is ENDED:
            if not self._in_flight():
                connection.close("done")
        elif self.paused_for is PauseReason.PIPELINE:
            connection.loop.call_next_turn(self._resume, connection.fd)

    def closed(self, reason: str) -> None:
        self._drop()

    def is_reading(self) -> bool:
        return not self._in_flight() and not self.frames.is_between_frames()

    def is_idle(self) -> bool:
        return not self._in_flight() and self.frames.is_between_frames()

    def drain(self) -> None:
        """Refuse a task that has no place in the queue yet."""
        parked, self.parked = self.parked, None
        if parked is not None:
            self.scheduler.release_slot(parked.slot)
            self._refuse(parked.context, refusal(DRAINING, SHUTTING_DOWN))
        self._end_when_drained()
        self.connection.flush()

    # -- reading --

    def _in_flight(self) -> int:
        """Requests that have not been answered."""
        return max(len(self.tasks), len(self.order)) + (self.parked is not None)

    def _pause(self, reason: PauseReason) -> None:
        self.paused_for = reason
        self.connection.is_paused = True

    def _resume(self) -> None:
        """Go on: what `paused_for` waited for may be there."""
        connection = self.connection
        if connection.state is OPEN and self.paused_for is not None:
            self.paused_for = None
            connection.is_paused = False
            connection.end_request()
            self._advance()
            connection.read()

    def _advance(self) -> None:
        """Handle what is complete, until the connection is paused or nothing is left."""
        connection, frames, scheduler = self.connection, self.frames, self.scheduler
        try:
            while self.paused_for is None and connection.state is OPEN:
                if self.parked is not None:
                    self._submit(self.parked)
                    continue
                is_full = self._in_flight() >= scheduler.options.pipeline
                if is_full or connection.output.pending > self.answer_bytes:
                    self._pause(PauseReason.PIPELINE)
                    return
                match frames.step():
                    case FrameStep.READ:
                        return
                    case FrameStep.SMALL:
                        self._on_payload(frames.small(), -1)
                    case FrameStep.HEAD:
                        self._on_head()
                    case FrameStep.FULL if self.slot < 0:
                        self._discarded()
                    case FrameStep.FULL:
                        slot, self.slot = self.slot, -1
                        self._on_payload(frames.full(), slot)
        except (FrameError, MessageError) as error:
            self._fail(str(error))

    def _on_head(self) -> None:
        """The head of a big frame is complete: read the rest into a slot, or discard it."""
        scheduler, frames = self.scheduler, self.frames
        if self.announced is None:
            head = decode_request_head(frames.head(), frames.length)
            if head is not None and head[0].id:
                request, self.data_at, stop = head
                self.announced = self._check(request, stop - self.data_at)
                if self.announced is None:
                    self._discard()
                    return
        if self.announced is None and self.is_original and scheduler.is_queue_full():
            self._pause(PauseReason.QUEUE)
            scheduler.wait_for_queue(self._resume)
            return
        if self.announced is not None and scheduler.is_full_for(self.announced):
            self._refuse(self.announced.context, scheduler.busy_result())
            self._discard()
            return
        slot = scheduler.claim_slot(self._resume, self)
        if slot is None:
            self._pause(PauseReason.SLOT)
            return
        self.slot = slot
        scheduler.slots.touch(slot, frames.length + SPARE)
        if self.announced is not None:
            scheduler.expect(self.announced)
        frames.provide(scheduler.arena.slot(slot))

    def _discard(self) -> None:
        """The request has been answered: throw the rest of its frame away."""
        self.frames.provide(self.scheduler.discard[: self.frames.length])  # the next frame is not discarded
        self._discard_rest()

    def _discard_rest(self) -> None:
        self.announced = None
        self.connection.read_flags = socket.MSG_TRUNC  # the kernel counts the bytes and copies none

    def _discarded(self) -> None:
        """The rest of a refused frame has been read."""
        self.connection.read_flags = 0
        self.connection.end_request()
        self.frames.drop()
        self._end_when_drained()

    # -- SlotHolder, while a frame arrives --

    @property
    def client(self) -> QueueClient:
        return self.connection.client

    @property
    def moved(self) -> int:
        return self.connection.moved

    def yield_slot(self) -> None:
        """Refuse the request that arrives and discard the rest of it. Who would not understand that is cut."""
        if self.announced is None:
            self.connection.yield_slot()
            return
        slot, self.slot = self.slot, -1
        self.scheduler.release_slot(slot)
        request = self.announced.context
        self.frames.redirect(self.scheduler.discard[: self.frames.length])
        self._discard_rest()
        self._refuse(request, self.scheduler.busy_result())
        self.connection.flush()

    # -- one request --

    def _on_payload(self, payload: bytes | memoryview, slot: int) -> None:
        """A payload is complete."""
        self.connection.end_request()
        task, self.announced = self.announced, None
        try:
            task = self._decode(payload, slot) if task is None else self._complete(task, payload, slot)
        except MessageError:
            self.scheduler.release_slot(slot)
            raise
        if task is None:
            self.scheduler.release_slot(slot)
        else:
            self._submit(task)

    def _decode(self, payload: bytes | memoryview, slot: int) -> Task | None:
        """The task of a whole payload; None when the request has been answered."""
        request = decode_request(payload)
        data = request.data
        task = self._check(request, len(data))
        if task is not None and slot >= 0:
            assert isinstance(data, memoryview)
            task.slot, task.offset = slot, self.scheduler.arena.offset_of(data)
            request.data = b""
        return task

    def _complete(self, task: Task, payload: bytes | memoryview, slot: int) -> Task | None:
        """`task`, known from the head, now with its picture; None when the request has been answered."""
        check_request_tail(payload)
        if self.scheduler.draining:
            self._refuse(task.context, refusal(DRAINING, SHUTTING_DOWN))
            return None
        task.slot, task.offset = slot, self.scheduler.arena.start(slot) + self.data_at
        return task

    def _check(self, request: Request, size: int) -> Task | None:
        """The task of a request with a picture of `size` bytes; None when the request has been answered."""
        scheduler = self.scheduler
        scheduler.cells[counters.REQUESTS] += 1
        self.is_original = not request.id
        if request.dry_run:
            self._dry_run(request)
            return None
        try:
            if scheduler.draining:
                raise PictureRefused(DRAINING, SHUTTING_DOWN)
            if self.connection.is_over_limit:
                raise PictureRefused(BUSY, "busy: too many connections; try again")
            task = task_of(request, size, self, scheduler.next_serial(), scheduler.options)
            task.client = self.connection.client
            return task
        except PictureRefused as refused:
            self._refuse(request, refusal(refused.status, refused.sentence))
            return None

    def _submit(self, task: Task) -> None:
        """Queue the task, or park it until there is a slot and a place, or refuse it."""
        scheduler = self.scheduler
        request: Request = task.context
        self.parked = None
        if task.slot < 0:
            if not scheduler.store(task, request.data, self._resume):
                self.parked = task
                self._pause(PauseReason.SLOT)
                return
            request.data = b""
        self.tasks.add(task)
        if not request.id:
            self.order.append(PendingReply(request, task))
        if scheduler.submit(task):
            return
        self.tasks.discard(task)
        if request.id:
            self.scheduler.release_slot(task.slot)
            self._refuse(request, scheduler.busy_result())
            return
        self.order.pop()
        self.parked = task
        self._pause(PauseReason.QUEUE)
        scheduler.wait_for_queue(self._resume)

    # -- answers --

    def answer(self, task: Task, result: Result) -> None:
        self.tasks.discard(task)
        request: Request = task.context
        if request.id:
            self._reply(request, task, result)
        else:
            next(pending for pending in self.order if pending.task is task).result = result
            self._reply_in_order()
        self.connection.flush()
        self._end_when_drained()

    def _dry_run(self, request: Request) -> None:
        """Answer at once. Without a target, a dry run asks for health: while no picture could be taken, that is a
        refusal."""
        self.scheduler.cells[counters.DRY_RUNS] += 1
        asks_health = not (request.target_width or request.target_height)
        if asks_health and (reason := self.scheduler.reason_not_ready()):
            self._answer_now(request, refusal(DRAINING, reason))
            return
        self._answer_now(request, Result(0, 0, OK, width=request.target_width, height=request.target_height))

    def _refuse(self, request: Request, result: Result) -> None:
        if result.status == DRAINING:
            self.scheduler.count(counters.DRAINED)
        self._answer_now(request, result)
        self._end_when_drained()

    def _answer_now(self, request: Request, result: Result) -> None:
        if request.id or (not self.order and result.status == OK):
            self._reply(request, None, result)
        else:
            self.order.append(PendingReply(request, None, result))
            self._reply_in_order()

    def _reply_in_order(self) -> None:
        """Send the replies of an original peer, up to the first request that is not done."""
        while self.order and (result := self.order[0].result) is not None:
            pending = self.order.popleft()
            if result.status != OK:
                self.scheduler.count_status(result.status)
                self._fail(f"{result.status} {result.text}")
                return
            self._reply(pending.request, pending.task, result)

    def _reply(self, request: Request, task: Task | None, result: Result) -> None:
        scheduler = self.scheduler
        scheduler.count_status(result.status)
        load = (scheduler.options.name, len(scheduler.queue), scheduler.worker_count)
        response = response_to(request, result, load)
        if task is not None and result.status == OK:
            slot, task.slot = task.slot, -1
            response.data = scheduler.arena.slot(slot)[: result.length]
            self.connection.write(encode_response_parts(response), scheduler.send_from(slot, self.connection))
        else:
            self.connection.write(encode_response_parts(response))

    # -- ending --

    def _end_when_drained(self) -> None:
        if not self.scheduler.draining or self._in_flight():
            return
        if self.is_original or self.frames.is_between_frames():
            self._drop()
            self.connection.finish()

    def _fail(self, reason: str) -> None:
        """End the connection after what was written so far."""
        self._drop()
        self.connection.refuse(reason)

    def _drop(self) -> None:
        """Nothing more is read: release the slot being read into, abandon the tasks."""
        slot, self.slot = self.slot, -1
        self.scheduler.release_slot(slot)
        self.announced = None
        self.frames.drop()
        parked, self.parked = self.parked, None
        if parked is not None:
            self.scheduler.release_slot(parked.slot)
        for pending in self.order:  # done before its turn
            if pending.task is not None and pending.result is not None and pending.result.status == OK:
                self.scheduler.release_slot(pending.task.slot)
                pending.task.slot = -1
        self.order.clear()
        tasks, self.tasks = self.tasks, set()
        for task in tasks:
            self.scheduler.abandon(task)
