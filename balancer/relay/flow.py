"""One half of a session at work: reads the source, writes the sink, by copying or by splice(2).

RULES: knows two streams and the pool of pipes; knows neither the loop nor the session. Edge-triggered: a method goes on
until the source is dry, the sink refuses, or the turn's share is used up. It calls nothing back; its return value says
what the caller has to do.

    pump()   the source has something      flush()   the sink has room again
    QUIET    wait for the next event
    CHANGED  an end was reached or a side is gone: ask `next_step`
    MORE     the turn's share is used up: call pump() again in the next turn
    BLOCKED  as QUIET, and the next event must be room at the sink

Small messages are copied: one read, one write, no state in between. A read of BULK bytes or more turns the half to
splicing, where bytes stay in the kernel: a 100 KB reply costs 37 us instead of 58, 100 MB 20 ms instead of 67. Splicing
needs a descriptor on both sides; a stream without one is copied.
"""

import errno
import os
from os import splice

from balancer.eventloop.errnos import TRANSIENT, UNSPLICEABLE
from balancer.relay.half import GONE, LIMIT, Half
from balancer.relay.pipes import Pipe, Pipes
from balancer.relay.stream import Stream

QUIET, CHANGED, MORE, BLOCKED = range(4)

# Flow.final: what epoll has said of the source's end.
ANNOUNCED = 1  # an end or an error comes: read until it is there
FIN_BEHIND = 2  # TCP, and the FIN is in the receive queue: behind the read that empties the queue is the end

BULK = 32_768
SMALL_BURST = 16_384  # a spliced burst below this ends splicing
SHARE = 4 * LIMIT  # bytes a half may copy in one turn
# Bytes a half may splice in one turn: 0.8 ms. With 1 MiB the waits between the turns cost 8 % of a bulk flow (22.4 ms
# against 20.7 ms for 100 MB, four flows at once, November 2026).
SPLICE_SHARE = 4 << 20
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Flow(Half):
    """A half with its streams and what stands between them."""

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
        "reader",
        "rest",
        "writer",
    )

    def __init__(self, reader: Stream, writer: Stream, pipes: Pipes | None) -> None:
        self.taken = self.pending = self.lost = self.pauses = 0
        self.source = self.sink = 0  # FLOWING, OPEN
        self.paused = self.doomed = False
        self.reader = reader  # the source's stream
        self.writer = writer  # the sink's
        self.pipes = pipes if reader.fd is not None and writer.fd is not None else None  # None: copies only
        self.pipe: Pipe | None = None  # from the first splice of a burst until the source is dry
        self.held = 0  # bytes in the pipe that the pool counts as held
        self.burst = 0  # `taken` when the pipe was lent
        self.bulk = False
        self.final = 0  # 0, ANNOUNCED or FIN_BEHIND
        self.is_waiting = False  # BLOCKED was returned once: the loop reports room at the sink
        self.queued = False  # MORE was returned and the next pump is on its way
        self.rest = b""  # read and not written; of a spliced half, pending bytes are in the pipe instead
        self.error = 0  # errno of what broke source or sink

    def pump(self) -> int:
        """Move what the source has, as much as one turn allows."""
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
        """Write what is pending, now that the sink has room, and resume reading."""
        if self.pending:
            try:
                if self.rest:
                    sent = self.writer.write(self.rest)
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
        """Drop what is pending for a sink that is gone, and from now on what comes."""
        standing = self.pending if not self.rest else 0
        self.rest = b""
        self.sink_gone()
        self._return_pipe(standing)
        self.pipes = None
        self.bulk = False

    def discharge(self) -> None:
        """Return the pipe: the session is over."""
        self._return_pipe(0 if self.rest else self.pending)

    # -- taking over from the fast path

    def look_behind(self, size: int) -> int:
        """Go on behind `size` bytes that the fast path has read and written: they were many, or `final` is set."""
        self.bulk = size >= BULK and self.pipes is not None
        if size < LIMIT and self.final == FIN_BEHIND:
            self.ended()
            return CHANGED
        return self.pump() if size == LIMIT or self.final else QUIET

    def stopped(self, data: bytes, sent: int, error: OSError | None) -> int:
        """Go on behind `data` that the fast path has read, and of which the sink took `sent` bytes."""
        self.took(len(data))
        self.gave(sent)
        if error is not None and error.errno not in TRANSIENT:
            return self._sink_failed(error)
        self.rest = data[sent:]
        self.pause()
        return BLOCKED

    # -- copying

    def _copy(self) -> int:
        """Read once and write what is pending; drop it when the sink is gone. MORE when the source may have more."""
        room = LIMIT - self.pending
        try:
            data, is_dry = self.reader.read(room)
        except OSError as error:
            return self.source_failed(error)
        size = len(data)
        if not size:
            self.ended()
            return CHANGED
        self.took(size)
        if self.sink == GONE:
            return QUIET if is_dry and not self.final else MORE
        self.rest += data
        try:
            sent = self.writer.write(self.rest)
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
        if not is_dry:
            return MORE
        if self.final == FIN_BEHIND:
            self.ended()
            return CHANGED
        return MORE if self.final else QUIET

    # -- splicing

    def _splice(self) -> int:
        """Fill the pipe and empty it. MORE as long as the source has something and the sink takes all of it."""
        pipe = self.pipe or self._take_pipe()
        if pipe is None or self.pipes is None:
            self.bulk = False
            return MORE
        assert self.reader.fd is not None
        try:
            moved = splice(self.reader.fd, pipe[1], self.pipes.fill() - self.pending, flags=_FLAGS)
        except OSError as error:
            return self._splice_failed(error)
        if moved:
            self.taken += moved
            self.pending += moved
        else:
            self.ended()
        return self._empty_pipe()

    def _splice_failed(self, error: OSError) -> int:
        """Judge a splice that moved nothing: the source is dry, the pipe is full, or the kernel does not splice here."""
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
        """Move from the pipe to the sink as much as it takes."""
        assert self.pipe is not None and self.writer.fd is not None
        sent = splice(self.pipe[0], self.writer.fd, self.pending, flags=_FLAGS)
        if self.held:
            self._stands(self.pending - sent)
        return sent

    def _take_pipe(self) -> Pipe | None:
        if self.pipes is not None:
            self.pipe = self.pipes.take()
            self.burst = self.taken
        return self.pipe

    def _return_pipe(self, standing: int) -> None:
        """Return the pipe at the end of a burst. After a small one go back to copying: it saves the third system call."""
        if self.pipe is not None and self.pipes is not None:
            self._stands(0)
            self.pipes.give_back(self.pipe, standing)
            self.pipe = None
            self.bulk = self.taken - self.burst >= SMALL_BURST

    def _stands(self, amount: int) -> None:
        """Tell the pool how many bytes of this half its pipe holds."""
        if self.pipes is not None:
            self.pipes.held += amount - self.held
            self.held = amount

    # -- ends

    def source_failed(self, error: OSError) -> int:
        """Judge a read that failed."""
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
