"""Clients over HTTP that ask one request again and again: many connections from one process, or one that is timed.

    with HttpCrowd(port, request, connections=80) as crowd: ...; crowd.finish()      a process of its own
    ask_now_and_then(port, request, seconds=5, period=0.1)                           in this one

RULES: an answer counts when it is complete. A connection that the server ends is made again. A client that is told
Retry-After waits that long; that of another refusal waits REFUSED_SECONDS.
"""

import heapq
import http.client
import random
import selectors
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self

REFUSED_SECONDS = 0.1
FORK = get_context("fork")


@dataclass
class CrowdOutcome:
    """Answers by status ("ended": no answer), and of those with 200 the seconds since their request was begun."""

    statuses: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)


class CrowdClient:
    """One connection: what is left to be sent, and what has come of the answer."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.sock = socket.socket()
        self.begin()

    def begin(self) -> None:
        """The next request."""
        self.left = memoryview(self.request)
        self.head = b""
        self.body_left = -1
        self.status, self.retry_after = "", 0.0
        self.began = time.monotonic()

    def receive(self) -> bool:
        """Read what is there; True when the answer is complete. Raises OSError when the connection has ended."""
        data = self.sock.recv(1 << 18)
        if not data:
            raise ConnectionResetError
        if self.body_left >= 0:
            self.body_left -= len(data)
            return not self.body_left
        self.head += data
        head, found, body = self.head.partition(b"\r\n\r\n")
        if found:
            lines = head.decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
            self.status = lines[0].split()[1]
            self.retry_after = float(fields.get("retry-after", "0"))
            self.body_left = int(fields.get("content-length", "0")) - len(body)
        return not self.body_left


class CrowdRun:
    """The loop of a crowd in its process."""

    def __init__(self, port: int, request: bytes, connections: int) -> None:
        self.address = ("127.0.0.1", port)
        self.outcome = CrowdOutcome()
        self.selector = selectors.DefaultSelector()
        self.clients = [CrowdClient(request) for _ in range(connections)]
        self.later = [(time.monotonic(), number) for number in range(connections)]

    def run(self, stop: Any) -> CrowdOutcome:
        while not stop.poll(0):
            while self.later and self.later[0][0] <= time.monotonic():
                self._begin(heapq.heappop(self.later)[1])
            for key, mask in self.selector.select(0.02):
                self._on_event(key.data, mask)
        return self.outcome

    def _begin(self, number: int) -> None:
        client = self.clients[number]
        client.begin()
        if client.sock.fileno() < 0 or not self._is_connected(client):
            client.sock.close()
            client.sock = socket.socket()
            client.sock.setblocking(False)
            client.sock.connect_ex(self.address)
            self.selector.register(client.sock, selectors.EVENT_WRITE, number)
        else:
            self.selector.modify(client.sock, selectors.EVENT_WRITE, number)

    def _is_connected(self, client: CrowdClient) -> bool:
        return client.sock in self.selector.get_map()

    def _on_event(self, number: int, mask: int) -> None:
        client = self.clients[number]
        try:
            if mask & selectors.EVENT_WRITE and client.left:
                client.left = client.left[client.sock.send(client.left[: 1 << 20]) :]
                if not client.left:
                    self.selector.modify(client.sock, selectors.EVENT_READ, number)
            elif mask & selectors.EVENT_READ and client.receive():
                self._answered(number, client)
        except BlockingIOError:
            pass
        except (OSError, ValueError, IndexError):
            self.outcome.statuses["ended"] += 1
            self.selector.unregister(client.sock)
            client.sock.close()
            heapq.heappush(self.later, (time.monotonic() + REFUSED_SECONDS, number))

    def _answered(self, number: int, client: CrowdClient) -> None:
        self.outcome.statuses[client.status] += 1
        if client.status == "200":
            self.outcome.waits.append(time.monotonic() - client.began)
            self._begin(number)
        else:
            seconds = (client.retry_after or REFUSED_SECONDS) * random.uniform(1.0, 1.2)
            heapq.heappush(self.later, (time.monotonic() + seconds, number))


class HttpCrowd:
    """`connections` clients in a process of their own, for the length of a `with`."""

    def __init__(self, port: int, request: bytes, connections: int) -> None:
        self._stop, stopped = FORK.Pipe()
        self._process = FORK.Process(
            target=self._run, args=(CrowdRun(port, request, connections), stopped), daemon=True
        )
        self._outcome: CrowdOutcome | None = None

    @staticmethod
    def _run(run: CrowdRun, stopped: Any) -> None:
        stopped.send(run.run(stopped))

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.finish()

    def finish(self) -> CrowdOutcome:
        """Stop all; what they got."""
        if self._outcome is None:
            self._stop.send(None)
            outcome: CrowdOutcome = self._stop.recv()
            self._outcome = outcome
            self._process.join()
        return self._outcome


def ask_once(port: int, request: bytes, timeout: float) -> int:
    """The status of the answer to `request` on a connection of its own; 0 without an answer in `timeout` seconds."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as sock:
            sock.settimeout(timeout)
            sock.sendall(request)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            answer.read()
            return answer.status
    except (OSError, http.client.HTTPException):
        return 0


def ask_now_and_then(
    port: int, request: bytes, seconds: float, period: float, timeout: float = 10.0
) -> tuple[list[float], Counter[int]]:
    """Seconds of the good answers, and all statuses. The pauses of about `period` seconds begin with the answer."""
    chance, waits, statuses = random.Random(1), [], Counter[int]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(period * chance.uniform(0.5, 1.5))
        began = time.monotonic()
        status = ask_once(port, request, timeout)
        statuses[status] += 1
        if status == 200:
            waits.append(time.monotonic() - began)
    return waits, statuses
