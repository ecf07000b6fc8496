"""Backends on one port of several loopback addresses, and clients that ask each connection which one it has."""

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

from scripts.lab.backends import Scripted
from scripts.lab.network import free_port
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer

PATIENCE = 20.0  # seconds; a passing run does not wait for them


class Hosts:
    """Backends on one port of several loopback addresses. Each says its address and waits for the client's end."""

    def __init__(self, count: int = 6, port: int = 0) -> None:
        self.port = port or free_port()
        self.names = [f"127.0.0.{2 + number}" for number in range(count)]
        self._stack = ExitStack()
        self.servers: dict[str, Scripted] = {}

    def __enter__(self) -> "Hosts":
        for name in self.names:
            self.servers[name] = Scripted(lambda conn, name=name: self._serve(conn, name), name, self.port)
            self._stack.enter_context(self.servers[name])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _serve(conn: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            conn.sendall(f"{name:<12}".encode())
            conn.recv(1)


def connect(lb: Balancer) -> tuple[socket.socket, str]:
    """A session, and the backend that it has. Raises OSError or AssertionError when it has none."""
    client = socket.create_connection(lb.address, PATIENCE)
    try:
        name = client.recv(12, socket.MSG_WAITALL).decode().strip()
        assert name, "closed without a word"
    except BaseException:
        client.close()
        raise
    return client, name


class Clients:
    """Clients that connect without pause, until the end of the block."""

    def __init__(self, lb: Balancer, count: int = 3) -> None:
        self._lb, self._stop, self._lock = lb, threading.Event(), threading.Lock()
        self._turn = [threading.Lock() for _ in range(count)]  # held during a session
        self.served: Counter[str] = Counter()
        self.last: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(turn,), daemon=True) for turn in self._turn]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.served.total() > 20, "some sessions", PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    @contextlib.contextmanager
    def between_sessions(self) -> Iterator[None]:
        """No client has a session: those of a worker that is killed end with it."""
        with ExitStack() as stack:
            for turn in self._turn:
                stack.enter_context(turn)
            yield

    def _run(self, turn: threading.Lock) -> None:
        while not self._stop.is_set():
            try:
                with turn:
                    client, name = connect(self._lb)
                    client.close()
            except (OSError, AssertionError) as error:
                with self._lock:
                    self.failures.append(repr(error))
                continue
            with self._lock:
                self.served[name] += 1
                self.last[name] = now = time.monotonic()
                self.first.setdefault(name, now)

    def wait_served(self, *names: str) -> None:
        """Wait until these are served, and only these."""
        begun = time.monotonic()

        def are() -> bool:
            with self._lock:
                recent = {name for name, when in self.last.items() if when > time.monotonic() - 0.2}
            return recent == set(names) and time.monotonic() > begun + 0.2

        wait_for(are, f"{names} served, not {self.last.keys()}", PATIENCE)


def tenants(lb: Balancer) -> set[str]:
    return {
        str(each["address_in_use"]).rpartition(":")[0]
        for each in lb.status()["backends"]
        if each["address_in_use"]
    }
