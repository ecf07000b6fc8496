"""The rest of one frame on its way from a descriptor to another: copied, or moved by splice(2) while it is long.

RULES: passes on no byte beyond the frame, and reads one at most (`beyond`). Knows no loop and no owner; its return value
says what to wait for. Bytes of a frame that may have to be sent again are copied and kept.

    DONE       the whole frame is written          MORE       the turn's share is used up: pump() in the next turn
    DRY        the source has no more for now      BLOCKED    the sink takes no more for now
    ENDED      the source has ended in the frame   FAILED, LOST  reading or writing has failed with `error`
"""

import errno
import os
from fcntl import ioctl
from os import read, splice, write
from termios import FIONREAD

from balancer.eventloop.errnos import TRANSIENT, UNSPLICEABLE
from balancer.relay.half import LIMIT
from balancer.relay.pipes import Pipe, Pipes

DONE, DRY, BLOCKED, MORE, ENDED, FAILED, LOST = range(7)
BULK = 32_768  # bytes from which the rest of a frame is spliced
SHARE = 1 << 20  # bytes to move in one turn
_GO_ON = -1
_NOTHING = b"\0\0\0\0"
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class FrameTransfer:
    """`rest` is to be written first, `left` bytes are still to be read. With `kept` all that is read is added there."""

    __slots__ = ("_pipe", "_piped", "_pipes", "beyond", "error", "kept", "left", "rest", "sink", "source")

    def __init__(
        self,
        source: int,
        sink: int,
        left: int,
        rest: bytes = b"",
        pipes: Pipes | None = None,
        kept: list[bytes] | None = None,
    ) -> None:
        self.source = source
        self.sink = sink
        self.left = left
        self.rest = rest
        self.kept = kept
        self.error = 0
        self.beyond = 0  # bytes behind the frame that are in the pipe: they go with it
        self._pipes = pipes if kept is None else None
        self._pipe: Pipe | None = None
        self._piped = 0  # bytes in the pipe

    def waiting(self) -> int:
        """Return the bytes that have been read and not written."""
        return len(self.rest) + self._piped

    def begin(self, pipe: Pipe, piped: int, sent: int) -> None:
        """Go on behind the first `piped` bytes of the source, which are in the pipe but for the first `sent`."""
        assert self._pipes is not None
        self._pipe = pipe
        self.beyond = max(0, piped - self.left)
        self._piped = piped - self.beyond - sent
        self._pipes.held += self._piped
        self.left -= piped - self.beyond

    def pump(self) -> int:
        """Move what there is, as much as one turn allows."""
        end = self.left - SHARE
        while True:
            if self.rest or self._piped:
                outcome = self._write()
                if outcome != _GO_ON:
                    return outcome
            if not self.left:
                self.discharge()
                return DONE
            if self.left <= end:
                return MORE
            outcome = self._read()
            if outcome != _GO_ON:
                self.discharge()
                return outcome

    def discharge(self) -> None:
        """Return the pipe; what is in it is lost."""
        if self._pipe is not None and self._pipes is not None:
            self._pipes.held -= self._piped
            self._pipes.give_back(self._pipe, self._piped + self.beyond)
            self._pipe, self._piped = None, 0

    def _write(self) -> int:
        try:
            if self.rest:
                sent = self._put(self.rest)
                self.rest = self.rest[sent:]
                return _GO_ON if not self.rest else BLOCKED
            assert self._pipe is not None and self._pipes is not None
            sent = splice(self._pipe[0], self.sink, self._piped, flags=_FLAGS)
            self._piped -= sent
            self._pipes.held -= sent
            return _GO_ON if not self._piped else BLOCKED
        except OSError as error:
            if error.errno in TRANSIENT:
                return BLOCKED
            self.error = error.errno or errno.EIO
            return LOST

    def _read(self) -> int:
        """Read once; the pipe and `rest` are empty."""
        pipes = self._pipes
        if pipes is not None and self._pipe is None and self.left >= BULK:
            self._pipe = pipes.take()
        try:
            if self._pipe is not None and pipes is not None:
                size = splice(self.source, self._pipe[1], min(self.left, pipes.fill()), flags=_FLAGS)
                self._piped += size
                pipes.held += size
            else:
                self.rest = self._get(min(self.left, LIMIT))
                size = len(self.rest)
        except OSError as error:
            return self._judge(error)
        if not size:
            return ENDED
        self.left -= size
        if self.kept is not None:
            self.kept.append(self.rest)
        return _GO_ON

    def _put(self, data: bytes) -> int:
        return write(self.sink, data)

    def _get(self, size: int) -> bytes:
        return read(self.source, size)

    def _judge(self, error: OSError) -> int:
        if error.errno == errno.EAGAIN:
            return DRY
        if error.errno in TRANSIENT:
            return MORE  # no event follows
        if self._pipe is not None and error.errno in UNSPLICEABLE:
            self.discharge()
            self._pipes = None
            return _GO_ON
        self.error = error.errno or errno.EIO
        return FAILED


def splice_whole(source: int, sink: int, size: int, pipes: Pipes) -> FrameTransfer | None:
    """Move a frame of `size` bytes that is in the source whole to a sink that takes it whole, as with most of them.
    Else, and where something lies behind the frame, return the transfer to go on with."""
    pipe = pipes.take() if size < pipes.fill() else None
    piped = sent = 0
    if pipe is not None:
        try:
            piped = splice(source, pipe[1], size + 1, flags=_FLAGS)
            if piped >= size:
                sent = splice(pipe[0], sink, size, flags=_FLAGS)
        except OSError:
            pass  # the transfer meets it again
        # A pipe whose slots are used up takes no byte more, although one may be there.
        if sent == piped == size and ioctl(source, FIONREAD, _NOTHING) == _NOTHING:
            pipes.give_back(pipe, 0)
            return None
    transfer = FrameTransfer(source, sink, size, pipes=pipes)
    if pipe is not None:
        transfer.begin(pipe, piped, sent)
    return transfer
