"""A client of framed mode: its frames become requests, and it gets their replies.

RULES
- A small frame is read whole before a backend is elected. A big one is elected when BEGUN bytes of it are here, and
  passed on as it comes; until then a client that stops holds no place.
- `order strict`: replies leave in the order of the requests. `any`: as they come, one whole reply after the other. The
  reply whose turn it is not stays in the kernel buffer of its own connection.
- With `pipeline` requests under way nothing more is read from the client. A drain that wants it gone reads no further
  request (`finish`): those under way get their replies.
- It stands in the place of the splicing relay in its session (session.splicing): the sweep, the drain and the closer ask
  it what they ask that one.

    bytes  ->  frame whole, or begun  ->  request  ->  ConnectionPool.dispatch  ->  reply  ->  answered
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from os import read
from typing import Protocol

from balancer.eventloop.errnos import TRANSIENT, name_of
from balancer.eventloop.log import Log
from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, URGENT, WRITE, Loop
from balancer.options import Pool
from balancer.relay import ends
from balancer.relay.account import Account
from balancer.relay.framed.connection_pool import BEGUN, ConnectionPool
from balancer.relay.framed.frame_format import FrameRefused
from balancer.relay.framed.requests import FramedRequest, RequestCarrier, new_request, request_line
from balancer.relay.framed.transfer import BLOCKED, DONE, DRY, FAILED, LOST, MORE
from balancer.relay.half import LIMIT
from balancer.relay.sockets import unacknowledged

READS = 4  # of one client in one turn
PAUSE = 60.0  # seconds for which a client may leave a reply unread, where frame-timeout is not longer
_LAST = READ_HANGUP | HANGUP | ERROR | URGENT
_READABLE = READ | _LAST


class FramedSession(Protocol):
    """What a client needs of its session."""

    client_fd: int
    source_ip: str
    closed: bool
    end: str
    is_watched: bool
    early: int
    first: bytes
    connected_at: float

    def close(self, end: str, reason: str = "") -> None: ...
    def peer_name(self) -> str: ...


@dataclass(slots=True, eq=False)
class FramedLane:
    """What the clients of one listener and one pool have in common in one worker. `refuse` writes the log line of a
    client that breaks the framing; `place` names listener and pool in log lines."""

    loop: Loop
    log: Log
    pool: Pool
    connections: ConnectionPool
    account: Account
    refuse: Callable[..., object]
    place: str
    new_client: "Callable[[FramedSession, FramedLane], FramedClient]"

    @property
    def is_strict(self) -> bool:
        return self.pool.order == "strict"


class FramedClient:
    """One client and its requests under way, in their order."""

    __slots__ = (
        "_begin", "_header", "_heads", "_is_resuming", "_lane", "_log", "_loop", "_most", "_pool", "_ready", "_size_of",
        "_skip", "_stalled_since", "_upload", "_watched_progress", "bytes_in", "bytes_out", "closing_at", "fault", "fd",
        "finishing", "has_ended", "is_plain", "is_strict", "requests", "rest", "served", "session", "source_ip", "turn",
    )  # fmt: skip

    def __init__(self, session: FramedSession, lane: FramedLane) -> None:
        self.session = session
        self.fd = session.client_fd
        self.source_ip = session.source_ip
        self._lane = lane
        self._loop = lane.loop
        self._log = lane.log
        self._pool = pool = lane.connections
        self._begin = pool.begin
        self._size_of = pool.size_of
        self._heads = pool.heads
        self._header = pool.header
        self._most = lane.pool.pipeline
        self.is_strict = lane.is_strict
        self.requests: dict[FramedRequest, None] = {}
        self.turn: FramedRequest | None = None
        self._ready: dict[FramedRequest, RequestCarrier | None] = {}  # whose replies wait for their turn
        self.rest = b""  # read, and not yet a request
        self._upload: FramedRequest | None = None  # a big frame that is being passed on
        self._skip = 0  # bytes of a frame whose reply has come before its end
        self.has_ended = False  # no further frame comes
        self.fault = ""  # why it gets no further request
        self.finishing = ""  # why a drain lets it begin no further one
        self.is_plain = True  # none of these; and the replies are not blocked
        self.bytes_in = self.bytes_out = self.served = 0
        self.closing_at = 0.0  # the sweep's: never set
        self._is_resuming = False
        self._watched_progress = -1
        self._stalled_since = 0.0

    def begin(self) -> None:
        """Read what the client has sent already, and watch it."""
        session, loop = self.session, self._loop
        session.connected_at = loop.now
        if session.first:  # a phase has read it
            self.rest, session.first = session.first, b""
            self.is_plain = False
        if session.is_watched:
            loop.set_handler(self.fd, self.on_client)
        else:
            session.is_watched = True
            loop.watch_reading(self.fd, self.on_client)
        self.on_client(READ | session.early)

    # -- frames

    def on_client(self, mask: int) -> None:
        if mask != READ or not self.is_plain:
            self._on_unusual(mask)
            return
        try:
            data = read(self.fd, LIMIT)
        except OSError as error:
            self._reading_failed(error)
            return
        size = len(data)
        if data[: self._header] != self._heads.get(size):
            self._on_other_bytes(data)
            return
        self.bytes_in += size
        # As new_request and _begin_request; to call them costs 0.3 us.
        request = FramedRequest()
        request.owner, request.data, request.size = self, data, size
        request.began = request.sent_at = self._loop.now
        requests = self.requests
        requests[request] = None
        if self.is_strict and self.turn is None:
            self.turn = request
        if len(requests) >= self._most:
            self.is_plain = False
        self._begin(request)

    def _on_other_bytes(self, data: bytes) -> None:
        """Go on with bytes that are not known to be one small frame."""
        try:
            if self._size_of(data) == len(data):
                self._pool.learn(data)
        except FrameRefused as error:
            self._reading_failed(error)
            return
        self._take(data)
        self._read_on()

    def _begin_request(self, request: FramedRequest) -> None:
        requests = self.requests
        requests[request] = None
        if self.is_strict and self.turn is None:
            self.turn = request
        if len(requests) >= self._most:
            self.is_plain = False
        self._begin(request)

    def _take(self, data: bytes) -> None:
        """Begin the requests that these bytes hold; keep what is no request yet."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self.rest:
            data = self.rest + data
            self.rest = b""
        at, end = 0, len(data)
        try:
            while at < end and len(self.requests) < self._most and not self.session.closed:
                size = self._size_of(data, at)
                if size < 0 or (size > end - at and end - at < min(size, BEGUN)):
                    break
                frame = data[at : at + size]
                at += len(frame)
                self.bytes_in += len(frame)
                request = new_request(self, frame, size, self._loop.now)
                request.left = size - len(frame)
                request.is_kept = size <= self._lane.pool.retry_buffer
                if request.left:
                    self._upload = request
                self._begin_request(request)
        except FrameRefused as refusal:
            self._refuse(str(refusal))
            return
        self.rest = data[at:]

    def _read_on(self) -> None:
        """Read as far as there is room for requests, and a few times only: other clients wait."""
        for _ in range(READS):
            if self.has_ended or self.session.closed or not self._may_read():
                break
            try:
                data = self._receive()
            except OSError as error:
                self._reading_failed(error)
                break
            if not data:
                self._ended()
                break
            self._take(data)
        else:
            self._loop.call_next_turn(self._read_on, self.fd)
        self._settle()

    def _receive(self) -> bytes:
        return read(self.fd, LIMIT)

    def _may_read(self) -> bool:
        """Pass the upload on, begin the requests that are here; return whether another read has room."""
        if self._upload is not None and self._upload.upload is not None:
            self.pump_upload(self._upload)
        if self._upload is not None:
            return False
        if self.rest and len(self.requests) < self._most:
            self._take(b"")
        return len(self.requests) < self._most and self._upload is None and not self.has_ended

    def _settle(self) -> None:
        """Close a client that is done; else find out whether its next event is an ordinary one."""
        is_open = len(self.requests) < self._most and not self.has_ended
        self.is_plain = is_open and not self.rest and not self._skip and self._upload is None
        if self.requests or self.session.closed:
            return
        if self.has_ended:
            if self.fault:
                self._drop_input()
            self.session.close(ends.DENIED if self.fault else ends.CLEAN, self.fault)
        elif self.finishing:
            self._drop_input()
            self.session.close(ends.KILLED, self.finishing)

    def finish(self, reason: str) -> None:
        """Begin no further request, and close the client behind the replies that are under way."""
        self.finishing = reason
        self._most = 0
        self._settle()

    def _drop_input(self) -> None:
        """Read what has come and begins no request: a close with unread bytes would reset the replies on their way."""
        try:
            for _ in range(READS):
                if not read(self.fd, LIMIT):
                    return
        except OSError:
            pass

    def _on_unusual(self, mask: int) -> None:
        if self.session.closed:
            return
        if mask & ERROR or (mask & HANGUP and self.requests):
            self._reading_failed(OSError(errno.ECONNRESET, ""))
            return
        turn = self.turn
        if mask & WRITE and turn is not None and turn.carrier is not None:
            turn.carrier.pump_reply()
        if mask & _READABLE:
            self._read_on()

    def _ended(self) -> None:
        """The client has ended its sending: it gets the replies that are under way."""
        self.has_ended = True
        if self.rest or self._skip:
            self._refuse("ended within a frame")

    def _refuse(self, why: str) -> None:
        """The bytes are no frames: nothing more is read, and the client is closed behind the replies under way."""
        self.rest = b""
        self.has_ended = True
        self.fault = why
        self._lane.refuse(client=self.session.peer_name(), reason=why, then="close")
        self._settle()

    def _reading_failed(self, error: Exception) -> None:
        if isinstance(error, FrameRefused):
            self._refuse(str(error))
        elif isinstance(error, OSError) and error.errno not in TRANSIENT:
            self.fail(ends.CLIENT_RESET, name_of(error.errno))

    # -- a big frame on its way

    def pump_upload(self, request: FramedRequest) -> None:
        """Pass on what has come of a request."""
        upload, carrier = request.upload, request.carrier
        if upload is None or carrier is None or self.session.closed:
            return
        before = upload.left
        outcome = upload.pump()
        self.bytes_in += before - upload.left
        if outcome == DONE:
            request.upload = None
            request.left = 0
            if self._upload is request:
                self._upload = None
                self._loop.call_next_turn(self._read_on, self.fd)
        elif outcome == BLOCKED:
            carrier.watch_writing()
        elif outcome == MORE:
            self._loop.call_next_turn(lambda: self.pump_upload(request), self.fd)
        elif outcome == LOST:
            carrier.sink_lost(upload.error)
        elif outcome == FAILED:
            self.fail(ends.CLIENT_RESET, name_of(upload.error))
        elif outcome != DRY:
            self._lane.refuse(client=self.session.peer_name(), reason="ended within a frame", then="close")
            self.fail(ends.DENIED, "ended within a frame")

    def cut_upload(self, request: FramedRequest) -> None:
        """The reply has come before the end of the request: drop what is still to come of it."""
        upload = request.upload
        if upload is not None:
            upload.discharge()
            request.upload = None
            if self._upload is request:
                self._upload = None
                self._skip = upload.left
                self.is_plain = False

    # -- replies

    def answered(self, request: FramedRequest, size: int) -> None:
        """The client has been given the whole reply of `size` bytes."""
        del self.requests[request]
        self.served += 1
        if self._log.level >= 1 and self._log.wants_session(is_clean=True):
            request.received = size
            self._log.session(request_line(request, ends.CLEAN, self._lane.place, self._loop.now))
        if self.turn is not None:
            self._end_turn(request)
        if not self.is_plain and not self._is_resuming:
            self._is_resuming = True
            self._loop.call_next_turn(self._resume, self.fd)

    def _end_turn(self, request: FramedRequest) -> None:
        if self.turn is request:
            self.turn = next(iter(self.requests), None) if self.is_strict else None
        if self._ready:
            self._next_reply()

    def _next_reply(self) -> None:
        """Give the client the next reply that has come: the one whose turn it is."""
        while self._ready:
            request = self.turn if self.turn is not None else next(iter(self._ready))
            if request not in self._ready:
                return
            carrier = self._ready.pop(request)
            if carrier is not None and carrier is request.carrier:  # else it is asked for again
                carrier.take_turn()

    def wait_for_turn(self, request: FramedRequest) -> None:
        self._ready[request] = request.carrier

    def wait_for_room(self) -> None:
        """The client takes no more for now: its event is awaited."""
        self._loop.watch_writing(self.fd)

    def _resume(self) -> None:
        self._is_resuming = False
        if not self.session.closed:
            self._read_on()

    # -- ends

    def dispatch(self, request: FramedRequest) -> None:
        if not self.session.closed:
            self._pool.dispatch(request)

    def later_than(self, request: FramedRequest) -> FramedRequest | None:
        """Return the last request behind this one whose reply has to wait for it, and has a place that this one may take;
        None: there is none. It is sent again, which counts as one of its tries."""
        found: list[FramedRequest] = []
        for later in reversed(self.requests) if self.is_strict else ():
            if later is request:
                break
            carrier, backend = later.carrier, later.backend
            if (
                carrier is None
                or backend is None
                or carrier.is_receiving
                or later.upload
                or not later.is_kept
                or not self._pool.may_give_way(later)
            ):
                continue
            if backend.index not in request.tried:
                return later
            found.append(later)
        return found[0] if found else None

    def retried(self) -> None:
        self._lane.account.retried()

    def fail(self, end: str, reason: str = "") -> None:
        """End the client's connection."""
        self.session.close(end, reason)

    def peer_name(self) -> str:
        return self.session.peer_name()

    # -- what the sweep, the drain and the closer ask a relay that has taken over

    def given(self) -> tuple[int, int]:
        return self.bytes_in, self.bytes_out

    def movement(self) -> int:
        return self.bytes_in + self.bytes_out + len(self.rest) - self._skip

    def is_half_closed(self) -> bool:
        return False  # a client that has ended waits for its replies, for idle-timeout

    def is_holding(self) -> bool:
        """Return whether anything is under way."""
        return bool(self.requests or self.rest or self._skip)

    def is_backends_turn(self) -> bool:
        return bool(self.requests) and not self._is_clients_turn()

    def _is_clients_turn(self) -> bool:
        """Return whether a frame of the client has begun and its next bytes are awaited."""
        upload = self._upload
        if upload is not None:
            return upload.upload is not None and not upload.upload.waiting()
        return bool(self.rest or self._skip) and len(self.requests) < self._most

    def is_behind(self) -> bool:
        """Return whether the client has been offered more than its socket takes."""
        turn = self.turn
        return turn is not None and turn.carrier is not None and turn.carrier.is_held_up

    def nudge(self) -> None:
        """End a client whose frame, or whose reply, has begun and made no progress for frame-timeout (by the sweep).

        A reply that the client does not take holds its backend's place, whatever the client sends meanwhile; people and
        programs pause longer than networks, so it has PAUSE. Its progress is what the client's kernel acknowledges: of a
        slow reader the socket takes no more for many seconds."""
        turn = self.turn
        is_behind = self.is_behind()
        # Of a reply that has stopped within its header it is not known yet whose turn it takes.
        begun = self.requests if turn is None else (turn,)
        is_backends = any(each.carrier is not None and each.carrier.is_receiving for each in begun)
        upload = self._upload.carrier if self._upload is not None else None
        is_blocked = upload is not None and upload.is_blocked
        is_clients = self._is_clients_turn()
        progress = self.bytes_out - unacknowledged(self.fd) if is_behind else self.movement()
        now = self._loop.now
        if progress != self._watched_progress or not (is_behind or is_backends or is_clients or is_blocked):
            self._watched_progress, self._stalled_since = progress, now
        elif now - self._stalled_since >= max(self._lane.pool.frame_timeout, PAUSE if is_behind else 0.0):
            if is_clients and not is_behind:
                self._lane.refuse(client=self.session.peer_name(), reason="frame-timeout", then="close")
            self.fail(ends.CLIENT_IDLE if is_clients or is_behind else ends.BACKEND_IDLE, "frame-timeout")

    def on_backend(self, mask: int) -> None:
        """Not called: each connection to a backend has its own handler."""

    def end_waiting(self) -> None:
        """Not called: `closing_at` is never set."""

    def uncounted_pauses(self) -> tuple[int, int]:
        return 0, 0

    def discharge(self) -> None:
        """The session is over: its requests under way cost their connections, not their backends' health."""
        lane = self._lane
        requests, self.requests = self.requests, {}
        for request in requests:
            request.closed = True
            self._pool.queue.remove(request)
            if request.carrier is not None:
                request.carrier.abandon()
            if lane.log.level >= 1 and lane.log.wants_session(is_clean=False):
                lane.log.session(request_line(request, self.session.end, lane.place, lane.loop.now))
        self._ready.clear()
        self.turn = self._upload = None
