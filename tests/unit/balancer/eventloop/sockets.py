"""Sockets for tests of the event loop: pairs, what one end has received, a reset."""

import socket
import struct


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """As socket.socketpair(), where it matters that it is TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    for end in (near, far):
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def unix_pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
    return near, far


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def received(sock: socket.socket) -> bytes:
    """All that has arrived, then `|open`, `|end` or `|reset`."""
    found = b""
    while True:
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            return found + b"|open"
        except OSError:
            return found + b"|reset"
        if not data:
            return found + b"|end"
        found += data
