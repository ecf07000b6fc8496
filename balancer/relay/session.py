"""A session: a client, the dial of a backend for it, the fast path between the two, and the one way to end: `close`.

RULES
- The state is the current handler of each descriptor. Phases that a listener asks for (phases.py) own the client's
  handler first and hand on to `begin`:

      begin  ->  dialling  ->  relaying
      queued for a place  <->  dialling  ->  next backend, or closed

- A backend is counted before the dial and released after the close of its socket. Another backend may be tried until a
  byte of the client has gone upstream. A shortage of this machine (ports, descriptors) is not held against a backend.
- A connect(2) within this machine has succeeded when it returns, and most clients have sent their request before they are
  accepted. So `dial` reads that before a near connect and relays at once: two of five events are left, and a packet less.
- The fast path is for the ordinary case: what is read is written at once and whole, and each side sends FIN when it is
  done. A write that falls short or fails, a read that fails, many bytes at once: the splicing relay takes over for good.
- `close` takes an end and a reason and works once. A closed session is part of no reference cycle: workers run with the
  garbage collector off.
"""

import errno
from _socket import AF_UNIX, SO_ERROR, SOL_SOCKET
from _socket import socket as Socket
from errno import EINPROGRESS
from os import read, write

from balancer.eventloop.errnos import CAPACITY, CROWDED, name_of
from balancer.eventloop.loop import ERROR, READ, READ_HANGUP, URGENT, WRITE
from balancer.pool.backend import Backend
from balancer.pool.election import NONE_TRIED
from balancer.pool.targets import DialTarget, SocketAddress
from balancer.relay import ends
from balancer.relay.activity import Activity
from balancer.relay.flow import BULK
from balancer.relay.framed.client import FramedClient
from balancer.relay.half import LIMIT
from balancer.relay.lane import Lane
from balancer.relay.peers import peer_name
from balancer.relay.sockets import LATE, NODELAY, PROMPT, STREAM, apply, set_acks, shut_writing, write_last
from balancer.relay.sources import connect_from
from balancer.relay.splicing import BACKEND, CLIENT, DEAD, LAST, READABLE, SplicingRelay

_UNUSUAL = ERROR | URGENT


class Session:
    """One client and the backend that serves it."""

    __slots__ = (
        "accepted_at", "acks_late", "activity", "backend", "backend_fd", "backend_is_tcp", "backend_socket", "bytes_in",
        "bytes_out", "client_fd", "client_is_tcp", "closed", "connected_at", "early", "end", "first", "has_nodelay",
        "is_watched", "lane", "over", "peer", "reason", "retries", "source_ip", "splicing", "target", "tried", "waited",
    )  # fmt: skip

    def __init__(self, lane: "Lane[Session]", client_fd: int, address: object) -> None:
        self.lane = lane
        self.client_fd = client_fd
        self.peer = address
        self.client_is_tcp = is_tcp = type(address) is tuple
        self.source_ip: str = address[0] if is_tcp else ""  # type: ignore[index]  # what elections and the log go by
        self.backend: Backend | None = None
        self.backend_socket: Socket | None = None
        self.backend_fd = -1
        self.backend_is_tcp: bool  # with the dial
        self.accepted_at = lane.loop.now
        self.connected_at = self.waited = 0.0  # waited: seconds, for a place
        self.tried: set[int] | frozenset[int] = NONE_TRIED
        self.retries = self.early = 0  # early: events of the client before there is a backend
        self.first = b""  # bytes for the backend that it gets before anything else
        self.is_watched = False  # the client's descriptor is in the loop
        self.has_nodelay = False  # the backend's socket does not hold small writes back
        self.acks_late = False  # ... and holds acknowledgements back until its first bytes
        self.closed = False
        self.target: DialTarget  # with a connect that is under way
        self.end: str  # with the close
        self.reason: str
        self.bytes_in = self.bytes_out = 0  # passed on by the fast path
        self.over = 0  # the side that has sent FIN
        self.splicing: SplicingRelay | FramedClient | None = None  # once it has taken over
        self.activity: Activity | None = None  # once the sweep has seen this session

    def begin(self) -> None:
        """Dial, or join the clients that wait for a place already."""
        queue = self.lane.queue
        if queue.since:
            self.watch_client()
            queue.enqueue(self, queue.why)
        else:
            self.dial()

    # -- before there is a backend

    def watch_client(self) -> None:
        """Have the loop report what the client does while there is something to wait for."""
        if not self.is_watched:
            self.is_watched = True
            self.lane.loop.watch_reading(self.client_fd, self.on_client_early)

    def on_client_early(self, mask: int) -> None:
        """Remember an event of the client; its bytes stay in the kernel."""
        self.early |= mask
        if mask & DEAD:
            is_queued = self in self.lane.queue.since
            self.close(ends.CLIENT_LEFT_QUEUED if is_queued else ends.CLIENT_LEFT_CONNECTING)

    def on_backend_dialling(self, mask: int) -> None:
        """Judge the outcome of the connect."""
        if mask & DEAD and self.backend_socket is not None:
            code = self.backend_socket.getsockopt(SOL_SOCKET, SO_ERROR)
            self._connect_failed(code or errno.ECONNREFUSED)
        elif mask & WRITE:
            lane = self.lane
            lane.count_connect(lane.loop.now - lane.dialling.pop(self))
            lane.loop.set_handler(
                self.backend_fd, self.on_backend_first if self.acks_late else self.on_backend
            )
            self.connected(mask)

    def on_connect_timeout(self) -> None:
        """Try another backend: the connect has taken too long (called by the sweep)."""
        self._connect_failed(errno.ETIMEDOUT)

    def _connect_failed(self, code: int) -> None:
        """Dial the next address of the backend, or another backend."""
        target = self._next_address(self.target, code)
        if target is not None or self.dial_failed(code):
            self.dial(target)

    def dial(self, target: DialTarget | None = None) -> None:
        """Elect and connect until a connect is under way; queue the session or close it when no backend is to be had.
        `target` is the next address of a backend that was elected before."""
        lane, elector = self.lane, self.lane.elector
        while True:
            if target is None:
                backend = self.backend = elector.elect(self.source_ip, self.tried)
                if backend is None:
                    self._without_backend()
                    return
                target = elector.target(backend)
            family, address, is_near, _ = target
            if is_near and not self.first and not self.read_first():
                return
            try:
                self.backend_socket = sock = lane.new_socket(family, STREAM)
            except OSError as error:
                code = error.errno or errno.EIO  # this machine may lack one family only
            else:
                self.backend_fd = sock.fileno()
                self.backend_is_tcp = family != AF_UNIX
                if is_near and self.first and self.backend_is_tcp:
                    self.acks_late = True
                    set_acks(sock, LATE)
                code = sock.connect_ex(address) if not lane.has_sources else self._connect_from(sock, address)
            if code and code != EINPROGRESS:
                target = self._next_address(target, code)
                if target is None and not self._pass_by(code) and not self.dial_failed(code):
                    return
                continue
            if lane.queue.since:  # a backend without a place at the moment has left it in the queue
                lane.queue.remove(self)
            if is_near and self._relay_at_once():
                return
            self._await_connect(target, code)
            return

    def _await_connect(self, target: DialTarget, code: int) -> None:
        """Wait for the outcome of a connect. `code` 0: a unix socket is connected, whatever its backend does next."""
        lane = self.lane
        self.watch_client()
        if code:
            self.target = target
            lane.dialling[self] = lane.loop.now
            lane.loop.watch(self.backend_fd, self.on_backend_dialling)
        else:
            lane.loop.watch(self.backend_fd, self.on_backend)
            self.connected(0)

    def _connect_from(self, sock: Socket, address: SocketAddress) -> int:
        """Connect from one of the backend's `source` addresses, if it has some; return the errno."""
        lane, backend = self.lane, self.backend
        if backend is None or not backend.sources:
            return sock.connect_ex(address)
        lane.next_source += 1
        turn, new_socket = lane.next_source, lane.new_socket
        self.backend_socket, code = connect_from(backend.sources, turn, sock, address, new_socket)
        self.backend_fd = self.backend_socket.fileno()
        return code

    def _next_address(self, target: DialTarget, code: int) -> DialTarget | None:
        """Return what to dial after one of several addresses of the backend could not be reached; None when it was the
        last, or when the next one would fail as well (this machine is out of something)."""
        lane, backend, following = self.lane, self.backend, target[3]
        if backend is None or following is None or (code in CAPACITY and code not in CROWDED):
            return None
        lane.dialling.pop(self, None)
        lane.elector.address_failed(backend, target)
        fields = {"backend": backend.identity, "address": target[1][0], "error": name_of(code)}
        lane.context.log.debug("connect", client=self.peer_name(), **fields)
        if self.backend_socket is not None:
            lane.loop.forget_closing(self.backend_fd)
            lane.loop.retire(self.backend_socket.close)
        self.backend_socket = None
        self.backend_fd = -1
        self.acks_late = False
        return following

    def _pass_by(self, code: int) -> bool:
        """Leave a backend that has no place now (CROWDED) for another one; return whether this is so. `~index` in `tried`
        says that it has not failed."""
        backend = self.backend
        if code not in CROWDED or backend is None:
            return False
        if code == errno.EADDRNOTAVAIL:
            self.lane.context.log_shortage(code, then="another backend, or the queue")
        self._abandon_backend(backend)
        self.tried = {*self.tried, ~backend.index}
        return True

    def _without_backend(self) -> None:
        """No backend could be elected: wait for a place, or close."""
        why = self.lane.elector.why
        if any(mark < 0 for mark in self.tried):
            self.tried = {index for index in self.tried if index >= 0 and ~index not in self.tried}
            self.watch_client()
            self.lane.queue.enqueue(self, "full")
            self.lane.queue.look_soon()
        elif why != "down":
            self.watch_client()
            self.lane.queue.enqueue(self, why)
        else:
            self.close(ends.NO_BACKEND, "all backends tried" if self.tried else "no backend is up")

    def dial_failed(self, code: int) -> bool:
        """Give the backend up. Return True when another one may be dialled; else the session is closed."""
        lane, backend = self.lane, self.backend
        lane.dialling.pop(self, None)
        if code in CAPACITY:
            lane.context.log_shortage(code)
            self.close(ends.OWN_RESOURCES, name_of(code))
            return False
        assert backend is not None
        lane.elector.connect_failed(backend)
        tries = self.retries + 1
        fields = {"backend": backend.identity, "error": name_of(code), "tries": tries}
        lane.context.log.debug("connect", client=self.peer_name(), **fields)
        if self.retries >= lane.retries:
            self.close(ends.CONNECT_TIMEOUT if code == errno.ETIMEDOUT else ends.NO_BACKEND, name_of(code))
            return False
        self._abandon_backend(backend)
        self.retries = tries
        lane.account.retried()
        return True

    def _abandon_backend(self, backend: Backend) -> None:
        """Drop the backend for another one: its socket is closed, and its count released, at the end of the batch."""
        sock = self.backend_socket
        self.tried = {*self.tried, backend.index}
        self.backend = self.backend_socket = None
        self.has_nodelay = self.acks_late = False
        if sock is not None:
            self.lane.loop.forget_closing(self.backend_fd)
        self.backend_fd = -1
        self.lane.drop_backend(self, sock, backend)

    def dial_again(self, code: int) -> bool:
        """Try another backend after one that broke with `code` before any byte moved; False when retries are used up."""
        if self.retries >= self.lane.retries:
            return False
        if self.dial_failed(code):
            self.splicing = None
            self.connected_at = 0.0
            self.lane.loop.set_handler(self.client_fd, self.on_client_early)
            self.dial()
        return True

    # -- the first bytes

    def read_first(self) -> bool:
        """Read what the client has sent before its dial. Return False for one that turns out to be gone."""
        try:
            self.first = self.lane.early.read(self.client_fd)
        except OSError:
            self.close(ends.CLIENT_LEFT_CONNECTING)
            return False
        return True

    def _relay_at_once(self) -> bool:
        """Write the client's first bytes, if it has sent some, right after connect(2). Return whether that was so."""
        data = self.first
        if not data:
            return False
        try:
            sent = write(self.backend_fd, data)
        except OSError:  # not connected yet, or refused: the loop reports which
            return False
        loop = self.lane.loop
        self.connected_at = loop.now
        self.first = b""
        loop.watch_reading(self.backend_fd, self.on_backend_first if self.acks_late else self.on_backend)
        # Either way the loop reports what is left of the client's: an end, or the rest of a big read.
        if self.is_watched:
            loop.set_handler(self.client_fd, self.on_client_again)
            loop.rearm(self.client_fd)
        else:
            self.is_watched = True
            loop.watch_reading(self.client_fd, self.on_client_again)
        if sent == len(data):
            self.bytes_in += sent
        else:
            self._stopped(CLIENT, data, sent)
        return True

    def connected(self, mask: int) -> None:
        """Relay: the connect has succeeded. `mask` is what the loop has reported of the backend."""
        loop = self.lane.loop
        self.connected_at = loop.now
        loop.set_handler(self.client_fd, self.on_client)
        self._set_nodelay()
        if self.first:
            data, self.first = self.first, b""
            try:
                sent = write(self.backend_fd, data)
            except OSError as error:
                self._stopped(CLIENT, data, 0, error)
            else:
                if sent == len(data):
                    self.bytes_in += sent
                else:
                    self._stopped(CLIENT, data, sent)
        if self.early & READABLE and not self.closed:
            (self.splicing or self).on_client(self.early)
        if mask & READABLE and not self.closed:
            (self.splicing or self).on_backend(mask & ~WRITE)

    def on_client_again(self, mask: int) -> None:
        """Handle the next event of a client whose first bytes went to a near backend at once. Bytes need TCP_NODELAY from
        here on; FIN does not, so a connection with one request saves the system call."""
        if not mask & READ_HANGUP:
            self.lane.loop.set_handler(self.client_fd, self.on_client)
            self._set_nodelay()
        self.on_client(mask)

    def on_backend_first(self, mask: int) -> None:
        """Handle the first event of a backend that is acknowledged late: from now on at once, unless this is its end."""
        handler = (self.splicing or self).on_backend
        if not mask & READ_HANGUP and self.backend_socket is not None:
            self.acks_late = False
            self.lane.loop.set_handler(self.backend_fd, handler)
            set_acks(self.backend_socket, PROMPT)
        handler(mask)

    def _set_nodelay(self) -> None:
        if self.backend_is_tcp and not self.has_nodelay and self.backend_socket is not None:
            self.has_nodelay = True
            apply(self.backend_socket, NODELAY)

    # -- the fast path: the two handlers are written out because one more call costs every message 0.1 us

    def on_client(self, mask: int) -> None:
        if mask != READ and mask & LAST:
            self._on_last(CLIENT, mask)
            return
        data = b""
        try:
            data = read(self.client_fd, LIMIT)
            sent = write(self.backend_fd, data) if data else -1
        except OSError as error:
            self._stopped(CLIENT, data, 0, error)
            return
        if sent != len(data):
            self._stopped(CLIENT, data, sent)
            return
        self.bytes_in += sent
        if sent >= BULK:
            self.take_over().look_behind(CLIENT, sent, mask)

    def on_backend(self, mask: int) -> None:
        if mask != READ:
            if mask & LAST:
                self._on_last(BACKEND, mask)
                return
            if mask == WRITE:  # of a far backend, whose connect waited for it
                return
        data = b""
        try:
            data = read(self.backend_fd, LIMIT)
            sent = write(self.client_fd, data) if data else -1
        except OSError as error:
            self._stopped(BACKEND, data, 0, error)
            return
        if sent != len(data):
            self._stopped(BACKEND, data, sent)
            return
        self.bytes_out += sent
        if sent >= BULK:
            self.take_over().look_behind(BACKEND, sent, mask)

    def _on_last(self, side: int, mask: int) -> None:
        """Handle an event that announces the end of a side. On TCP, EPOLLRDHUP without a reset says that FIN follows a
        short read: one packet for both. EPOLLHUP adds to it only that this side has been sent FIN."""
        if mask & _UNUSUAL or self.over == side:
            relay = self.take_over()
            (relay.on_client if side == CLIENT else relay.on_backend)(mask)
            return
        try:
            data = read(self.client_fd if side == CLIENT else self.backend_fd, LIMIT)
        except OSError as error:
            self._stopped(side, b"", 0, error)
            return
        if data:
            self._give_last(side, mask, data)
        else:
            self._ended(side)

    def _give_last(self, side: int, mask: int, data: bytes) -> None:
        sink, is_tcp = (
            (self.backend_fd, self.client_is_tcp) if side == CLIENT else (self.client_fd, self.backend_is_tcp)
        )
        is_last = is_tcp and len(data) < BULK
        try:
            sent = write_last(sink, data) if is_last else write(sink, data)
        except OSError as error:
            self._stopped(side, data, 0, error)
            return
        if sent != len(data):
            self._stopped(side, data, sent)
            return
        if side == CLIENT:
            self.bytes_in += sent
        else:
            self.bytes_out += sent
        if is_last:
            self._ended(side)
        else:
            self.take_over().look_behind(side, sent, mask)

    def _stopped(self, side: int, data: bytes, sent: int, error: OSError | None = None) -> None:
        """Go on where a read of this side has failed or returned the end, or where a write has failed or fallen short."""
        if data:
            self.take_over().write_failed(side, data, sent, error)
        elif error is None:
            self._ended(side)
        elif error.errno != errno.EAGAIN:
            self.take_over().read_failed(side, error)

    def _ended(self, side: int) -> None:
        """Pass FIN on; everything before it has been written."""
        if self.over:
            if self.over != side:
                self.close(ends.CLEAN)
            return
        self.over = side
        if side == BACKEND and not self.bytes_out:
            self.ended_early()
        shut_writing(self.backend_fd if side == CLIENT else self.client_fd)

    def ended_early(self) -> None:
        """Count it against the backend that it has ended before the client and before its first byte."""
        assert self.backend is not None
        lane = self.lane
        lane.elector.ended_early(self.backend, lane.loop.now - self.connected_at, self.given()[0] > 0)

    def take_over(self) -> SplicingRelay:
        """Leave the fast path: the splicing relay gets the handlers for good."""
        self._set_nodelay()
        loop = self.lane.loop
        self.splicing = relay = self._make_relay()
        loop.set_handler(self.client_fd, relay.on_client)
        loop.set_handler(self.backend_fd, self.on_backend_first if self.acks_late else relay.on_backend)
        return relay

    def _make_relay(self) -> SplicingRelay:
        lane = self.lane
        return SplicingRelay(self, lane.loop, lane.pipes, lane.linger_limit, lane.await_acknowledgement)

    # -- asked by the sweep, the drain and the closer

    def peer_name(self) -> str:
        return peer_name(self.peer)

    def given(self) -> tuple[int, int]:
        """Return the bytes that the backend and the client have been given so far."""
        return (self.bytes_in, self.bytes_out) if self.splicing is None else self.splicing.given()

    def movement(self) -> int:
        """Return a number that changes whenever a byte is read or written."""
        return 2 * (self.bytes_in + self.bytes_out) if self.splicing is None else self.splicing.movement()

    # -- the end

    def close(self, end: str, reason: str = "") -> None:
        """End the session. The closer closes its descriptors at the end of the batch, and counts it after that."""
        if self.closed:
            return
        self.closed = True
        self.end = end
        self.reason = reason
        self.lane.end_session(self)


SessionLane = Lane[Session]
