"""A client of framed mode where TLS ends or begins: as in client.py, with a stream in place of its descriptor.

RULES
- What a stream has read and nobody has taken brings no event. A client is plain (`is_plain`) only with a dry stream; all
  else reads until nothing is left or no request may begin, and whoever lets the next one begin reads on.
- The end of its sending is close_notify; a FIN without it is an end all the same, and counted as truncated.
- It is given close_notify with its last reply, and when it is closed with no request under way. One whose reply is not
  whole gets none: that is how it can tell.
"""

from balancer.eventloop.errnos import TRANSIENT, name_of
from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, URGENT, WRITE
from balancer.relay import ends
from balancer.relay.framed.client import FramedClient, FramedLane, FramedSession
from balancer.relay.framed.requests import new_request
from balancer.relay.half import LIMIT
from balancer.relay.stream import Stream

_READABLE = READ | READ_HANGUP | HANGUP | ERROR | URGENT


class StreamClient(FramedClient):
    """`stream` is its plaintext."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream, session: FramedSession, lane: FramedLane) -> None:
        super().__init__(session, lane)
        self.stream = stream

    def on_client(self, mask: int) -> None:
        if mask & WRITE:
            self._has_room()
            mask &= ~WRITE
        if not mask & _READABLE or self.session.closed:
            return
        if mask != READ or not self.is_plain:
            self._on_unusual(mask)
            return
        try:
            data, is_dry = self.stream.read(LIMIT)
        except OSError as error:
            self._reading_failed(error)
            return
        size = len(data)
        if not is_dry or data[: self._header] != self._heads.get(size):
            self._on_other_bytes(data)
            return
        self.bytes_in += size
        self._begin_request(new_request(self, data, size, self._loop.now))

    def _receive(self) -> bytes:
        return self.stream.read(LIMIT)[0]

    def _reading_failed(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno not in TRANSIENT and self.stream.fault:
            self.fail(ends.CLIENT_RESET, f"TLS: {self.stream.fault}")
        else:
            super()._reading_failed(error)

    def _has_room(self) -> None:
        """Go on with the reply that waits for room, or send what the stream has to say by itself."""
        turn, stream = self.turn, self.stream
        if turn is not None and turn.carrier is not None:
            turn.carrier.pump_reply()
        if self.session.closed or stream.is_held:
            return
        try:
            stream.flush()
        except OSError as error:
            self.fail(ends.CLIENT_RESET, name_of(error.errno))
            return
        self._settle()

    def is_behind(self) -> bool:
        return bool(self.stream.unsent) or super().is_behind()

    # -- ends

    def _settle(self) -> None:
        if not (self.has_ended and not self.requests and not self.session.closed and self._is_parting()):
            super()._settle()

    def _is_parting(self) -> bool:
        """Say the end behind the last reply; return whether a part of that waits for room."""
        if self.fault:
            self._drop_input()
        self.stream.shut()
        return bool(self.stream.unsent)

    def part(self) -> None:
        """The session is about to be closed."""
        if not self.requests:
            self.stream.shut()
