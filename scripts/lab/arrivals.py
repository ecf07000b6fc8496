"""New connections at a fixed rate, whatever becomes of the earlier ones: a delay of one hides no delay of the next."""

import selectors
import socket
import time
from dataclasses import dataclass

from scripts.lab.helpers import BackgroundThread
from scripts.lab.network import Address


@dataclass
class Arrival:
    """One connection. Times are monotonic seconds; `ended` is None while it has no answer."""

    began: float
    sock: socket.socket
    ended: float | None = None
    error: str = ""

    @property
    def delay(self) -> float:
        return (self.ended or time.monotonic()) - self.began


class Arrivals(BackgroundThread):
    """`rate` new connections a second to a backend that echoes: connect, send a byte, read its echo, close."""

    def __init__(self, address: Address, rate: float = 100.0) -> None:
        super().__init__(self.run)
        self.address = address
        self.rate = rate
        self.all: list[Arrival] = []
        self.patience = 5.0
        self.selector = selectors.DefaultSelector()

    def stop(self, patience: float = 5.0) -> list[Arrival]:
        """Open no further ones, wait for those under way, and return all. One without an answer has an error."""
        if not self.stopping.is_set():
            self.patience = patience
            self.end(patience + 5)
        return self.all

    def since(self, when: float) -> list[Arrival]:
        return [arrival for arrival in self.all if arrival.began >= when]

    def run(self) -> None:
        due = time.monotonic()
        while not self.stopping.is_set():
            while due <= time.monotonic():
                self.arrive()
                due += 1 / self.rate
            self.turn(max(0.0, due - time.monotonic()))
        limit = time.monotonic() + self.patience
        while self.selector.get_map() and time.monotonic() < limit:
            self.turn(0.05)
        for key in list(self.selector.get_map().values()):
            self.finish(key.data, "no answer")
        self.selector.close()

    def arrive(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        arrival = Arrival(time.monotonic(), sock)
        self.all.append(arrival)
        self.selector.register(sock, selectors.EVENT_WRITE, arrival)
        try:
            sock.connect(self.address)
        except BlockingIOError:
            pass
        except OSError as error:
            self.finish(arrival, repr(error))

    def turn(self, timeout: float) -> None:
        for key, mask in self.selector.select(timeout):
            arrival: Arrival = key.data
            try:
                if mask & selectors.EVENT_WRITE:
                    arrival.sock.send(b"x")
                    self.selector.modify(arrival.sock, selectors.EVENT_READ, arrival)
                else:
                    self.finish(arrival, "" if arrival.sock.recv(1) == b"x" else "end of stream")
            except OSError as error:
                self.finish(arrival, repr(error))

    def finish(self, arrival: Arrival, error: str) -> None:
        arrival.ended, arrival.error = time.monotonic(), error
        self.selector.unregister(arrival.sock)
        arrival.sock.close()
