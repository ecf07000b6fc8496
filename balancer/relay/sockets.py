"""What the relay does to sockets beyond reading and writing.

RULES: works on raw descriptors (a `socket.socket` object per client costs two system calls and 1.5 us at accept);
no state. Every call is either non-blocking or an option.
"""

import _socket
import ctypes
import fcntl
import socket
import struct
import termios
from collections.abc import Sequence

STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_RESET = struct.pack("ii", 1, 0)
_NOTHING = b"\0\0\0\0"
# os has no shutdown(2), and a socket object made for one costs a getsockname(2) and 2 us for each session. PyDLL: the
# call cannot block, so the interpreter lock is not worth releasing. No argtypes: to check two ints by them costs more
# than all the rest of the call.
_shutdown = ctypes.PyDLL(None).shutdown

TcpOption = tuple[int, int, int]
PROMPT: tuple[TcpOption, ...] = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)  # small writes leave at once


def tcp_options(keepalive: float, user_timeout: float) -> tuple[TcpOption, ...]:
    """Options that find a dead peer: probes after `keepalive` idle seconds (10 s apart, 3 of them; 0 = none), and
    `user_timeout` seconds for sent bytes to be acknowledged (0 = the kernel's own, some 15 minutes)."""
    options: list[TcpOption] = []
    if keepalive:
        options += [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(keepalive))),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        ]
    if user_timeout:
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(user_timeout * 1000))))
    return tuple(options)


def listener_options(keepalive: float, user_timeout: float) -> tuple[TcpOption, ...]:
    """What is set on a TCP listener, once, for all that it accepts: accepted sockets inherit it."""
    return (*PROMPT, *tcp_options(keepalive, user_timeout))


def apply(sock: _socket.socket, options: Sequence[TcpOption]) -> None:
    """Set options as far as this socket knows them (a unix socket knows none)."""
    for option in options:
        try:
            sock.setsockopt(*option)
        except OSError:
            return


def shut_writing(fd: int) -> None:
    """Send FIN after what is queued. A peer that is already gone (ENOTCONN) does not mind: the next read says so."""
    _shutdown(fd, socket.SHUT_WR)


def reset_on_close(fd: int) -> None:
    """Make close() send RST instead of FIN; it also discards what is still queued, so ask `unacknowledged` first."""
    sock = _borrow(fd)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass
    finally:
        sock.detach()


def unacknowledged(fd: int) -> int:
    """Bytes (a FIN counts as one) sent on this socket which its peer's kernel has not acknowledged."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, _NOTHING), "little", signed=True)
    except OSError:
        return 0


def _borrow(fd: int) -> _socket.socket:
    """A socket object on a descriptor that stays ours: detach() it. Family and type are only what it believes."""
    return _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
