"""Connects from chosen addresses of this machine (`source=` of a backend), each of which has its own local ports.

RULES: one connect of one backend; keeps no state.
"""

import errno
import socket
from _socket import socket as Socket
from collections.abc import Callable, Sequence

from balancer.config.units import Address
from balancer.pool.targets import SocketAddress
from balancer.relay.sockets import STREAM, apply

# bind(2) leaves the port to connect(2), which knows the destination: a port is free for each destination (linux/in.h).
_BIND_ADDRESS_NO_PORT = ((socket.IPPROTO_IP, 24, 1),)


def connect_from(
    sources: Sequence[Address],
    turn: int,
    sock: Socket,
    address: SocketAddress,
    new_socket: Callable[[int, int], Socket],
) -> tuple[Socket, int]:
    """Connect `sock` from the source whose turn it is, or from the next one that has a free port. Return the socket,
    which is another one when a source had none, and the errno of the connect. Raises OSError when there is no further
    socket."""
    code = errno.EADDRNOTAVAIL
    for place in range(len(sources)):
        if place:  # a bound socket keeps its address
            family = sock.family
            sock.close()
            sock = new_socket(family, STREAM)
        try:
            apply(sock, _BIND_ADDRESS_NO_PORT)
            sock.bind(sources[(turn + place) % len(sources)].sockaddr())
        except OSError as error:
            code = error.errno or errno.EIO
        else:
            code = sock.connect_ex(address)
        if code != errno.EADDRNOTAVAIL:
            break
    return sock, code
