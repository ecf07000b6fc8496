"""A request of framed mode: one frame of a client, from its first bytes to the last byte of its reply.

RULES: data and its log line. The client owns its requests and their order (client.py), a connection carries one at a
time (connection.py).
"""

from collections.abc import Set
from typing import Protocol

from balancer.options import MAIN
from balancer.pool.backend import Backend
from balancer.pool.election import NONE_TRIED
from balancer.relay.ends import CLEAN
from balancer.relay.framed.transfer import FrameTransfer


class RequestOwner(Protocol):
    """What a request and its connection need of the client."""

    fd: int
    source_ip: str
    turn: "FramedRequest | None"  # the one whose reply the client gets now; None: any
    bytes_out: int

    def dispatch(self, request: "FramedRequest") -> None: ...
    def fail(self, end: str, reason: str = "") -> None: ...
    def answered(self, request: "FramedRequest", size: int) -> None: ...
    def wait_for_turn(self, request: "FramedRequest") -> None: ...
    def wait_for_room(self) -> None: ...
    def pump_upload(self, request: "FramedRequest") -> None: ...
    def cut_upload(self, request: "FramedRequest") -> None: ...
    def retried(self) -> None: ...
    def later_than(self, request: "FramedRequest") -> "FramedRequest | None": ...
    def peer_name(self) -> str: ...


class RequestCarrier(Protocol):
    """What the owner needs of the connection that carries a request."""

    fd: int

    @property
    def is_receiving(self) -> bool: ...
    @property
    def is_blocked(self) -> bool: ...
    @property
    def is_held_up(self) -> bool: ...
    def take_turn(self) -> None: ...
    def pump_reply(self) -> None: ...
    def sink_lost(self, code: int) -> None: ...
    def abandon(self) -> None: ...
    def leave(self, was_sent: bool) -> object: ...
    def watch_writing(self) -> None: ...


class FramedRequest:
    """`data` are its first bytes, `more` what followed; both are kept until the reply begins if it may be sent again.
    `size` is that of the whole frame, `left` of it are still to be read from the client."""

    # Class attributes are the values of a request that meets nothing unusual: to set them for each costs 0.6 us. An
    # __init__ would cost 0.15 us: `new_request` sets these.
    owner: RequestOwner
    data: bytes
    size: int
    began: float
    sent_at: float  # as `began` where it was sent at once
    backend: Backend | None = None
    carrier: RequestCarrier | None = None
    upload: FrameTransfer | None = None
    more: list[bytes] | None = None
    left = received = 0
    tried: Set[int] = NONE_TRIED  # indexes of backends that failed it, as a session's
    closed = False
    retries = dials = breaks = 0
    is_kept = True
    excused: Set[int] = NONE_TRIED  # indexes of backends whose stale connection has failed it
    broken: Backend | None = None  # the last backend that it has broken
    was_sent = False  # to `backend`, before its connection was given up
    waited = 0.0
    elected_at = 0.0  # 0.0: at once

    def whole(self) -> bytes:
        """Return all that has been read of it."""
        return b"".join((self.data, *self.more)) if self.more else self.data

    def given(self) -> int:
        """Return how many of its bytes its connection has taken, once it is made."""
        upload = self.upload
        return self.size - (self.left if upload is None else upload.left + upload.waiting())

    def end_upload(self) -> None:
        """Its connection is given up: what has been read stays here, if it is kept."""
        if self.upload is not None:
            self.upload.discharge()
            self.left, self.upload = self.upload.left, None

    # -- as the pending queue sees it

    def dial(self) -> None:
        self.owner.dispatch(self)

    def close(self, end: str, reason: str = "") -> None:
        """End the client's connection: this request cannot be answered."""
        self.closed = True
        self.owner.fail(end, reason)


def new_request(owner: RequestOwner, data: bytes, size: int, now: float) -> FramedRequest:
    """Return a request whose frame has `size` bytes and begins with `data`."""
    request = FramedRequest()
    request.owner, request.data, request.size = owner, data, size
    request.began = request.sent_at = now
    return request


def request_line(request: FramedRequest, end: str, where: str, now: float) -> str:
    """Return the log line of a request that has ended; `where` names its listener and pool."""

    def span(begin: float, until: float) -> str:
        return f"{(until - begin) * 1000:.1f}ms"

    backend, began = request.backend, request.began
    elected_at = request.elected_at or began
    sent_at = max(request.sent_at, elected_at)
    is_sent = backend is not None and (request.was_sent or end == CLEAN)
    return (
        f"request client={request.owner.peer_name()}{where} backend={backend.name if backend is not None else '<NOSRV>'} "
        f"end={end} wait={span(began, elected_at if backend is not None else now)} "
        f"connect={span(elected_at, sent_at) if is_sent else '-1'} "
        f"reply={span(sent_at, now) if is_sent else '-1'} "
        f"in={request.size - request.left} out={request.received} retries={request.retries}"
        f"{'+' if request.tried else ''}"
    )


def place_text(listener: str, pool: str) -> str:
    """Return the fields that name a listener and a pool; those called main need no name."""
    found = f" listener={listener}" if listener != MAIN else ""
    return found + (f" pool={pool}" if pool != MAIN else "")
