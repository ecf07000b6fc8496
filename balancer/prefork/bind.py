"""One address to listen on: what a plan says of it, and a bound socket for it.

RULES: binds and never listens; knows nothing of slots and groups (sockets.py).
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
from dataclasses import dataclass, replace

from balancer.config.units import Address
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


def bind_tcp(bind: Bind, address: Address, join: bool, owner: tuple[int, int] | None = None) -> socket.socket:
    """A bound TCP socket; `join`: another socket of ours has the address, or part of it, already. Raises OSError."""
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
    umask = os.umask(0)
    try:
        if not path.startswith("\0"):
            _clear_stale(path)
        os.fchmod(sock.fileno(), bind.mode)  # bind(2) gives the file this mode
        sock.bind(path)
        if not path.startswith("\0") and owner is not None:
            _give(path, owner)
        set_options(sock, bind)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def _give(path: str, owner: tuple[int, int]) -> None:
    """Change the owner of a socket file, and of nothing that something else has put in its place. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.chown(f"/proc/self/fd/{fd}", *owner)
    finally:
        os.close(fd)


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


def real_address(sock: socket.socket, wanted: Address) -> Address:
    """The address a bound socket has: the wanted one with the port the kernel chose."""
    if wanted.family == "unix":
        return wanted
    return replace(wanted, port=sock.getsockname()[1])


def seen_address(sock: socket.socket) -> Address:
    """The address of a socket that was bound elsewhere, as the kernel has it."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Address("unix", path=os.fsdecode(name).replace("\0", "@"))
    return Address("inet6" if sock.family == socket.AF_INET6 else "inet", name[0], name[1])


def overlaps(sock: socket.socket, address: Address) -> bool:
    """Whether a TCP socket listens on the port of `address`, and one of the two at the wildcard address of the family."""
    family = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(address.family)
    if sock.family != family or not address.port:
        return False
    host, port = sock.getsockname()[:2]
    return port == address.port and host != address.host and (host in WILDCARDS or address.host in WILDCARDS)
