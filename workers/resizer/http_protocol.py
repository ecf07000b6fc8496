"""The protocol of HTTP: the common HttpConnection with a router for pictures, health and status.

RULES: what is known from the head of a request is refused before its body is read. The body is read into a slot, and the
answer is sent out of it. Without a free slot the body is not read.

    head --> /health, /status: answered at once
         '-> /resize --> slot --> body --> task --> answer out of the slot
"""

from collections.abc import Callable
from functools import partial

from balancer.eventloop.http import HttpAnswer, HttpConnection, HttpError, HttpExchange
from workers.imaging.job import ResizeJob
from workers.imaging.limits import PictureRefused
from workers.resizer import counters
from workers.resizer.front_connection import FrontConnection
from workers.resizer.http_api import (
    ApiRequest,
    error_answer,
    job_parameters,
    json_answer,
    parse_request,
    picture_answer,
)
from workers.resizer.orders import Result
from workers.resizer.protocol import ClientProtocol
from workers.resizer.scheduler import Scheduler
from workers.resizer.task import BUSY, DRAINING, OK, Task, TaskStage, job_for


class HttpProtocol(HttpConnection, ClientProtocol):
    """The HTTP of one connection. `status` gives the document of GET /status."""

    __slots__ = ("_front",)

    def __init__(
        self, connection: FrontConnection, scheduler: Scheduler, status: Callable[[], dict[str, object]]
    ) -> None:
        super().__init__(connection, ResizeRouter(connection, scheduler, status))
        self._front = connection

    def received(self, data: memoryview) -> None:
        self._front.count_received(len(data))
        super().received(data)

    def sent(self, count: int) -> None:
        self._front.count_sent(count)
        super().sent(count)

    def is_reading(self) -> bool:
        return not self.is_between

    def is_idle(self) -> bool:
        return self.is_between


class ResizeRouter:
    """Answers the requests of one connection."""

    def __init__(
        self, connection: FrontConnection, scheduler: Scheduler, status: Callable[[], dict[str, object]]
    ) -> None:
        self.connection = connection
        self.scheduler = scheduler
        self._status = status

    # -- HttpRouter --

    def begin(self, exchange: HttpExchange) -> None:
        scheduler = self.scheduler
        scheduler.count(counters.HTTP_REQUESTS)
        request = parse_request(exchange.method, exchange.target)
        if exchange.body_length == 0:
            self.connection.end_request()
        if request.path == "/health":
            self.answer(exchange, json_answer(self._health()))
        elif request.path == "/status":
            self.answer(exchange, json_answer(self._status()))
        else:
            scheduler.count(counters.REQUESTS)
            Upload(self, exchange, self._check(request, exchange)).begin()

    def refusal(self, error: HttpError) -> HttpAnswer:
        self.connection.end_request()
        self.scheduler.count_status(error.status)
        return self._signed(error_answer(error))

    # -- answers --

    def answer(
        self, exchange: HttpExchange, answer: HttpAnswer, release: Callable[[], object] | None = None
    ) -> None:
        """Count and send an answer."""
        self.scheduler.count_status(answer.status)
        exchange.answer(self._signed(answer), release)

    def _signed(self, answer: HttpAnswer) -> HttpAnswer:
        headers = (*answer.headers, ("Server", self.scheduler.options.name))
        return HttpAnswer(answer.status, headers, answer.body)

    def _health(self) -> dict[str, object]:
        scheduler = self.scheduler
        if scheduler.draining:
            raise HttpError(DRAINING, "this resizer is shutting down")
        return {
            "status": "ok",
            "name": scheduler.options.name,
            "queue": len(scheduler.queue),
            "workers": scheduler.worker_count,
        }

    def _check(self, request: ApiRequest, exchange: HttpExchange) -> ResizeJob:
        """The job of a request, as far as it can be refused before the body is read. Raises HttpError."""
        scheduler, options = self.scheduler, self.scheduler.options
        if scheduler.draining:
            scheduler.count(counters.DRAINED)
            raise HttpError(DRAINING, "this resizer is shutting down; ask another")
        if self.connection.is_over_limit:
            raise HttpError(BUSY, "busy: too many connections; try again")
        length, limit = exchange.body_length, options.limits.max_bytes
        if length is not None and length > limit:
            raise HttpError(413, f"picture of {length} bytes is over the limit of {limit} bytes")
        try:
            job = job_for(
                request.width,
                request.height,
                request.fit,
                request.format,
                request.quality,
                request.orient and options.wants_upright(True),
                job_parameters(
                    request,
                    options.parameters,
                    exchange.headers.get(b"accept", b""),
                    options.max_enlarge,
                ),
                options.limits,
            )
        except PictureRefused as refused:
            raise HttpError(refused.status, refused.sentence) from None
        if length == 0:
            raise HttpError(415, "no picture in the request: send it as the body")
        return job


class Upload:
    """One POST /resize, from its head to its answer: the HttpBody of its exchange and the Requester of its task."""

    def __init__(self, router: ResizeRouter, exchange: HttpExchange, job: ResizeJob) -> None:
        self.router = router
        self.scheduler = router.scheduler
        self.exchange = exchange
        self.job = job
        self.slot = -1  # being read into
        self.size = 0  # bytes of the picture so far
        self.task: Task | None = None
        self.is_abandoned = False

    def begin(self) -> None:
        self.exchange.on_abandoned = self._abandon
        self.exchange.on_hung_up = self._drop_what_waits
        self._claim()

    def _claim(self) -> None:
        """Read the body once there is a slot for it."""
        if self.is_abandoned:
            return
        slot = self.scheduler.claim_slot(self._claim)
        if slot is not None:
            self.slot = slot
            self.exchange.receive(self)

    def _drop_what_waits(self) -> None:
        """The client has ended its side: it is gone, as browsers, curl and proxies close, or has half-closed.

        Work that has begun goes on and is answered: no process can be told to stop. A picture that waits is dropped:
        behind 30 such clients of 20 MP the next one waited for 6.6 s, now 0.2 s.
        """
        if self.task is not None and self.task.stage is TaskStage.WAITING:
            self.router.connection.close("gone")

    def _abandon(self) -> None:
        self.is_abandoned = True
        slot, self.slot = self.slot, -1
        self.scheduler.release_slot(slot)
        task, self.task = self.task, None
        if task is not None:
            self.scheduler.abandon(task)

    # -- HttpBody --

    def place(self, count: int) -> memoryview:
        limit = self.scheduler.options.limits.max_bytes
        if self.size >= limit:
            raise HttpError(413, f"picture is over the limit of {limit} bytes")
        return self.scheduler.arena.slot(self.slot)[self.size : limit]

    def filled(self, count: int) -> None:
        self.size += count
        self.scheduler.slots.touch(self.slot, self.size)

    def complete(self) -> None:
        scheduler = self.scheduler
        self.router.connection.end_request()
        if not self.size:
            raise HttpError(415, "no picture in the request: send it as the body")
        is_small = self.size <= scheduler.options.express_bytes
        start, serial = scheduler.arena.start(self.slot), scheduler.next_serial()
        client = self.router.connection.client
        self.task = task = Task(serial, self, self.job, self.slot, start, self.size, is_small, client=client)
        if scheduler.submit(task):
            self.slot = -1
            if self.router.connection.peer_hung_up:
                self._drop_what_waits()
        else:
            self.task = None
            refused = scheduler.busy_result()
            raise HttpError(refused.status, refused.text)

    # -- Requester --

    def answer(self, task: Task, result: Result) -> None:
        self.task, self.slot = None, -1
        if result.status == OK:
            slot, task.slot = task.slot, -1
            body = self.scheduler.arena.slot(slot)[: result.length]
            release = partial(self.scheduler.release_slot, slot)
            answer = picture_answer(result, body, is_negotiated=self.job.format == "auto")
            self.router.answer(self.exchange, answer, release)
        else:
            self.router.answer(self.exchange, error_answer(HttpError(result.status, result.text)))
