"""TCP sockets as the kernel lists them, over netlink as `ss` does.

/proc/net/tcp says the same but prints every socket of the machine, tens of thousands in TIME-WAIT after a minute of
churn: 0.3 s and more for each look.
"""

import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED, TIME_WAIT, CLOSE_WAIT, LISTEN = 1, 6, 8, 10  # states
ALL_BUT_TIME_WAIT = 0xFFF & ~(1 << TIME_WAIT)
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLMSG_DONE, REQUEST_DUMP = 4, 20, 3, 0x301


@dataclass(frozen=True)
class KernelSocket:
    """Its ports, state and inode; inode 0: no process holds it (still queued, or already closed). `unread`: bytes that
    have arrived and were not read, of a listening socket connections that were not accepted."""

    local: int
    remote: int
    state: int
    inode: int
    unread: int


def kernel_sockets(port: int) -> list[KernelSocket]:
    """Every IPv4 TCP socket with this port on either end, TIME-WAIT left out."""
    found = dump(socket.AF_INET, ALL_BUT_TIME_WAIT, local=port)
    return list(dict.fromkeys(found + dump(socket.AF_INET, ALL_BUT_TIME_WAIT, remote=port)))


def sockets_in(state: int) -> list[KernelSocket]:
    """Every TCP socket of the machine in one state."""
    return [s for family in (socket.AF_INET, socket.AF_INET6) for s in dump(family, 1 << state)]


def dump(family: int, states: int, local: int = 0, remote: int = 0) -> list[KernelSocket]:
    """All TCP sockets of a family in these states (a bit each) with these ports; 0 = any."""
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, states)
    request += struct.pack("!HH44x", local, remote)
    found: list[KernelSocket] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        head = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 1, 0)
        netlink.send(head + request)
        while True:
            data = netlink.recv(1 << 18)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind != SOCK_DIAG_BY_FAMILY:
                    assert kind == NLMSG_DONE, f"netlink says {kind}: {data[:64]!r}"
                    return found
                local_port, remote_port = struct.unpack_from("!HH", data, 20)
                unread, _, _, inode = struct.unpack_from("=IIII", data, 16 + 4 + 48 + 4)
                found.append(KernelSocket(local_port, remote_port, data[17], inode, unread))
                data = data[(length + 3) & ~3 :]


def inodes_of(pid: int) -> set[int]:
    """Inodes of the sockets that a process has open."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    return inodes


def accepted(port: int) -> set[int]:
    """Inodes of the connections that a listener on `port` has accepted and not closed."""
    return {s.inode for s in kernel_sockets(port) if s.local == port and s.state != LISTEN and s.inode}


def all_read(*ports: int) -> bool:
    """Whether the listeners on these ports have accepted every connection, and read every byte of them."""
    return not any(s.unread and s.local in ports for s in dump(socket.AF_INET, ALL_BUT_TIME_WAIT))


def dialled(port: int) -> set[int]:
    """Inodes of the connections to `port`, attempts included, whose dialling side is held by a process. A client of some
    other listener may have the same port at another address: the socket that was accepted for it is none of them."""
    listened = {s.local for s in sockets_in(LISTEN)}
    return {s.inode for s in kernel_sockets(port) if s.remote == port and s.inode and s.local not in listened}
