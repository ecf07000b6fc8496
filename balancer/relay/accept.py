"""The door: from a listener's queue to sessions, within every limit.

RULES: listeners are watched level-triggered, because a sibling may be told to drain the same queue. A bounded number of
clients per wake-up; out of descriptors or memory means: listeners out of the loop, again after a while, and a log
line now and then. Never closes a listener: the queue belongs to the slot, not to this process.

How many to accept per wake-up: one more accept(2) that finds nothing costs an exception (1.5 us), being woken once more
costs 0.5. So one, doubled (up to MAX_ACCEPTS) while the queue is found filled turn after turn.
"""

import _socket
import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import close, set_blocking
from typing import Any, Protocol

from balancer.eventloop.errnos import CAPACITY, STILLBORN, name_of
from balancer.eventloop.timers import Timer
from balancer.pool.board import L_ACCEPTED, L_CLOSED, L_REFUSED, L_SESSIONS
from balancer.relay.hub import Hub
from balancer.relay.session import Session
from balancer.shm.layout import ACCEPTING, LOAD

MAX_ACCEPTS = 16
LOG_EVERY = 10.0  # seconds between two log lines of a worker about that; there may be many workers
REST = 0.2  # seconds without accepting after running out of something
LOOK = 0.02  # seconds between two looks for a seat that a sibling may have freed


Accepted = tuple[int, Any]  # descriptor, the client's address


class Listening(Protocol):
    """A listener of the prefork machine."""

    @property
    def fd(self) -> int: ...
    @property
    def sock(self) -> _socket.socket: ...
    @property
    def address(self) -> object: ...


class Door:
    """One listener's way in."""

    __slots__ = ("_accept", "_greed", "_hall", "_turn", "address", "fd")

    def __init__(self, hall: "Acceptor", listener: Listening) -> None:
        listener.sock.setblocking(False)
        self.fd = listener.fd
        self.address = listener.address
        self._accept: Callable[[], Accepted] = listener.sock._accept  # type: ignore[attr-defined]
        self._hall = hall
        self._greed = 1
        self._turn = 0

    def on_clients(self, mask: int) -> None:
        """The queue is not empty (unless a sibling was faster)."""
        turn = self._hall.hub.loop.turns
        self._greed = min(self._greed * 2, MAX_ACCEPTS) if turn == self._turn + 1 else 1
        self._turn = turn
        self.take(self._greed)

    def take(self, most: int) -> bool:
        """Accept up to `most` clients; False when the queue is empty or accepting has to stop."""
        hall, accept = self._hall, self._accept
        fresh: list[Accepted] = []
        may_go_on = True
        for _ in range(min(most, hall.room())):
            if hall.seat_first and not hall.take_seat():
                may_go_on = False
                break
            try:
                fresh.append(accept())
            except OSError as error:
                if hall.seat_first:
                    hall.give_seat()
                if error.errno not in STILLBORN:
                    self._give_up(error.errno or 0)
                    may_go_on = False
                    break
        return hall.welcome(fresh) and may_go_on

    def _give_up(self, code: int) -> None:
        if code in CAPACITY:
            self._hall.run_dry(code)
        elif code == errno.EINVAL:
            self._hall.lose(self.address)


class Acceptor:
    """All doors of one worker."""

    def __init__(self, hub: Hub, listeners: Mapping[int, Sequence[Listening]]) -> None:
        self.hub = hub
        self.maxconns = hub.settings.maxconns
        self.seat_first = bool(self.maxconns) and hub.settings.overflow == "queue"
        self._listeners = listeners  # grows: slots made later are handed to living workers too
        self._doors: dict[int, list[Door]] = {}
        self._open: dict[int, Door] = {}  # watched, or to be watched again when accepting resumes
        self._slots: frozenset[int] = frozenset()
        self._resting: Timer | None = None
        self._lacks_room = False
        self._logged_at = -LOG_EVERY
        hub.on_room = self.room_again

    # -- which queues

    def serve(self, slots: Iterable[int]) -> None:
        """Accept from the queues of exactly these slots."""
        wanted = frozenset(slots)
        if wanted == self._slots:
            return
        self._slots = wanted
        for slot in wanted - self._doors.keys():
            listeners = self._listeners.get(slot, ())
            self._doors[slot] = [Door(self, one) for one in listeners if one.sock.fileno() >= 0]
        doors = {door.fd: door for slot in wanted for door in self._doors.get(slot, ())}
        for fd in self._open.keys() - doors.keys():
            self._unwatch(fd)
        self._open = doors
        if self._resting is None:
            self._watch_all()

    def lose(self, address: object) -> None:
        """A reload has removed this address: the master has shut its sockets down for everybody. Left in the loop, such a
        listener is reported every turn for ever."""
        for fd in [fd for fd, door in self._open.items() if door.address == address]:
            self._unwatch(fd)
            del self._open[fd]
        for slot, doors in self._doors.items():
            self._doors[slot] = [door for door in doors if door.address != address]
        gone = [one for many in self._listeners.values() for one in many if one.address == address]
        for one in gone:
            self.hub.loop.retire(one.sock.close)

    def empty_queues(self) -> None:
        """Accept what already waits, as far as the limits go: before these queues are left for good."""
        for door in list(self._open.values()):
            while self._resting is None and door.take(MAX_ACCEPTS):
                pass

    def is_accepting(self) -> bool:
        return bool(self._open) and self._resting is None

    # -- one client

    def room(self) -> int:
        """Clients that this worker has descriptors for, their backends' and the pipes' counted; it rests before there is
        none."""
        hub = self.hub
        return hub.budget - len(hub.sessions) - (hub.pipes.made if hub.pipes is not None else 0)

    def welcome(self, fresh: Sequence[Accepted]) -> bool:
        """Begin a session for each accepted client; False when accepting has to stop.

        They are counted together (three cells for each are 1,200 instructions), and before a backend can count the first
        of them: a worker may be killed in between."""
        hub, maxconns = self.hub, self.maxconns
        cells, sessions = hub.cells, hub.sessions
        cells[L_ACCEPTED] += len(fresh)
        if not maxconns:
            cells[L_SESSIONS] += len(fresh)
        for fd, address in fresh:
            if maxconns and not self.seat_first and not hub.seats.acquire(hub.limit_column, maxconns):
                self._refuse(fd, address)
                continue
            set_blocking(fd, False)
            session = Session(hub, fd, address)
            sessions[session] = None
            session.begin()
        hub.process[LOAD] = len(sessions)
        if self.room() <= 0:
            self.run_dry(errno.EMFILE)
            return False
        return True

    def take_seat(self) -> bool:
        """--overflow queue: a seat before the accept; without one the client stays in the kernel's queue."""
        if self.hub.seats.acquire(self.hub.limit_column, self.maxconns):
            return True
        self._lacks_room = True
        self._rest(LOOK)
        return False

    def give_seat(self) -> None:
        self.hub.seats.release(self.hub.limit_column)

    def _refuse(self, fd: int, address: object) -> None:
        hub = self.hub
        hub.cells[L_REFUSED] += 1
        close(fd)
        hub.cells[L_CLOSED] += 1  # accepted = closed, once nobody is there
        peer = Session(hub, -1, address).peer_name()
        taken = f"{hub.seats.held(hub.limit_column)}/{self.maxconns}"
        hub.log.info("refuse", client=peer, sessions=taken, reason="maxconns", then="close")

    # -- resting

    def run_dry(self, code: int) -> None:
        """Out of descriptors or memory (or close to it): no accepting until something is free."""
        if self._resting is not None:
            return
        self._rest(REST)
        hub = self.hub
        if hub.loop.now - self._logged_at >= LOG_EVERY:
            self._logged_at = hub.loop.now
            sessions = f"{len(hub.sessions)}/{hub.budget}"
            hub.log.warning("accept", error=name_of(code), sessions=sessions, then=f"again in {REST} s")

    def room_again(self) -> None:
        """Sessions of this worker have ended: the seat one of them left may be had at once."""
        if self._lacks_room:
            self._lacks_room = False
            self._resume()

    def _rest(self, seconds: float) -> None:
        for fd in self._open:
            self._unwatch(fd)
        self.hub.process[ACCEPTING] = 0
        self._resting = self.hub.loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self.room() <= 0:
            self.run_dry(errno.EMFILE)
        else:
            self._watch_all()

    def _watch_all(self) -> None:
        for fd, door in list(self._open.items()):
            if not self.hub.loop.is_watched(fd):
                self.hub.loop.watch_level(fd, door.on_clients)
        self.hub.process[ACCEPTING] = int(bool(self._open))

    def _unwatch(self, fd: int) -> None:
        if self.hub.loop.is_watched(fd):
            self.hub.loop.forget(fd)
