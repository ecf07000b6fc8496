"""One connection's conversation: requests in flight, replies matched to them. Sans-IO: no socket, no clock.

    put(job, request)  -> parts to send                 in flight: {7: job a, 8: job b, 9: job c}
    receive(bytes)     -> [(job b, reply 8), ...]       a resizer of ours: any order, by ID
                                                        an original one: no ID, so the oldest in flight

RULES: an ID answers once, on the connection it was sent on. Whatever else arrives (an unknown or repeated ID, a reply
without one where IDs are in use or under another name, bytes that are no frame) sets `violation`: a sentence, after
which nothing that this peer sends is looked at.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from workers.wire.frames import FrameError, FrameReader
from workers.wire.messages import (
    MessageError,
    Parts,
    Request,
    Response,
    decode_response,
    encode_request_parts,
)

T = TypeVar("T")


class Conversation(Generic[T]):
    """The state of one connection, from its first request to its end."""

    def __init__(self, next_id: Callable[[], int], max_frame: int) -> None:
        self._next_id = next_id  # shared by all connections, so that a reply on the wrong one is found out
        self._reader = FrameReader(max_frame)
        self._in_flight: dict[int, tuple[T, str]] = {}
        self._highest = 0
        self.answered = 0
        self.speaks_ids: bool | None = None  # unknown until the first reply
        self.violation = ""

    def __len__(self) -> int:
        return len(self._in_flight)

    def put(self, job: T, request: Request) -> Parts:
        """Take `request` into flight under a new ID: the frame to send. Raises MessageError."""
        request.id = self._next_id()
        parts = encode_request_parts(request)
        self._highest = request.id
        self._in_flight[request.id] = (job, request.original_name)
        return parts

    def in_flight(self) -> list[T]:
        """The jobs that wait for their reply, oldest first."""
        return [job for job, _ in self._in_flight.values()]

    def receive(self, data: bytes | memoryview) -> list[tuple[T, Response]]:
        """Jobs answered by what arrived. Sets `violation` at the first thing that must not be."""
        answers: list[tuple[T, Response]] = []
        if self.violation:
            return answers
        try:
            payloads: Sequence[bytes] = self._reader.feed(data)
            sentence = ""
        except FrameError as error:
            payloads, sentence = error.before, str(error)
        try:
            for payload in payloads:
                answers.append(self._match(decode_response(payload)))  # noqa: PERF401 - what came before an error counts
        except MessageError as error:
            sentence = str(error)
        self.violation = sentence
        self.answered += len(answers)
        return answers

    def _match(self, response: Response) -> tuple[T, Response]:
        if self.speaks_ids is None:
            self.speaks_ids = bool(response.id)
        if self.speaks_ids != bool(response.id):
            raise MessageError("replies with and without an ID on one connection")
        if not self._in_flight:
            raise MessageError(f"a reply nobody waits for (ID {response.id})")
        if not response.id:
            return self._match_oldest(response)
        job, _ = self._in_flight.pop(response.id, (None, ""))
        if job is None:
            kind = "repeated" if response.id <= self._highest else "unknown"
            raise MessageError(f"{kind} ID {response.id}")
        return job, response

    def _match_oldest(self, response: Response) -> tuple[T, Response]:
        oldest = next(iter(self._in_flight))
        job, name = self._in_flight[oldest]
        if response.original_name != name:
            raise MessageError(f"a reply without ID for {response.original_name!r} where {name!r} is next")
        del self._in_flight[oldest]
        return job, response
