"""What the relay does to sockets beyond reading and writing.

RULES: works on raw descriptors: a `socket.socket` object for each client costs two system calls and 1.5 us at accept.
Keeps no state. No call blocks.
"""

import _socket
import ctypes
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Sequence
from math import inf
from typing import Any

STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_TCP_CLOSE = 7  # include/net/tcp_states.h
_TCP_REPAIR = 19  # linux/tcp.h; Python has no name for it
_RESET = struct.pack("ii", 1, 0)
_NOTHING = b"\0\0\0\0"
_TCP_INFO = struct.Struct("24xI28xI168xI")  # tcpi_unacked, tcpi_last_ack_recv, tcpi_snd_wnd of linux/tcp.h
_BYTES_ACKED = struct.Struct("120xQ")
# `os` has no shutdown(2), and a socket object made for it costs a getsockname(2) and 2 us a session. PyDLL keeps the
# interpreter lock, since the call cannot block. Without argtypes, because their check of two ints costs more than the
# call. The same holds for send(2): `os` has write(2) only, which takes no flags.
_libc = ctypes.PyDLL(None)
_shutdown, _send = _libc.shutdown, _libc.send

TcpOption = tuple[int, int, int]
NODELAY: tuple[TcpOption, ...] = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
LATE, PROMPT = 0, 1  # values of TCP_QUICKACK


def keepalive_options(keepalive: float) -> tuple[TcpOption, ...]:
    """Return options that detect a silent dead peer: 3 probes, 10 s apart, after `keepalive` idle seconds (0: none)."""
    if not keepalive:
        return ()
    return (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(keepalive))),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    )


def listener_options(keepalive: float) -> tuple[TcpOption, ...]:
    """Return options for a TCP listening socket; the sockets that it accepts inherit them."""
    return (*NODELAY, *keepalive_options(keepalive))


def set_user_timeout(fd: int, seconds: float) -> None:
    """Set TCP_USER_TIMEOUT, the time that sent bytes may stay unacknowledged; 0 is the kernel's own, some 15 minutes. A
    socket that is not TCP stays as it is."""
    sock = _borrow(fd)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
    except OSError:
        pass
    finally:
        sock.detach()


def window_state(fd: int) -> tuple[bool, float]:
    """Return, of a socket with bytes under way, whether the peer's receive window is closed, and how many seconds ago
    the peer last acknowledged anything, window probes included. (False, inf) for a socket that is not TCP."""
    sock = _borrow(fd)
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return False, inf
    finally:
        sock.detach()
    if len(info) < _TCP_INFO.size:  # Linux before 5.4
        return False, inf
    segments, last_ack_ms, window = _TCP_INFO.unpack(info)
    # Nothing in flight although bytes wait: the window is closed or smaller than a segment. A receiver that has shrunk
    # its window has segments in flight that it does not take.
    return not segments or not window, last_ack_ms / 1000


def apply(sock: _socket.socket, options: Sequence[TcpOption]) -> None:
    """Set options, up to the first that the socket does not know (a unix socket knows none)."""
    for option in options:
        try:
            sock.setsockopt(*option)
        except OSError:
            return


def set_acks(sock: _socket.socket, when: int) -> None:
    """Acknowledge what the peer sends LATE or PROMPT-ly; a socket that is not TCP stays as it is.

    LATE before a connect that a write follows at once: the acknowledgement of the peer's SYN rides on those bytes.
    Without bytes the peer would not see the connection before a timer of 40 to 200 ms. What it answers is acknowledged
    late as well, and Nagle's algorithm of the peer waits for that between two writes: PROMPT is due with the first."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, when)
    except OSError:
        pass


def shut_writing(fd: int) -> None:
    """Send FIN after what is queued. A peer that is gone (ENOTCONN) is no error here: the next read reports it."""
    _shutdown(fd, socket.SHUT_WR)


def write_last(fd: int, data: bytes) -> int:
    """Write as write(2) does what a FIN follows at once: the last segment is held back to carry it (MSG_MORE). Raises
    OSError. Without a shutdown or close of the socket after it, the peer would wait for the segment."""
    sent: int = _send(fd, data, len(data), socket.MSG_MORE)
    return sent if sent >= 0 else os.write(fd, data)  # which raises what send(2) has said


def reset_on_close(fd: int) -> None:
    """Make close() send RST instead of FIN. It then drops what is queued, so look at `unacknowledged` first."""
    sock = _borrow(fd)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass
    finally:
        sock.detach()


def forget_on_close(fd: int) -> None:
    """Make close() forget the connection without a packet (TCP_REPAIR); a reset where that is not allowed."""
    sock = _borrow(fd)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except OSError:
        reset_on_close(fd)
    finally:
        sock.detach()


def own_address(fd: int) -> tuple[Any, ...]:
    """Return where a client on IPv4 or IPv6 has connected to, as getsockname(2) gives it."""
    sock = _socket.socket(
        socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=fd
    )  # the larger address holds either
    try:
        return sock.getsockname()  # type: ignore[no-any-return]
    finally:
        sock.detach()


def unacknowledged(fd: int) -> int:
    """Return how many sent bytes the peer's kernel has yet to acknowledge (SIOCOUTQ); a FIN counts as one."""
    try:
        count = int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, _NOTHING), "little", signed=True)
    except OSError:
        return 0
    return 0 if count and _is_reset(fd) else count


def _is_reset(fd: int) -> bool:
    """Return whether a connection is gone. SIOCOUTQ goes on to count what its peer will never acknowledge."""
    sock = _borrow(fd)
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:
        return False
    finally:
        sock.detach()


def acknowledged(sock: _socket.socket) -> int | None:
    """Return how many bytes the peer's kernel has acknowledged since the connect, SYN and FIN included
    (tcpi_bytes_acked); None for a socket that is not TCP."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    except OSError:
        return None
    return _BYTES_ACKED.unpack(info)[0] if len(info) == _BYTES_ACKED.size else None


def is_writable(fd: int) -> bool:
    """Return whether a connect has succeeded, or a write would not block."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(mask == select.POLLOUT for _, mask in poll.poll(0))


def _borrow(fd: int) -> _socket.socket:
    """Return a socket object on a descriptor that it must not close: detach() it. Family and type need not be true."""
    return _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
