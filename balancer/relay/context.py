"""What every session of a worker shares: the loop, the log, the pipes, the descriptors there are.

RULES: a leaf; knows no other module of the relay but the pipes. Nothing here runs per message.
"""

import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from balancer.edge.backend_tls import BackendTls
from balancer.edge.tls import ContextTable
from balancer.eventloop.errnos import name_of
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.eventloop.repeats import RepeatedLine
from balancer.pool.board import Board
from balancer.relay.pipes import Pipes

AnySession = TypeVar("AnySession")


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """What handshakes begin with, by the names of the listeners that end TLS, of the pools that begin it, and of those
    whose checks do."""

    listeners: Mapping[str, ContextTable] = field(default_factory=dict)
    pools: Mapping[str, BackendTls] = field(default_factory=dict)
    checks: Mapping[str, BackendTls] = field(default_factory=dict)


NO_TLS = TlsContexts()


class WorkerContext(Generic[AnySession]):
    """One per worker. `row` is the worker's lease on the board, `cells` that row."""

    __slots__ = (
        "_connections",
        "_handshake_failures",
        "_shortage_logged_at",
        "_whole_budget",
        "board",
        "budget",
        "cells",
        "log",
        "loop",
        "pipes",
        "row",
        "sessions",
    )

    def __init__(self, loop: Loop, board: Board, row: int, log: Log) -> None:
        self.loop = loop
        self.board = board
        self.row = row
        self.cells = board.counts.row(row)
        self.log = log
        self.sessions: dict[AnySession, None] = {}  # in the order of their accepts
        self.budget = self._whole_budget = session_budget(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._connections = 0  # to backends, beside those of sessions
        self.pipes = Pipes(most=max(8, self.budget // 8))
        self._shortage_logged_at = 0.0
        self._handshake_failures = RepeatedLine(loop, partial(log.warning, "connect"))

    def room(self) -> int:
        """Return how many more sessions there are descriptors for; a pipe takes as many as a session."""
        return self.budget - len(self.sessions) - self.pipes.made

    def hold(self, connections: int) -> None:
        """Count connections of framed mode, opened or (below 0) closed: two leave one session less."""
        self._connections += connections
        self.budget = self._whole_budget - (self._connections + 1) // 2

    def log_shortage(self, code: int, then: str = "refuse this client") -> None:
        """Log, at most once a second, that this machine is out of something that a dial needs."""
        if self.loop.now - self._shortage_logged_at >= 1.0:
            self._shortage_logged_at = self.loop.now
            sessions = len(self.sessions)
            self.log.error("dial", error=name_of(code), sessions=sessions, then=then)

    def log_failed_handshake(self, backend: str, fault: str) -> None:
        """Log, a few times a second at most, that TLS with a backend has failed: somebody has to mend it."""
        self._handshake_failures.report(backend=backend, error=fault, then="another backend")


def session_budget(descriptors: int) -> int:
    """Return how many sessions `descriptors` are enough for: two each, beside 64 for everything else."""
    return max(1, (min(descriptors, 1 << 20) - 64) // 2)
