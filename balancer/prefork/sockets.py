"""Sockets that outlive the processes that serve them.

RULES
- The slot owns its listener: the master binds one SO_REUSEPORT socket per slot and address, keeps every descriptor for
  its whole life and closes none but those of an address that a reload removed. (Closing one of two such listeners resets
  the connections queued on it: 106 of 200 measured; with the master holding a duplicate, none.)
- The order of listen() is the kernel's index of a socket in its group; steering relies on it being the slot number.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace

from balancer.config.units import Address
from balancer.eventloop.errnos import NOT_LISTENING
from balancer.prefork.upgrade import InheritedSocket


@dataclass(frozen=True)
class Bind:
    """One address to listen on for one role.

    `per_slot`: a SO_REUSEPORT socket for each slot of the role; else one socket, which children find under slot 0.
    `options` (level, option, value) are set on the listener and inherited by what it accepts. `mode` is a unix socket's.
    """

    role: str
    address: Address
    backlog: int = 1024
    per_slot: bool = True
    mode: int = 0o600
    options: tuple[tuple[int, int, int], ...] = ()


class CannotBind(OSError):
    """An address that cannot be listened on; the text is a sentence that names it."""


@dataclass(frozen=True)
class ListeningSocket:
    """One listening socket of one slot. `address` is the real one (its port is never 0)."""

    address: Address
    slot: int
    fd: int
    sock: socket.socket


def real_address(sock: socket.socket, wanted: Address) -> Address:
    """The address a bound socket has: the wanted one with the port the kernel chose."""
    if wanted.family == "unix":
        return wanted
    return replace(wanted, port=sock.getsockname()[1])


class Sockets:
    """Every listening socket of this master, by (role, wanted address), each a list by slot."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, Address], SocketGroup] = {}
        self.owner: tuple[int, int] | None = None
        self.inherited: list[tuple[InheritedSocket, socket.socket]] = []

    def open(self, binds: Iterable[Bind], slots: int) -> "list[SocketGroup]":
        """Make every bind listen with at least `slots` sockets; the groups that are new.

        All or nothing: raises CannotBind and leaves everything as it was, what was handed in included.
        """
        added = [
            SocketGroup(bind, self.owner) for bind in binds if (bind.role, bind.address) not in self.groups
        ]
        handed_in = list(self.inherited)
        for group in added:
            group.take(self.inherited)
        try:
            self._make_listen(added, max(slots, most_slots(added)))
        except CannotBind:
            self.inherited = handed_in
            for group in added:
                group.undo([sock for _, sock in handed_in])
            raise
        self.groups |= {group.key: group for group in added}
        return added

    def slots(self) -> int:
        """Slots that own sockets. Every member of a SO_REUSEPORT group gets clients, wanted or not."""
        return most_slots(self.groups.values())

    def grow(self, slots: int) -> None:
        """A socket more for every slot that has none yet. Raises CannotBind with nothing changed."""
        self._make_listen(list(self.groups.values()), slots)

    def _make_listen(self, groups: "list[SocketGroup]", slots: int) -> None:
        """Bind everything, then listen: a socket that only was bound is closed without losing anybody."""
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

    def of_role(self, role: str) -> dict[int, tuple[ListeningSocket, ...]]:
        """A role's listeners by slot; what is shared by the whole role is under slot 0."""
        found: dict[int, list[ListeningSocket]] = {}
        for group in self.groups.values():
            if group.bind.role == role:
                for listener in group.sockets:
                    found.setdefault(listener.slot, []).append(listener)
        return {slot: tuple(listeners) for slot, listeners in sorted(found.items())}

    def to_hand_over(self) -> list[InheritedSocket]:
        """Everything a successor needs to know of our sockets, in the order of slots."""
        return [
            InheritedSocket(listener.fd, group.bind.role, str(group.bind.address))
            for group in self.groups.values()
            for listener in group.sockets
        ]

    def remove(self, keys: Iterable[tuple[str, Address]]) -> None:
        """Stop listening for good, in every process that holds a duplicate too: shutdown acts on the open file."""
        for key in list(keys):
            group = self.groups.pop(key)
            for listener in group.sockets:
                with contextlib.suppress(OSError):
                    listener.sock.shutdown(socket.SHUT_RDWR)
            group.unlink()
            group.close()

    def unlink(self) -> None:
        """Remove our unix socket files: the last act of a master that nobody follows."""
        for group in self.groups.values():
            group.unlink()


class SocketGroup:
    """The sockets of one address: kernel members by slot, or one socket that slots hold duplicates of."""

    def __init__(self, bind: Bind, owner: tuple[int, int] | None) -> None:
        self.bind = bind
        self.key = (bind.role, bind.address)
        self.address = bind.address
        self.sockets: list[ListeningSocket] = []
        self.shared = bind.address.family == "unix" or not bind.per_slot
        self.steered_by: list[int] = []  # shares the kernel was last told, none yet
        self.is_steerable = True  # until the kernel says no
        self._owner = owner
        self._inode = 0

    def take(self, inherited: list[tuple[InheritedSocket, socket.socket]]) -> None:
        """Use the sockets that were handed to this process for our address, in their order; they leave the list."""
        mine = [entry for entry in inherited if self._is_ours(*entry)]
        for entry in mine:
            inherited.remove(entry)
            sock = entry[1]
            sock.setblocking(False)
            self._admit(sock)
        if mine and not self.shared:
            self.shared = not all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for _, sock in mine)

    def _is_ours(self, item: InheritedSocket, sock: socket.socket) -> bool:
        if item.wanted:
            return item.role == self.bind.role and item.wanted == str(self.bind.address)
        return serves(sock, self.bind.address)

    def prepare(self, slots: int, made: list[socket.socket]) -> None:
        """Bind what is missing to have a socket for each of `slots` slots; appends to `made`. Raises OSError."""
        while len(self.sockets) + len(made) < slots:
            before = [listener.sock for listener in self.sockets] + made
            if self.shared and before:
                made.append(before[0].dup())
            elif self.bind.address.family == "unix":
                made.append(bind_unix(self.bind, self._owner))
                self._note_file()
            else:
                address = real_address(before[0], self.bind.address) if before else self.bind.address
                made.append(bind_stream(self.bind, address, bool(before), self._owner))

    def listen(self, sock: socket.socket) -> None:
        """Begin to queue clients for the next slot. Raises OSError: of two bound sockets the second may not listen."""
        try:
            sock.listen(self.bind.backlog)
        except OSError:
            sock.close()
            raise
        self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        self.address = real_address(sock, self.bind.address)
        self.sockets.append(ListeningSocket(self.address, len(self.sockets), sock.fileno(), sock))
        self._note_file()

    def _note_file(self) -> None:
        """Remember which socket file is ours."""
        if (path := self._path()) and not self._inode:
            with contextlib.suppress(OSError):
                self._inode = os.stat(path).st_ino

    def rebind(self, bind: Bind) -> None:
        """Take over changed backlog, options and mode of an address that stays; best effort, nothing is closed."""
        self.bind = bind
        for listener in self.sockets:
            with contextlib.suppress(OSError):
                set_options(listener.sock, bind)
                listener.sock.listen(bind.backlog)
        if path := self._path():
            with contextlib.suppress(OSError):
                os.chmod(path, bind.mode)

    def _path(self) -> str:
        path = self.bind.address.path if self.bind.address.family == "unix" else ""
        return "" if path.startswith("@") else path

    def unlink(self) -> None:
        """Remove the socket file, unless another process has put its own there meanwhile."""
        if path := self._path():
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == self._inode:
                    os.unlink(path)

    def undo(self, handed_in: "list[socket.socket]") -> None:
        """Close what was made here; a file whose socket was handed in is still its giver's."""
        made = [listener.sock for listener in self.sockets if listener.sock not in handed_in]
        if len(made) == len(self.sockets):
            self.unlink()
        for sock in made:
            sock.close()

    def close(self) -> None:
        for listener in self.sockets:
            listener.sock.close()


def most_slots(groups: Iterable[SocketGroup]) -> int:
    """The most sockets that any address with one for each slot has; 0 when there is none."""
    return max((len(group.sockets) for group in groups if group.bind.per_slot), default=0)


def serves(sock: socket.socket, address: Address) -> bool:
    """Whether an inherited socket listens where `address` says; both wildcards of one port count as equal."""
    try:
        name = sock.getsockname()
    except OSError:
        return False
    if sock.family == socket.AF_UNIX:
        return address.family == "unix" and _text(name) == _text(address.sockaddr())
    if address.family not in ("inet", "inet6") or name[1] != address.port:
        return False
    anywhere = ("0.0.0.0", "::")
    return name[0] == address.host or (name[0] in anywhere and address.host in anywhere)


def _text(name: object) -> str:
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)


def bind_stream(
    bind: Bind, address: Address, join: bool, owner: tuple[int, int] | None = None
) -> socket.socket:
    """A bound TCP socket, not yet listening; `join`: the address is ours already. Raises OSError."""
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
    """Unlink a socket file that nobody serves; raises EADDRINUSE for a live one and for what is no socket."""
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
    else:  # 0, or EAGAIN: its queue is full, so somebody holds it
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def set_options(sock: socket.socket, bind: Bind) -> None:
    """Options of the bind; what connections inherit is set here once instead of at every accept."""
    for level, option, value in bind.options:
        sock.setsockopt(level, option, value)
