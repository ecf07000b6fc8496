"""The load: closed-loop HTTP clients on one epoll, as fast as the peer lets them.

    python -m scripts.benchlib.load '{"host": ..., "port": ..., "path": ..., "connections": ..., "seconds": ...,
    "requests": 0, "close": false}'
prints one JSON object: requests, errors, seconds, latencies in microseconds (a sample of at most SAMPLE).

RULES: speaks as much HTTP as wrk needs of a server. All replies have the length of the first one. Bodies are discarded in
the kernel (MSG_TRUNC), so that a bulk work measures the proxy.
"""

import contextlib
import json
import random
import select
import socket
import sys
import time
from typing import Any

from workers.wire.frames import HEADER, frame

SAMPLE = 200_000
CHUNK = 1 << 20
RETRY_AFTER = 0.05


def request_for(plan: dict[str, Any]) -> bytes:
    if plan.get("frame"):
        size, reply = plan["frame"]
        return frame(reply.to_bytes(4, "big") + bytes(size - 4))
    ending = "Connection: close\r\n" if plan["close"] else ""
    return f"GET {plan['path']} HTTP/1.1\r\nHost: bench\r\n{ending}\r\n".encode()


def length_of(sock: socket.socket) -> int:
    """Bytes of the whole HTTP reply that begins on `sock`, head included."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise SystemExit("the backend closed before a whole reply head")
        data += piece
    head = data.split(b"\r\n\r\n", 1)[0]
    lengths = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    return len(head) + 4 + lengths[0]


class ClosedLoop:
    """All connections of one process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.request = request_for(plan)
        self.length = self.reply_length()
        self.epoll = select.epoll()
        self.socks: dict[int, socket.socket] = {}
        self.left: dict[int, int] = {}
        self.began: dict[int, float] = {}
        self.sent: dict[int, int] = {}  # of requests that the socket has not taken whole
        self.times: list[float] = []
        self.requests = self.errors = self.asked = 0
        self.wanted = plan["requests"]  # 0: until the time is over; else each of that many is waited for
        self.later: list[float] = []  # when connections that failed may be tried again

    def reply_length(self) -> int:
        """Bytes of a whole reply, head included."""
        if self.plan.get("frame"):
            return HEADER + int(self.plan["frame"][1])
        with socket.create_connection((self.plan["host"], self.plan["port"]), 10) as sock:
            sock.sendall(self.request)
            return length_of(sock)

    def open(self) -> None:
        """One more connection, and its first request as soon as it stands."""
        now = time.perf_counter()
        try:
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                sock.connect((self.plan["host"], self.plan["port"]))
        except OSError:
            self.failed()
            return
        number = sock.fileno()
        self.socks[number] = sock
        self.began[number] = now
        self.left[number] = self.length
        self.epoll.register(number, select.EPOLLOUT)

    def failed(self) -> None:
        self.errors += 1
        self.later.append(time.perf_counter() + RETRY_AFTER)

    def drop(self, number: int) -> None:
        self.epoll.unregister(number)
        self.sent.pop(number, None)
        self.socks.pop(number).close()

    def run(self) -> dict[str, Any]:
        for _ in range(self.plan["connections"]):
            self.open()
        start = time.perf_counter()
        end = start + self.plan["seconds"]
        while (now := time.perf_counter()) < end and (self.socks or self.later):
            while self.later and self.later[0] <= now:
                self.later.pop(0)
                self.open()
            for number, events in self.epoll.poll(min(end - now, 0.05), 512):
                self.turn(number, events)
        seconds = time.perf_counter() - start
        for sock in self.socks.values():
            sock.close()
        times = self.times if len(self.times) <= SAMPLE else random.Random(1).sample(self.times, SAMPLE)
        microseconds = sorted(round(t * 1e6) for t in times)
        return {"requests": self.requests, "errors": self.errors, "seconds": seconds, "times": microseconds}

    @property
    def is_enough(self) -> bool:
        return bool(self.wanted) and self.asked >= self.wanted

    def turn(self, number: int, events: int) -> None:
        sock = self.socks[number]
        try:
            if events & select.EPOLLOUT:
                if self.send(number, sock):
                    self.epoll.modify(number, select.EPOLLIN)
                return
            got = sock.recv_into(SINK, min(self.left[number], CHUNK), socket.MSG_TRUNC)
        except BlockingIOError:
            return
        except OSError:
            got = 0
        if not got:
            self.drop(number)
            self.failed()
            return
        self.left[number] -= got
        if self.left[number] <= 0:
            self.finished(number, sock)

    def finished(self, number: int, sock: socket.socket) -> None:
        now = time.perf_counter()
        self.requests += 1
        self.times.append(now - self.began[number])
        if self.is_enough or self.plan["close"]:
            self.drop(number)
            if not self.is_enough:
                self.open()
            return
        self.left[number] = self.length
        self.began[number] = now
        try:
            if not self.send(number, sock):
                self.epoll.modify(number, select.EPOLLOUT)
        except OSError:
            self.drop(number)
            self.failed()

    def send(self, number: int, sock: socket.socket) -> bool:
        """Send what the socket takes of the request; return whether that is all of it."""
        at = self.sent.get(number, 0)
        at += sock.send(self.request[at:] if at else self.request)
        if at < len(self.request):
            self.sent[number] = at
            return False
        self.sent.pop(number, None)
        self.asked += 1
        return True


SINK = bytearray(CHUNK)


def hold(plan: dict[str, Any]) -> None:
    """Open idle connections (each has had one request), say how many, keep them until standard input ends."""
    socks = []
    request = request_for(plan)
    for _ in range(plan["connections"]):
        sock = socket.create_connection((plan["host"], plan["port"]), 10)
        sock.sendall(request)
        sock.recv(65536)
        socks.append(sock)
    print(json.dumps({"held": len(socks)}), flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given.get("hold"):
        hold(given)
    else:
        print(json.dumps(ClosedLoop(given).run()))
