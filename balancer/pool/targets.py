"""Where a backend is dialled: from its configuration, or from the words the prober published for its name.

RULES: resolves no name and opens no socket; it reads the words on the board only.

A name may have several addresses, up to MOST_ADDRESSES of which are on the board. One is in use: new sessions try it
first, and the others after it when it fails. An IPv4 address stands there as ::ffff:a.b.c.d.
"""

import ipaddress
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple
from zlib import crc32

from balancer.config.units import Address
from balancer.pool.backend import Backend
from balancer.pool.board import (
    MOST_ADDRESSES,
    W_ADDRESS,
    W_ADDRESSES,
    W_ADMIN_STATE,
    W_BACKUP,
    W_IN_USE,
    W_PORT,
    W_SUBJECT,
    W_TENANT,
    W_WEIGHT,
    Board,
)
from balancer.pool.election_log import tag_of

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str  # what connect() takes
Target = tuple[int, SocketAddress]  # (AF_..., where)
# (AF_..., where, is_near, what to dial when that fails); a plain tuple, because it is unpacked for each session
DialTarget = tuple[int, SocketAddress, bool, "DialTarget | None"]

_HALF = 1 << 64


class NameAddresses(NamedTuple):
    """The addresses of a name, in the order of its last answer, and the place of the one in use."""

    hosts: tuple[str, ...] = ()
    in_use: int = 0

    @property
    def host(self) -> str:
        """The one in use, "" when none is known."""
        return self.hosts[self.in_use] if self.hosts else ""

    def in_turn(self) -> tuple[str, ...]:
        """All, from the one in use on."""
        return self.hosts[self.in_use :] + self.hosts[: self.in_use]


def subject_of(backend: Backend) -> int:
    """The value of W_SUBJECT for words that are about this address: a reload may give the same backend another one."""
    return crc32(str(backend.set or backend.address).encode())


def tag_of_backend(board: Board, backend: Backend) -> int:
    """What stands for a backend in records that outlive the configuration: a checksum of its pool, name and address, of a
    set's slot those of the backend that has it."""
    if backend.set:
        return tag_of(f"{backend.pool} {backend.set} {tenant_of(board, backend).address}")
    return tag_of(f"{backend.pool} {backend.name} {backend.address}")


def addresses_of(board: Board, backend: Backend) -> NameAddresses:
    """What is known of the backend's name; nothing while the words are about another one."""
    at = board.backend_words_at(backend.index)
    words = board.words.cells[at : at + W_ADDRESS + 2 * MOST_ADDRESSES].tolist()
    count, in_use = words[W_ADDRESSES], words[W_IN_USE]
    if not 0 < count <= MOST_ADDRESSES or words[W_SUBJECT] != subject_of(backend):
        return NameAddresses()
    pairs = zip(words[W_ADDRESS::2], words[W_ADDRESS + 1 :: 2], strict=True)
    hosts = [unpack_address(high, low) for high, low in pairs][:count]
    return NameAddresses(tuple(hosts), in_use if 0 <= in_use < count else 0)


def targets_of(board: Board, backend: Backend) -> list[Target]:
    """All that can be dialled, in the order in which it is tried; empty for a name of which no address is known."""
    if backend.address.family != "name":
        return [(backend.address.socket_family, backend.address.sockaddr())]
    return [target_at(host, port_of(board, backend)) for host in addresses_of(board, backend).in_turn()]


def port_of(board: Board, backend: Backend) -> int:
    """The configured port, or that of the tenant of a slot."""
    return (board.word(backend.index, W_PORT) if backend.set else 0) or backend.address.port


def tenant_of(board: Board, backend: Backend) -> Backend:
    """The backend that has a slot now, with its address; the slot itself while it is empty."""
    host, address = addresses_of(board, backend).host, backend.address
    if host:
        address = Address("inet6" if ":" in host else "inet", host, port_of(board, backend))
    return replace(
        backend,
        address=address,
        backup=is_backup(board, backend),
        parity=board.word(backend.index, W_TENANT) & 1,
    )


def is_backup(board: Board, backend: Backend) -> bool:
    """Whether it serves only while no other is up: as configured, or by the priority of its service's record."""
    return backend.backup or bool(board.word(backend.index, W_BACKUP))


def target_at(host: str, port: int) -> Target:
    """A numeric address as connect() takes it."""
    if ":" in host:
        return socket.AF_INET6, (host, port, 0, 0)
    return socket.AF_INET, (host, port)


def address_in_use(board: Board, backend: Backend) -> str:
    """For people: the address that a name stands for now, "127.0.0.1:80"; "" when none is known, and for no name."""
    host = addresses_of(board, backend).host if backend.address.family == "name" else ""
    return text_at(host, port_of(board, backend)) if host else ""


def text_at(host: str, port: int) -> str:
    """127.0.0.1:80, [::1]:80."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def has_admin_state(board: Board, index: int) -> bool:
    """Whether an operator has drained the backend or changed its weight; of an empty slot, its last tenant."""
    return any(board.admin_word(index, column) for column in (W_ADMIN_STATE, W_WEIGHT))


def left_over(board: Board, index: int) -> tuple[int, int, int]:
    """What an empty slot still has: the wish of an operator, for a backend that may come back; sessions that are counted
    where those of the next tenant would be; sessions in the other gauge. A new tenant takes the slot with the least."""
    following = (board.word(index, W_TENANT) + 1) & 1
    sessions = board.tenant_sessions(index, following), board.tenant_sessions(index, 1 - following)
    is_wanted = has_admin_state(board, index) or board.admin_maxconn(index) is not None
    return int(is_wanted), *sessions


def tenant_key(host: str, port: int) -> int:
    """The value of W_TENANT_KEY for a tenant, never 0."""
    return crc32(text_at(host, port).encode()) or 1


def chain(targets: Sequence[Target]) -> DialTarget | None:
    """The targets, each with the one to dial when it fails."""
    following: DialTarget | None = None
    for target in reversed(targets):
        following = (*target, is_near(target), following)
    return following


def links(target: DialTarget) -> Iterator[DialTarget]:
    """A target, and those dialled after it."""
    following: DialTarget | None = target
    while following is not None:
        yield following
        following = following[3]


def is_near(target: Target) -> bool:
    """Whether it is certainly on this machine: connect(2) has completed the dial when it returns."""
    family, address = target
    return family == socket.AF_UNIX or ipaddress.ip_address(address[0]).is_loopback


def pack_addresses(hosts: Iterable[str]) -> list[int]:
    """Numeric addresses as board words from W_ADDRESS on, two signed int64 each."""
    words = []
    for host in hosts:
        address = ipaddress.ip_address(host)
        number = int(address) if address.version == 6 else (0xFFFF << 32) + int(address)
        words += [_signed(half) for half in divmod(number, _HALF)]
    return words


def unpack_address(high: int, low: int) -> str:
    """A numeric address of two words of the board."""
    address = ipaddress.IPv6Address((high % _HALF) * _HALF + low % _HALF)
    return str(address.ipv4_mapped or address)


def _signed(half: int) -> int:
    return half - _HALF if half >= _HALF // 2 else half
