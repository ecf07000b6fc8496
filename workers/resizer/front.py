"""The front: owns every client socket, runs no image code.

RULES: waits for nothing but its loop. The master's orders arrive through `Child` (drain, cut, tick). The scheduler
decides what is worked on, the protocols read the bytes. Over `maxconns` a client is answered health, status, dry runs and
refusals, but no work: a service that is full must still be able to say so.
"""

import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from balancer.config.units import counted
from balancer.eventloop.acceptor import Accepted, Acceptor, ShortageLog, socket_of
from balancer.eventloop.connection import BufferedConnection
from balancer.prefork.child import Child
from balancer.shm.layout import (
    FIRST_LEASE,
    GENERATION,
    LOAD,
    MASTER_LIVE_ROWS,
    MASTER_ROW,
    PID,
    READY,
    SLOT,
    STATE,
)
from workers.resizer import counters
from workers.resizer.arena import Arena
from workers.resizer.frame_protocol import SCRATCH, FrameProtocol
from workers.resizer.front_connection import FrontConnection
from workers.resizer.http_protocol import HttpProtocol
from workers.resizer.idle_set import WorkerSlot
from workers.resizer.options import ResizerOptions
from workers.resizer.protocol import ClientProtocol
from workers.resizer.rates import Rates
from workers.resizer.scheduler import Scheduler
from workers.resizer.task import Origin
from workers.wire.frames import MAGIC

SPARE = 64  # clients over maxconns that are still answered
CHECK_SECONDS = 1.0  # between two checks of time limits


def run(child: Child, options: ResizerOptions, describe: Callable[[], dict[str, object]]) -> int:
    """The role. Returns the exit code."""
    front = Front(child, options, describe)
    front.start()
    return child.run()


def origin_name(host: str) -> str:
    """The address that counts: of IPv6 the network of 64 bits, of which a host may use any address."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address), 64), strict=False))


class FirstByte(ClientProtocol):
    """The protocol of a connection until its first byte decides between frames (0xaa) and HTTP."""

    __slots__ = ("_choose", "_connection")

    def __init__(
        self, connection: FrontConnection, choose: Callable[[FrontConnection, int], ClientProtocol]
    ) -> None:
        self._connection = connection
        self._choose = choose

    def place(self) -> memoryview:
        return SCRATCH

    def received(self, data: memoryview) -> None:
        protocol = self._connection.protocol = self._choose(self._connection, data[0])
        protocol.received(data)

    def ended(self) -> None:
        self._connection.close("done")

    def drain(self) -> None:
        self._connection.finish()


class Front:
    """One front process. `describe` gives the document of GET /status."""

    def __init__(
        self, child: Child, options: ResizerOptions, describe: Callable[[], dict[str, object]]
    ) -> None:
        self.child = child
        self.loop = child.loop
        self.options = options
        self.describe = describe
        arena = Arena(options.slots, options.slot_bytes)
        self.scheduler = Scheduler(child.loop, child.log, options, arena, child.cells, self._workers())
        self.clients: dict[int, FrontConnection] = {}  # by descriptor
        self.rates = Rates()  # of the status page
        self.origins: WeakValueDictionary[str, Origin] = WeakValueDictionary()
        shortage = ShortageLog(child.loop, child.log, lambda: {"clients": self._of_maxconns()})
        self.acceptor = Acceptor(
            child.loop,
            self.begin,
            shortage,
            room=lambda: options.maxconns + SPARE - len(self.clients),
            on_shutdown=lambda sock: sock.close(),  # its only event of this batch is being handled
        )
        self.checked_at = child.loop.now
        self.is_sandbox_known = False

    def start(self) -> None:
        child = self.child
        self.scheduler.start(self._older())
        self._serve()
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

    def _older(self) -> dict[str, int]:
        """Pids of the CPU processes of this front that are ready already, by worker. A process writes its own row: one
        that names another's pid, which has a row too, is left out, or it could have it killed.
        """
        mine = {worker.name for worker in self.scheduler.pool.workers}
        rows = self.child.shared.rows
        master = rows.row(MASTER_ROW)
        live = [rows.row(index) for index in range(FIRST_LEASE, master[MASTER_LIVE_ROWS])]
        named = Counter(row[PID] for row in (master, *live))
        found = {}
        for row in live:
            name = f"{counters.role_of(row)} {row[SLOT]}"
            is_here = row[STATE] == READY and row[GENERATION] == self.child.generation and name in mine
            if is_here and named[row[PID]] == 1:
                found[name] = row[PID]
        return found

    # -- clients --

    def _serve(self) -> None:
        """Accept from the queues of this front's slot and of those it has adopted."""
        child = self.child
        slots = {child.slot, *child.adopted()}
        self.acceptor.serve(one.sock for slot in slots for one in child.listening.get(slot, ()))

    def begin(self, batch: list[Accepted]) -> None:
        """Serve accepted clients."""
        child, clients = self.child, self.clients
        for accepted in batch:
            address = accepted[1]
            name = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unix"
            is_over_limit = len(clients) >= self.options.maxconns
            connection = FrontConnection(
                child.loop,
                child.log,
                socket_of(accepted),
                name,
                child.cells,
                is_over_limit,
                self._gone,
                self._origin_of(address),
            )
            clients[connection.fd] = connection
            connection.start(FirstByte(connection, self._protocol_for))
        self.scheduler.count(counters.CLIENTS_TOTAL, len(batch))
        child.cells[LOAD] = len(clients)

    def _origin_of(self, address: Any) -> Origin:
        """Clients of one address have one origin, as long as there is one of them."""
        name = origin_name(address[0]) if isinstance(address, tuple) else "unix"
        origin = self.origins.get(name)
        if origin is None:
            origin = self.origins[name] = Origin(name)
        return origin

    def _protocol_for(self, connection: FrontConnection, first: int) -> ClientProtocol:
        if first == MAGIC[0] or not self.options.http:
            return FrameProtocol(connection, self.scheduler)
        return HttpProtocol(connection, self.scheduler, self._describe_now, self.rates)

    def _gone(self, connection: BufferedConnection, reason: str) -> None:
        del self.clients[connection.fd]
        self.child.cells[LOAD] = len(self.clients)
        if self.child.draining and not self.clients:
            self._leave()

    def _of_maxconns(self) -> str:
        return f"{len(self.clients)}/{self.options.maxconns}"

    # -- the master's orders --

    def _publish(self) -> None:
        """Write the gauges."""
        scheduler, cells = self.scheduler, self.child.cells
        cells[counters.QUEUED] = scheduler.queued
        cells[counters.WORKING] = scheduler.working
        cells[counters.WORKERS] = scheduler.worker_count
        cells[counters.SLOTS_USED] = scheduler.arena.slots - len(scheduler.slots)

    def _share_room(self) -> None:
        """Take what the other fronts leave of the room of all queues: the kernel spreads clients unevenly."""
        if self.options.fronts > 1:
            shared, cells = self.child.shared, self.child.cells
            others = counters.gauge(shared, counters.QUEUED) - cells[counters.QUEUED]
            room = self.options.queue * self.options.fronts - others
            self.scheduler.queue.resize(min(self.options.most_queued, max(self.options.queue, room)))

    def _describe_now(self) -> dict[str, object]:
        self._publish()  # those of the last tick may be older than the CPU processes' Hello
        return self.describe()

    def tick(self, now: float) -> None:
        scheduler = self.scheduler
        scheduler.tick(now)
        self._publish()
        self._share_room()
        if now - self.checked_at >= CHECK_SECONDS:
            self.checked_at = now
            self._check_sandbox()
            scheduler.sweep(now)
            for client in list(self.clients.values()):
                client.check_timeouts(now, self.options.frame_timeout, self.options.idle_timeout)
        if not self.child.draining:
            self._serve()  # a slot may have been adopted or given back
        state = "front draining" if self.child.draining else "front"
        clients = counted(len(self.clients), "client")
        self.child.title.set(f"{state} [{clients}, {scheduler.queued} queued]", now)

    def _check_sandbox(self) -> None:
        """Say once what the CPU processes lack."""
        if self.is_sandbox_known:
            return
        entered = counters.sandbox_of(self.child.shared)
        if entered is None:
            return
        self.is_sandbox_known = True
        missing = [name for name in counters.LAYERS if name not in counters.layers_of(entered)]
        if missing and self.options.wants_sandbox:
            self.child.log.warning(
                "sandbox", missing=",".join(missing), then="go on; the lines of ready say why"
            )

    def drain(self, deadline: float) -> None:
        """Accept no clients and no work; requests in flight are answered."""
        self.scheduler.draining = True
        self.acceptor.serve(())
        pictures = self.scheduler.queued + self.scheduler.working
        then = "answer what is in flight"
        self.child.log.info("drain", clients=len(self.clients), pictures=pictures, then=then)
        for client in list(self.clients.values()):
            client.protocol.drain()
        if not self.clients:
            self._leave()

    def cut(self) -> None:
        """The time of the drain is over."""
        for client in list(self.clients.values()):
            client.close("cut")
        self._leave()

    def _leave(self) -> None:
        """Exit. The master ends the CPU processes once no front is left."""
        self.loop.stop()
