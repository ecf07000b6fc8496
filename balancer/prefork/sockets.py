"""Listening sockets: one SO_REUSEPORT socket per slot and address, open for as long as the master serves the address.

RULES
- The slot owns its socket. The master binds before the first fork and closes the sockets of a removed address only.
  (Closing one of two SO_REUSEPORT sockets resets the connections queued on it: 106 of 200 measured; with a duplicate held
  by the master, none.)
- The order of listen() is the kernel's index of a socket in its SO_REUSEPORT group. Steering needs it to be the slot.
- The identity of a group of sockets is (role, address). The listener's name is data: each generation sees the name that
  its own plan gives, so a renamed listener keeps its sockets and their queues.
- The first socket of an address is bound without SO_REUSEPORT, which is set afterwards: the kernel refuses the bind while
  another instance listens there. With SO_REUSEPORT from the start a second instance of the same user would join the group
  and take half of the clients.
- A socket is created for the user that will own the process (fchown): the kernel lets the sockets of one user share a
  port, and slots may be added after privileges were dropped.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from balancer.config.units import Address, parse_address
from balancer.eventloop.errnos import NOT_LISTENING

WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Bind:
    """One address to listen on for one role.

    `per_slot`: a SO_REUSEPORT socket for each slot of the role; else one socket, which children find under slot 0.
    `options` (level, option, value) are set on the listening socket, accepted ones inherit them. `mode` is a unix
    socket's. `name` is the listener's, "" when the address belongs to none.
    """

    role: str
    address: Address
    backlog: int = 1024
    per_slot: bool = True
    mode: int = 0o600
    options: tuple[tuple[int, int, int], ...] = ()
    name: str = ""


class CannotBind(OSError):
    """An address that cannot be listened on; the text is a sentence that names it."""


@dataclass(frozen=True)
class ListeningSocket:
    """One listening socket of one slot, as a child sees it. `address` is the real one (its port is never 0), `name` the
    listener's."""

    address: Address
    slot: int
    fd: int
    sock: socket.socket
    name: str = ""


@dataclass(frozen=True)
class InheritedSocket:
    """A listening socket found open at the start.

    From a former master: its role, configured address and listener. From a service manager: no role, no address, and the
    name that LISTEN_FDNAMES gives it. `is_external`: made by a service manager, which goes on listening without us.
    """

    fd: int
    role: str = ""
    wanted: str = ""
    name: str = ""
    is_external: bool = False


Inherited = tuple[InheritedSocket, socket.socket]


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
        self._inode = 0

    def serves(self, bind: Bind) -> bool:
        """Whether this is the group of the bind's role and address, whatever the listener's name."""
        return (self.bind.role, self.bind.address) == (bind.role, bind.address)

    def take(self, given: Iterable[Inherited]) -> None:
        """Use inherited sockets, one for each slot from 0 on."""
        for item, sock in given:
            self.is_external |= item.is_external
            sock.setblocking(False)
            self._add(sock)
        if not self.is_shared:
            self.is_shared = not all(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in self.sockets
            )

    def prepare(self, slots: int, made: list[socket.socket]) -> None:
        """Bind what is missing to have a socket for each of `slots` slots; appends to `made`. Raises OSError."""
        while len(self.sockets) + len(made) < slots:
            before = self.sockets + made
            if self.is_shared and before:
                made.append(before[0].dup())
            elif self.bind.address.family == "unix":
                made.append(bind_unix(self.bind, self._owner))
                self._note_file()
            else:
                address = real_address(before[0], self.bind.address) if before else self.bind.address
                made.append(bind_tcp(self.bind, address, bool(before), self._owner))

    def listen(self, sock: socket.socket) -> None:
        """Queue clients for the next slot from now on. Raises OSError: of two bound sockets the second may not listen."""
        try:
            sock.listen(self.bind.backlog)
        except OSError:
            sock.close()
            raise
        self._add(sock)

    def _add(self, sock: socket.socket) -> None:
        self.address = real_address(sock, self.bind.address)
        self.sockets.append(sock)
        self._note_file()

    def _note_file(self) -> None:
        """Remember which socket file is ours."""
        if (path := self._path()) and not self._inode:
            with contextlib.suppress(OSError):
                self._inode = os.stat(path).st_ino

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

    def unlink(self) -> None:
        """Remove the socket file, unless another process has put its own there meanwhile."""
        if (path := self._path()) and not self.is_external:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == self._inode:
                    os.unlink(path)

    def undo(self, given: Sequence[socket.socket]) -> None:
        """Close what was made here. The file of an inherited socket still belongs to the process that gave it."""
        made = [sock for sock in self.sockets if sock not in given]
        if len(made) == len(self.sockets):
            self.unlink()
        for sock in made:
            sock.close()

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

    def by_slot(self, role: str) -> dict[int, tuple[ListeningSocket, ...]]:
        """The sockets of a role by slot; what the whole role shares is under slot 0."""
        found: dict[int, list[ListeningSocket]] = {}
        for bind, group in self.pairs:
            for slot, sock in enumerate(group.sockets if bind.role == role else ()):
                one = ListeningSocket(group.address, slot, sock.fileno(), sock, bind.name)
                found.setdefault(slot, []).append(one)
        return {slot: tuple(many) for slot, many in sorted(found.items())}

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
        for group, entries in hand_out(added, inherited):
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
                group.prepare(slots if group.bind.per_slot else 1, made[-1][1])
            for group, sockets in made:
                while sockets:
                    group.listen(sockets.pop(0))
        except OSError as error:
            for sock in (sock for _, sockets in made for sock in sockets):
                sock.close()
            raise CannotBind(f"cannot bind {group.bind.address}: {error.strerror or error}") from error

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


# -- which sockets belong to which bind --


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


def hand_out(
    groups: Sequence[SocketGroup], inherited: Sequence[Inherited]
) -> list[tuple[SocketGroup, list[Inherited]]]:
    """Which new group takes which inherited sockets; those of one real address stay together.

    A former master says for which role and configured address a socket was made; the name decides between several of
    them. Of a service manager's sockets, one whose name is a listener's goes to that listener (to its own address
    first), any other one to the group of its address.
    """
    sets: dict[tuple[str, str, str, str], list[Inherited]] = {}
    for item, sock in inherited:
        key = (item.role, item.wanted, item.name, str(sock.getsockname()))
        sets.setdefault(key, []).append((item, sock))
    names = {group.bind.name for group in groups} - {""}
    taken: list[tuple[SocketGroup, list[Inherited]]] = []
    free = list(groups)
    for is_first_round in (True, False):
        for key, entries in list(sets.items()):
            item, sock = entries[0]
            for group in free:
                if _fits(group.bind, item, sock, is_first_round, item.name in names):
                    taken.append((group, entries))
                    free.remove(group)
                    del sets[key]
                    break
    return taken


def _fits(bind: Bind, item: InheritedSocket, sock: socket.socket, is_first: bool, is_named: bool) -> bool:
    has_name = item.name == bind.name
    if item.wanted:
        is_same = (item.role, item.wanted) == (bind.role, str(bind.address))
        return is_same and (has_name or not is_first)
    if is_named:
        kind = (sock.family == socket.AF_UNIX) == (bind.address.family == "unix")
        return has_name and (listens_at(sock, bind.address) if is_first else kind)
    return listens_at(sock, bind.address)


def adopt_sockets(inherited: Iterable[InheritedSocket]) -> list[Inherited]:
    """Socket objects of the descriptors that are listening stream sockets; others are left alone."""
    found = []
    for item in inherited:
        try:
            sock = socket.socket(fileno=item.fd)
        except OSError:
            continue
        if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            os.set_inheritable(item.fd, False)
            found.append((item, sock))
        else:
            sock.detach()
    return found


def listens_at(sock: socket.socket, address: Address) -> bool:
    """Whether an inherited socket listens where `address` says; both wildcards of one port count as equal."""
    try:
        name = sock.getsockname()
    except OSError:
        return False
    if sock.family == socket.AF_UNIX:
        return address.family == "unix" and _text(name) == _text(address.sockaddr())
    if address.family not in ("inet", "inet6") or name[1] != address.port:
        return False
    return name[0] == address.host or (name[0] in WILDCARDS and address.host in WILDCARDS)


def _text(name: object) -> str:
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)


def real_address(sock: socket.socket, wanted: Address) -> Address:
    """The address a bound socket has: the wanted one with the port the kernel chose."""
    if wanted.family == "unix":
        return wanted
    return replace(wanted, port=sock.getsockname()[1])


def most_slots(groups: Iterable[SocketGroup]) -> int:
    """The most sockets that any address with one for each slot has; 0 when there is none."""
    return max((len(group.sockets) for group in groups if group.bind.per_slot), default=0)


# -- one socket: bound, not yet listening --


def bind_tcp(bind: Bind, address: Address, join: bool, owner: tuple[int, int] | None = None) -> socket.socket:
    """A bound TCP socket; `join`: another socket of ours has the address already. Raises OSError."""
    family = socket.AddressFamily(address.socket_family)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if owner is not None:
            os.fchown(sock.fileno(), *owner)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_options(sock, bind)
        if join:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address.sockaddr())
        if not join and bind.per_slot:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_unix(bind: Bind, owner: tuple[int, int] | None = None) -> socket.socket:
    """A bound unix socket with its mode and owner set before anyone can connect. Raises OSError."""
    path = str(bind.address.sockaddr())
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    umask = os.umask(0o177)
    try:
        if not path.startswith("\0"):
            _clear_stale(path)
        sock.bind(path)
        if not path.startswith("\0"):
            os.chmod(path, bind.mode)
            if owner is not None:
                os.chown(path, *owner)
        set_options(sock, bind)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def _clear_stale(path: str) -> None:
    """Unlink a socket file without a listening process; raises EADDRINUSE for a live one and for what is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "the path exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(path)
    if code in NOT_LISTENING:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    else:  # 0; or EAGAIN, which means a full queue
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def set_options(sock: socket.socket, bind: Bind) -> None:
    """Options of the bind; what connections inherit is set here once instead of at every accept."""
    for level, option, value in bind.options:
        sock.setsockopt(level, option, value)
