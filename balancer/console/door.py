"""A listener of the console: accepts, counts who is there, survives what accept(2) may say.

RULES: knows how many clients there may be, not what they want. A listener that a reload has shut down is let go of (left
in the loop it would be reported every turn for ever); out of descriptors or memory means a rest, never a spin.
"""

import errno
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from balancer.eventloop.errnos import CAPACITY
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop

GREED = 16  # accepts per wake-up
REST = 0.3  # seconds without accepting after running out of something


G = TypeVar("G")  # whoever serves one accepted client


class Door(Generic[G]):
    """Hands accepted sockets to `welcome`, which returns the guest, or None when it wants none (it closes the socket).

    `make_room` is called when `limit` guests are in; it may send one away. The newcomer who finds no room is closed.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        log: Log,
        name: str,
        limit: int,
        welcome: Callable[[socket.socket], G | None],
        make_room: Callable[[], object] = lambda: None,
    ) -> None:
        self.loop = loop
        self.listener = listener
        self.log = log
        self.name = name
        self.limit = limit
        self.guests: set[G] = set()
        self._welcome = welcome
        self._make_room = make_room
        self._is_open = True
        listener.setblocking(False)
        loop.watch_level(listener.fileno(), self.on_clients)

    def on_clients(self, mask: int) -> None:
        for _ in range(GREED):
            try:
                conn, _address = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._stumble(error)
                return
            self._admit(conn)

    def _admit(self, conn: socket.socket) -> None:
        if len(self.guests) >= self.limit:
            self._make_room()
        if len(self.guests) >= self.limit:
            conn.close()
            return
        conn.setblocking(False)
        if (guest := self._welcome(conn)) is not None:
            self.guests.add(guest)

    def _stumble(self, error: OSError) -> None:
        if error.errno == errno.EINVAL:
            self.close()
        elif error.errno in CAPACITY:
            self._unwatch()
            self.loop.call_later(REST, self._watch)
            self.log.warning("accept", socket=self.name, error=error.strerror, then=f"again in {REST} s")

    def leave(self, guest: G) -> None:
        """A guest has closed."""
        self.guests.discard(guest)

    def close(self) -> None:
        """Accept nobody any more; the listener itself belongs to the master."""
        self._is_open = False
        self._unwatch()

    def _watch(self) -> None:
        if self._is_open and not self.loop.is_watched(self.listener.fileno()):
            self.loop.watch_level(self.listener.fileno(), self.on_clients)

    def _unwatch(self) -> None:
        if self.loop.is_watched(self.listener.fileno()):
            self.loop.forget(self.listener.fileno())
