"""Addresses, free ports, and connections as a client or a backend holds them."""

import contextlib
import errno
import random
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

Address = tuple[str, int]
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends a reset


def text_of(address: Address | str) -> str:
    """An address as an option takes it."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def free_port() -> int:
    """A TCP and UDP port that no IPv4 socket is bound to, for programs that must be told one. It lies outside the range
    from which the kernel takes the ports of clients and of port 0: those of other tests do not take it meanwhile, at
    whatever address. Raises OSError when a hundred of them are taken."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    low = min(10_000, first // 2)
    for _ in range(100):
        port = random.randrange(low, first)
        with (
            contextlib.suppress(OSError),
            socket.socket() as tcp,
            socket.socket(type=socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("", port))
            udp.bind(("", port))
            return port
    raise OSError(errno.EADDRINUSE, f"no free port found between {low} and {first}")


def has_ipv6() -> bool:
    """Whether this machine has ::1."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def accepts(address: Address) -> bool:
    """Whether a connect succeeds."""
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True


def is_open(conn: socket.socket) -> bool:
    """Whether the peer has not closed the connection: a FIN that has arrived counts before it is read. Does not wait,
    as recv() of a socket with a timeout does whatever its flags say."""
    poll = select.poll()
    poll.register(conn, select.POLLIN)
    if not poll.poll(0):
        return True
    try:
        return conn.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def close_with_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


@contextlib.contextmanager
def held(address: Address, count: int, timeout: float = 5.0) -> Iterator[list[socket.socket]]:
    """`count` connections, opened one after the other and closed at the end."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection(address, timeout))  # noqa: PERF401 - closed if one fails
        yield opened
    finally:
        for sock in opened:
            sock.close()
