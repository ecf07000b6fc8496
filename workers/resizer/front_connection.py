"""One client connection of a front: a BufferedConnection with the client's address, its counters and its time limits.

RULES: a connection is not closed by a timer of its own; the front calls `check_timeouts` about once a second, which costs
a request nothing.
"""

import socket
from collections.abc import Callable

from balancer.eventloop.connection import CLOSED, LINGERING, BufferedConnection, ConnectionLimits
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.resizer import counters
from workers.resizer.protocol import ClientProtocol
from workers.resizer.task import Origin, QueueClient

LEAST_RATE = 16 * 1024  # bytes per second that a request or an answer has to make after its grace
# A slow client's unsent answers of up to 64 KiB are copied to ordinary memory, so that their slots are free.
LIMITS = ConnectionLimits(copy_bytes=64 * 1024)


class FrontConnection(BufferedConnection):
    """`is_over_limit`: one over maxconns, which is answered health, status and dry runs, but gets no work. `cells`: the
    row of the front. `origin`: where its client comes from, by itself a place of its own.
    """

    __slots__ = ("_log", "_reading", "_sending", "accepted_at", "address", "cells", "client", "is_over_limit")
    protocol: ClientProtocol

    def __init__(
        self,
        loop: Loop,
        log: Log,
        sock: socket.socket,
        address: str,
        cells: memoryview,
        is_over_limit: bool,
        on_closed: Callable[[BufferedConnection, str], object],
        origin: Origin | None = None,
    ) -> None:
        super().__init__(loop, sock, on_closed, LIMITS)
        self._log = log
        self.address = address
        self.cells = cells
        self.is_over_limit = is_over_limit
        self.client = QueueClient(origin or Origin(address))
        self.accepted_at = loop.now
        # (time, bytes so far) at the beginning of the request being read, and of the output being sent
        self._reading: tuple[float, int] | None = None
        self._sending: tuple[float, int] | None = None

    # -- what a protocol calls --

    def count_received(self, count: int) -> None:
        """`count` bytes were read."""
        self.cells[counters.BYTES_IN] += count
        if self._reading is None:
            self._reading = (self.loop.now, self.bytes_in - count)

    def count_sent(self, count: int) -> None:
        """`count` bytes were sent."""
        self.cells[counters.BYTES_OUT] += count
        if not self.output.pending:
            self._sending = None

    def end_request(self) -> None:
        """The request being read is complete; the next one has its own time limit. Pauses do not count either."""
        self._reading = None

    @property
    def moved(self) -> int:
        """Bytes read and sent so far."""
        return self.bytes_in + self.bytes_out

    def yield_slot(self) -> None:
        """Other clients need the slot that this one is slow to fill or to empty."""
        self._cut("slow", bytes=self.moved, then="close; others wait for its slot")

    def refuse(self, reason: str) -> None:
        """The peer broke the protocol: one log line, and the end, after what was written so far has been sent."""
        self._log.warning("refuse", client=self.address, reason=reason, then="close")
        self.finish()

    # -- time limits --

    def check_timeouts(self, now: float, frame_timeout: float, idle_timeout: float) -> None:
        """Close the connection when its peer is too slow or idle.

        A request being read, or output being sent, must be done within `frame_timeout` plus their bytes at LEAST_RATE.
        """
        if self.state is LINGERING:
            return
        if self.output.pending:
            self._sending = self._sending or (now, self.bytes_out)
            self._cut_when_slow(now, frame_timeout, self._sending, self.bytes_out, "slow reader")
        elif self.is_paused:
            return
        elif self.protocol.is_idle():
            if now - self.active_at > idle_timeout:
                self.close("idle")
        elif self.protocol.is_reading():
            # None: its first bytes came with the end of the request before.
            self._reading = self._reading or (now, self.bytes_in)
            self._cut_when_slow(now, frame_timeout, self._reading, self.bytes_in, "slow sender")

    def _cut_when_slow(
        self, now: float, grace: float, begun: tuple[float, int], total: int, reason: str
    ) -> None:
        since, before = begun
        moved = total - before
        allowed = grace + moved / LEAST_RATE
        if now - since > allowed:
            self._cut(reason, bytes=moved, seconds=f"{now - since:.1f}/{allowed:.1f}", then="close")

    def _cut(self, reason: str, **about: object) -> None:
        self.cells[counters.CUT] += 1
        self._log.info("cut", client=self.address, reason=reason, **about)
        self.close(reason.replace(" ", "-"))

    def close(self, reason: str) -> None:
        """The one closer; logs the end as the balancer logs that of a session."""
        if self.state is not CLOSED and self._log.wants_session(is_clean=reason == "done"):
            milliseconds = (self.loop.now - self.accepted_at) * 1000
            self._log.session(
                f"session client={self.address} total={milliseconds:.1f}ms in={self.bytes_in} out={self.bytes_out}"
                f" reason={reason}"
            )
        super().close(reason)
