"""One client connection of a front: its socket, its unsent answers, and how it ends.

RULES: one closer (`close`), which takes a reason. The protocol reads the bytes; the first byte decides between frames
(0xaa) and HTTP. Back-pressure is not reading: `paused_for` says what reading waits for, and only `resume` ends the pause.

    OPEN --the peer's FIN--> ENDED (requests in flight are answered) --\\
    OPEN --finish()--------> FINISHING (flush) --> LINGERING (FIN sent, input thrown away) --> CLOSED
    any  --close(reason)--------------------------------------------------------------------> CLOSED
LINGERING because close(2) with unread input resets the connection, and the reset overtakes the answer.
"""

import socket
from functools import partial
from typing import Protocol

from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, WRITE
from workers.resizer import counters
from workers.resizer.outbox import Outbox, Part
from workers.resizer.protocol import ClientProtocol, FrontConnectionState, PauseReason
from workers.resizer.scheduler import Scheduler

TURN_BYTES = 2 << 20  # read from one client before the others have their turn
SCRATCH = 16 * 1024  # bytes of one read without a slot
COPY_BYTES = 64 * 1024  # of unsent answers that are copied to ordinary memory so that their slots are free
LEAST_RATE = 16 * 1024  # bytes per second that a request or an answer has to make after its grace
LINGER_SECONDS = 2.0


class Clients(Protocol):
    """The owner of the connections."""

    def protocol_for(self, client: "FrontConnection", first: int) -> ClientProtocol:
        """The protocol of a connection whose first byte is `first`."""

    def gone(self, client: "FrontConnection") -> None:
        """The connection is closed."""


class FrontConnection:
    """A connection in the front's `clients`. One over maxconns is answered health, status and dry runs, but no work."""

    __slots__ = (
        "address",
        "born",
        "bytes_in",
        "bytes_out",
        "fd",
        "heard_at",
        "is_over_limit",
        "keeper",
        "outbox",
        "paused_for",
        "protocol",
        "reading",
        "reading_flags",
        "scheduler",
        "sending",
        "sock",
        "state",
    )
    scratch = memoryview(bytearray(SCRATCH))  # shared: its content is valid within one `append`

    def __init__(
        self, sock: socket.socket, address: str, scheduler: Scheduler, keeper: Clients, is_over_limit: bool
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.address = address
        self.scheduler = scheduler
        self.keeper = keeper
        self.is_over_limit = is_over_limit
        self.state = FrontConnectionState.OPEN
        self.paused_for: PauseReason | None = None
        self.outbox = Outbox()
        self.protocol: ClientProtocol | None = None
        self.born = self.heard_at = scheduler.loop.now
        # (time, bytes so far) at the beginning of the request being read, and of the answers being sent
        self.reading: tuple[float, int] | None = (scheduler.loop.now, 0)
        self.sending = (scheduler.loop.now, 0)
        self.reading_flags = 0
        self.bytes_in = self.bytes_out = 0

    def on_event(self, mask: int) -> None:
        """The loop's handler (edge-triggered)."""
        if mask & (ERROR | HANGUP) and self.state is not FrontConnectionState.LINGERING:
            self.close("reset")
            return
        if mask & WRITE and self.outbox.pending:
            self.flush()
        if mask & (READ | READ_HANGUP):
            self.read(bool(mask & READ_HANGUP))

    def may_read(self) -> bool:
        return self.paused_for is None and self.state is FrontConnectionState.OPEN

    def read(self, hung: bool = False) -> None:
        """Read what there is, as far as this connection may. `hung`: the peer's FIN may be among it."""
        protocol, before = self.protocol, self.bytes_in
        while self.paused_for is None and self.state is FrontConnectionState.OPEN:
            own = protocol.place() if protocol is not None else None
            place = self.scratch if own is None else own
            try:
                count = self.sock.recv_into(place, 0, self.reading_flags)
            except BlockingIOError:
                break
            except OSError:
                self.close("reset")
                break
            if not count:
                self._ended()
                break
            if self.reading is None:
                self.reading = (self.scheduler.loop.now, self.bytes_in)
            self.bytes_in += count
            if protocol is None:
                protocol = self.protocol = self.keeper.protocol_for(self, self.scratch[0])
            if own is None:
                protocol.append(place[:count])
                protocol.advance()
            elif protocol.fill(count):
                protocol.advance()
            if count < len(place) and not hung:
                break
            if self.bytes_in - before >= TURN_BYTES:
                # True: the FIN may have been reported by now.
                self.scheduler.loop.call_next_turn(partial(self.read, True))
                break
        if self.bytes_in != before:
            self.heard_at = self.scheduler.loop.now
            self.scheduler.cells[counters.BYTES_IN] += self.bytes_in - before
        if self.outbox.pending and self.state is not FrontConnectionState.LINGERING:
            self.flush()
        elif self.state is FrontConnectionState.LINGERING:
            self._discard()

    def end_request(self) -> None:
        """The request being read is complete; the next one has its own time limit."""
        self.reading = None

    def resume(self) -> None:
        """Go on: what `paused_for` waited for may be there."""
        if self.state is not FrontConnectionState.OPEN or self.paused_for is None:
            return
        self.paused_for = None
        self.end_request()  # the pause does not count against the peer
        assert self.protocol is not None
        self.protocol.advance()
        self.read(True)

    # -- sending --

    def write(self, parts: tuple[Part, ...], slot: int = -1) -> None:
        """Queue an answer; `flush` sends it. The slot is released when the answer has been sent."""
        if self.state is FrontConnectionState.CLOSED:
            self.scheduler.release_slot(slot)
            return
        if not self.outbox.pending:
            self.sending = (self.scheduler.loop.now, self.bytes_out)
        self.outbox.put(parts, slot)

    def flush(self) -> None:
        """Send what the socket takes."""
        outbox = self.outbox
        while outbox.pending:
            try:
                count = self.sock.sendmsg(outbox.gather())
            except BlockingIOError:
                self._free(outbox.keep_copies(COPY_BYTES))
                return
            except OSError:
                self.close("reset")
                return
            self.bytes_out += count
            self.scheduler.cells[counters.BYTES_OUT] += count
            for slot in outbox.sent(count):
                self.scheduler.release_slot(slot)
        self.heard_at = self.scheduler.loop.now
        if self.state is FrontConnectionState.FINISHING:
            self._linger()
        elif self.state is FrontConnectionState.ENDED and not (self.protocol and self.protocol.in_flight()):
            self.close("done")
        elif self.paused_for is PauseReason.PIPELINE:
            self.scheduler.loop.call_next_turn(self.resume)

    def _free(self, slots: list[int]) -> None:
        for slot in slots:
            self.scheduler.release_slot(slot)

    # -- ending --

    def finish(self) -> None:
        """Read nothing more; close once everything written so far has been sent."""
        if self.state in (FrontConnectionState.OPEN, FrontConnectionState.ENDED):
            self.state = FrontConnectionState.FINISHING
            if self.protocol is not None:
                self.protocol.drop()
            if not self.outbox.pending:
                self._linger()

    def close(self, reason: str) -> None:
        """The one closer."""
        if self.state is FrontConnectionState.CLOSED:
            return
        self.state = FrontConnectionState.CLOSED
        loop = self.scheduler.loop
        loop.forget_closing(self.fd)
        if self.protocol is not None:
            self.protocol.drop()
        self._free(self.outbox.clear())
        loop.retire(self.sock.close)
        log = self.scheduler.log
        if log.level >= 1:
            log.session(
                f"close client={self.address} reason={reason} seconds={loop.now - self.born:.3f}"
                f" in={self.bytes_in} out={self.bytes_out}"
            )
        self.keeper.gone(self)

    def fail(self, reason: str) -> None:
        """The peer broke the protocol: one log line, and the end, after what was written so far has been sent."""
        self.scheduler.log.warning("refuse", client=self.address, reason=reason, then="close")
        self.finish()
        if self.outbox.pending:
            self.flush()

    def check_timeouts(self, now: float, frame_timeout: float, idle_timeout: float) -> None:
        """Close the connection when its peer is too slow or idle. Called about once a second.

        A request being read, or answers being sent, must be done within `frame_timeout` plus their bytes at LEAST_RATE.
        Pauses do not count.
        """
        if self.state is FrontConnectionState.LINGERING:
            if now - self.sending[0] > LINGER_SECONDS:
                self.close("done")
            return
        protocol = self.protocol
        if self.outbox.pending:
            self._cut_when_slow(now, frame_timeout, self.sending, self.bytes_out, "slow reader")
        elif self.paused_for is not None or (protocol is not None and protocol.in_flight()):
            return
        elif protocol is None or not protocol.is_between_requests():
            if self.reading is None:  # its first bytes came with the end of the request before
                self.reading = (now, self.bytes_in)
            self._cut_when_slow(now, frame_timeout, self.reading, self.bytes_in, "slow sender")
        elif now - self.heard_at > idle_timeout:
            self.close("idle")

    def _cut_when_slow(
        self, now: float, grace: float, begun: tuple[float, int], total: int, reason: str
    ) -> None:
        since, before = begun
        moved = total - before
        allowed = grace + moved / LEAST_RATE
        if now - since > allowed:
            self.scheduler.count(counters.CUT)
            seconds = f"{now - since:.1f}/{allowed:.1f}"
            log = self.scheduler.log
            log.info("cut", client=self.address, reason=reason, bytes=moved, seconds=seconds, then="close")
            self.close(reason.replace(" ", "-"))

    def _ended(self) -> None:
        protocol = self.protocol
        if protocol is None or (not protocol.in_flight() and not self.outbox.pending):
            self.close("done" if protocol is None or protocol.is_between_requests() else "cut-short")
        else:
            self.state = FrontConnectionState.ENDED
            if self.outbox.pending:
                self.flush()

    def _linger(self) -> None:
        self.state = FrontConnectionState.LINGERING
        self.sending = (self.scheduler.loop.now, self.bytes_out)
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close("reset")
            return
        self._discard()

    def _discard(self) -> None:
        while True:
            try:
                count = self.sock.recv_into(self.scheduler.discard, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self.close("done")
                return
