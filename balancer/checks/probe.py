"""A TCP check: connects to one backend without blocking and calls `done` with the outcome.

RULES: knows sockets and the loop, nothing of verdicts. Every probe ends in exactly one call of `done`, also when its
time limit ends it; it holds one descriptor for as long as it lasts.
"""

import errno
import socket
from collections.abc import Callable

from balancer.eventloop.errnos import CAPACITY, CROWDED, REFUSED, UNREACHABLE
from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer
from balancer.pool.targets import Target

# (outcome, seconds): "ok" or another of board.CHECK_NAMES, "" = the check could not be made
Done = Callable[[str, float], object]


def outcome_of(error: int) -> str:
    """The word for the errno that connect() gave."""
    if error == 0:
        return "ok"
    if error in CAPACITY or error in CROWDED:
        return ""
    if error == errno.ETIMEDOUT:
        return "timeout"
    return "refused" if error in REFUSED else "unreachable" if error in UNREACHABLE else "error"


class Probe:
    """A connect under way. The peer sees a connection that is closed without a byte."""

    def __init__(
        self,
        loop: Loop,
        target: Target,
        timeout: float,
        done: Done,
        make_socket: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self._loop = loop
        self._done = done
        self._begun = loop.now
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        family, address = target
        try:
            sock = make_socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as failure:
            self._end(outcome_of(failure.errno or 0) if failure.errno in CAPACITY else "error")
            return
        self._sock = sock
        error = sock.connect_ex(address)
        if error != errno.EINPROGRESS:
            sock.close()
            self._sock = None
            self._end(outcome_of(error))
            return
        loop.watch(sock.fileno(), self._on_event)
        self._timer = loop.call_at(loop.now + timeout, self._on_timeout)

    @property
    def is_over(self) -> bool:
        """`done` was called, or the probe was abandoned."""
        return self._sock is None

    def abandon(self) -> None:
        """Give up without an answer; `done` is not called."""
        self._release()

    def _on_event(self, mask: int) -> None:
        if self._sock is not None:
            self._end(outcome_of(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))

    def _on_timeout(self) -> None:
        self._end("timeout")

    def _end(self, outcome: str) -> None:
        self._release()
        self._done(outcome, self._loop.now - self._begun)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            self._loop.retire(self._sock.close)
            self._sock = None
