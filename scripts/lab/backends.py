"""Small TCP backends, in a thread of this process or in a process of their own.

    Echo        sends back what it receives, greets with its name if asked to; counts its connections
    Scripted    calls a function for each connection, in a thread of its own
    Stuck       listens and never accepts
    SlowUnix    echoes on a unix socket with a short queue, so many clients a second
    Digest      a process that proves both directions of the load's requests byte by byte (load.py)

RULES: every socket is opened on port 0; leaving the `with` closes all of them and joins the thread.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from scripts.lab.helpers import BackgroundThread, HelperProcess
from scripts.lab.network import is_open

CROWD = 256  # connections


class ThreadedBackend(BackgroundThread):
    """A listening socket and the thread that serves it."""

    def __init__(
        self, serve: Callable[[], None], host: str = "127.0.0.1", port: int = 0, backlog: int = 4096
    ) -> None:
        super().__init__(serve)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((host, port))
        self.sock.listen(backlog)
        self.address: tuple[str, int] = self.sock.getsockname()[:2]

    @property
    def name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    def end(self, seconds: float = 5.0) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        super().end(seconds)
        self.sock.close()

    def close(self) -> None:
        """Stop listening and drop every connection; a second call does nothing."""
        self.end()


class Echo(ThreadedBackend):
    """Echoes. With `greeting` it sends its name and a newline first, as a protocol does whose server speaks first."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, greeting: bool = False) -> None:
        super().__init__(self.serve, host, port)
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
                    # Those that have ended and were not read yet do not count; of a crowd each look would cost too much.
                    now = sum(map(is_open, self.connections)) if self.now <= CROWD else self.now
                    self.most = max(self.most, now)
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


class Scripted(ThreadedBackend):
    """Calls `script(connection)` in a thread per connection and keeps the OSErrors that it raises in `errors`."""

    def __init__(
        self, script: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(self.serve, host, port)
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


class Stuck(ThreadedBackend):
    """Listens with a full queue and never accepts: a further connect neither succeeds nor fails."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(self.serve, host, port, backlog=0)
        self.fillers = []
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self.address)
            self.fillers.append(filler)

    def serve(self) -> None:
        self.stopping.wait()

    def end(self, seconds: float = 5.0) -> None:
        super().end(seconds)
        for filler in self.fillers:
            filler.close()


class SlowUnix(BackgroundThread):
    """Accepts a client every `seconds` on a unix socket with a queue of `backlog`, and echoes its first bytes."""

    def __init__(self, path: Path, backlog: int, seconds: float) -> None:
        super().__init__(self.serve)
        self.path = path
        self.seconds = seconds
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(str(path))
        self.sock.listen(backlog)

    def serve(self) -> None:
        while not self.stopping.wait(self.seconds):
            with contextlib.suppress(OSError), self.sock.accept()[0] as conn:
                conn.settimeout(1)
                if data := conn.recv(100):
                    conn.sendall(data)

    def end(self, seconds: float = 5.0) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        super().end(seconds)
        self.sock.close()


class Digest(HelperProcess):
    """The backend of load.py's requests; it signs its replies with `index`."""

    def __init__(self, index: int = 0, port: int = 0) -> None:
        super().__init__("scripts.lab.load", "backend", index, port)
        self.index = index
        self.address = ("127.0.0.1", int(self.read_line()))

    @property
    def name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"
