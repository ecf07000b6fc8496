"""A TCP check: connects to one backend without blocking, sees that the connection stays, calls `done` with the outcome.

A process that is out of descriptors, and a proxy whose own backend is gone, accept and close at once: connect(2) says
nothing of it. So the connection is kept for STAYS. A first byte (a banner) ends the wait.

A backend that expects a PROXY header gets one before the wait, so its log has no complaint about a missing one.

RULES: knows sockets and the loop, nothing of verdicts. Every probe ends in exactly one call of `done`, also when its
time limit ends it; it holds one descriptor for as long as it lasts.
"""

import errno
import socket
from collections.abc import Callable
from contextlib import suppress

from balancer.edge.proxy_protocol import Endpoint, SendProxy, endpoint_of, write_v1, write_v2
from balancer.eventloop.errnos import CAPACITY, CROWDED, REFUSED, UNREACHABLE
from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer
from balancer.pool.targets import Target

STAYS = 0.1  # seconds that a connection must stay open; no more than the time limit leaves

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


def check_header(send: SendProxy, sock: socket.socket) -> bytes:
    """Return the PROXY header of a check: LOCAL in version 2. Version 1 has no such word but UNKNOWN, from which the
    specification dissuades (section 2.1), so it names the two ends of the connection."""
    if send.version == 2:
        return write_v2(None, None)
    own, there = _endpoint(sock.getsockname()), _endpoint(sock.getpeername())
    return write_v1(own, there)


def _endpoint(address: object) -> Endpoint | None:
    return endpoint_of(address) if isinstance(address, tuple) else None


class Probe:
    """A connect under way, then its connection. The peer sees one that is closed without a byte, or with a PROXY header
    alone when the pool sends one."""

    def __init__(
        self,
        loop: Loop,
        target: Target,
        timeout: float,
        done: Done,
        send_proxy: SendProxy | None = None,
        make_socket: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self._loop = loop
        self._done = done
        self._send_proxy = send_proxy
        self._begun = loop.now
        self._deadline = loop.now + timeout
        self._connected_after = -1.0  # seconds
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
        if error not in (0, errno.EINPROGRESS):
            sock.close()
            self._sock = None
            self._end(outcome_of(error))
            return
        loop.watch(sock.fileno(), self._on_event)
        if error:
            self._timer = loop.call_at(self._deadline, self._on_timeout)
        else:
            self._on_event(0)

    @property
    def is_over(self) -> bool:
        """`done` was called, or the probe was abandoned."""
        return self._sock is None

    def abandon(self) -> None:
        """Give up without an answer; `done` is not called."""
        self._release()

    def _on_event(self, mask: int) -> None:
        if self._sock is None:
            return
        if self._connected_after < 0:
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            # ECONNRESET is a reset behind a connect that has succeeded; one that is refused gives ECONNREFUSED.
            if error not in (0, errno.ECONNRESET):
                self._end(outcome_of(error))
                return
            self._connected()
        self._look()

    def _connected(self) -> None:
        self._connected_after = self._loop.now - self._begun
        if self._send_proxy is not None:
            assert self._sock is not None
            with suppress(OSError):  # the peer has gone already, which _look finds
                self._sock.send(check_header(self._send_proxy, self._sock))
        if self._timer is not None:
            self._timer.cancel()
        until = min(self._loop.now + STAYS, self._deadline)
        self._timer = self._loop.call_at(until, self._on_stayed)

    def _look(self) -> None:
        """End with what the peer has done since the connect, if anything."""
        assert self._sock is not None
        try:
            data = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._end("ok" if data else "closed")

    def _on_stayed(self) -> None:
        self._end("ok")

    def _on_timeout(self) -> None:
        self._end("timeout")

    def _end(self, outcome: str) -> None:
        self._release()
        is_ok = outcome == "ok"
        self._done(outcome, self._connected_after if is_ok else self._loop.now - self._begun)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            self._loop.retire(self._sock.close)
            self._sock = None
