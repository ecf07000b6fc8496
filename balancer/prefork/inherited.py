"""Listening sockets found open at the start: from a former master, or from a service manager.

RULES: each descriptor is checked before use: it must be a listening stream socket. Only looks and sorts; what is not
taken is for the caller to close.
"""

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from balancer.config.units import Address
from balancer.prefork.bind import WILDCARDS, Bind


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


def hand_out(binds: Sequence[Bind], inherited: Sequence[Inherited]) -> list[list[Inherited]]:
    """The inherited sockets for each bind; those of one real address stay together.

    A former master says for which role and configured address a socket was made; the name decides between several of
    them. Of a service manager's sockets, one whose name is a listener's goes to that listener (to its own address
    first), any other one to the bind of its address.
    """
    sets: dict[tuple[str, str, str, str], list[Inherited]] = {}
    for item, sock in inherited:
        key = (item.role, item.wanted, item.name, str(sock.getsockname()))
        sets.setdefault(key, []).append((item, sock))
    names = {bind.name for bind in binds} - {""}
    found: list[list[Inherited]] = [[] for _ in binds]
    for is_first_round in (True, False):
        for key, entries in list(sets.items()):
            item, sock = entries[0]
            for bind, taken in zip(binds, found, strict=True):
                if not taken and _fits(bind, item, sock, is_first_round, item.name in names):
                    taken += sets.pop(key)
                    break
    return found


def _fits(bind: Bind, item: InheritedSocket, sock: socket.socket, is_first: bool, is_named: bool) -> bool:
    has_name = item.name == bind.name
    if item.wanted:
        is_same = (item.role, item.wanted) == (bind.role, str(bind.address))
        return is_same and (has_name or not is_first)
    if is_named:
        kind = (sock.family == socket.AF_UNIX) == (bind.address.family == "unix")
        return has_name and (listens_at(sock, bind.address) if is_first else kind)
    return listens_at(sock, bind.address)


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
