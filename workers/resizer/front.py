"""The front: owns every client socket, runs no image code.

RULES: never waits for anything but its loop. The master's orders come in through `Child` (drain, cut,
tick); who is asked for work is the desk's business, what bytes mean the speaker's. Over `maxconns` a client
is served health, status, dry runs and refusals but no work: a service that is full must still be able to
say so.
"""

import errno
import socket
from collections.abc import Callable
from functools import partial

from balancer.eventloop.errnos import CAPACITY, STILLBORN, WOULD_BLOCK, name_of
from balancer.prefork.child import Child
from balancer.prefork.sockets import ListeningSocket
from balancer.shm.layout import FIRST_LEASE, GENERATION, LOAD, MASTER_LIVE_ROWS, MASTER_ROW, PID, ROLE, SLOT
from workers.resizer import tally
from workers.resizer.arena import Arena
from workers.resizer.client import Client
from workers.resizer.desk import Desk
from workers.resizer.framed import Framed
from workers.resizer.options import ResizerOptions
from workers.resizer.seats import Seat
from workers.resizer.speaking import Life, Speaker
from workers.resizer.web import Web
from workers.wire.frames import MAGIC

ACCEPTS = 16  # per wake-up of a listener
SPARE = 64  # clients over maxconns that are still answered
REARM_SECONDS = 0.2  # after the kernel had no descriptor or memory for a connection
SHUT_SILENCE = 10.0  # seconds between two lines that say so
CHECK_SECONDS = 1.0


def run(
    child: Child, settings: ResizerOptions, arena: Arena, describe: Callable[[], dict[str, object]]
) -> int:
    """The role. Returns the exit code."""
    front = Front(child, settings, arena, describe)
    front.start()
    return child.run()


class Front:
    """One front process. `describe` gives the document of GET /status."""

    def __init__(
        self, child: Child, settings: ResizerOptions, arena: Arena, describe: Callable[[], dict[str, object]]
    ) -> None:
        self.child = child
        self.loop = child.loop
        self.settings = settings
        self.describe = describe
        first = child.slot * settings.slots
        self.desk = Desk(
            child.loop, child.log, settings, arena, range(first, first + settings.slots), child.cells
        )
        self.clients: set[Client] = set()
        self.doors: dict[int, ListeningSocket] = {}
        self.checked_at = child.loop.now
        self.is_shut = False  # the doors are closed because there are too many clients
        self.silent_till = 0.0  # that this is so has been said; not again before

    def start(self) -> None:
        child = self.child
        self.desk.hire(self._seats(), self._alive())
        self._open_doors()
        child.on_drain = self.drain
        child.on_cut = self.cut
        child.on_tick = self.tick
        child.ready()

    def _seats(self) -> list[Seat]:
        """This front's share of the CPU processes: slot k belongs to front k modulo fronts."""
        mine, fronts = self.child.slot, self.settings.fronts
        seats = []
        for role in ("cpu", "express"):
            for slot, channel in enumerate(self.child.channels[role]):
                if slot % fronts == mine % fronts:
                    seats.append(Seat(f"{role} {slot}", role == "express", channel))
        return seats

    def _alive(self) -> list[tuple[str, int]]:
        """CPU processes older than this front, by seat name; they may be working for its predecessor."""
        rows = self.child.shared.rows
        found = []
        for index in range(FIRST_LEASE, rows.row(MASTER_ROW)[MASTER_LIVE_ROWS]):
            row = rows.row(index)
            role = tally.ROLES[row[ROLE]]
            if row[PID] and row[GENERATION] == self.child.generation and role in ("cpu", "express"):
                found.append((f"{role} {row[SLOT]}", row[PID]))
        return found

    # -- doors --

    def _open_doors(self) -> None:
        for slot in {self.child.slot, *self.child.adopted()}:
            for listener in self.child.listening.get(slot, ()):
                if listener.fd not in self.doors and listener.sock.fileno() >= 0:
                    self.doors[listener.fd] = listener
                    self.loop.watch_level(listener.fd, partial(self.accept, listener))
        self.is_shut = False

    def _close_doors(self) -> None:
        for fd in self.doors:
            self.loop.forget(fd)
        self.doors.clear()

    def accept(self, door: ListeningSocket, mask: int = 0) -> None:
        """Up to ACCEPTS new clients of one listener."""
        for _ in range(ACCEPTS):
            if len(self.clients) >= self.settings.maxconns + SPARE:
                self._shut(f"clients={len(self.clients)}/{self.settings.maxconns}")
                return
            try:
                sock, address = door.sock.accept()
            except OSError as error:
                if error.errno in CAPACITY:
                    self._shut(name_of(error.errno))
                elif error.errno == errno.EINVAL:
                    self._lose(door)
                elif error.errno not in WOULD_BLOCK | STILLBORN:
                    self._shut(name_of(error.errno))
                return
            sock.setblocking(False)
            self._welcome(sock, address)

    def _lose(self, door: ListeningSocket) -> None:
        """A reload has removed this address: the master has shut the socket down, which is reported every turn."""
        self.loop.forget(door.fd)
        del self.doors[door.fd]
        self.loop.retire(door.sock.close)

    def _welcome(self, sock: socket.socket, address: object) -> None:
        name = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix"
        is_late = len(self.clients) >= self.settings.maxconns
        client = Client(sock, name, self.desk, self, is_late)
        self.clients.add(client)
        self.desk.count(tally.CLIENTS_TOTAL)
        self.child.cells[LOAD] = len(self.clients)
        self.loop.watch(client.fd, client.on_event)

    def _shut(self, reason: str) -> None:
        """Leave new connections in the kernel's queue for a moment instead of spinning on them."""
        self.is_shut = True
        if self.loop.now >= self.silent_till:
            self.silent_till = self.loop.now + SHUT_SILENCE
            self.child.log.warning("accept", reason=reason, then=f"pause for {REARM_SECONDS:g} s")
        self._close_doors()
        self.loop.call_later(REARM_SECONDS, self._reopen)

    def _reopen(self) -> None:
        if self.child.draining:
            return
        self._open_doors()

    # -- Clients --

    def speaker_for(self, client: Client, first: int) -> Speaker:
        if first == MAGIC[0] or not self.settings.http:
            return Framed(client, self.settings.max_frame)
        return Web(client, self._describe_now)

    def gone(self, client: Client) -> None:
        self.clients.discard(client)
        self.child.cells[LOAD] = len(self.clients)
        if self.child.draining and not self.clients:
            self._leave()

    # -- the master's orders --

    def _publish(self) -> None:
        """The gauges of this moment."""
        desk, cells = self.desk, self.child.cells
        cells[tally.QUEUED] = desk.queued
        cells[tally.WORKING] = desk.crew.busy
        cells[tally.SEATS] = desk.crew.workers

    def _describe_now(self) -> dict[str, object]:
        self._publish()  # the last tick's may be from before the CPU processes said hello
        return self.describe()

    def tick(self, now: float) -> None:
        desk = self.desk
        desk.sweep(now)
        self._publish()
        if now - self.checked_at >= CHECK_SECONDS:
            self.checked_at = now
            desk.shelf.sweep(now)
            for client in list(self.clients):
                client.check(now, self.settings.frame_timeout, self.settings.idle_timeout)
        if not self.child.draining and not self.is_shut:
            self._open_doors()  # a sibling's queue may have been adopted
        text = f"front [{len(self.clients)} clients, {desk.queued} queued]"
        if self.child.draining:
            text = f"front draining [{len(self.clients)} clients, {desk.queued} queued]"
        self.child.title.set(text, now)

    def drain(self, deadline: float) -> None:
        """No new clients, no new work; what is under way is answered."""
        self.desk.draining = True
        self._close_doors()
        owed = self.desk.queued + self.desk.crew.busy
        self.child.log.info(
            "drain", clients=len(self.clients), pictures=owed, then="answer what is under way"
        )
        for client in list(self.clients):
            if client.speaker is None:
                client.finish()
            elif client.life is Life.OPEN:
                client.speaker.drain()
        if not self.clients:
            self._leave()

    def cut(self) -> None:
        """The drain's time is over."""
        for client in list(self.clients):
            client.close("cut")
        self._leave()

    def _leave(self) -> None:
        """The master tells the CPU processes to go once no front is left."""
        self.loop.stop()
