"""A load that accounts for every request, and the backend that proves each of its bytes.

    request   id u64 | payload length u32 | reply length u32 | payload        bytes that the id seeds
    reply     id u64 | backend's index u32 | SHA-256 of the request | bytes    that the complement seeds

attempts = ok + refused + reset + timeout + early_eof + corrupt, which `LoadOutcome.check_exact` asserts. An id is used
once: a byte of another request or connection is counted as corrupt.

    outcome = run_load(lb.address, clients=32, requests=10_000)
    with Load(lb.address, clients=32) as load: ...; outcome = load.finish()      until told to stop

Both run in a process of their own (`python -m scripts.lab.load client|backend ...`).
"""

import hashlib
import itertools
import json
import os
import random
import selectors
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from scripts.lab.helpers import HelperProcess

REQUEST = struct.Struct("!QII")
REPLY = struct.Struct("!QI32s")
FAILURES = ("refused", "reset", "timeout", "early_eof", "corrupt")
MASK = (1 << 64) - 1


def stream(seed: int, length: int) -> bytes:
    """`length` bytes that only this seed gives."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(length)


@dataclass
class LoadOutcome:
    """Number of requests by their end. Times are seconds."""

    attempts: int = 0
    ok: int = 0
    refused: int = 0
    reset: int = 0
    timeout: int = 0
    early_eof: int = 0
    corrupt: int = 0
    connections: int = 0
    seconds: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    longest: float = 0.0
    by_backend: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(int(getattr(self, name)) for name in FAILURES)

    def check_exact(self) -> None:
        assert self.attempts == self.ok + self.failed, self
        assert sum(self.by_backend.values()) == self.ok, self

    def check_nothing_lost(self, at_least: int = 1) -> None:
        """No failure of any class."""
        self.check_exact()
        assert self.failed == 0, f"{self.failed} of {self.attempts} failed: {self}"
        assert self.ok >= at_least, self


class CorruptReply(Exception):
    """A reply that is not this request's."""


class EarlyEnd(Exception):
    """End of stream inside a reply."""


def receive(sock: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes; EarlyEnd when the stream ends before."""
    buffer = bytearray(length)
    view = memoryview(buffer)
    got = 0
    while got < length:
        count = sock.recv_into(view[got:])
        if not count:
            raise EarlyEnd(f"{got} of {length} bytes")
        got += count
    return bytes(buffer)


class LoadClient:
    """One client: a request after the other; `per_connection` requests share a connection."""

    def __init__(
        self, address: tuple[str, int], plan: dict[str, Any], ids: Any, stop: threading.Event
    ) -> None:
        self.address = address
        self.plan = plan
        self.ids = ids
        self.stop = stop
        self.outcome = LoadOutcome()
        self.latencies: list[float] = []
        self.sock: socket.socket | None = None

    def run(self) -> None:
        """Send requests until the stop or the last id; at least one."""
        rng = random.Random(self.plan["seed"])
        left = 0
        while not (self.stop.is_set() and self.outcome.attempts):
            number = next(self.ids)
            if number is None:
                break
            if left == 0:
                self.hang_up()
                left = self.plan["per_connection"]
            left -= 1
            if not self.attempt(number, rng):
                self.hang_up()
                left = 0
            if self.plan["pause"]:
                self.stop.wait(rng.expovariate(1 / self.plan["pause"]))
        self.hang_up()

    def hang_up(self) -> None:
        if self.sock:
            self.sock.close()
            self.sock = None

    def attempt(self, number: int, rng: random.Random) -> bool:
        """One request, counted in exactly one class; whether it succeeded."""
        self.outcome.attempts += 1
        began = time.monotonic()
        try:
            index = self.exchange(number, rng)
        except ConnectionRefusedError as error:
            self.fail("refused", number, error)
        except TimeoutError as error:
            self.fail("timeout", number, error)
        except EarlyEnd as error:
            self.fail("early_eof", number, error)
        except CorruptReply as error:
            self.fail("corrupt", number, error)
        except OSError as error:
            self.fail("reset", number, error)
        else:
            self.outcome.ok += 1
            self.outcome.by_backend[str(index)] = self.outcome.by_backend.get(str(index), 0) + 1
            self.latencies.append(time.monotonic() - began)
            return True
        return False

    def fail(self, kind: str, number: int, error: Exception) -> None:
        setattr(self.outcome, kind, getattr(self.outcome, kind) + 1)
        if len(self.outcome.notes) < 20:
            self.outcome.notes.append(f"{time.monotonic():.3f} id={number} {kind}: {error!r}")

    def exchange(self, number: int, rng: random.Random) -> int:
        """Send a request, check the whole reply; the index of the backend that gave it."""
        if self.sock is None:
            source = (self.plan["source"], 0) if self.plan["source"] else None
            self.sock = socket.create_connection(self.address, self.plan["timeout"], source_address=source)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.outcome.connections += 1
        payload = rng.randint(*self.plan["payload"])
        wanted = rng.randint(*self.plan["reply"])
        request = REQUEST.pack(number, payload, wanted) + stream(number, payload)
        self.sock.sendall(request)
        echoed, index, digest = REPLY.unpack(receive(self.sock, REPLY.size))
        if echoed != number or digest != hashlib.sha256(request).digest():
            raise CorruptReply(f"reply to {echoed}, asked {number}")
        if receive(self.sock, wanted) != stream(number ^ MASK, wanted):
            raise CorruptReply("the reply's bytes are not this request's")
        return int(index)


class RequestIds:
    """Unique numbers for all clients, `limit` of them (0: without end), then None."""

    def __init__(self, limit: int) -> None:
        self.counter = itertools.count()
        self.limit = limit
        self.base = random.SystemRandom().getrandbits(30) << 32

    def __next__(self) -> int | None:
        number = next(self.counter)
        return None if self.limit and number >= self.limit else self.base + number


def merge(clients: list[LoadClient], seconds: float) -> LoadOutcome:
    whole = LoadOutcome(seconds=seconds)
    for client in clients:
        for name in ("attempts", "ok", "connections", *FAILURES):
            setattr(whole, name, getattr(whole, name) + getattr(client.outcome, name))
        for index, count in client.outcome.by_backend.items():
            whole.by_backend[index] = whole.by_backend.get(index, 0) + count
        whole.notes += client.outcome.notes
    times = sorted(itertools.chain.from_iterable(client.latencies for client in clients))
    if times:
        whole.p50 = times[len(times) // 2]
        whole.p99 = times[min(len(times) - 1, len(times) * 99 // 100)]
        whole.longest = times[-1]
    whole.notes = sorted(whole.notes)[:50]
    return whole


def drive(address: tuple[str, int], plan: dict[str, Any], stop: threading.Event) -> LoadOutcome:
    """Run all clients to the end or to the stop."""
    ids = RequestIds(plan["requests"])
    clients = [
        LoadClient(address, plan | {"seed": plan["seed"] * 1000 + n}, ids, stop)
        for n in range(plan["clients"])
    ]
    threads = [threading.Thread(target=client.run) for client in clients]
    began = time.monotonic()
    print("started", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return merge(clients, time.monotonic() - began)


class Load(HelperProcess):
    """A load in a process of its own, until finish()."""

    def __init__(
        self,
        address: tuple[str, int],
        clients: int = 32,
        requests: int = 0,
        per_connection: int = 1,
        payload: tuple[int, int] = (64, 4096),
        reply: tuple[int, int] = (64, 4096),
        timeout: float = 5.0,
        pause: float = 0.0,
        source: str = "",
        seed: int = 1,
    ) -> None:
        names = (
            "clients",
            "requests",
            "per_connection",
            "payload",
            "reply",
            "timeout",
            "pause",
            "source",
            "seed",
        )
        given = locals()
        self.plan = {name: given[name] for name in names}
        super().__init__("scripts.lab.load", "client", *address, json.dumps(self.plan))
        self.read_line()  # its interpreter has started: the first requests are on their way

    def finish(self, stop: bool = True, seconds: float = 60.0) -> LoadOutcome:
        """Tell it to stop, or let it end its requests, and return what happened."""
        outcome = LoadOutcome(**self.figures(stop, seconds))
        outcome.check_exact()
        return outcome


def run_load(address: tuple[str, int], requests: int, seconds: float = 60.0, **plan: Any) -> LoadOutcome:
    """A load of that many requests, waited for."""
    with Load(address, requests=requests, **plan) as load:
        return load.finish(stop=False, seconds=seconds)


class Answering:
    """One connection of the backend: collect a request, queue the reply."""

    def __init__(self, sock: socket.socket, index: int) -> None:
        self.sock = sock
        self.index = index
        self.inbox = bytearray()
        self.outbox = bytearray()

    def turn(self, events: int) -> bool:
        """Move what can be moved; whether the connection lives on."""
        if events & selectors.EVENT_READ:
            data = self.sock.recv(262144)
            if not data:
                return False
            self.inbox += data
            while reply := self.next_reply():
                self.outbox += reply
        if self.outbox:
            try:
                del self.outbox[: self.sock.send(self.outbox)]
            except BlockingIOError:
                pass
        return True

    def next_reply(self) -> bytes | None:
        if len(self.inbox) < REQUEST.size:
            return None
        number, payload, wanted = REQUEST.unpack_from(self.inbox)
        size = REQUEST.size + payload
        if len(self.inbox) < size:
            return None
        digest = hashlib.sha256(self.inbox[:size]).digest()
        del self.inbox[:size]
        return REPLY.pack(number, self.index, digest) + stream(number ^ MASK, wanted)

    @property
    def interest(self) -> int:
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outbox else 0)


def serve(index: int, port: int) -> None:
    """The backend: until its standard input ends."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, events in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                accept_all(listener, selector, index)
                continue
            answering: Answering = key.data
            try:
                alive = answering.turn(events)
            except OSError:
                alive = False
            if not alive:
                selector.unregister(answering.sock)
                answering.sock.close()
            elif key.events != answering.interest:
                selector.modify(answering.sock, answering.interest, answering)


def accept_all(listener: socket.socket, selector: selectors.BaseSelector, index: int) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ, Answering(sock, index))


def main(words: list[str]) -> None:
    if words[0] == "backend":
        serve(int(words[1]), int(words[2]))
        return
    stop = threading.Event()
    plan = json.loads(words[3])

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: its lock, held by a daemon thread, would delay the exit by a second
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    print(json.dumps(asdict(drive((words[1], int(words[2])), plan, stop))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
