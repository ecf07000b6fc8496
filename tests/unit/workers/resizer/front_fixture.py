"""One front without processes: clients on socket pairs, and a CPU process that is only the other end of its channel.

    front = FrontFixture()
    peer = front.connect(); peer.send(b"..."); front.settle(); order = front.order(); front.finish(order, b"answer")

RULES: no fork, no kill, no sleep, no blocking. `settle` turns the loop until nothing is left to do. Time passes only when
a test says so.
"""

import os
import socket
from dataclasses import dataclass, field

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.workers.resizer.scheduler_fixture import FakeProcesses, receive, row_of_cells
from workers.resizer.arena import Arena
from workers.resizer.frame_protocol import ANSWER_BYTES, FrameProtocol
from workers.resizer.front import FirstByte
from workers.resizer.front_connection import FrontConnection
from workers.resizer.http_protocol import HttpProtocol
from workers.resizer.idle_set import WorkerSlot
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import Hello, Order, Ping, Result, encode
from workers.resizer.protocol import ClientProtocol
from workers.resizer.rates import Rates
from workers.resizer.scheduler import Scheduler
from workers.resizer.task import OK
from workers.wire.frames import MAGIC, FrameReader, frame
from workers.wire.messages import Request, Response, decode_response, encode_request

OPTIONS = ResizerOptions(name="here", cpus=1, queue=2, pipeline=4, express_bytes=0, max_frame=100_000)
FIRST_PID = 11  # of the CPU processes


def request_frame(**fields: object) -> bytes:
    """The whole frame of a Request."""
    return frame(encode_request(Request(**fields)))  # type: ignore[arg-type]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Like socket.socketpair(), for tests that need TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


@dataclass
class FramePeer:
    """The client's end of a connection."""

    sock: socket.socket
    connection: FrontConnection
    reader: FrameReader = field(default_factory=FrameReader)
    is_closed: bool = False  # the front has closed the connection

    def send(self, data: bytes) -> None:
        """Send; the data must fit the buffer of the socket."""
        assert self.sock.send(data) == len(data)

    def received(self) -> bytes:
        """What has arrived since the last call."""
        found = bytearray()
        while not self.is_closed:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            self.is_closed = not data
            found += data
        return bytes(found)

    def replies(self) -> list[Response]:
        return [decode_response(payload) for payload in self.reader.feed(self.received())]


class FrontFixture:
    """A scheduler, CPU processes, and clients, kept as by a front. `ends`: pid -> the process's
    end of its channel.
    """

    def __init__(self, options: ResizerOptions = OPTIONS, cpus: int = 1) -> None:
        self.now = 100.0
        self.options = options
        self.loop = Loop(lambda: self.now)
        self.cells = row_of_cells()
        self.arena = Arena(options.slots, options.slot_bytes)
        self.log = Log("front", os.devnull)
        self.answer_bytes = ANSWER_BYTES
        self.processes = FakeProcesses()
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(cpus)]
        self.channels = [channel for channel, _ in pairs]
        self.ends = {FIRST_PID + number: end for number, (_, end) in enumerate(pairs)}
        self.workers = [WorkerSlot(f"cpu {number}", False, end) for number, end in enumerate(self.channels)]
        self.scheduler = Scheduler(
            self.loop,
            self.log,
            options,
            self.arena,
            self.cells,
            self.workers,
            self.processes,
        )
        self.scheduler.start({})
        for pid, end in self.ends.items():
            end.setblocking(False)
            assert isinstance(receive(end), Ping)
            end.send(encode(Hello(pid, 0)))
        self.peers: list[FramePeer] = []
        self.settle()

    def close(self) -> None:
        for peer in self.peers:
            peer.sock.close()
            peer.connection.close("test is over")
        self.settle()
        self.loop.close()
        for end in (*self.channels, *self.ends.values()):
            end.close()
        for fd in self.processes.life.values():
            os.close(fd)

    # -- what a test calls --

    def connect(self, is_over_limit: bool = False, over_tcp: bool = False) -> FramePeer:
        near, far = tcp_pair() if over_tcp else socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        connection = FrontConnection(
            self.loop, self.log, near, "peer", self.cells, is_over_limit, lambda connection, reason: None
        )
        connection.start(FirstByte(connection, self._protocol_for))
        self.peers.append(FramePeer(far, connection))
        return self.peers[-1]

    def _protocol_for(self, connection: FrontConnection, first: int) -> ClientProtocol:
        if first == MAGIC[0]:
            return FrameProtocol(connection, self.scheduler, self.answer_bytes)
        return HttpProtocol(connection, self.scheduler, lambda: {"name": "here"}, Rates())

    def settle(self) -> None:
        for _ in range(12):
            self.loop.run_once(0)

    def drain(self) -> None:
        self.scheduler.draining = True
        for peer in self.peers:
            peer.connection.protocol.drain()
        self.settle()

    def order(self) -> Order | None:
        """The next order to a CPU process, if there is one."""
        for pid, end in self.ends.items():
            try:
                order = receive(end)
            except BlockingIOError:
                continue
            assert isinstance(order, Order)
            if order.worker_pid == pid:
                return order
        return None

    def place(self, order: Order, length: int) -> memoryview:
        """The beginning of the place of an order, as its process has it."""
        memory = next(one.memory for one in self.workers if one.pid == order.worker_pid)
        assert memory is not None
        return memory.view(order.place, length)

    def picture(self, order: Order) -> bytes:
        return bytes(self.place(order, order.length))

    def finish(self, order: Order, answer: bytes = b"small", status: int = OK, text: str = "jpeg") -> None:
        """The CPU process sends the result of an order."""
        self.place(order, len(answer))[:] = answer
        result = Result(order.worker_pid, order.serial, status, len(answer), 9, 6, 90, 60, 1, text=text)
        self.ends[order.worker_pid].send(encode(result))
        self.settle()

    def replace(self, pid: int, successor: int) -> None:
        """A CPU process ends, and its successor sends Hello on the same channel."""
        os.close(self.processes.life.pop(pid))
        self.settle()
        end = self.ends[successor] = self.ends.pop(pid)
        end.send(encode(Hello(successor, 0)))
        self.settle()

    def work(self, answer: bytes = b"small") -> bytes:
        """Carry out the next order. Returns the picture that was to be resized."""
        order = self.order()
        assert order is not None, "no order"
        found = self.picture(order)
        self.finish(order, answer)
        return found

    def taken(self) -> int:
        """Slots in use."""
        return self.options.slots - len(self.scheduler.slots)

    def fill_queue(self) -> list[FramePeer]:
        """One picture at work and a full queue behind it. Returns their clients."""
        crowd = [self.connect() for _ in range(self.options.queue + 1)]
        for peer in crowd:
            peer.send(request_frame(id=1, data=b"x" * 5000, target_width=9))
            self.settle()
        assert self.scheduler.is_queue_full()
        return crowd
