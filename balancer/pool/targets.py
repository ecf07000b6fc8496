"""Where a backend is dialled: from its configuration, or from the words the prober published for its name.

RULES: resolves no name and opens no socket; it reads the words on the board only.
"""

import ipaddress
import socket

from balancer.pool.backend import Backend
from balancer.pool.board import W_ADDRESS_HI, W_ADDRESS_LO, W_FAMILY, Board

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str  # what connect() takes
Target = tuple[int, SocketAddress]  # (AF_..., where)

_HALF = 1 << 64


def target_of(board: Board, backend: Backend) -> Target | None:
    """(address family, sockaddr) to dial; None for a name that was never resolved yet."""
    if backend.address.family != "name":
        return backend.address.socket_family, backend.address.sockaddr()
    words = (board.word(backend.index, column) for column in (W_FAMILY, W_ADDRESS_HI, W_ADDRESS_LO))
    family, high, low = words
    return unpack_address(family, high, low, backend.address.port)


def is_near(target: Target) -> bool:
    """Whether it is certainly on this machine: connect(2) has completed the dial when it returns."""
    family, address = target
    return family == socket.AF_UNIX or ipaddress.ip_address(address[0]).is_loopback


def pack_address(host: str) -> tuple[int, int, int]:
    """A numeric address as board words: (4 | 6, high, low), the halves as signed int64."""
    address = ipaddress.ip_address(host)
    high, low = divmod(int(address), _HALF)
    return address.version, _signed(high), _signed(low)


def unpack_address(family: int, high: int, low: int, port: int) -> Target | None:
    """The dial target that pack_address packed; None when nothing was resolved yet."""
    number = (high % _HALF) * _HALF + low % _HALF
    if family == 4 and number < 1 << 32:
        return socket.AF_INET, (str(ipaddress.IPv4Address(number)), port)
    if family == 6:
        return socket.AF_INET6, (str(ipaddress.IPv6Address(number)), port, 0, 0)
    return None


def _signed(half: int) -> int:
    return half - _HALF if half >= _HALF // 2 else half
