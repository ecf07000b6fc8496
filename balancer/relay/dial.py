"""The first part of a session's life: from an accepted client to a backend that has answered the dial.

RULES: the state is the current handler of each descriptor. A backend is counted before it is dialled and released after
its socket is closed. While no byte of the client has gone upstream another backend may be tried; what is this
machine's own shortage (ports, descriptors) is never held against a backend.

    waiting for the first byte (--defer-connect)  ->  dialling  ->  relaying (session.py)
                 queued for a place  <->  dialling  ->  next backend, or refused

A dial within this machine is over before connect(2) returns, and a client has mostly spoken before it is accepted. So
there both are tried at once (`relay_at_once`): of the five events of a connection with one request two are left.
"""

import errno
from _socket import AF_UNIX, SO_ERROR, SOL_SOCKET
from _socket import socket as Socket
from typing import TYPE_CHECKING

from balancer.eventloop.errnos import CAPACITY, name_of
from balancer.eventloop.loop import ERROR, HANGUP, WRITE
from balancer.pool.backend import Backend
from balancer.pool.election import NONE_TRIED
from balancer.relay import ends
from balancer.relay.sockets import STREAM

if TYPE_CHECKING:
    from balancer.relay.activity import Activity
    from balancer.relay.hub import Hub
    from balancer.relay.splicing import SplicingRelay

_DEAD = ERROR | HANGUP


class Dial:
    """A client in search of a backend. `Session` continues it."""

    __slots__ = (
        "accepted_at",
        "activity",
        "backend",
        "backend_fd",
        "backend_socket",
        "bytes_in",
        "bytes_out",
        "client_fd",
        "closed",
        "connected_at",
        "early",
        "end",
        "first",
        "hub",
        "is_prompt",
        "is_tcp",
        "is_watched",
        "over",
        "peer",
        "reason",
        "retries",
        "source_ip",
        "splicing",
        "tried",
    )  # fmt: skip

    def __init__(self, hub: "Hub", client_fd: int, address: object) -> None:
        self.hub = hub
        self.client_fd = client_fd
        self.peer = address
        self.source_ip: str = address[0] if type(address) is tuple else ""
        self.backend: Backend | None = None
        self.backend_socket: Socket | None = None
        self.backend_fd = -1
        self.accepted_at = hub.loop.now
        self.connected_at = 0.0
        self.tried: set[int] | frozenset[int] = NONE_TRIED
        self.retries = self.early = 0  # early: what epoll said of the client before anyone could act on it
        self.first = b""  # read of the client for a backend that could not take it yet
        self.is_watched = False  # the loop tells of the client
        self.is_prompt = False  # the backend's socket does not hold small writes back
        self.closed = False
        self.end: str  # with the closing
        self.reason: str
        # What the relay will need, made here: a constructor of its own would cost every session 0.2 us.
        self.bytes_in = self.bytes_out = 0  # passed on by the fast path
        self.over = 0  # the side that has said FIN
        self.splicing: SplicingRelay | None = None  # the splicing relay, once it is needed
        self.activity: Activity | None = None  # what the sweep remembers, once it has been here

    def begin(self) -> None:
        """Take charge of the client."""
        hub = self.hub
        if hub.defer_connect:
            self.is_watched = True
            hub.loop.watch_reading(self.client_fd, self.on_first_byte)
        elif hub.queue.since:
            self.mind_client()
            hub.queue.enqueue(self)
        else:
            self.dial()

    def mind_client(self) -> None:
        """There is something to wait for: notice what the client does meanwhile."""
        if not self.is_watched:
            self.is_watched = True
            self.hub.loop.watch_reading(self.client_fd, self.on_client_early)

    # -- handlers

    def on_first_byte(self, mask: int) -> None:
        """--defer-connect: the client has spoken (or left, which the early handler knows how to judge)."""
        self.hub.loop.set_handler(self.client_fd, self.on_client_early)
        self.on_client_early(mask)
        if not self.closed:
            self.dial()

    def on_client_early(self, mask: int) -> None:
        """Something of the client while there is no backend yet: remember; leave its bytes in the kernel."""
        self.early |= mask
        if mask & _DEAD:
            queued = self in self.hub.queue.since
            self.close(ends.CLIENT_LEFT_QUEUED if queued else ends.CLIENT_LEFT_CONNECTING)

    def on_backend_dialling(self, mask: int) -> None:
        """The dial has an outcome."""
        if mask & _DEAD:
            assert self.backend_socket is not None
            code = self.backend_socket.getsockopt(SOL_SOCKET, SO_ERROR)
            if self.dial_failed(code or errno.ECONNREFUSED):
                self.dial()
        elif mask & WRITE:
            self.hub.dialling.pop(self, None)
            self.hub.loop.set_handler(self.backend_fd, self.on_backend)
            self.connected(mask)

    def on_connect_timeout(self) -> None:
        """The oldest dial has taken too long (called by the hub)."""
        if self.dial_failed(errno.ETIMEDOUT):
            self.dial()

    # -- acts

    def dial(self) -> None:
        """Elect and dial until a dial is under way, or nobody is left."""
        hub = self.hub
        while True:
            backend = self.backend = hub.elector.elect(self.source_ip, self.tried)
            if backend is None:
                hub.without_backend(self)
                return
            if hub.queue.since:
                hub.queue.remove(self)
            family, address, is_near = hub.elector.target(backend)
            try:
                self.backend_socket = sock = Socket(family, STREAM)
            except OSError as error:
                if self.dial_failed(error.errno or errno.EIO):  # this machine may lack one family only
                    continue
                return
            self.backend_fd = sock.fileno()
            self.is_tcp = family != AF_UNIX
            code = sock.connect_ex(address)
            if code and code != errno.EINPROGRESS:
                if self.dial_failed(code):
                    continue
                return
            if is_near and self.relay_at_once():
                return
            self.mind_client()
            if code:
                hub.dialling[self] = hub.loop.now
                hub.loop.watch(self.backend_fd, self.on_backend_dialling)
            else:  # a unix socket: it stands, and a backend that hangs up on it has not refused it
                hub.loop.watch(self.backend_fd, self.on_backend)
                self.connected(0)
            return

    def dial_failed(self, code: int) -> bool:
        """Give this backend up; True when another one may be dialled, else the session is closed."""
        hub, backend = self.hub, self.backend
        hub.dialling.pop(self, None)
        if code in CAPACITY:
            hub.short_of(code)
            self.close(ends.OWN_RESOURCES, name_of(code))
            return False
        assert backend is not None
        hub.elector.connect_failed(backend)
        word = name_of(code)
        hub.log.debug(
            "connect", client=self.peer_name(), backend=backend.name, error=word, tries=self.retries + 1
        )
        if self.retries >= hub.retries:
            self.close(ends.CONNECT_TIMEOUT if code == errno.ETIMEDOUT else ends.NO_BACKEND, word)
            return False
        self.abandon_backend()
        self.retries += 1
        hub.count_retry()
        return True

    def abandon_backend(self) -> None:
        """Drop the backend for another one: closed and released at the end of the batch."""
        backend, sock = self.backend, self.backend_socket
        assert backend is not None
        self.tried = {*self.tried, backend.index}
        self.backend = self.backend_socket = None
        self.is_prompt = False
        if sock is not None:
            self.hub.loop.forget_closing(self.backend_fd)
        self.backend_fd = -1
        self.hub.retire_backend(self, sock, backend)

    def peer_name(self) -> str:
        """The client as people write it: 10.0.0.9:5012, [::1]:5012, unix."""
        peer = self.peer
        if isinstance(peer, tuple):
            return f"[{peer[0]}]:{peer[1]}" if len(peer) == 4 else f"{peer[0]}:{peer[1]}"
        return "unix"

    # -- what a session adds

    def relay_at_once(self) -> bool:
        raise NotImplementedError

    def connected(self, mask: int) -> None:
        raise NotImplementedError

    def on_backend(self, mask: int) -> None:
        raise NotImplementedError

    def close(self, end: str, reason: str = "") -> None:
        raise NotImplementedError
