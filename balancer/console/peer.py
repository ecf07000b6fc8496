"""Who is at the other end of the admin socket: what the kernel says, not the peer itself.

RULES: SO_PEERCRED holds the ids at the moment of connect(2). The program's name is that of the process which has the pid
now; a process that has ended already has none.
"""

import socket
import struct
from dataclasses import dataclass

UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class AdminPeer:
    """A process that has connected. `pid` is 0 when it is in a PID namespace that ours does not see."""

    uid: int
    pid: int

    def program(self) -> str:
        """Its name, as `ps -o comm` shows it; empty when it has ended."""
        try:
            with open(f"/proc/{self.pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
                return file.read().removesuffix("\n")
        except OSError:
            return ""


def peer_of(sock: socket.socket) -> AdminPeer:
    """The peer of a connected unix socket."""
    pid, uid, _gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    return AdminPeer(uid, pid)
