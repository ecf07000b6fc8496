"""The speaker of HTTP: h11 reads and writes the protocol, this shell moves bodies into slots and answers
out of them.

RULES: one request at a time per connection; pipelined ones wait inside h11's bounded buffer. An error known
from the head of a request that has a body ends the connection after its answer: nobody reads megabytes in
order to refuse them. Every refusal is an answer with a sentence; only a broken connection is closed without
one.
"""

from collections.abc import Callable
from typing import Any

import h11

from workers.imaging.limits import PictureRefused
from workers.resizer import tally
from workers.resizer.client import Client
from workers.resizer.http import (
    Header,
    HttpError,
    Wish,
    error_answer,
    json_answer,
    picture_headers,
    read_wish,
    reason,
)
from workers.resizer.orders import Result
from workers.resizer.speaking import Block
from workers.resizer.task import BUSY, DRAINING, OK, Task, wanted

LONGEST_HEAD = 16 * 1024
READ_BYTES = 256 * 1024


class Web:
    """One connection's HTTP. `wish` is the request under way, `task` its picture once complete."""

    _scratch = memoryview(bytearray(READ_BYTES))  # shared: its content is valid within one `fill`

    def __init__(self, client: Client, status: Callable[[], dict[str, object]]) -> None:
        self.client = client
        self.desk = client.desk
        self.status = status
        self.conn = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self.wish: Wish | None = None
        self.is_head = False
        self.task: Task | None = None
        self.slot = -1
        self.filled = 0

    # -- reading --

    def room(self) -> memoryview | None:
        # h11 limits what is incomplete: a head that arrives whole in one big read would pass at any length.
        return self._scratch if self._has_body_coming() else None

    def fill(self, count: int) -> bool:
        self.take(self._scratch[:count])
        return True

    def take(self, data: memoryview) -> None:
        self.conn.receive_data(bytes(data))

    def is_between(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.DONE) and not self.conn.trailing_data[0]

    def owes(self) -> int:
        return int(self.task is not None)

    def advance(self) -> None:
        try:
            while self.client.may_read():
                if self.task is not None:
                    self.client.blocked = Block.PIPELINE
                    return
                if self.wish is not None and self.slot < 0 and not self._claim():
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
            if self.wish is not None:
                self._submit(self.wish)
        elif event is h11.PAUSED:
            if self.conn.our_state is h11.DONE:
                self.conn.start_next_cycle()
            else:
                self.client.finish()
        elif isinstance(event, h11.ConnectionClosed):
            self.client.finish()

    def _begin(self, request: Any) -> None:
        desk = self.desk
        desk.count(tally.HTTP_REQUESTS)
        method = request.method.decode("ascii", "replace")
        self.is_head = method == "HEAD"
        wish = read_wish(method, request.target.decode("ascii", "replace"))
        if wish.path == "/health":
            self._health()
        elif wish.path == "/status":
            self._answer(200, *json_answer(self.status()))
        else:
            desk.count(tally.REQUESTS)
            self._admit(wish, dict(request.headers))
            self.wish, self.filled = wish, 0

    def _admit(self, wish: Wish, headers: dict[bytes, bytes]) -> None:
        """Everything that can be said before the body is read. Raises HttpError."""
        desk = self.desk
        if desk.draining:
            desk.count(tally.DRAINED)
            raise HttpError(DRAINING, "this resizer is shutting down; ask another")
        if self.client.is_late:
            raise HttpError(BUSY, "busy: too many connections; try again")
        announced = headers.get(b"content-length", b"0")
        limit = desk.settings.limits.max_bytes
        if int(announced) > limit:  # h11 has seen to it that it is a number
            raise HttpError(413, f"picture of {int(announced)} bytes is over the limit of {limit} bytes")
        self._job(wish)

    def _job(self, wish: Wish) -> Any:
        settings = self.desk.settings
        upright = wish.orient and settings.wants_upright(True)
        try:
            return wanted(
                wish.width,
                wish.height,
                wish.fit,
                wish.format,
                wish.quality,
                upright,
                settings.icc,
                settings.limits,
            )
        except PictureRefused as refused:
            raise HttpError(refused.status, refused.sentence) from None

    def _claim(self) -> bool:
        slot = self.desk.claim(self.client.resume)
        if slot is None:
            self.client.blocked = Block.SLOT
            return False
        self.slot = slot
        return True

    def _body(self, data: bytes) -> None:
        if self.wish is None:
            return
        end = self.filled + len(data)
        limit = self.desk.settings.limits.max_bytes
        if end > min(limit, self.desk.arena.slot_bytes):
            raise HttpError(413, f"picture is over the limit of {limit} bytes")
        self.desk.shelf.touch(self.slot, end)
        self.desk.arena.slot(self.slot)[self.filled : end] = data
        self.filled = end

    def _submit(self, wish: Wish) -> None:
        desk, slot = self.desk, self.slot
        if not self.filled:
            raise HttpError(415, "no picture in the request: send it as the body")
        self.client.mark()
        is_small = self.filled <= desk.settings.express_bytes
        task = Task(desk.serial(), self, self._job(wish), slot, desk.arena.start(slot), self.filled, is_small)
        self.task = task
        if desk.submit(task):
            self.slot, self.wish = -1, None
            return
        self.task = None
        refused = desk.busy()
        raise HttpError(refused.status, refused.text)

    # -- answers --

    def answer(self, task: Task, result: Result) -> None:
        self.task = self.wish = None
        self.slot = -1
        if result.status == OK:
            slot, task.slot = task.slot, -1
            headers = picture_headers(
                result.text, result.length, result.width, result.height, result.elapsed_ns
            )
            self._answer(200, headers, self.desk.arena.slot(slot)[: result.length], slot)
        else:
            self._refuse(HttpError(result.status, result.text), ending=False)
        client = self.client
        if client.outbox.pending or client.blocked is Block.PIPELINE:
            client.flush()

    def _health(self) -> None:
        desk = self.desk
        if desk.draining:
            raise HttpError(DRAINING, "this resizer is shutting down")
        document: dict[str, object] = {
            "status": "ok",
            "name": desk.settings.name,
            "queue": len(desk.waiting),
            "workers": desk.crew.workers,
        }
        self._answer(200, *json_answer(document))

    def _has_body_coming(self) -> bool:
        return bool(self.conn.their_state is h11.SEND_BODY)

    def _refuse(self, error: HttpError, ending: bool) -> None:
        slot, self.slot, self.wish = self.slot, -1, None
        self.desk.release(slot)
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
        self.client.mark()
        self.desk.count_status(status)
        headers = [*headers, ("Server", self.desk.settings.name)]
        if ending or self.desk.draining:
            headers.append(("Connection", "close"))
        parts: list[Any] = [
            self.conn.send(h11.Response(status_code=status, headers=headers, reason=reason(status)))
        ]
        if not self.is_head:
            parts += self.conn.send_with_data_passthrough(h11.Data(data=body)) or []  # type: ignore[arg-type]
        parts += [self.conn.send(h11.EndOfMessage())]
        self.client.put(tuple(part for part in parts if part), slot)
        if ending or self.conn.our_state is h11.MUST_CLOSE:
            self.client.finish()

    def _send(self, event: Any) -> None:
        data = self.conn.send(event)
        if data:
            self.client.put((data,))

    # -- ending --

    def drain(self) -> None:
        if self.task is None and self.is_between():
            self.client.finish()

    def drop(self) -> None:
        slot, self.slot, self.wish = self.slot, -1, None
        self.desk.release(slot)
        task, self.task = self.task, None
        if task is not None:
            self.desk.abandon(task)
