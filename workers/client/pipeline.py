"""The requests in flight on one connection, and the replies matched to them. Sans-IO: no socket, no clock.

    add(job, request)  -> parts to send                 in flight: {7: job a, 8: job b, 9: job c}
    receive(bytes)     -> [(job b, reply 8), ...]       a resizer of this project: any order, by ID
                                                        an original one: no ID, so the oldest in flight

RULES: an ID is answered once, on the connection that carried its request. Anything else (an unknown or repeated ID, a
reply without ID where IDs are in use or with another picture's name, bytes that are no frame) sets `violation`, a
sentence; input after that is ignored.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from workers.wire.frames import FrameError, FrameReader, NotAFrame
from workers.wire.messages import (
    MessageError,
    Parts,
    Request,
    Response,
    decode_response,
    encode_request_parts,
)

T = TypeVar("T")


class RequestPipeline(Generic[T]):
    """The protocol state of one connection; len() is the number of requests in flight."""

    def __init__(self, next_id: Callable[[], int], max_frame: int) -> None:
        self._next_id = (
            next_id  # shared by all connections: a reply on the wrong connection has an unknown ID
        )
        self._reader = FrameReader(max_frame)
        self._in_flight: dict[int, tuple[T, str]] = {}
        self._highest_id = 0
        self.answered = 0
        self.uses_ids: bool | None = None  # None until the first reply
        self.violation = ""
        self.is_foreign = False  # the first bytes that came are of another protocol: no resizer is there

    def __len__(self) -> int:
        return len(self._in_flight)

    def add(self, job: T, request: Request) -> Parts:
        """Put `request` in flight under a new ID; the frame to send. Raises MessageError."""
        request.id = self._next_id()
        parts = encode_request_parts(request)
        self._highest_id = request.id
        self._in_flight[request.id] = (job, request.original_name)
        return parts

    def in_flight(self) -> list[T]:
        """The jobs that wait for their reply, oldest first."""
        return [job for job, _ in self._in_flight.values()]

    def receive(self, data: bytes | memoryview) -> list[tuple[T, Response]]:
        """The jobs that `data` answers, with their replies. Sets `violation` at the first breach of the protocol."""
        answers: list[tuple[T, Response]] = []
        if self.violation:
            return answers
        try:
            payloads: Sequence[bytes] = self._reader.feed(data)
            sentence = ""
        except FrameError as error:
            payloads, sentence = error.before, str(error)
            self.is_foreign = isinstance(error, NotAFrame) and not (self.answered or payloads)
        try:
            for payload in payloads:
                answers.append(self._match(decode_response(payload)))  # noqa: PERF401 - replies before an error count
        except MessageError as error:
            sentence = str(error)
        self.violation = sentence
        self.answered += len(answers)
        return answers

    def _match(self, response: Response) -> tuple[T, Response]:
        if self.uses_ids is None:
            self.uses_ids = bool(response.id)
        if self.uses_ids != bool(response.id):
            raise MessageError("replies with and without an ID on one connection")
        if not self._in_flight:
            raise MessageError(f"a reply without a request (ID {response.id})")
        if not response.id:
            return self._match_oldest(response)
        job, _ = self._in_flight.pop(response.id, (None, ""))
        if job is None:
            kind = "repeated" if response.id <= self._highest_id else "unknown"
            raise MessageError(f"{kind} ID {response.id}")
        return job, response

    def _match_oldest(self, response: Response) -> tuple[T, Response]:
        oldest = next(iter(self._in_flight))
        job, name = self._in_flight[oldest]
        if response.original_name != name:
            raise MessageError(f"a reply without ID for {response.original_name!r} where {name!r} is next")
        del self._in_flight[oldest]
        return job, response
