"""Listening sockets: one SO_REUSEPORT socket per slot and address, open for as long as the master serves the address.

RULES
- The slot owns its socket. The master binds before the first fork and closes the sockets of a removed address only.
  (Closing one of two SO_REUSEPORT sockets resets the connections queued on it: 106 of 200 measured; with a duplicate held
  by the master, none.)
- The order of listen() is the kernel's index of a socket in its SO_REUSEPORT group. Steering needs it to be the slot.
- The identity of a group of sockets is (role, address). The listener's name is data: each generation sees the name that
  its own plan gives, so a renamed listener keeps its sockets and their queues.
"""

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from balancer.config.units import Address, parse_address
from balancer.prefork.bind import (
    WILDCARDS,
    Bind,
    CannotBind,
    bind_tcp,
    bind_unix,
    overlaps,
    real_address,
    seen_address,
    set_options,
)
from balancer.prefork.inherited import Inherited, InheritedSocket, hand_out, listens_at
from balancer.prefork.steering import drop_syns


@dataclass(frozen=True)
class ListeningSocket:
    """One listening socket of one slot, as a child sees it. `address` is the real one (its port is never 0), `name` the
    listener's."""

    address: Address
    slot: int
    fd: int
    sock: socket.socket
    name: str = ""


BySlot = Mapping[int, tuple[ListeningSocket, ...]]


class SocketGroup:
    """The sockets of one address, by slot: members of a SO_REUSEPORT group, or one socket and its duplicates.

    `bind` is what the plan in force says of the address.
    """

    def __init__(self, bind: Bind, owner: tuple[int, int] | None = None) -> None:
        self.bind = bind
        self.address = bind.address
        self.sockets: list[socket.socket] = []
        self.is_shared = bind.address.family == "unix" or not bind.per_slot
        self.steered_by: list[int] = []  # shares the kernel was last told
        self.is_steerable = True  # until the kernel refuses the program
        self.is_external = False  # a service manager's: never shut down, its file never removed
        self._owner = owner
        self.inode = 0  # of the socket file

    def serves(self, bind: Bind) -> bool:
        """Whether this is the group of the bind's role and address, whatever the listener's name."""
        return (self.bind.role, self.bind.address) == (bind.role, bind.address)

    def take(self, given: Iterable[Inherited]) -> None:
        """Use inherited sockets, one for each slot from 0 on."""
        for item, sock in given:
            self.is_external |= item.is_external
            sock.setblocking(False)
            self._add(sock)
            if item.is_external and not listens_at(sock, self.bind.address):
                self.address = seen_address(sock)
        if not self.is_shared:
            self.is_shared = not all(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in self.sockets
            )

    def prepare(self, slots: int, made: list[socket.socket], join: bool = False) -> None:
        """Bind what is missing to have a socket for each of `slots` slots; appends to `made`. Raises OSError.

        `join`: the address overlaps with one that we have already.
        """
        while len(self.sockets) + len(made) < slots:
            before = self.sockets + made
            if self.is_shared and before:
                made.append(before[0].dup())
            elif self.bind.address.family == "unix":
                made.append(bind_unix(self.bind, self._owner))
                self._note_file()
            else:
                address = real_address(before[0], self.address) if before else self.bind.address
                made.append(bind_tcp(self.bind, address, join or bool(before), self._owner))

    def listen(self, sock: socket.socket) -> None:
        """Queue clients for the next slot from now on. Raises OSError: of two bound sockets the second may not listen."""
        try:
            sock.listen(self.bind.backlog)
        except OSError:
            sock.close()
            raise
        self._add(sock)

    def _add(self, sock: socket.socket) -> None:
        self.address = real_address(sock, self.address)
        self.sockets.append(sock)
        self._note_file()

    def _note_file(self) -> None:
        """Remember which socket file is ours."""
        if (path := self._path()) and not self.inode:
            with contextlib.suppress(OSError):
                self.inode = os.stat(path).st_ino

    def rebind(self, bind: Bind) -> None:
        """Take the name, backlog, options and mode of a new plan; best effort, nothing is closed."""
        self.bind = bind
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                set_options(sock, bind)
                sock.listen(bind.backlog)
        if path := self._path():
            with contextlib.suppress(OSError):
                os.chmod(path, bind.mode)

    def _path(self) -> str:
        path = self.bind.address.path if self.bind.address.family == "unix" else ""
        return "" if path.startswith("@") else path

    def file_in_place(self) -> int:
        """The inode of what is at the path now, 0 for nothing; of our own file where we cannot see, or have none."""
        path = self._path()
        if not path or self.is_external:
            return self.inode
        try:
            return os.stat(path).st_ino
        except FileNotFoundError:
            return 0
        except OSError:
            return self.inode

    def bind_again(self) -> None:
        """A new socket at the same path, in place of one whose file is gone. Raises OSError. Processes that hold the old
        socket still serve its queue."""
        fresh = bind_unix(self.bind, self._owner)
        fresh.listen(self.bind.backlog)
        old, self.sockets = self.sockets, [fresh]
        self.sockets += [fresh.dup() for _ in old[1:]]
        for sock in old:
            sock.close()
        self.inode = 0
        self._note_file()

    def unlink(self) -> None:
        """Remove the socket file, unless another process has put its own there meanwhile."""
        if (path := self._path()) and not self.is_external:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == self.inode:
                    os.unlink(path)

    def undo(self, given: Sequence[socket.socket]) -> None:
        """Close what was made here. The file of an inherited socket still belongs to the process that gave it."""
        made = [sock for sock in self.sockets if sock not in given]
        if len(made) == len(self.sockets):
            self.unlink()
        for sock in made:
            sock.close()

    def is_part_of(self, groups: Iterable["SocketGroup"]) -> bool:
        """Whether one of these groups, at the wildcard address, has the clients of this one once it is closed."""
        others = (group for group in groups if group.address.host in WILDCARDS)
        return any(overlaps(sock, self.address) for group in others for sock in group.sockets[:1])

    def divert(self) -> None:
        """No new clients from now on; best effort. See drop_syns."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                drop_syns(sock)

    def shut(self) -> None:
        """Stop listening for good, in every process that holds a duplicate too: shutdown(2) acts on the open file."""
        for sock in () if self.is_external else self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.unlink()
        self.close()

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@dataclass(frozen=True)
class PlanSockets:
    """What one generation listens on: the binds of its plan, each with its group of sockets."""

    pairs: tuple[tuple[Bind, SocketGroup], ...] = ()
    added: tuple[SocketGroup, ...] = ()  # those made for this plan

    def by_slot(self, role: str) -> BySlot:
        """The sockets of a role by slot; what the whole role shares is under slot 0."""
        found: dict[int, list[ListeningSocket]] = {}
        for bind, group in self.pairs:
            for slot, sock in enumerate(group.sockets if bind.role == role else ()):
                one = ListeningSocket(group.address, slot, sock.fileno(), sock, bind.name)
                found.setdefault(slot, []).append(one)
        return {slot: tuple(many) for slot, many in sorted(found.items())}

    def addresses(self) -> dict[str, tuple[Address, ...]]:
        """The real addresses by the names of their binds, in the order of the plan."""
        found: dict[str, tuple[Address, ...]] = {}
        for bind, group in self.pairs:
            found[bind.name] = (*found.get(bind.name, ()), group.address)
        return found

    def slots(self, role: str) -> int:
        """Slots of a role that have sockets."""
        return max((len(group.sockets) for bind, group in self.pairs if bind.role == role), default=0)


class Sockets:
    """Every listening socket of this master, in groups."""

    def __init__(self) -> None:
        self.groups: list[SocketGroup] = []
        self.owner: tuple[int, int] | None = None
        self.inherited: list[Inherited] = []
        self.leftover: list[SocketGroup] = []  # a former master's, not configured any more

    def open(self, binds: Sequence[Bind], slots: int) -> PlanSockets:
        """Make every bind listen with at least `slots` sockets.

        All or nothing: raises CannotBind and leaves everything as it was, the inherited sockets included.
        """
        found = match_groups(binds, self.groups)
        added = [
            SocketGroup(bind, self.owner) for bind, group in zip(binds, found, strict=True) if group is None
        ]
        inherited = list(self.inherited)
        for group, entries in zip(added, hand_out([g.bind for g in added], inherited), strict=True):
            group.take(entries)
            self.inherited = [entry for entry in self.inherited if entry not in entries]
        try:
            self._make_listen(added, max(slots, most_slots(added)))
        except CannotBind:
            self.inherited = inherited
            for group in added:
                group.undo([sock for _, sock in inherited])
            raise
        self.groups += added
        fresh = iter(added)
        pairs = [(bind, group or next(fresh)) for bind, group in zip(binds, found, strict=True)]
        return PlanSockets(tuple(pairs), tuple(added))

    def slots(self) -> int:
        """Slots that own sockets. The kernel gives clients to every member of a SO_REUSEPORT group."""
        return most_slots(self.groups)

    def grow(self, slots: int) -> None:
        """A socket more for every slot that has none yet. Raises CannotBind with nothing changed."""
        self._make_listen(self.groups, slots)

    def _make_listen(self, groups: Sequence[SocketGroup], slots: int) -> None:
        """Bind everything, then listen: closing a socket that never listened loses no client."""
        made: list[tuple[SocketGroup, list[socket.socket]]] = []
        try:
            for group in groups:
                made.append((group, []))
                join = any(overlaps(sock, group.bind.address) for sock in self._all())
                group.prepare(slots if group.bind.per_slot else 1, made[-1][1], join)
            for group, sockets in made:
                while sockets:
                    group.listen(sockets.pop(0))
        except OSError as error:
            for sock in (sock for _, sockets in made for sock in sockets):
                sock.close()
            raise CannotBind(f"cannot bind {group.bind.address}: {error.strerror or error}") from error

    def _all(self) -> Iterator[socket.socket]:
        """One socket of every address that we listen on, configured or not."""
        for group in (*self.groups, *self.leftover):
            yield from group.sockets[:1]
        for _, sock in self.inherited:
            yield sock

    def to_hand_over(self) -> list[InheritedSocket]:
        """Everything a successor must know of our sockets, in the order of slots."""
        return [
            InheritedSocket(
                sock.fileno(), group.bind.role, str(group.bind.address), group.bind.name, group.is_external
            )
            for group in self.groups
            for sock in group.sockets
        ]

    def sort_out(self) -> list[Inherited]:
        """After `open`: which inherited sockets no bind has taken. Those of a former master become `leftover`, to be
        shut when this one serves; those of a service manager are returned, and are not ours to shut."""
        rest, self.inherited = self.inherited, []
        for wanted in dict.fromkeys((item.role, item.wanted, item.name) for item, _ in rest if item.wanted):
            role, address, name = wanted
            group = SocketGroup(Bind(role, parse_address(address), name=name))
            group.take(entry for entry in rest if (entry[0].role, entry[0].wanted, entry[0].name) == wanted)
            self.leftover.append(group)
        return [(item, sock) for item, sock in rest if not item.wanted]

    def remove(self, groups: Iterable[SocketGroup]) -> None:
        """Shut these groups and forget them."""
        for group in list(groups):
            (self.groups if group in self.groups else self.leftover).remove(group)
            group.shut()

    def unlink(self) -> None:
        """Remove our unix socket files: the last act of a master without a successor."""
        for group in self.groups:
            group.unlink()


def match_groups(binds: Sequence[Bind], groups: Sequence[SocketGroup]) -> list[SocketGroup | None]:
    """The group that serves each bind, None where there is none yet.

    Several binds of a role may have one address when its port is 0: there the name decides, then the order.
    """
    free = list(groups)
    found: list[SocketGroup | None] = [None] * len(binds)
    for names_count in (True, False):
        for index, bind in enumerate(binds):
            if found[index] is None:
                fit = (g for g in free if g.serves(bind) and (not names_count or g.bind.name == bind.name))
                found[index] = next(fit, None)
                free = [group for group in free if group is not found[index]]
    return found


def most_slots(groups: Iterable[SocketGroup]) -> int:
    """The most sockets that any address with one for each slot has; 0 when there is none."""
    return max((len(group.sockets) for group in groups if group.bind.per_slot), default=0)
