"""One bound socket: TCP or unix, with its options, its owner and its mode set before anyone can connect.

RULES: binds and never listens; knows nothing of slots and groups (listeners.py does).
- A second instance of the same user could join a SO_REUSEPORT group silently and steal half of the traffic. So the FIRST
  socket of an address is bound without SO_REUSEPORT and given the option afterwards: the kernel then refuses it while
  anyone listens there, without a moment in which two instances both believe to be first.
- Sockets are created for the user that will own the process later (fchown): the kernel lets only one user's sockets share
  a port, and slots may be added after privileges were dropped.
"""

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass

from balancer.config.units import Address
from balancer.eventloop.errnos import NOT_LISTENING


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
