"""A front over a simulated child: accepting, the first byte, limits, adoption, the drain."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from balancer.config.units import Address
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.prefork.child import Child
from balancer.prefork.sockets import ListeningSocket
from balancer.shm.layout import (
    FIRST_LEASE,
    GENERATION,
    LOAD,
    MASTER_LIVE_ROWS,
    MASTER_ROW,
    PID,
    READY,
    ROLE,
    STATE,
    make_shared,
)
from tests.unit.workers.resizer.front_fixture import request_frame
from workers.resizer import counters
from workers.resizer.front import SPARE, Front
from workers.resizer.options import ResizerOptions
from workers.wire.frames import FrameReader
from workers.wire.messages import decode_response

OPTIONS = ResizerOptions(name="here", cpus=1, queue=2, maxconns=2, max_frame=4096, express_bytes=0)


def listening_socket(slot: int) -> ListeningSocket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    host, port = sock.getsockname()
    return ListeningSocket(Address("inet", host, port), slot, sock.fileno(), sock)


class StoppedLoop(Loop):
    """A loop that tells whether it was stopped."""

    is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True


class ChildSimulation:
    """The front of slot 0, a listening socket each for slots 0 and 1, and clients."""

    def __init__(self, options: ResizerOptions = OPTIONS) -> None:
        self.now = 100.0
        self.loop = StoppedLoop(lambda: self.now)
        self.shared = make_shared(counters.COLUMNS)
        self.shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 3
        self.cells = self.shared.rows.row(FIRST_LEASE)
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.sockets = [listening_socket(0), listening_socket(1)]
        self.adopted: list[int] = []
        self.titles: list[str] = []
        self.clients: list[socket.socket] = []
        self.is_ready = False
        self.child = SimpleNamespace(
            loop=self.loop,
            log=Log("front", os.devnull),
            shared=self.shared,
            cells=self.cells,
            slot=0,
            generation=1,
            draining=False,
            channels={"cpu": (self.pairs[0][0],), "express": (self.pairs[1][0],)},
            listening={one.slot: (one,) for one in self.sockets},
            adopted=lambda: self.adopted,
            title=SimpleNamespace(set=lambda text, now: self.titles.append(text)),
            ready=lambda: setattr(self, "is_ready", True),
        )
        self.front = Front(cast(Child, self.child), options, lambda: {"name": "here"})

    def close(self) -> None:
        self.front.cut()
        self.loop.run_once(0)
        self.loop.close()
        for sock in (*self.clients, *(end for pair in self.pairs for end in pair)):
            sock.close()
        for one in self.sockets:
            one.sock.close()

    def connect(self, slot: int = 0) -> socket.socket:
        """A client in the queue of a slot."""
        sock = socket.create_connection(self.sockets[slot].sock.getsockname())
        sock.setblocking(False)
        self.clients.append(sock)
        return sock

    def settle(self) -> None:
        for _ in range(10):
            self.loop.run_once(0)

    def pass_time(self, seconds: float) -> None:
        """A tick after so much time."""
        self.now += seconds
        self.settle()
        self.front.tick(self.now)
        self.settle()

    def statuses(self, sock: socket.socket, **fields: object) -> list[int]:
        """Send a request; the statuses of the replies."""
        sock.send(request_frame(id=1, **fields))
        self.settle()
        return [decode_response(payload).status for payload in FrameReader().feed(sock.recv(1 << 16))]


@pytest.fixture
def child() -> Iterator[ChildSimulation]:
    child = ChildSimulation()
    child.front.start()
    child.settle()
    yield child
    child.close()


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_first_byte_decides_between_frames_and_http(child: ChildSimulation) -> None:
    assert child.is_ready
    frames, http = child.connect(), child.connect()
    assert child.statuses(frames, dry_run=True) == [200]
    http.send(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    child.settle()
    assert http.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
    assert (child.cells[counters.CLIENTS_TOTAL], child.cells[LOAD]) == (2, 2)
    frames.close()
    child.settle()
    assert child.cells[LOAD] == 1


def test_a_client_over_maxconns_is_answered_but_gets_no_work(child: ChildSimulation) -> None:
    for _ in range(OPTIONS.maxconns):
        child.connect()
    child.settle()
    late = child.connect()
    assert child.statuses(late, dry_run=True) == [200]
    assert child.statuses(late, data=b"picture", target_width=9) == [429]


def test_clients_beyond_the_spare_ones_wait_in_the_queue_of_the_kernel(child: ChildSimulation) -> None:
    crowd = [child.connect() for _ in range(OPTIONS.maxconns + SPARE + 1)]
    child.settle()
    assert child.cells[LOAD] == OPTIONS.maxconns + SPARE and not child.front.acceptor.is_accepting
    crowd[0].close()
    child.settle()
    child.pass_time(1.0)
    assert child.cells[counters.CLIENTS_TOTAL] == len(crowd)


def test_the_queue_of_another_slot_is_served_while_it_is_adopted(child: ChildSimulation) -> None:
    child.connect(slot=1)
    child.pass_time(0.25)
    assert child.cells[LOAD] == 0
    child.adopted.append(1)
    child.pass_time(0.25)
    assert child.cells[LOAD] == 1
    child.adopted.clear()
    child.pass_time(0.25)
    child.connect(slot=1)
    child.pass_time(0.25)
    assert child.cells[LOAD] == 1


def test_a_socket_whose_address_was_removed_is_closed(child: ChildSimulation) -> None:
    child.sockets[0].sock.shutdown(socket.SHUT_RDWR)
    child.settle()
    assert child.sockets[0].sock.fileno() == -1
    child.pass_time(0.25)
    assert not child.front.acceptor.is_accepting


def test_a_drain_closes_idle_clients_and_ends_the_front_with_the_last(child: ChildSimulation) -> None:
    idle, silent = child.connect(), child.connect()
    assert child.statuses(idle, dry_run=True) == [200]
    child.child.draining = True
    child.front.drain(130.0)
    child.connect()
    child.settle()
    assert is_closed(idle) and is_closed(silent) and not child.loop.is_stopped
    idle.close()
    silent.close()
    child.settle()
    assert child.loop.is_stopped and child.cells[counters.CLIENTS_TOTAL] == 2


def test_the_drain_is_cut(child: ChildSimulation) -> None:
    sock = child.connect()
    child.settle()
    child.front.cut()
    child.settle()
    assert is_closed(sock) and child.loop.is_stopped


def test_a_process_that_names_another_ones_pid_in_its_row_is_not_asked_for(child: ChildSimulation) -> None:
    asked: list[dict[str, int]] = []
    child.front.scheduler.start = asked.append  # type: ignore[method-assign, assignment]
    for index, (pid, role) in enumerate([(11, "cpu"), (12, "express")]):
        row = child.shared.rows.row(FIRST_LEASE + 1 + index)
        row[PID], row[ROLE], row[STATE], row[GENERATION] = pid, counters.ROLES.index(role), READY, 1
    child.front.start()
    child.shared.rows.row(MASTER_ROW)[PID] = 11
    child.front.start()
    child.shared.rows.row(FIRST_LEASE + 2)[ROLE] = 99
    child.front.start()
    assert asked == [{"cpu 0": 11, "express 0": 12}, {"express 0": 12}, {}]


def test_a_layer_that_cpu_processes_lack_is_said_once(child: ChildSimulation) -> None:
    said: list[object] = []
    child.front.child.log.warning = lambda verb, **fields: said.append(fields["missing"])  # type: ignore[method-assign]
    child.pass_time(1)
    assert not said, "no CPU process is ready"
    row = child.shared.rows.row(FIRST_LEASE + 1)
    row[PID], row[ROLE], row[STATE] = 11, counters.ROLES.index("cpu"), READY
    row[counters.SANDBOX] = (1 << len(counters.LAYERS) - 1) - 1
    for _ in range(3):
        child.pass_time(1)
    assert said == [counters.LAYERS[-1]]


def test_the_title_and_the_gauges(child: ChildSimulation) -> None:
    child.connect()
    child.pass_time(0.25)
    assert child.titles[-1] == "front [1 client, 0 queued]"
    child.child.draining = True
    child.pass_time(0.25)
    assert child.titles[-1] == "front draining [1 client, 0 queued]"
    assert [child.cells[one] for one in (counters.QUEUED, counters.WORKING, counters.WORKERS)] == [0, 0, 0]


def test_fronts_share_the_room_of_their_queues() -> None:
    child = ChildSimulation(replace(OPTIONS, cpus=2, fronts=2, queue=8))
    try:
        queue = child.front.scheduler.queue
        assert queue.limit == 8
        other = child.shared.rows.row(FIRST_LEASE + 1)
        for waiting, limit in ((0, 16), (5, 11), (8, 8), (14, 8)):
            other[counters.QUEUED] = waiting
            child.pass_time(0.25)
            assert queue.limit == limit <= child.front.scheduler.arena.slots
    finally:
        child.close()
