"""The front: owns every client socket, runs no image code.

RULES: waits for nothing but its loop. The master's orders arrive through `Child` (drain, cut, tick). The scheduler
decides what is worked on, the protocols read the bytes. Over `maxconns` a client is answered health, status, dry runs and
refusals, but no work: a service that is full must still be able to say so.
"""

import errno
import socket
from collections.abc import Callable
from functools import partial

from balancer.eventloop.errnos import CAPACITY, STILLBORN, WOULD_BLOCK, name_of
from balancer.prefork.child import Child
from balancer.prefork.sockets import ListeningSocket
from balancer.shm.layout import FIRST_LEASE, GENERATION, LOAD, MASTER_LIVE_ROWS, MASTER_ROW, PID, ROLE, SLOT
from workers.resizer import counters
from workers.resizer.arena import Arena
from workers.resizer.frame_protocol import FrameProtocol
from workers.resizer.front_connection import FrontConnection
from workers.resizer.http_protocol import HttpProtocol
from workers.resizer.idle_set import WorkerSlot
from workers.resizer.options import ResizerOptions
from workers.resizer.protocol import ClientProtocol, FrontConnectionState
from workers.resizer.scheduler import Scheduler
from workers.wire.frames import MAGIC

ACCEPTS = 16  # per wake-up of a listening socket
SPARE = 64  # clients over maxconns that are still answered
REARM_SECONDS = 0.2  # after the kernel had no descriptor or memory for a connection
REPORT_SECONDS = 10.0  # between two log lines about that
CHECK_SECONDS = 1.0


def run(
    child: Child, options: ResizerOptions, arena: Arena, describe: Callable[[], dict[str, object]]
) -> int:
    """The role. Returns the exit code."""
    front = Front(child, options, arena, describe)
    front.start()
    return child.run()


class Front:
    """One front process. `describe` gives the document of GET /status."""

    def __init__(
        self, child: Child, options: ResizerOptions, arena: Arena, describe: Callable[[], dict[str, object]]
    ) -> None:
        self.child = child
        self.loop = child.loop
        self.options = options
        self.describe = describe
        first = child.slot * options.slots
        slots = range(first, first + options.slots)
        workers = self._workers()
        self.scheduler = Scheduler(child.loop, child.log, options, arena, slots, child.cells, workers)
        self.clients: set[FrontConnection] = set()
        self.listening: dict[int, ListeningSocket] = {}
        self.checked_at = child.loop.now
        self.is_resting = False  # accepts nothing for a moment
        self.silent_until = 0.0  # no log line about that before

    def start(self) -> None:
        child = self.child
        self.scheduler.start(self._alive())
        self._open_sockets()
        child.on_drain = self.drain
        child.on_cut = self.cut
        child.on_tick = self.tick
        child.ready()

    def _workers(self) -> list[WorkerSlot]:
        """The workers of this front: slot k of a role belongs to front k modulo fronts."""
        mine, fronts = self.child.slot, self.options.fronts
        workers = []
        for role in ("cpu", "express"):
            for slot, channel in enumerate(self.child.channels[role]):
                if slot % fronts == mine % fronts:
                    workers.append(WorkerSlot(f"{role} {slot}", role == "express", channel))
        return workers

    def _alive(self) -> list[tuple[str, int]]:
        """CPU processes older than this front, as (worker name, pid); they may work for its predecessor."""
        rows = self.child.shared.rows
        found = []
        for index in range(FIRST_LEASE, rows.row(MASTER_ROW)[MASTER_LIVE_ROWS]):
            row = rows.row(index)
            role = counters.ROLES[row[ROLE]]
            if row[PID] and row[GENERATION] == self.child.generation and role in ("cpu", "express"):
                found.append((f"{role} {row[SLOT]}", row[PID]))
        return found

    # -- accepting --

    def _open_sockets(self) -> None:
        for slot in {self.child.slot, *self.child.adopted()}:
            for listener in self.child.listening.get(slot, ()):
                if listener.fd not in self.listening and listener.sock.fileno() >= 0:
                    self.listening[listener.fd] = listener
                    self.loop.watch_level(listener.fd, partial(self.accept, listener))
        self.is_resting = False

    def _close_sockets(self) -> None:
        for fd in self.listening:
            self.loop.forget(fd)
        self.listening.clear()

    def accept(self, listener: ListeningSocket, mask: int = 0) -> None:
        """Accept up to ACCEPTS clients of one listening socket."""
        for _ in range(ACCEPTS):
            if len(self.clients) >= self.options.maxconns + SPARE:
                self._rest(f"clients={len(self.clients)}/{self.options.maxconns}")
                return
            try:
                sock, address = listener.sock.accept()
            except OSError as error:
                if error.errno in CAPACITY:
                    self._rest(name_of(error.errno))
                elif error.errno == errno.EINVAL:
                    self._remove(listener)
                elif error.errno not in WOULD_BLOCK | STILLBORN:
                    self._rest(name_of(error.errno))
                return
            sock.setblocking(False)
            self._begin(sock, address)

    def _remove(self, listener: ListeningSocket) -> None:
        """A reload has removed this address and the master has shut the socket down, which is reported in every turn."""
        self.loop.forget(listener.fd)
        del self.listening[listener.fd]
        self.loop.retire(listener.sock.close)

    def _begin(self, sock: socket.socket, address: object) -> None:
        name = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix"
        is_over_limit = len(self.clients) >= self.options.maxconns
        client = FrontConnection(sock, name, self.scheduler, self, is_over_limit)
        self.clients.add(client)
        self.scheduler.count(counters.CLIENTS_TOTAL)
        self.child.cells[LOAD] = len(self.clients)
        self.loop.watch(client.fd, client.on_event)

    def _rest(self, reason: str) -> None:
        """Leave new connections in the kernel's queue for a moment; the level-triggered loop would spin on them."""
        self.is_resting = True
        if self.loop.now >= self.silent_until:
            self.silent_until = self.loop.now + REPORT_SECONDS
            self.child.log.warning("accept", error=reason, then=f"again in {REARM_SECONDS:g} s")
        self._close_sockets()
        self.loop.call_later(REARM_SECONDS, self._resume)

    def _resume(self) -> None:
        if self.child.draining:
            return
        self._open_sockets()

    # -- clients --

    def protocol_for(self, client: FrontConnection, first: int) -> ClientProtocol:
        if first == MAGIC[0] or not self.options.http:
            return FrameProtocol(client, self.options.max_frame)
        return HttpProtocol(client, self._describe_now)

    def gone(self, client: FrontConnection) -> None:
        self.clients.discard(client)
        self.child.cells[LOAD] = len(self.clients)
        if self.child.draining and not self.clients:
            self._leave()

    # -- the master's orders --

    def _publish(self) -> None:
        """Write the gauges."""
        scheduler, cells = self.scheduler, self.child.cells
        cells[counters.QUEUED] = scheduler.queued
        cells[counters.WORKING] = scheduler.working
        cells[counters.WORKERS] = scheduler.worker_count

    def _describe_now(self) -> dict[str, object]:
        self._publish()  # those of the last tick may be older than the CPU processes' Hello
        return self.describe()

    def tick(self, now: float) -> None:
        scheduler = self.scheduler
        scheduler.tick(now)
        self._publish()
        if now - self.checked_at >= CHECK_SECONDS:
            self.checked_at = now
            scheduler.slots.sweep(now)
            for client in list(self.clients):
                client.check_timeouts(now, self.options.frame_timeout, self.options.idle_timeout)
        if not self.child.draining and not self.is_resting:
            self._open_sockets()  # of a sibling whose queue this front has adopted
        text = f"front [{len(self.clients)} clients, {scheduler.queued} queued]"
        if self.child.draining:
            text = f"front draining [{len(self.clients)} clients, {scheduler.queued} queued]"
        self.child.title.set(text, now)

    def drain(self, deadline: float) -> None:
        """Accept no clients and no work; requests in flight are answered."""
        self.scheduler.draining = True
        self._close_sockets()
        pictures = self.scheduler.queued + self.scheduler.working
        then = "answer what is under way"
        self.child.log.info("drain", clients=len(self.clients), pictures=pictures, then=then)
        for client in list(self.clients):
            if client.protocol is None:
                client.finish()
            elif client.state is FrontConnectionState.OPEN:
                client.protocol.drain()
        if not self.clients:
            self._leave()

    def cut(self) -> None:
        """The time of the drain is over."""
        for client in list(self.clients):
            client.close("cut")
        self._leave()

    def _leave(self) -> None:
        """Exit. The master ends the CPU processes once no front is left."""
        self.loop.stop()
