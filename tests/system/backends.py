"""Backends for tests, in a thread of the test's own process or in a process of their own.

    Echo        sends back what it gets and says who it is; counts connections now, at most and ever
    Digest      the load generator's other end: proves both directions byte by byte (see load.py)
    Scripted    calls a function for each connection, in a thread of its own

RULES: every socket is opened on port 0; leaving the `with` closes all of them and joins the thread.
"""

import contextlib
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset


def close_with_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


class Listener:
    """A listening socket and the thread behind it; subclasses say what happens to a connection."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, backlog: int = 4096) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((host, port))
        self.sock.listen(backlog)
        self.address: tuple[str, int] = self.sock.getsockname()[:2]
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)

    @property
    def name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    def serve(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and drop every connection; a second call does nothing."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        if self.thread.is_alive():
            self.thread.join(5)
        self.sock.close()


def is_open(conn: socket.socket) -> bool:
    """Whether the other side has not closed it yet: a close that has arrived counts even before it is read."""
    try:
        return conn.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


class Echo(Listener):
    """Echoes. With `greeting`, sends its name and a newline first (a server-first protocol)."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, greeting: bool = False) -> None:
        super().__init__(host, port)
        self.greeting = greeting
        self.now = self.most = self.ever = 0
        self.selector = selectors.DefaultSelector()
        self.connections: set[socket.socket] = set()
        self.peers: list[tuple[str, int]] = []

    def serve(self) -> None:
        self.sock.setblocking(False)
        self.selector.register(self.sock, selectors.EVENT_READ)
        while not self.stopping.is_set():
            for key, _ in self.selector.select(0.1):
                if key.fileobj is self.sock:
                    self.accept()
                else:
                    self.echo(key.fileobj)  # type: ignore[arg-type]
        for conn in self.connections:
            conn.close()
        self.selector.close()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, peer = self.sock.accept()
                self.connections.add(conn)
                self.peers.append(peer)
                self.now += 1
                self.ever += 1
                if self.now > self.most:
                    self.most = max(self.most, sum(map(is_open, self.connections)))
                self.selector.register(conn, selectors.EVENT_READ)
                if self.greeting:
                    conn.sendall(f"{self.name}\n".encode())

    def echo(self, conn: socket.socket) -> None:
        try:
            data = conn.recv(65536)
            if data:
                conn.sendall(data)
                return
        except OSError:
            pass
        self.selector.unregister(conn)
        self.connections.discard(conn)
        conn.close()
        self.now -= 1


class Scripted(Listener):
    """`script(connection)` in a thread per connection; what it raises is kept in `errors`."""

    def __init__(
        self, script: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(host, port)
        self.script = script
        self.errors: list[BaseException] = []
        self.ever = 0

    def serve(self) -> None:
        while not self.stopping.is_set():
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            self.ever += 1
            threading.Thread(target=self.run, args=(conn,), daemon=True).start()

    def run(self, conn: socket.socket) -> None:
        try:
            self.script(conn)
        except OSError as error:
            self.errors.append(error)
        finally:
            conn.close()


class Stuck(Listener):
    """Listens with no room and never accepts: further connects neither succeed nor fail."""

    def __init__(self) -> None:
        super().__init__(backlog=0)
        self.fillers = []
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self.address)
            self.fillers.append(filler)

    def serve(self) -> None:
        self.stopping.wait()

    def close(self) -> None:
        super().close()
        for filler in self.fillers:
            filler.close()


class Digest:
    """A backend process for load.py's requests; `index` is what its replies are signed with."""

    def __init__(self, index: int = 0, port: int = 0) -> None:
        self.index = index
        self.process = subprocess.Popen(
            [
                sys.executable,
                os.path.join(os.path.dirname(__file__), "load.py"),
                "backend",
                str(index),
                str(port),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    @property
    def name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
