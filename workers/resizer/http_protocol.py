"""The protocol of HTTP: h11 reads and writes it, this shell moves bodies into slots and answers out of them.

RULES: one request at a time per connection; pipelined ones wait inside h11's bounded buffer. An error known from the head
of a request with a body ends the connection after the answer, so that no body is read only to be refused. Every refusal
is an answer with a sentence; only a broken connection is closed without one.
"""

from collections.abc import Callable
from typing import Any

import h11

from workers.imaging.limits import PictureRefused
from workers.resizer import counters
from workers.resizer.front_connection import FrontConnection
from workers.resizer.http_api import (
    ApiRequest,
    Header,
    HttpError,
    error_answer,
    json_answer,
    parse_request,
    picture_headers,
    reason,
)
from workers.resizer.orders import Result
from workers.resizer.protocol import PauseReason
from workers.resizer.task import BUSY, DRAINING, OK, Task, job_for

LONGEST_HEAD = 16 * 1024
READ_BYTES = 256 * 1024


class HttpProtocol:
    """The HTTP of one connection. `request` is being read or worked on; `task` is its picture once complete."""

    _scratch = memoryview(bytearray(READ_BYTES))  # shared: its content is valid within one `fill`

    def __init__(self, client: FrontConnection, status: Callable[[], dict[str, object]]) -> None:
        self.client = client
        self.scheduler = client.scheduler
        self.status = status
        self.conn = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self.request: ApiRequest | None = None
        self.is_head = False
        self.task: Task | None = None
        self.slot = -1
        self.filled = 0

    # -- reading --

    def place(self) -> memoryview | None:
        # h11 limits what is incomplete: a head that arrives whole in one big read would pass at any length.
        return self._scratch if self._has_body_coming() else None

    def fill(self, count: int) -> bool:
        self.append(self._scratch[:count])
        return True

    def append(self, data: memoryview) -> None:
        self.conn.receive_data(bytes(data))

    def is_between_requests(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.DONE) and not self.conn.trailing_data[0]

    def in_flight(self) -> int:
        return int(self.task is not None)

    def advance(self) -> None:
        try:
            while self.client.may_read():
                if self.task is not None:
                    self.client.paused_for = PauseReason.PIPELINE
                    return
                if self.request is not None and self.slot < 0 and not self._claim():
                    return
                event = self.conn.next_event()
                if event is h11.NEED_DATA:
                    if self.conn.they_are_waiting_for_100_continue:
                        self._send(h11.InformationalResponse(status_code=100, headers=[]))
                    return
                self._handle(event)
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            sentence = "the request is too long" if status == 431 else f"not HTTP as it should be: {error}"
            self._refuse(HttpError(status, sentence), ending=True)
        except HttpError as error:
            self._refuse(error, ending=self._has_body_coming())

    def _handle(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.Data):
            self._body(event.data)
        elif isinstance(event, h11.EndOfMessage):
            if self.request is not None:
                self._submit(self.request)
        elif event is h11.PAUSED:
            if self.conn.our_state is h11.DONE:
                self.conn.start_next_cycle()
            else:
                self.client.finish()
        elif isinstance(event, h11.ConnectionClosed):
            self.client.finish()

    def _begin(self, head: Any) -> None:
        scheduler = self.scheduler
        scheduler.count(counters.HTTP_REQUESTS)
        method = head.method.decode("ascii", "replace")
        self.is_head = method == "HEAD"
        request = parse_request(method, head.target.decode("ascii", "replace"))
        if request.path == "/health":
            self._health()
        elif request.path == "/status":
            self._answer(200, *json_answer(self.status()))
        else:
            scheduler.count(counters.REQUESTS)
            self._check(request, dict(head.headers))
            self.request, self.filled = request, 0

    def _check(self, request: ApiRequest, headers: dict[bytes, bytes]) -> None:
        """Check what is known before the body is read. Raises HttpError."""
        scheduler = self.scheduler
        if scheduler.draining:
            scheduler.count(counters.DRAINED)
            raise HttpError(DRAINING, "this resizer is shutting down; ask another")
        if self.client.is_over_limit:
            raise HttpError(BUSY, "busy: too many connections; try again")
        length = headers.get(b"content-length", b"0")
        limit = scheduler.options.limits.max_bytes
        if int(length) > limit:  # h11 has checked that it is a number
            raise HttpError(413, f"picture of {int(length)} bytes is over the limit of {limit} bytes")
        self._job(request)

    def _job(self, request: ApiRequest) -> Any:
        options = self.scheduler.options
        upright = request.orient and options.wants_upright(True)
        try:
            return job_for(
                request.width,
                request.height,
                request.fit,
                request.format,
                request.quality,
                upright,
                options.icc,
                options.limits,
            )
        except PictureRefused as refused:
            raise HttpError(refused.status, refused.sentence) from None

    def _claim(self) -> bool:
        slot = self.scheduler.claim_slot(self.client.resume)
        if slot is None:
            self.client.paused_for = PauseReason.SLOT
            return False
        self.slot = slot
        return True

    def _body(self, data: bytes) -> None:
        if self.request is None:
            return
        end = self.filled + len(data)
        limit = self.scheduler.options.limits.max_bytes
        if end > min(limit, self.scheduler.arena.slot_bytes):
            raise HttpError(413, f"picture is over the limit of {limit} bytes")
        self.scheduler.slots.touch(self.slot, end)
        self.scheduler.arena.slot(self.slot)[self.filled : end] = data
        self.filled = end

    def _submit(self, request: ApiRequest) -> None:
        scheduler, slot = self.scheduler, self.slot
        if not self.filled:
            raise HttpError(415, "no picture in the request: send it as the body")
        self.client.end_request()
        is_small = self.filled <= scheduler.options.express_bytes
        task = Task(
            scheduler.next_serial(),
            self,
            self._job(request),
            slot,
            scheduler.arena.start(slot),
            self.filled,
            is_small,
        )
        self.task = task
        if scheduler.submit(task):
            self.slot, self.request = -1, None
            return
        self.task = None
        refused = scheduler.busy_result()
        raise HttpError(refused.status, refused.text)

    # -- answers --

    def answer(self, task: Task, result: Result) -> None:
        self.task = self.request = None
        self.slot = -1
        if result.status == OK:
            slot, task.slot = task.slot, -1
            headers = picture_headers(
                result.text, result.length, result.width, result.height, result.elapsed_ns
            )
            self._answer(200, headers, self.scheduler.arena.slot(slot)[: result.length], slot)
        else:
            self._refuse(HttpError(result.status, result.text), ending=False)
        client = self.client
        if client.outbox.pending or client.paused_for is PauseReason.PIPELINE:
            client.flush()

    def _health(self) -> None:
        scheduler = self.scheduler
        if scheduler.draining:
            raise HttpError(DRAINING, "this resizer is shutting down")
        document: dict[str, object] = {
            "status": "ok",
            "name": scheduler.options.name,
            "queue": len(scheduler.queue),
            "workers": scheduler.worker_count,
        }
        self._answer(200, *json_answer(document))

    def _has_body_coming(self) -> bool:
        return bool(self.conn.their_state is h11.SEND_BODY)

    def _refuse(self, error: HttpError, ending: bool) -> None:
        slot, self.slot, self.request = self.slot, -1, None
        self.scheduler.release_slot(slot)
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.client.finish()
            return
        headers, body = error_answer(error.status, error.sentence)
        self._answer(error.status, [*headers, *error.headers], body, ending=ending)

    def _answer(
        self,
        status: int,
        headers: list[Header],
        body: bytes | memoryview,
        slot: int = -1,
        ending: bool = False,
    ) -> None:
        self.client.end_request()
        self.scheduler.count_status(status)
        headers = [*headers, ("Server", self.scheduler.options.name)]
        if ending or self.scheduler.draining:
            headers.append(("Connection", "close"))
        parts: list[Any] = [
            self.conn.send(h11.Response(status_code=status, headers=headers, reason=reason(status)))
        ]
        if not self.is_head:
            parts += self.conn.send_with_data_passthrough(h11.Data(data=body)) or []  # type: ignore[arg-type]
        parts += [self.conn.send(h11.EndOfMessage())]
        self.client.write(tuple(part for part in parts if part), slot)
        if ending or self.conn.our_state is h11.MUST_CLOSE:
            self.client.finish()

    def _send(self, event: Any) -> None:
        data = self.conn.send(event)
        if data:
            self.client.write((data,))

    # -- ending --

    def drain(self) -> None:
        if self.task is None and self.is_between_requests():
            self.client.finish()

    def drop(self) -> None:
        slot, self.slot, self.request = self.slot, -1, None
        self.scheduler.release_slot(slot)
        task, self.task = self.task, None
        if task is not None:
            self.scheduler.abandon(task)
