"""Accepting: from the queues of listening sockets to connections, within every limit.

    acceptor = Acceptor(loop, begin, shortage)      begin(batch): a list of (descriptor, address) pairs
    acceptor.serve(sockets)                         accept from exactly these; call it again when the set changes

RULES: knows descriptors and limits, not what is served. Never closes a listening socket: its queue belongs to the slot.
- Listening sockets are watched level-triggered, because several processes may accept from one queue.
- Accepts per wake-up are bounded: one, doubled up to MAX_ACCEPTS while the queue is found filled turn after turn. One
  more accept(2) that finds nothing costs an exception (1.5 us), one more wake-up 0.5 us.
- Without descriptors, memory or room, all sockets of the acceptor rest: they leave the loop and come back after
  REST_SECONDS. The log has one line about it per REPORT_SECONDS. accept(2) fails with EMFILE even when the queue is
  empty, so an acceptor that asked again at once would spin.
- A listening socket that was shut down (accept fails with EINVAL; a reload removed its address) leaves the loop, where it
  would be reported in every turn, and goes to `on_shutdown`.

For the relay: `begin` gets raw descriptors, blocking ones, and the whole batch, so that it can count all connections
before it begins the first (a worker may be killed in between). `room` is the number of connections this process has
descriptors for. `acquire` takes a place of a shared limit before each accept, `release` gives it back when accept(2)
fails; an `acquire` that returns False ends the wake-up, and it calls `rest` first, with its own time to the next look.
`on_change` is the moment to publish `is_accepting`.
For the resizer and the console: `socket_of` makes a non-blocking socket object of an accepted pair; see connections.py.
"""

import errno
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from balancer.eventloop.errnos import STILLBORN, name_of
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer

MAX_ACCEPTS = 16  # per wake-up of one listening socket
REST_SECONDS = 0.2  # without accepting after running out of something
REPORT_SECONDS = 10.0  # between two log lines about that: there may be many processes

Accepted = tuple[int, Any]  # descriptor, the client's address


def socket_of(accepted: Accepted) -> socket.socket:
    """A non-blocking socket object that owns the accepted descriptor."""
    fd, address = accepted
    family = socket.AF_UNIX
    if isinstance(address, tuple):
        family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, 0, fd)
    sock.setblocking(False)
    return sock


class ShortageLog:
    """The log line about a rest. Acceptors of one process may share one, so that REPORT_SECONDS holds for all of them.

    `fields()` gives what the line says of the process (`sessions=3/3`, `socket=admin`).
    """

    def __init__(self, loop: Loop, log: Log, fields: Callable[[], Mapping[str, object]]) -> None:
        self._loop = loop
        self._log = log
        self._fields = fields
        self._silent_until = loop.now

    def report(self, error: str) -> None:
        """Accepting rests because of `error`: the name of an errno, or `limit`."""
        if self._loop.now >= self._silent_until:
            self._silent_until = self._loop.now + REPORT_SECONDS
            then = f"again in {REST_SECONDS:g} s"
            self._log.warning("accept", error=error, **self._fields(), then=then)


class Acceptor:
    """Listening sockets with one purpose. They rest and resume together."""

    def __init__(
        self,
        loop: Loop,
        begin: Callable[[list[Accepted]], object],
        shortage: ShortageLog,
        *,
        room: Callable[[], int] = lambda: MAX_ACCEPTS,
        acquire: Callable[[], bool] | None = None,
        release: Callable[[], object] = lambda: None,
        on_shutdown: Callable[[socket.socket], object] = lambda sock: None,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self.loop = loop
        self.begin = begin
        self.room = room
        self.acquire = acquire
        self.release = release
        self._shortage = shortage
        self._on_shutdown = on_shutdown
        self._on_change = on_change
        self._queues: dict[int, _Queue] = {}  # watched, or to be watched when accepting resumes
        self._resting: Timer | None = None

    @property
    def is_accepting(self) -> bool:
        return bool(self._queues) and self._resting is None

    def serve(self, sockets: Iterable[socket.socket]) -> None:
        """Accept from exactly these sockets; closed ones are left out. Call this before a socket is closed."""
        queues: dict[int, _Queue] = {}
        for sock in sockets:
            if (fd := sock.fileno()) >= 0:
                known = self._queues.get(fd)
                queues[fd] = known if known is not None and known.sock is sock else _Queue(self, sock)
        for fd, queue in self._queues.items():
            if queues.get(fd) is not queue:
                self._unwatch(fd)
        self._queues = queues
        if self._resting is None:
            self._watch()

    def accept_waiting(self) -> None:
        """Accept all that already waits, as far as the limits go: before these queues are left for good."""
        for queue in list(self._queues.values()):
            while self._resting is None and queue.accept_batch(MAX_ACCEPTS):
                pass

    def rest(self, seconds: float = REST_SECONDS) -> None:
        """Accept nothing for some time, or until `resume`."""
        if self._resting is None:
            self._resting = self.loop.call_later(seconds, self.resume)
            for fd in self._queues:
                self._unwatch(fd)
            self._on_change()

    def resume(self) -> None:
        """End the rest, as far as there is room."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._queues and self.room() <= 0:
            self.run_out("limit")
        else:
            self._watch()

    def run_out(self, error: str) -> None:
        """Rest, and log why."""
        if self._resting is None:
            self._shortage.report(error)
            self.rest()

    def failed(self, sock: socket.socket, code: int) -> None:
        """accept(2) failed with an error that is no single connection's."""
        if code != errno.EINVAL:
            self.run_out(name_of(code))
            return
        self.serve([queue.sock for queue in self._queues.values() if queue.sock is not sock])
        self._on_shutdown(sock)

    def _watch(self) -> None:
        for fd, queue in self._queues.items():
            if not self.loop.is_watched(fd):
                self.loop.watch_level(fd, queue.on_readable)
        self._on_change()

    def _unwatch(self, fd: int) -> None:
        if self.loop.is_watched(fd):
            self.loop.forget(fd)


class _Queue:
    """The queue of one listening socket."""

    __slots__ = ("_accept", "_acceptor", "_burst", "_turn", "sock")

    def __init__(self, acceptor: Acceptor, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        # (fd, address) without the socket object, which costs two system calls and 1.5 us per connection
        self._accept: Callable[[], Accepted] = sock._accept  # type: ignore[attr-defined]
        self._acceptor = acceptor
        self._burst = 1
        self._turn = 0

    def on_readable(self, mask: int) -> None:
        """The queue is not empty, unless another process was faster."""
        turn = self._acceptor.loop.turns
        self._burst = min(self._burst * 2, MAX_ACCEPTS) if turn == self._turn + 1 else 1
        self._turn = turn
        self.accept_batch(self._burst)

    def accept_batch(self, most: int) -> bool:
        """Accept up to `most` connections and begin them; False when the queue is empty or accepting has to stop."""
        acceptor, accept = self._acceptor, self._accept
        acquire, room = acceptor.acquire, acceptor.room()
        batch: list[Accepted] = []
        failure = 0
        for _ in range(min(most, room)):
            if acquire is not None and not acquire():
                failure = errno.EAGAIN
                break
            try:
                batch.append(accept())
            except OSError as error:
                if acquire is not None:
                    acceptor.release()
                if error.errno not in STILLBORN:
                    failure = error.errno or errno.EIO
                    break
        if batch:
            acceptor.begin(batch)
        if len(batch) >= room and acceptor.room() <= 0:
            acceptor.run_out("limit")
            return False
        if failure and failure != errno.EAGAIN:
            acceptor.failed(self.sock, failure)
        return not failure
