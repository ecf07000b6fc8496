"""A session: a client, a backend, two halves, and the one closer.

RULES: moves descriptors and calls `next_step`; the accounting is half.py's, the bytes are flow.py's, choosing and
dialling are dial.py's. Everything ends in `close`, with an end and a reason, exactly once. Holds no reference that
leads back to itself once it is closed (the collector is off in workers).

Who is gone is learnt in three ways, and each keeps the order of what was said:
- a read that fails or ends: everything before it has been read;
- a write that fails: the other direction is read to its end first, because the last answer lies there;
- a hang-up event for a side whose reading is over: nothing else would tell.
"""

import errno
from typing import TYPE_CHECKING

from balancer.prefork.loop import ERROR, HANGUP, READ, READ_HANGUP, URGENT, WRITE
from balancer.relay import ends
from balancer.relay.dial import Dial
from balancer.relay.flow import ANNOUNCED, CHANGED, FIN_BEHIND, MORE, Flow
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
    from balancer.relay.hub import Hub

_DEAD = ERROR | HANGUP
_LAST = READ_HANGUP | HANGUP | ERROR | URGENT
_READABLE = READ | _LAST
_BYTES = READ | WRITE  # the event of every message: something to read, and room as nearly always


class Session(Dial):
    """One client connection plus its backend connection."""

    __slots__ = (
        "answered", "closing_at", "down", "quiet_since", "resetting", "seen", "told_in", "told_out",
        "told_pauses", "told_resumes", "tuned", "up",
    )  # fmt: skip

    def __init__(self, hub: "Hub", client_fd: int, address: object) -> None:
        super().__init__(hub, client_fd, address)
        self.up = Flow(client_fd, -1, hub.pipes)
        self.down = Flow(-1, client_fd, hub.pipes)
        self.quiet_since = self.accepted_at  # as the sweep saw it
        self.answered = False  # of the last bytes the sweep saw, some came from the backend
        self.seen = 0  # the sweep's measure of movement
        self.told_in = self.told_out = 0  # bytes already folded into the board
        self.told_pauses = self.told_resumes = 0
        self.closing_at = 0.0  # when lingering or waiting for acknowledgement ends
        self.resetting = -1  # descriptor to be reset once its peer has acknowledged everything
        self.tuned = False  # the backend socket has its keepalive options

    # -- handlers while relaying

    def connected(self, mask: int) -> None:
        self.connected_at = self.hub.loop.now
        self.up.sink_fd = self.down.source_fd = self.backend_fd
        self.hub.loop.rename(self.client_fd, self.on_client)
        if self.early & _READABLE:
            self.on_client(self.early)
        if mask & _READABLE and not self.closed:
            self.on_backend(mask & ~WRITE)

    def on_client(self, mask: int) -> None:
        if mask != _BYTES:
            self._on_event(mask, self.up, self.down, bool(self.source_ip))
            return
        outcome = self.up.pump()
        if outcome:
            self._after(outcome, self.up)
        if self.down.pending:
            self._flush(self.down)

    def on_backend(self, mask: int) -> None:
        if mask != _BYTES:
            self._on_event(mask, self.down, self.up, self.is_tcp)
            return
        outcome = self.down.pump()
        if outcome:
            self._after(outcome, self.down)
        if self.up.pending:
            self._flush(self.up)

    def _on_event(self, mask: int, source: Flow, sink: Flow, is_tcp: bool) -> None:
        """Any event of one side: `source` reads from it, `sink` writes to it."""
        if mask & _READABLE:
            if mask & _LAST:
                source.final = FIN_BEHIND if mask & _LAST == READ_HANGUP and is_tcp else ANNOUNCED
            outcome = source.pump()
            if outcome:
                self._after(outcome, source)
        if mask & WRITE and (sink.pending or sink.paused):
            self._flush(sink)
        if mask & _DEAD:
            self._hung_up(source, sink)

    def _flush(self, flow: Flow) -> None:
        outcome = flow.flush()
        if outcome:
            self._after(outcome, flow)

    def nudge(self) -> None:
        """The sweep's second look at paused halves: a send that failed for want of memory brings no event."""
        for flow in (self.up, self.down):
            if flow.paused and not self.closed:
                self._flush(flow)

    def _hung_up(self, source: Flow, sink: Flow) -> None:
        """A side is gone in both directions. When its reading is over already, no read will say so."""
        if not self.closed and source.source != FLOWING and sink.sink == OPEN:
            sink.lose_sink()
            self.settle()

    # -- deciding

    def _after(self, outcome: int, flow: Flow) -> None:
        if self.closed:
            return
        if outcome == MORE:
            if not flow.queued:
                flow.queued = True
                self.hub.loop.again(self._pump_up if flow is self.up else self._pump_down)
        elif outcome == CHANGED:
            self.settle()

    def _pump_up(self) -> None:
        self._pump_again(self.up)

    def _pump_down(self) -> None:
        self._pump_again(self.down)

    def _pump_again(self, flow: Flow) -> None:
        flow.queued = False
        if not self.closed:
            outcome = flow.pump()
            if outcome:
                self._after(outcome, flow)

    def settle(self) -> None:
        """An end was reached somewhere: do what the halves ask for, until they ask for nothing."""
        up, down = self.up, self.down
        while not self.closed:
            if (up.source | up.sink | down.source | down.sink) >= BROKEN:  # or GONE: the worst of each is 2
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
                self.close(self._natural_end())
            elif step == SHUT_CLIENT:
                shut_writing(self.client_fd)
                down.shut()
                if up.source == FLOWING and up.sink == OPEN:
                    return
            elif step == SHUT_BACKEND:
                shut_writing(self.backend_fd)
                up.shut()
                if down.source == FLOWING and down.sink == OPEN:
                    return
            else:
                self._end_badly(step)
                return

    def _end_badly(self, step: int) -> None:
        if step == RESET_CLIENT:
            self._reset(self.client_fd)
        elif step == RESET_BACKEND:
            self._reset(self.backend_fd)
        elif step == LINGER:
            self._linger()

    def _follow(self, flow: Flow, back: Flow) -> None:
        """What the state of one half tells about the other."""
        if flow.source == BROKEN and back.sink == OPEN:
            back.lose_sink()
        if flow.sink == GONE and back.source == FLOWING and not back.final:
            back.final = ANNOUNCED
            back.doomed = flow.error not in (0, errno.EPIPE)
            if back.pump() == MORE:
                self._after(MORE, back)

    def _swallow(self, flow: Flow) -> None:
        """Nobody is left to take its bytes. Those that already wait bring no new edge, while their sender, blocked for
        want of room, may read nothing and end nothing until they are gone."""
        if flow.sink == GONE and flow.source == FLOWING:
            self._after(MORE, flow)

    def _may_redial(self) -> bool:
        """The backend reset the session before a byte moved either way: a dial that failed late."""
        up, down = self.up, self.down
        if up.taken or down.taken or up.source != FLOWING or self.retries >= self.hub.retries:
            return False
        if not self._dial_failed(down.error or errno.ECONNRESET):
            return True
        self.up = Flow(self.client_fd, -1, self.hub.pipes)
        self.down = Flow(-1, self.client_fd, self.hub.pipes)
        self.connected_at = 0.0
        self.hub.loop.rename(self.client_fd, self.on_client_early)
        self.dial()
        return True

    def _linger(self) -> None:
        if not self.closing_at:
            self.closing_at = self.hub.loop.now + self.hub.half_close_timeout

    def _reset(self, fd: int) -> None:
        """Pass a reset on: after the last byte sent to this peer has arrived, since RST overtakes what is queued."""
        if self.resetting == fd:
            return
        if self.is_acknowledged(fd):
            self.finish_reset(fd)
        else:
            self.resetting = fd
            self._linger()
            self.hub.await_acknowledgement(self)

    def is_acknowledged(self, fd: int) -> bool:
        """Every byte sent there. A FIN counts as one and need not be: its acknowledgement may be delayed by 40 ms."""
        half = self.up if fd == self.backend_fd else self.down
        return unacknowledged(fd) <= (half.sink == SHUT)

    def finish_reset(self, fd: int) -> None:
        reset_on_close(fd)
        self.close(ends.CLIENT_RESET if fd == self.backend_fd else ends.BACKEND_RESET, self._cause())

    def end_waiting(self) -> None:
        """Lingering or waiting for acknowledgements has lasted long enough (called by the sweep)."""
        if self.resetting >= 0:
            self.finish_reset(self.resetting)
        else:
            self.close(self._natural_end(), "half-close-timeout")

    def _natural_end(self) -> str:
        up, down = self.up, self.down
        if up.source == BROKEN:
            return ends.CLIENT_RESET
        if down.source == BROKEN or up.lost:
            return ends.BACKEND_RESET
        return ends.CLIENT_RESET if down.lost else ends.CLEAN

    def _cause(self) -> str:
        code = self.up.error or self.down.error
        return errno.errorcode.get(code, str(code)) if code else ""

    # -- ending

    def blame_for_silence(self) -> str:
        """Nothing has moved for too long: whose fault is it?"""
        up, down = self.up, self.down
        if not self.backend_fd >= 0 or down.pending or (down.source == ENDED and not up.pending):
            return ends.CLIENT_IDLE
        return ends.BACKEND_IDLE if up.pending or up.source == ENDED else ends.CLIENT_IDLE

    def close(self, end: str, reason: str = "") -> None:
        """The one closer. Descriptors are closed at the end of the batch, counts change after that."""
        if self.closed:
            return
        self.closed = True
        self.end = end
        self.reason = reason
        loop = self.hub.loop
        loop.leave(self.client_fd)
        if self.backend_fd >= 0:
            loop.leave(self.backend_fd)
        self.hub.retire_session(self)
