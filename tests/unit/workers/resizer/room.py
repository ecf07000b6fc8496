"""One front without processes: real clients on socket pairs, a CPU process that is only the other end of its channel.

    room = Room(monkeypatch)
    guest = room.welcome(); guest.say(b"..."); room.settle(); order = room.order(); room.finish(order, b"answer")

RULES: nobody is forked or killed, nothing sleeps and nothing blocks: `settle` turns the loop until nothing is left
to do, time passes only when a test says so.
"""

import os
import signal
import socket
from dataclasses import dataclass, field

import pytest

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.resizer import tally
from workers.resizer.arena import Arena
from workers.resizer.client import Client
from workers.resizer.crew import Seat
from workers.resizer.desk import Desk
from workers.resizer.framed import Framed
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import LONGEST, Hello, Order, Result, Roll, decode, encode
from workers.resizer.speaking import Speaker
from workers.resizer.task import OK
from workers.resizer.web import Web
from workers.wire.frames import MAGIC, FrameReader, frame
from workers.wire.messages import Request, Response, decode_response, encode_request

SETTINGS = ResizerOptions(name="here", cpus=1, queue=2, pipeline=4, express_bytes=0, max_frame=100_000)
WORKER = 11  # the pid that the one CPU process says it has


def framed(**fields: object) -> bytes:
    """The whole frame of a Request."""
    return frame(encode_request(Request(**fields)))  # type: ignore[arg-type]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """As socket.socketpair(), where it matters that it is TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


@dataclass
class Guest:
    """A client from its own side."""

    sock: socket.socket
    client: Client
    reader: FrameReader = field(default_factory=FrameReader)
    is_over: bool = False  # the front has ended the connection

    def say(self, data: bytes) -> None:
        """Fits the socket's buffer, or it is no unit test."""
        assert self.sock.send(data) == len(data)

    def heard(self) -> bytes:
        """What has come since the last time."""
        found = bytearray()
        while not self.is_over:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            self.is_over = not data
            found += data
        return bytes(found)

    def replies(self) -> list[Response]:
        return [decode_response(payload) for payload in self.reader.feed(self.heard())]


class Room:
    """A desk, one CPU process, guests. Keeps its clients as a front does."""

    def __init__(self, patch: pytest.MonkeyPatch, settings: ResizerOptions = SETTINGS) -> None:
        self.now = 100.0
        self.settings = settings
        self.loop = Loop(lambda: self.now)
        self.cells = memoryview(bytearray(8 * tally.COLUMNS)).cast("q")
        self.arena = Arena(settings.slots, settings.slot_bytes)
        self.desk = Desk(
            self.loop, Log("front", os.devnull), settings, self.arena, range(settings.slots), self.cells
        )
        self.life, self._alive = os.pipe()
        patch.setattr(os, "pidfd_open", lambda pid: self.life)
        patch.setattr(signal, "pidfd_send_signal", lambda fd, number: None)
        ours, self.cpu = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.cpu.setblocking(False)
        self.desk.hire([Seat("cpu 0", False, ours)], [])
        assert isinstance(decode(self.cpu.recv(LONGEST)), Roll)
        self.cpu.send(encode(Hello(WORKER, 0)))
        self.guests: list[Guest] = []
        self.ours = ours
        self.settle()

    def close(self) -> None:
        for guest in self.guests:
            guest.sock.close()
            guest.client.close("test is over")
        self.settle()
        self.loop.close()
        for end in (self.ours, self.cpu):
            end.close()
        os.close(self._alive)

    # -- what a front does --

    def speaker_for(self, client: Client, first: int) -> Speaker:
        if first == MAGIC[0]:
            return Framed(client, self.settings.max_frame)
        return Web(client, lambda: {"name": "here"})

    def gone(self, client: Client) -> None:
        pass

    # -- what a test does --

    def welcome(self, is_late: bool = False, over_tcp: bool = False) -> Guest:
        near, far = tcp_pair() if over_tcp else socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client = Client(near, "guest", self.desk, self, is_late)
        self.loop.watch(client.fd, client.on_event)
        self.guests.append(Guest(far, client))
        return self.guests[-1]

    def settle(self) -> None:
        for _ in range(12):
            self.loop.run_once(0)

    def drain(self) -> None:
        self.desk.draining = True
        for guest in self.guests:
            if guest.client.speaker is not None:
                guest.client.speaker.drain()
        self.settle()

    def order(self) -> Order | None:
        """What the CPU process is asked to do, if it is asked."""
        try:
            order = decode(self.cpu.recv(LONGEST))
        except BlockingIOError:
            return None
        assert isinstance(order, Order)
        return order

    def picture(self, order: Order) -> bytes:
        return bytes(self.arena.piece(order.offset, order.length))

    def finish(self, order: Order, answer: bytes = b"small", status: int = OK, text: str = "jpeg") -> None:
        """The CPU process has done it."""
        self.arena.slot(order.slot)[: len(answer)] = answer
        self.cpu.send(encode(Result(WORKER, order.serial, status, len(answer), 9, 6, 90, 60, 1, text=text)))
        self.settle()

    def work(self, answer: bytes = b"small") -> bytes:
        """One picture from its order to its answer; what was to be resized."""
        order = self.order()
        assert order is not None, "no order"
        found = self.picture(order)
        self.finish(order, answer)
        return found

    def taken(self) -> int:
        """Slots in use."""
        return self.settings.slots - len(self.desk.shelf)

    def fill_queue(self) -> list[Guest]:
        """One picture at work and as many waiting as may; who asked for them."""
        crowd = [self.welcome() for _ in range(self.settings.queue + 1)]
        for guest in crowd:
            guest.say(framed(id=1, data=b"x" * 5000, target_width=9))
            self.settle()
        assert self.desk.is_full()
        return crowd
