"""One half with its descriptors: reads the source, writes the sink, by copying or by splice(2).

RULES: knows two descriptors and the pool of pipes; knows neither the loop nor the session. Edge-triggered: every
verb goes on until the source is dry (a short read, or EAGAIN), the sink refuses, or the turn's share is used up.
What the caller has to do is the return value; nothing calls back.

    pump()   the source has something      flush()   the sink has room again
    QUIET    wait for the next event
    CHANGED  an end was reached or a side is gone: ask `next_step`
    MORE     the turn's share is used up: call pump() again in the next turn
    BLOCKED  as QUIET, and what the next event must be is room at the sink

Small messages are copied: one read, one write, no state in between. A read of BULK bytes or more turns the half to
splicing, where bytes stay in the kernel: a 100 KB reply costs 37 us instead of 58, 100 MB 20 ms instead of 67.
"""

import errno
import os
from os import read, splice, write

from balancer.eventloop.errnos import TRANSIENT, UNSPLICEABLE
from balancer.relay.half import GONE, LIMIT, Half
from balancer.relay.pipes import Pipe, Pipes

QUIET, CHANGED, MORE, BLOCKED = range(4)

# How `final` a flow is: what is known of its source's end.
ANNOUNCED = 1  # it comes soon, as an end or an error: read until it is seen
FIN_BEHIND = 2  # TCP, and the FIN is in the receive queue: what a short read leaves behind is the end

BULK = 32_768
SMALL_BURST = 16_384  # a spliced burst below this ends splicing
SHARE = 4 * LIMIT  # bytes a half may copy in one turn
# Bytes a half may splice in one turn: 0.8 ms. With 1 MiB the waits between the turns cost 8 % of a bulk flow (22.4 ms
# against 20.7 ms for 100 MB, four flows at once, November 2026).
SPLICE_SHARE = 4 << 20
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Flow(Half):
    """A half at work."""

    __slots__ = (
        "bulk",
        "burst",
        "error",
        "final",
        "held",
        "is_waiting",
        "pipe",
        "pipes",
        "queued",
        "rest",
        "sink_fd",
        "source_fd",
    )

    def __init__(self, source_fd: int, sink_fd: int, pipes: Pipes | None) -> None:
        self.taken = self.pending = self.lost = self.pauses = 0
        self.source = self.sink = 0  # FLOWING, OPEN
        self.paused = self.doomed = False
        self.source_fd = source_fd
        self.sink_fd = sink_fd
        self.pipes = pipes  # None: this half only copies
        self.pipe: Pipe | None = None  # held from the first splice until it runs dry
        self.held = 0  # bytes of ours the pool knows to stand in the pipe
        self.burst = 0  # `taken` when the pipe was lent
        self.bulk = False
        self.final = 0  # 0: a short read means dry for now
        self.is_waiting = False  # BLOCKED was returned once: the loop tells of room at the sink
        self.queued = False  # MORE was returned and the next pump is on its way
        self.rest = b""  # read but not written; when spliced, pending bytes are in the pipe instead
        self.error = 0  # errno of what broke source or sink

    def pump(self) -> int:
        """Move what the source has, as much as a turn allows."""
        if self.paused or self.source:
            return QUIET
        moved = 0
        while moved < SHARE:
            before = self.taken
            if self.bulk and not self.rest:
                outcome = self._splice()
                moved += (self.taken - before) * SHARE // SPLICE_SHARE
            else:
                outcome = self._copy()
                moved += self.taken - before
            if outcome != MORE:
                return outcome
        return MORE

    def flush(self) -> int:
        """The sink has room: give it what is pending, and resume reading."""
        if self.pending:
            try:
                if self.rest:
                    sent = write(self.sink_fd, self.rest)
                    self.rest = self.rest[sent:]
                else:
                    sent = self._unload()
            except OSError as error:
                if error.errno in TRANSIENT:
                    return QUIET
                return self._sink_failed(error)
            self.gave(sent)
        else:
            self.paused = False
        if self.source:
            return QUIET if self.pending else CHANGED
        return QUIET if self.paused else self.pump()

    def lose_sink(self) -> None:
        """The sink is gone: forget what waits for it, and from now on throw away what comes."""
        standing = self.pending if not self.rest else 0
        self.rest = b""
        self.sink_gone()
        self._return_pipe(standing)
        self.pipes = None
        self.bulk = False

    def discharge(self) -> None:
        """The session is over: return the pipe."""
        self._return_pipe(0 if self.rest else self.pending)

    # -- taking over from the fast path

    def look_behind(self, size: int) -> int:
        """`size` bytes have been read and written: many, or what is known of the source's end is in `final`."""
        self.bulk = size >= BULK and self.pipes is not None
        if size < LIMIT and self.final == FIN_BEHIND:
            self.ended()
            return CHANGED
        return self.pump() if size == LIMIT or self.final else QUIET

    def stopped(self, data: bytes, sent: int, error: OSError | None) -> int:
        """`data` has been read, the sink took `sent` bytes of it and then no more."""
        self.took(len(data))
        self.gave(sent)
        if error is not None and error.errno not in TRANSIENT:
            return self._sink_failed(error)
        self.rest = data[sent:]
        self.pause()
        return BLOCKED

    # -- copying

    def _copy(self) -> int:
        """One read behind whatever is pending, or into nowhere; MORE when the source may have more."""
        room = LIMIT - self.pending
        try:
            data = read(self.source_fd, room)
        except OSError as error:
            return self.source_failed(error)
        size = len(data)
        if not size:
            self.ended()
            return CHANGED
        self.took(size)
        if self.sink == GONE:
            return MORE if size == room or self.final else QUIET
        self.rest += data
        try:
            sent = write(self.sink_fd, self.rest)
        except OSError as error:
            if error.errno not in TRANSIENT:
                return self._sink_failed(error)
            sent = 0
        self.rest = self.rest[sent:]
        self.gave(sent)
        if self.pending:
            self.pause()
            return BLOCKED
        if size >= BULK:
            self.bulk = self.pipes is not None
            if size == room:
                return MORE
        if self.final == FIN_BEHIND:
            self.ended()
            return CHANGED
        return MORE if self.final else QUIET

    # -- splicing

    def _splice(self) -> int:
        """Fill the pipe, empty it; MORE as long as the source has something and the sink takes it all."""
        pipe = self.pipe or self._take_pipe()
        if pipe is None or self.pipes is None:
            self.bulk = False
            return MORE
        try:
            moved = splice(self.source_fd, pipe[1], self.pipes.fill() - self.pending, flags=_FLAGS)
        except OSError as error:
            return self._splice_failed(error)
        if moved:
            self.taken += moved
            self.pending += moved
        else:
            self.ended()
        return self._empty_pipe()

    def _splice_failed(self, error: OSError) -> int:
        """The source gave nothing: it is dry, or the pipe is full of what stands in it, or there is no splicing."""
        if error.errno in TRANSIENT:
            if self.pending:
                self.pause()
                return BLOCKED
            self._return_pipe(0)
            return QUIET
        if error.errno in UNSPLICEABLE and not self.pending:
            self._return_pipe(0)
            self.pipes = None
            self.bulk = False
            return MORE
        outcome = self.source_failed(error)
        if not self.pending:
            self._return_pipe(0)
        return outcome

    def _empty_pipe(self) -> int:
        if self.pending:
            try:
                self.gave(self._unload())
            except OSError as error:
                if error.errno not in TRANSIENT:
                    return self._sink_failed(error)
            if self.pending:
                self.pause()
                self._stands(self.pending)
                return BLOCKED
        if self.source:
            self._return_pipe(0)
            return CHANGED
        return MORE

    def _unload(self) -> int:
        """Pipe to sink, as much as it takes."""
        assert self.pipe is not None
        sent = splice(self.pipe[0], self.sink_fd, self.pending, flags=_FLAGS)
        if self.held:
            self._stands(self.pending - sent)
        return sent

    def _take_pipe(self) -> Pipe | None:
        if self.pipes is not None:
            self.pipe = self.pipes.take()
            self.burst = self.taken
        return self.pipe

    def _return_pipe(self, standing: int) -> None:
        """The burst is over. A small one is not worth the third system call: back to copying."""
        if self.pipe is not None and self.pipes is not None:
            self._stands(0)
            self.pipes.give_back(self.pipe, standing)
            self.pipe = None
            self.bulk = self.taken - self.burst >= SMALL_BURST

    def _stands(self, amount: int) -> None:
        """Tell the pool how much of this half's stands in a pipe."""
        if self.pipes is not None:
            self.pipes.held += amount - self.held
            self.held = amount

    # -- ends

    def source_failed(self, error: OSError) -> int:
        """A read failed."""
        code = error.errno
        if code == errno.EAGAIN:
            return QUIET
        if code in TRANSIENT:
            self.pause()  # the sweep tries again
            return QUIET
        self.error = code or errno.EIO
        self.broke()
        return CHANGED

    def _sink_failed(self, error: OSError) -> int:
        self.error = error.errno or errno.EIO
        self.lose_sink()
        return CHANGED
