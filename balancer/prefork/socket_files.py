"""Socket files that something has removed (a cleaner of /tmp or /run, an `rm` too many): bound again, and reported.

RULES: runs in the master, which owns the sockets. Each file is looked at once a second, by one stat(2). A file that has
been replaced by a socket without a listening process is replaced again; anything else there is left alone. Where we
cannot bind, the log says so once, and every second is a new try until something is there.
"""

from balancer.eventloop.log import Log
from balancer.prefork.sockets import SocketGroup, Sockets

LOOK_EVERY = 1.0  # seconds


class SocketFiles:
    """The unix socket files of one master."""

    def __init__(self, sockets: Sockets, log: Log) -> None:
        self._sockets = sockets
        self._log = log
        self._next_look = 0.0
        self._failed: dict[SocketGroup, int] = {}  # what was at the path when binding failed

    def look(self, now: float) -> list[SocketGroup]:
        """Once a second: bind what has lost its file; returns the groups that have new sockets."""
        if now < self._next_look:
            return []
        self._next_look = now + LOOK_EVERY
        found = [(group, group.file_in_place()) for group in self._sockets.groups]
        lost = {group: inode for group, inode in found if inode != group.inode}
        self._failed = {group: inode for group, inode in self._failed.items() if group in lost}
        return [group for group, inode in lost.items() if self._bind(group, inode)]

    def _bind(self, group: SocketGroup, inode: int) -> bool:
        before = self._failed.get(group)
        if inode and inode == before:
            return False
        about = {"address": group.address, "reason": f"its file was {'replaced' if inode else 'removed'}"}
        try:
            group.bind_again()
        except OSError as error:
            self._failed[group] = inode
            if before is None or inode:
                then = "left alone" if inode else "again every second"
                self._log.error("rebind", **about, error=error.strerror or error, then=then)
            return False
        self._log.warning("rebind", **about, then="clients reach it again")
        return True
