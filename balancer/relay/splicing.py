"""The splicing relay: two flows and every way in which they can end.

RULES: takes a session over when something out of the ordinary happens to it (session.py tells when), and for good.
Moves descriptors and calls `next_step`; the accounting is half.py's, the bytes are flow.py's. Whatever it decides to
close goes through the session's one closer.

Who is gone is learnt in three ways, and each keeps the order of what was said:
- a read that fails or ends: everything before it has been read;
- a write that fails: the other direction is read to its end first, because the last answer lies there;
- a hang-up event for a side whose reading is over: nothing else would tell.
"""

import errno
from typing import TYPE_CHECKING

from balancer.eventloop.errnos import name_of
from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, URGENT, WRITE
from balancer.relay import ends
from balancer.relay.flow import ANNOUNCED, BLOCKED, CHANGED, FIN_BEHIND, MORE, Flow
from balancer.relay.half import (
    BROKEN,
    CLOSE,
    ENDED,
    FLOWING,
    GO_ON,
    GONE,
    LINGER,
    OPEN,
    RESET_BACKEND,
    RESET_CLIENT,
    SHUT,
    SHUT_BACKEND,
    SHUT_CLIENT,
    next_step,
)
from balancer.relay.sockets import reset_on_close, shut_writing, unacknowledged

if TYPE_CHECKING:
    from balancer.relay.session import Session

CLIENT, BACKEND = 1, 2  # a side of a session
DEAD = ERROR | HANGUP
LAST = READ_HANGUP | HANGUP | ERROR | URGENT
READABLE = READ | LAST


class SplicingRelay:
    """Both halves of one session. `up` is client -> backend, `down` backend -> client."""

    __slots__ = (
        "closing_at",
        "counted_pauses",
        "counted_resumes",
        "down",
        "hub",
        "resetting",
        "session",
        "up",
    )

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.hub = hub = session.hub
        self.up = Flow(session.client_fd, session.backend_fd, hub.pipes)
        self.down = Flow(session.backend_fd, session.client_fd, hub.pipes)
        self.up.taken, self.down.taken = session.bytes_in, session.bytes_out
        if session.over:
            over = self.up if session.over == CLIENT else self.down
            over.ended()
            over.shut()
        self.counted_pauses = self.counted_resumes = 0
        self.closing_at = 0.0  # when lingering or waiting for acknowledgement ends
        self.resetting = -1  # descriptor to be reset once its peer has acknowledged everything

    # -- taking over

    def flow_of(self, source_fd: int) -> Flow:
        """The half that reads this descriptor."""
        return self.up if source_fd == self.session.client_fd else self.down

    def read_failed(self, source_fd: int, error: OSError) -> None:
        flow = self.flow_of(source_fd)
        self._after(flow.source_failed(error), flow)

    def write_failed(self, source_fd: int, data: bytes, sent: int, error: OSError | None) -> None:
        """Of `data`, read from this descriptor, the other one took `sent` bytes."""
        flow = self.flow_of(source_fd)
        self._after(flow.stopped(data, sent, error), flow)

    def look_behind(self, source_fd: int, size: int, mask: int) -> None:
        """`size` bytes were read from this descriptor and written; they were many, or its end has been announced."""
        flow = self.flow_of(source_fd)
        self._announce(flow, mask)
        self._after(flow.look_behind(size), flow)

    # -- handlers

    def on_client(self, mask: int) -> None:
        self._on_event(mask, self.up, self.down)

    def on_backend(self, mask: int) -> None:
        self._on_event(mask, self.down, self.up)

    def _on_event(self, mask: int, source: Flow, sink: Flow) -> None:
        """Any event of one side: `source` reads from it, `sink` writes to it."""
        if mask & READABLE:
            if mask & LAST:
                self._announce(source, mask)
            outcome = source.pump()
            if outcome:
                self._after(outcome, source)
        if mask & WRITE and (sink.pending or sink.paused):
            self._flush(sink)
        if mask & DEAD:
            self._hung_up(source, sink)

    def _announce(self, flow: Flow, mask: int) -> None:
        if mask & LAST:
            is_tcp = self.session.source_ip if flow is self.up else self.session.is_tcp
            flow.final = FIN_BEHIND if mask & LAST == READ_HANGUP and is_tcp else ANNOUNCED

    def _flush(self, flow: Flow) -> None:
        outcome = flow.flush()
        if outcome:
            self._after(outcome, flow)

    def nudge(self) -> None:
        """The sweep's second look at paused halves: a send that failed for want of memory brings no event."""
        for flow in (self.up, self.down):
            if flow.paused and not self.session.closed:
                self._flush(flow)

    def _hung_up(self, source: Flow, sink: Flow) -> None:
        """A side is gone in both directions. When its reading is over already, no read will say so."""
        if not self.session.closed and source.source != FLOWING and sink.sink == OPEN:
            sink.lose_sink()
            self.settle()

    # -- deciding

    def _after(self, outcome: int, flow: Flow) -> None:
        if self.session.closed:
            return
        if outcome == MORE:
            if not flow.queued:
                flow.queued = True
                self.hub.loop.call_next_turn(
                    self._pump_up if flow is self.up else self._pump_down, flow.source_fd
                )
        elif outcome == CHANGED:
            self.settle()
        elif outcome == BLOCKED and not flow.is_waiting:
            flow.is_waiting = True
            self.hub.loop.watch_writing(flow.sink_fd)

    def _pump_up(self) -> None:
        self._pump_again(self.up)

    def _pump_down(self) -> None:
        self._pump_again(self.down)

    def _pump_again(self, flow: Flow) -> None:
        flow.queued = False
        if not self.session.closed:
            outcome = flow.pump()
            if outcome:
                self._after(outcome, flow)

    def settle(self) -> None:
        """An end was reached somewhere: do what the halves ask for, until they ask for nothing."""
        up, down, session = self.up, self.down, self.session
        while not session.closed:
            self._follow(up, down)
            self._follow(down, up)
            if down.source == BROKEN and self._may_redial():
                return
            self._swallow(up)
            self._swallow(down)
            step = next_step(up, down)
            if step == GO_ON:
                return
            if step == CLOSE:
                session.close(self._natural_end())
            elif step == SHUT_CLIENT:
                shut_writing(session.client_fd)
                down.shut()
            elif step == SHUT_BACKEND:
                shut_writing(session.backend_fd)
                up.shut()
            else:
                self._end_badly(step)
                return

    def _end_badly(self, step: int) -> None:
        if step == RESET_CLIENT:
            self._reset(self.session.client_fd)
        elif step == RESET_BACKEND:
            self._reset(self.session.backend_fd)
        elif step == LINGER:
            self._linger()

    def _follow(self, flow: Flow, back: Flow) -> None:
        """What the state of one half tells about the other."""
        if flow.source == BROKEN and back.sink == OPEN:
            back.lose_sink()
        if flow.sink == GONE and back.source == FLOWING and not back.final:
            back.final = ANNOUNCED
            back.doomed = flow.error not in (0, errno.EPIPE)
            outcome = back.pump()
            if outcome != CHANGED:
                self._after(outcome, back)

    def _swallow(self, flow: Flow) -> None:
        """Nobody is left to take its bytes. Those that already wait bring no new edge, while their sender, blocked for
        want of room, may read nothing and end nothing until they are gone."""
        if flow.sink == GONE and flow.source == FLOWING:
            self._after(MORE, flow)

    def _may_redial(self) -> bool:
        """The backend reset the session before a byte moved either way: a dial that failed late."""
        up, down, session = self.up, self.down, self.session
        if up.taken or down.taken or up.source != FLOWING or session.retries >= self.hub.retries:
            return False
        session.dial_again(down.error or errno.ECONNRESET)
        return True

    def _linger(self) -> None:
        if not self.closing_at:
            self.closing_at = self.hub.loop.now + self.hub.half_close_timeout

    def _reset(self, fd: int) -> None:
        """Pass a reset on: after the last byte sent to this peer has arrived, since RST overtakes what is queued."""
        if self.resetting == fd:
            return
        if self._is_acknowledged(fd):
            self._finish_reset(fd)
        else:
            self.resetting = fd
            self._linger()
            self.hub.await_acknowledgement(self)

    def may_reset(self, now: float) -> bool:
        """Whether the peer to be reset has every byte, or has had time enough: reset it then (called by the keeper)."""
        if not self._is_acknowledged(self.resetting) and now < self.closing_at:
            return False
        self._finish_reset(self.resetting)
        return True

    def _is_acknowledged(self, fd: int) -> bool:
        """Every byte sent there. A FIN counts as one and need not be: its acknowledgement may be delayed by 40 ms."""
        half = self.up if fd == self.session.backend_fd else self.down
        return unacknowledged(fd) <= (half.sink == SHUT)

    def _finish_reset(self, fd: int) -> None:
        session = self.session
        reset_on_close(fd)
        session.close(ends.CLIENT_RESET if fd == session.backend_fd else ends.BACKEND_RESET, self._cause())

    def end_waiting(self) -> None:
        """Lingering or waiting for acknowledgements has lasted long enough (called by the sweep)."""
        if self.resetting >= 0:
            self._finish_reset(self.resetting)
        else:
            self.session.close(self._natural_end(), "half-close-timeout")

    def _natural_end(self) -> str:
        up, down = self.up, self.down
        if up.source == BROKEN:
            return ends.CLIENT_RESET
        if down.source == BROKEN or up.lost:
            return ends.BACKEND_RESET
        return ends.CLIENT_RESET if down.lost else ends.CLEAN

    def _cause(self) -> str:
        code = self.up.error or self.down.error
        return name_of(code) if code else ""

    # -- asked by the session

    def given(self) -> tuple[int, int]:
        """Bytes that the backend and the client have been given, ever."""
        return self.up.given, self.down.given

    def movement(self) -> int:
        """A number that changes whenever a byte is read or written."""
        up, down = self.up, self.down
        return 2 * (up.taken + down.taken) - up.pending - down.pending

    def is_holding(self) -> bool:
        """Bytes wait here for a slow peer."""
        return bool(self.up.pending or self.down.pending)

    def is_half_closed(self) -> bool:
        up, down = self.up, self.down
        return up.sink == SHUT or down.sink == SHUT or up.source != FLOWING or down.source != FLOWING

    def is_backends_turn(self) -> bool:
        """The backend has been given everything there is, or cannot take it: it is for it to move."""
        up, down = self.up, self.down
        if down.pending or (down.source == ENDED and not up.pending):
            return False
        return bool(up.pending) or up.source == ENDED

    def discharge(self) -> None:
        """The session is over: pipes go back, and nobody is paused any more."""
        for flow in (self.up, self.down):
            flow.discharge()
            flow.paused = False
