"""The protocol of HTTP: the common HttpConnection with a router for pictures, health and status.

RULES: what is known from the head of a request is refused before its body is read; a full queue too. A body is collected
in memory of its own up to EARLY_BYTES, so that a client that sends little holds no slot. Then it is read straight into a
slot, and the answer is sent out of it. Without a free slot the body is not read on.

    head --> /health, /status: answered at once
         '-> /resize --> early bytes --> slot --> rest of the body --> task --> answer out of the slot
"""

from collections.abc import Callable
from functools import partial

from balancer.eventloop.exposition import CONTENT_TYPE
from balancer.eventloop.http import HttpAnswer, HttpConnection, HttpError, HttpExchange, HttpLimits
from balancer.web.page import CONTENT_TYPE as PAGE_TYPE
from balancer.web.page import HEADERS as PAGE_HEADERS
from balancer.web.page import page
from balancer.web.view import View
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
    text_answer,
)
from workers.resizer.metrics import metrics_text
from workers.resizer.orders import Result
from workers.resizer.protocol import ClientProtocol
from workers.resizer.rates import Rates
from workers.resizer.scheduler import Scheduler
from workers.resizer.status_page import status_changes, status_view, sums_of
from workers.resizer.task import BUSY, DRAINING, OK, QueueClient, Task, TaskStage, job_for

HASTY_SECONDS = 0.5  # that the refusal of a client waits which comes before the time that it was told
# Of a body, before it gets a slot: less than the first read of a client that sends at once, which is copied anyway.
EARLY_BYTES = 8 * 1024


class HttpProtocol(HttpConnection, ClientProtocol):
    """The HTTP of one connection. `status` gives the document of GET /status; `rates` are the front's."""

    __slots__ = ("_front",)

    def __init__(
        self,
        connection: FrontConnection,
        scheduler: Scheduler,
        status: Callable[[], dict[str, object]],
        rates: Rates,
    ) -> None:
        # A refused body is thrown away in the kernel, so that the client, which may send it all, sees the answer.
        limits = HttpLimits(skip_bytes=scheduler.options.max_frame)
        super().__init__(connection, ResizeRouter(connection, scheduler, status, rates), limits)
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
        self,
        connection: FrontConnection,
        scheduler: Scheduler,
        status: Callable[[], dict[str, object]],
        rates: Rates,
    ) -> None:
        self.connection = connection
        self.scheduler = scheduler
        self._status = status
        self._rates = rates

    # -- HttpRouter --

    def begin(self, exchange: HttpExchange) -> None:
        scheduler = self.scheduler
        scheduler.count(counters.HTTP_REQUESTS)
        request = parse_request(exchange.method, exchange.target)
        if exchange.body_length == 0:
            self.connection.end_request()
        if request.path == "/resize":
            scheduler.count(counters.REQUESTS)
            self._begin_upload(exchange, self._check(request, exchange))
        else:
            self.answer(exchange, self._look(request.path, "?since=" in exchange.target))

    def _look(self, path: str, for_page: bool) -> HttpAnswer:
        """The answer of a path that asks for no work; `for_page`: what the script of the page asks for. Raises
        HttpError."""
        options = self.scheduler.options
        match path:
            case "/":
                return text_answer(PAGE_TYPE, page(self._view()), *PAGE_HEADERS)
            case "/live":
                return json_answer({"status": "ok"})
            case "/status" if for_page:
                return json_answer(status_changes(self._view()))
            case "/status":
                return json_answer(self._status())
            case "/agent":
                return text_answer("text/plain; charset=utf-8", self.scheduler.agent_text() + "\n")
            case "/metrics":
                return text_answer(CONTENT_TYPE, metrics_text(self._status(), options))
            case _:
                return json_answer(self._health())

    def _view(self) -> View:
        """The status page."""
        scheduler, document = self.scheduler, self._status()
        self._rates.note(scheduler.loop.now, sums_of(document))
        return status_view(document, scheduler.options, scheduler.reason_not_ready(), self._rates)

    def _begin_upload(self, exchange: HttpExchange, job: ResizeJob) -> None:
        """Receive the body, unless the queue is full for it already. Raises HttpError."""
        scheduler, length = self.scheduler, exchange.body_length or 0
        is_small = length <= scheduler.options.express_bytes
        upload = Upload(self, exchange)
        upload.task = task = Task(
            scheduler.next_serial(),
            upload,
            job,
            length=length,
            is_small=is_small,
            client=self.connection.client,
        )
        if not scheduler.is_full_for(task):
            scheduler.expect(task)
            upload.begin()
        elif self.connection.client.retry_at <= scheduler.loop.now:
            raise self.busy()
        else:  # it was told to come later: who asks again at once would keep the front busy with refusals
            scheduler.loop.call_later(HASTY_SECONDS, partial(self._refuse_late, exchange))

    def _refuse_late(self, exchange: HttpExchange) -> None:
        if exchange.is_open:
            self.answer(exchange, error_answer(self.busy()))

    def busy(self) -> HttpError:
        """The refusal of a picture when the queue is full."""
        refused = self.scheduler.busy_result()
        seconds = self.scheduler.retry_seconds(self.connection.client)
        return HttpError(refused.status, refused.text, (("Retry-After", str(seconds)),))

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
        if reason := scheduler.reason_not_ready():
            raise HttpError(DRAINING, reason)
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

    task: Task

    def __init__(self, router: ResizeRouter, exchange: HttpExchange) -> None:
        self.router = router
        self.scheduler = router.scheduler
        self.exchange = exchange
        self.early: bytearray | None = bytearray()  # the picture so far; None once it is in its slot
        self.size = 0  # bytes of the picture so far
        self.is_complete = False
        self.is_waiting = False  # for a slot

    def begin(self) -> None:
        self.exchange.on_abandoned = self._abandon
        self.exchange.on_hung_up = self._drop_what_waits
        self.exchange.receive(self)

    def _claim(self) -> None:
        """Move the picture to a slot, now or when there is one; until then the body is not read."""
        scheduler, early, task = self.scheduler, self.early, self.task
        if early is None or task.stage is not TaskStage.MADE:
            return
        slot = scheduler.claim_slot(self._claim, None if self.is_complete else self)
        if slot is None:
            self.is_waiting = True
            self.exchange.pause()
            return
        scheduler.arena.slot(slot)[: self.size] = early
        task.slot, task.offset, self.early = slot, scheduler.arena.start(slot), None
        scheduler.slots.touch(slot, self.size)
        if self.is_complete:
            self._submit()
        elif self.is_waiting:
            self.exchange.resume()

    def _drop_what_waits(self) -> None:
        """The client has ended its side: it is gone, as browsers, curl and proxies close, or has half-closed.

        Work that has begun goes on and is answered: no process can be told to stop. A picture that waits is dropped:
        behind 30 such clients of 20 MP the next one waited for 6.6 s, now 0.2 s.
        """
        if self.task.stage is TaskStage.WAITING or (self.is_complete and self.early is not None):
            self.router.connection.close("gone")

    def _abandon(self) -> None:
        """The exchange has ended without an answer of ours: the client is gone, or the body was refused."""
        scheduler, task = self.scheduler, self.task
        if task.stage is TaskStage.MADE:
            self._release()
            if self.is_complete:
                scheduler.count(counters.ABANDONED)
        elif task.stage is not TaskStage.DONE:
            scheduler.abandon(task)

    def _release(self) -> None:
        """Free the slot of a task that is not queued."""
        task, self.early = self.task, None
        task.stage = TaskStage.DONE
        slot, task.slot = task.slot, -1
        self.scheduler.release_slot(slot)

    # -- SlotHolder, while the body arrives --

    @property
    def client(self) -> QueueClient:
        return self.task.client

    @property
    def moved(self) -> int:
        return self.size

    def yield_slot(self) -> None:
        self._release()
        self.router.answer(self.exchange, error_answer(self.router.busy()))

    # -- HttpBody --

    def place(self, count: int) -> memoryview:
        limit = self.scheduler.options.limits.max_bytes
        if self.size >= limit:
            raise HttpError(413, f"picture is over the limit of {limit} bytes")
        if self.early is not None:
            return self.router.connection.scratch[: limit - self.size]
        return self.scheduler.arena.slot(self.task.slot)[self.size : limit]

    def filled(self, count: int) -> None:
        self.size += count
        if self.early is None:
            self.scheduler.slots.touch(self.task.slot, self.size)
            return
        self.early += self.router.connection.scratch[:count]
        if (
            self.size >= EARLY_BYTES
            and self.size - count < EARLY_BYTES
            and self.size != self.exchange.body_length
        ):
            self._claim()

    def complete(self) -> None:
        self.router.connection.end_request()
        if not self.size:
            raise HttpError(415, "no picture in the request: send it as the body")
        self.is_complete = True
        self.task.length = self.size
        self.task.is_small = self.size <= self.scheduler.options.express_bytes
        if self.early is None:
            self._submit()
        elif not self.is_waiting:
            self._claim()

    def _submit(self) -> None:
        if not self.scheduler.submit(self.task):
            self._release()
            self.router.answer(self.exchange, error_answer(self.router.busy()))
        elif self.router.connection.peer_hung_up:
            self._drop_what_waits()

    # -- Requester --

    def answer(self, task: Task, result: Result) -> None:
        if result.status == OK:
            slot, task.slot = task.slot, -1
            body = self.scheduler.arena.slot(slot)[: result.length]
            release = self.scheduler.send_from(slot, self.router.connection)
            answer = picture_answer(result, body, is_negotiated=task.job.format == "auto")
            self.router.answer(self.exchange, answer, release)
        else:
            self.router.answer(self.exchange, error_answer(HttpError(result.status, result.text)))
