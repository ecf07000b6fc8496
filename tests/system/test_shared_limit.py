"""A shared limit over real processes: the limit is never exceeded by even one, and no kill -9 makes it smaller.

The backend counts, at each accept, the connections that their holders have not yet closed.
"""

import contextlib
import fcntl
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from balancer.pool.board import L_SESSIONS, Board, columns_for
from balancer.pool.shared_limit import SharedLimit
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, make_shared
from scripts.lab.backends import Echo
from scripts.lab.waiting import best_of, is_readable, readable
from tests.system.harness import Balancer

LIMIT, WORKERS = 8, 4
SESSIONS = Board.listener_at(0) + L_SESSIONS


class Holders:
    """Forked processes that acquire and release, and what the master does: reap, zero the row, fork again."""

    def __init__(self, board: Board, act: Callable[[SharedLimit], None]) -> None:
        self.board, self.act = board, act
        self.pids: dict[int, int] = {}  # pid -> row

    def fork(self, row: int) -> int:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                random.seed(os.getpid())
                self.act(SharedLimit(self.board, row))
            os._exit(0)
        self.pids[pid] = row
        return pid

    def kill(self, pid: int) -> int:
        """kill -9, wait, zero: the row it had."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        row = self.pids.pop(pid)
        self.board.shared.rows.zero(row)
        return row

    def kill_all(self) -> None:
        for pid in list(self.pids):
            self.kill(pid)


@pytest.fixture
def board() -> Iterator[Board]:
    shared = make_shared(columns_for(1), rows=FIRST_LEASE + WORKERS)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + WORKERS
    board = Board(shared, 1)
    yield board
    os.close(board.lock_fd)


def churn(address: str) -> Callable[[SharedLimit], None]:
    """Acquire, open, hold a moment, close, release: as fast as it goes.

    Lets the others run between the look and the +1: without the lock, the ninth is there within a second."""

    def act(limited: SharedLimit) -> None:
        look = limited.held

        def slow_look(column: int) -> int:
            seen = look(column)
            os.sched_yield()
            return seen

        limited.held = slow_look  # type: ignore[method-assign]
        held: list[socket.socket] = []
        while True:
            if random.random() < 0.6 and limited.acquire(SESSIONS, LIMIT) == "acquired":
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(address)
                held.append(sock)
            elif held:
                held.pop(random.randrange(len(held))).close()
                limited.release(SESSIONS)

    return act


def still_open(connections: list[socket.socket]) -> list[socket.socket]:
    """The connections whose other end is open; the others are closed."""
    closed = readable(connections)
    for conn in closed:
        conn.close()
    return [conn for conn in connections if conn not in closed]


def test_never_one_too_many_in_a_storm_of_kills_and_the_whole_limit_is_there_again(
    board: Board, tmp_path: Path
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "backend"))
    listener.listen(64)
    listener.setblocking(False)
    holders = Holders(board, churn(str(tmp_path / "backend")))
    for row in range(FIRST_LEASE, FIRST_LEASE + WORKERS):
        holders.fork(row)
    connections: list[socket.socket] = []
    accepted = kills = most = 0
    began = time.monotonic()
    try:
        while (took := time.monotonic() - began) < 3 or ((accepted <= 1000 or kills <= 5) and took < 60):
            is_readable(listener, within=0.1)
            with contextlib.suppress(BlockingIOError):
                while True:
                    connections.append(listener.accept()[0])
                    accepted += 1
            # All were accepted before this look: those it finds open were open together when it began.
            connections = still_open(connections)
            assert len(connections) <= LIMIT
            most = max(most, board.gauge(SESSIONS))
            if accepted >= 200 * (kills + 1):
                holders.fork(holders.kill(random.choice(list(holders.pids))))
                kills += 1
        assert accepted > 1000 and kills > 5
        assert most >= LIMIT  # a limit that was never reached was not tested
    finally:
        holders.kill_all()
    assert board.gauge(SESSIONS) == 0
    fresh = SharedLimit(board, FIRST_LEASE)
    assert [fresh.acquire(SESSIONS, LIMIT) for _ in range(LIMIT + 1)] == ["acquired"] * LIMIT + ["full"]


def stop_in_the_lock(limited: SharedLimit) -> None:
    """Stops itself where it does most harm: holding the lock, the unit not yet acquired."""
    look = limited.held
    looks = 0

    def stopping_look(column: int) -> int:
        nonlocal looks
        looks += 1
        if looks == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return look(column)

    limited.held = stopping_look  # type: ignore[method-assign]
    limited.acquire(SESSIONS, WORKERS - 1)  # near enough for the lock


def test_a_worker_stopped_in_the_lock_hangs_no_other_and_its_death_frees_the_lock(board: Board) -> None:
    holders = Holders(board, stop_in_the_lock)
    pid = holders.fork(FIRST_LEASE)
    try:
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        neighbour = SharedLimit(board, FIRST_LEASE + 1)

        def try_it() -> float:
            begun = time.monotonic()
            assert neighbour.acquire(SESSIONS, WORKERS - 1) == "busy"
            return time.monotonic() - begun

        best_of(try_it, 0.5, "the answer")
        holders.kill(pid)
        assert neighbour.acquire(SESSIONS, WORKERS - 1) == "acquired"
    finally:
        holders.kill_all()


def lock_of(lb: Balancer) -> int:
    """The file of the limits' locks, opened as another process would: a lock on it conflicts with the workers'."""
    worker = lb.worker_pids()[0]
    for link in Path(f"/proc/{worker}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "balancer-seats" in os.readlink(link):
                return os.open(link, os.O_RDWR)
    raise AssertionError("a worker has no file of locks")


@contextlib.contextmanager
def every_limit_locked(lb: Balancer) -> Iterator[None]:
    """A process that is stopped in the middle of an acquisition, of every limit there is."""
    fd = lock_of(lb)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@pytest.mark.parametrize("overflow", ["drop", "queue"])
def test_a_process_stopped_in_the_lock_refuses_nobody_far_below_the_limit(overflow: str) -> None:
    with Echo() as backend, ExitStack() as stack:
        upstream = f"{backend.name} maxconn=2000"
        lb = stack.enter_context(Balancer(upstreams=[upstream], maxconns=3000, overflow=overflow))
        with every_limit_locked(lb):
            for _ in range(40):
                with socket.create_connection(lb.address, 5) as client:
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
        assert lb.status()["totals"]["refused_total"] == 0
        lb.check_at_rest()


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("maxconns", {"maxconns": 3}),
        ("maxconns", {"maxconns": 3, "overflow": "queue"}),
        ("maxconn", {}),
        ("maxconn", {"queue_timeout": 0}),
        ("maxconn", {"max_queue": 0}),
    ],
)
def test_near_the_limit_clients_wait_while_the_lock_does_not_tell(
    place: str, options: dict[str, object]
) -> None:
    with Echo() as backend, ExitStack() as stack:
        upstream = backend.name + (" maxconn=3" if place == "maxconn" else "")
        lb = stack.enter_context(Balancer(upstreams=[upstream], **options))
        with every_limit_locked(lb):
            clients = [stack.enter_context(socket.create_connection(lb.address, 5)) for _ in range(3)]
            for client in clients:
                client.sendall(b"x")
                client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                clients[0].recv(1)  # it waits, and nobody closes it
        for client in clients:
            client.settimeout(5)
            assert client.recv(1) == b"x"
        totals = lb.status()["totals"]
        assert totals["refused_total"] == totals["failed_total"] == 0
        for client in clients:
            client.close()
        lb.check_at_rest()
