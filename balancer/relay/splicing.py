"""The splicing relay: two flows and every way in which they can end.

RULES: takes a session over for good when something out of the ordinary happens to it (session.py tells when). Moves
bytes through its flows (flow.py), counts with their halves (half.py) and does what `next_step` says. The session's
`close` ends it.

A side that is gone shows in three ways, and each keeps the order of the bytes:
- a read fails or ends: everything before it has been read;
- a write fails: the other direction is read to its end first, because the last answer lies there;
- a hang-up is reported for a side whose reading is over: no read would report it.
"""

import errno
from collections.abc import Callable
from typing import Protocol

from balancer.eventloop.errnos import name_of
from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, URGENT, WRITE, Loop
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
from balancer.relay.pipes import Pipes
from balancer.relay.stream import RawStream, Stream

CLIENT, BACKEND = 1, 2  # a side of a session
DEAD = ERROR | HANGUP
LAST = READ_HANGUP | HANGUP | ERROR | URGENT
READABLE = READ | LAST


class RelayedSession(Protocol):
    """What the splicing relay needs of the session that it takes over."""

    client_fd: int
    backend_fd: int
    client_is_tcp: bool
    backend_is_tcp: bool
    bytes_in: int
    bytes_out: int
    over: int
    closed: bool

    def close(self, end: str, reason: str = "") -> None: ...
    def dial_again(self, code: int) -> bool: ...
    def ended_early(self) -> None: ...


class SplicingRelay:
    """Both halves of one session. `up` is client -> backend, `down` backend -> client.

    `linger_limit`: seconds to wait for a FIN or an acknowledgement before the close. `await_acknowledgement(relay)` has
    `may_reset` called soon, until it returns True.
    """

    __slots__ = (
        "_await_acknowledgement", "_linger_limit", "_loop", "backend", "client", "closing_at", "counted_pauses",
        "counted_resumes", "down", "has_first_end", "resetting", "session", "up",
    )  # fmt: skip

    def __init__(
        self,
        session: RelayedSession,
        loop: Loop,
        pipes: Pipes | None,
        linger_limit: float,
        await_acknowledgement: "Callable[[SplicingRelay], None]",
        client: Stream | None = None,
        backend: Stream | None = None,
    ) -> None:
        self.session = session
        self._loop = loop
        self._linger_limit = linger_limit
        self._await_acknowledgement = await_acknowledgement
        self.client: Stream = client or RawStream(session.client_fd)
        self.backend: Stream = backend or RawStream(session.backend_fd)
        self.up = Flow(self.client, self.backend, pipes)
        self.down = Flow(self.backend, self.client, pipes)
        self.up.taken, self.down.taken = session.bytes_in, session.bytes_out
        self.has_first_end = bool(session.over)
        if session.over:
            over = self.flow_from(session.over)
            over.ended()
            over.shut()
        self.counted_pauses = self.counted_resumes = 0  # on the board already
        self.closing_at = 0.0  # when lingering, or waiting for an acknowledgement, ends
        self.resetting = 0  # the side to reset once it has acknowledged everything

    # -- taking over from the fast path

    def flow_from(self, side: int) -> Flow:
        """Return the half that reads this side."""
        return self.up if side == CLIENT else self.down

    def read_failed(self, side: int, error: OSError) -> None:
        """Go on behind a read of this side that failed."""
        flow = self.flow_from(side)
        self._after(flow.source_failed(error), flow)

    def write_failed(self, side: int, data: bytes, sent: int, error: OSError | None) -> None:
        """Go on behind `data` read from this side, of which the other one took `sent` bytes."""
        flow = self.flow_from(side)
        self._after(flow.stopped(data, sent, error), flow)

    def look_behind(self, side: int, size: int, mask: int) -> None:
        """Go on behind `size` bytes read from this side and written: they were many, or its end is announced."""
        flow = self.flow_from(side)
        self._announce(flow, mask)
        self._after(flow.look_behind(size), flow)

    # -- handlers

    def on_client(self, mask: int) -> None:
        self._on_event(mask, self.up, self.down)

    def on_backend(self, mask: int) -> None:
        self._on_event(mask, self.down, self.up)

    def _on_event(self, mask: int, source: Flow, sink: Flow) -> None:
        """Handle an event of one side: `source` reads from it, `sink` writes to it."""
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
        """Note what the event says of the end of this flow's source."""
        if mask & LAST:
            is_tcp = self.session.client_is_tcp if flow is self.up else self.session.backend_is_tcp
            flow.final = FIN_BEHIND if is_tcp and mask & LAST == READ_HANGUP else ANNOUNCED

    def _flush(self, flow: Flow) -> None:
        outcome = flow.flush()
        if outcome:
            self._after(outcome, flow)

    def nudge(self) -> None:
        """Try paused halves again: after a send that failed for want of memory no event follows (called by the sweep)."""
        for flow in (self.up, self.down):
            if flow.paused and not self.session.closed:
                self._flush(flow)

    def _hung_up(self, source: Flow, sink: Flow) -> None:
        """Handle a hang-up of a side whose reading is over: it takes nothing more either."""
        if not self.session.closed and source.source != FLOWING and sink.sink == OPEN:
            sink.lose_sink()
            self.settle()

    # -- deciding

    def _after(self, outcome: int, flow: Flow) -> None:
        """Do what a flow's outcome asks for."""
        session = self.session
        if session.closed:
            return
        if outcome == MORE:
            if not flow.queued:
                flow.queued = True
                if flow is self.up:
                    self._loop.call_next_turn(self._pump_up, session.client_fd)
                else:
                    self._loop.call_next_turn(self._pump_down, session.backend_fd)
        elif outcome == CHANGED:
            self.settle()
        elif outcome == BLOCKED and not flow.is_waiting:
            flow.is_waiting = True
            self._loop.watch_writing(session.backend_fd if flow is self.up else session.client_fd)

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
        """An end was reached: do what the halves ask for, until they ask for nothing."""
        up, down, session = self.up, self.down, self.session
        while not session.closed:
            self._follow(up, down)
            self._follow(down, up)
            if not self.has_first_end:
                self._note_first_end()
            if down.source == BROKEN and self._has_redialled():
                return
            self._swallow(up)
            self._swallow(down)
            step = next_step(up, down)
            if step == GO_ON:
                return
            if step == CLOSE:
                self._close()
                return
            if step == SHUT_CLIENT:
                self.client.shut()
                down.shut()
            elif step == SHUT_BACKEND:
                self.backend.shut()
                up.shut()
            else:
                self._end_badly(step)
                return

    def _close(self) -> None:
        """Both directions are over; close() sends the FIN that a side lacks."""
        self.session.close(self._natural_end())

    def _note_first_end(self) -> None:
        """Note that a side has ended or broken; tell the session when that was the backend, before its first byte."""
        up, down = self.up, self.down
        self.has_first_end = bool(up.source or down.source)
        if down.source and not up.source and not down.taken:
            self.session.ended_early()

    def _end_badly(self, step: int) -> None:
        if step == RESET_CLIENT:
            self._reset(CLIENT)
        elif step == RESET_BACKEND:
            self._reset(BACKEND)
        elif step == LINGER:
            self._linger()

    def _follow(self, flow: Flow, back: Flow) -> None:
        """Apply what the state of one half says about the other."""
        if flow.source == BROKEN and back.sink == OPEN:
            back.lose_sink()
        if flow.sink == GONE and back.source == FLOWING and not back.final:
            back.final = ANNOUNCED
            back.doomed = flow.error not in (0, errno.EPIPE)
            outcome = back.pump()
            if outcome != CHANGED:
                self._after(outcome, back)

    def _swallow(self, flow: Flow) -> None:
        """Read on although the sink is gone. Bytes that have arrived bring no new edge, and their sender, whose window is
        full, may send no FIN before they are read."""
        if flow.sink == GONE and flow.source == FLOWING:
            self._after(MORE, flow)

    def _has_redialled(self) -> bool:
        """A backend that resets before a byte has moved either way is a dial that failed late: try another backend."""
        up, down = self.up, self.down
        if up.taken or down.taken or up.source != FLOWING:
            return False
        return self.session.dial_again(down.error or errno.ECONNRESET)

    def _linger(self) -> None:
        if not self.closing_at:
            self.closing_at = self._loop.now + self._linger_limit

    def _reset(self, side: int) -> None:
        """Pass a reset on, once this side has acknowledged the last byte: RST overtakes what is queued."""
        if self.resetting == side:
            return
        if self._is_acknowledged(side):
            self._finish_reset(side)
        else:
            self.resetting = side
            self._linger()
            self._await_acknowledgement(self)

    def may_reset(self, now: float) -> bool:
        """Reset the side that has acknowledged every byte or has had time enough; return whether it has."""
        if not self._is_acknowledged(self.resetting) and now < self.closing_at:
            return False
        self._finish_reset(self.resetting)
        return True

    def _is_acknowledged(self, side: int) -> bool:
        """Every byte sent to this side. A FIN is not waited for: its acknowledgement may be delayed by 40 ms."""
        if side == BACKEND:
            return self.backend.unacknowledged() <= (self.up.sink == SHUT)
        return self.client.unacknowledged() <= (self.down.sink == SHUT)

    def _finish_reset(self, side: int) -> None:
        if side == BACKEND:
            self.backend.reset()
            self.session.close(ends.CLIENT_RESET, self._cause())
        else:
            self.client.reset()
            self.session.close(ends.BACKEND_RESET, self._cause())

    def end_waiting(self) -> None:
        """Close: lingering, or waiting for an acknowledgement, has lasted long enough (called by the sweep)."""
        if self.resetting:
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
        """Return the bytes that the backend and the client have been given so far."""
        return self.up.given, self.down.given

    def movement(self) -> int:
        """Return a number that changes whenever a byte is read or written."""
        up, down = self.up, self.down
        return 2 * (up.taken + down.taken) - up.pending - down.pending

    def is_holding(self) -> bool:
        """Return whether bytes wait here for a slow peer."""
        return bool(self.up.pending or self.down.pending)

    def is_half_closed(self) -> bool:
        up, down = self.up, self.down
        return up.sink == SHUT or down.sink == SHUT or up.source != FLOWING or down.source != FLOWING

    def is_backends_turn(self) -> bool:
        """Return whether the next move is the backend's: it has been given everything, or takes nothing more."""
        up, down = self.up, self.down
        if down.pending or (down.source == ENDED and not up.pending):
            return False
        return bool(up.pending) or up.source == ENDED

    def uncounted_pauses(self) -> tuple[int, int]:
        """Return (pauses, resumes) since the last call; the caller counts them."""
        up, down = self.up, self.down
        pauses = up.pauses + down.pauses
        resumes = pauses - up.paused - down.paused
        uncounted = pauses - self.counted_pauses, resumes - self.counted_resumes
        self.counted_pauses, self.counted_resumes = pauses, resumes
        return uncounted

    def discharge(self) -> None:
        """Return the pipes, and end every pause: the session is over."""
        for flow in (self.up, self.down):
            flow.discharge()
            flow.paused = False
