"""What a session must know of its listener and its pool.

RULES: data; built by assembly.py. A worker has one lane per listener and pool.
"""

from _socket import socket as Socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from balancer.edge.backend_tls import BackendTls
from balancer.eventloop.loop import Loop
from balancer.options import MAIN
from balancer.pool.backend import Backend
from balancer.pool.election import Elector
from balancer.relay.account import Account
from balancer.relay.context import AnySession, WorkerContext
from balancer.relay.early_read import EarlyRead
from balancer.relay.pipes import Pipes
from balancer.relay.queue import PendingQueue
from balancer.relay.sockets import TcpOption
from balancer.relay.splicing import SplicingRelay


def no_header(session: object) -> bytes:
    """A pool without send-proxy."""
    return b""


def no_counts(backend: Backend | None) -> tuple[int, int, int]:
    """Of a lane that no log asks."""
    return 0, 0, 0


@dataclass(slots=True, eq=False)
class Lane(Generic[AnySession]):
    """The way of a session: what it must know of its listener and its pool. A worker has one per listener and pool.

    `dialling` is shared by the lanes of a pool, `queue` and `elector` likewise; `account` and the callables by the
    lanes of a listener."""

    context: WorkerContext[AnySession]
    loop: Loop
    pipes: Pipes | None  # None: the listener does not splice
    account: Account
    elector: Elector
    queue: PendingQueue
    count_connect: Callable[[float], object]  # seconds, of a connect that was waited for
    dialling: dict[AnySession, float]  # -> since when; all wait equally long: the order of their deadlines
    retries: int
    idle_timeout: float  # seconds, 0: no limit
    half_close_timeout: float
    linger_limit: float
    user_timeout: float  # for both sockets of a session that lasts
    backend_options: tuple[TcpOption, ...]  # keepalive for its backend's; clients inherit theirs
    end_session: Callable[[AnySession], None]
    drop_backend: Callable[[AnySession, Socket | None, Backend], None]
    await_acknowledgement: Callable[[SplicingRelay], None]
    early: EarlyRead
    new_socket: Callable[[int, int], Socket] = Socket
    listener_name: str = MAIN
    pool_name: str = MAIN
    header: Callable[[AnySession], bytes] = no_header  # what a backend of this pool is told first
    # sessions of the listener, the pool and the backend, over all processes: for the log
    counts: Callable[[Backend | None], tuple[int, int, int]] = no_counts
    backend_tls: BackendTls | None = None
    has_sources: bool = False  # backends that are dialled from chosen addresses
    next_source: int = 0  # turns over the `source` addresses of a backend
