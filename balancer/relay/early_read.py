"""The read of a client's first bytes before its backend is dialled.

RULES: one per lane. A read that finds nothing costs 2 us, so while clients of this lane have sent nothing when they are
accepted, more and more of them are not asked.
"""

from collections.abc import Callable
from os import read

from balancer.eventloop.errnos import TRANSIENT
from balancer.relay.half import LIMIT

MOST_SKIPS = 31


class EarlyRead:
    """What is known of the clients of a lane: at most MOST_SKIPS in a row are not asked."""

    __slots__ = ("_backoff", "skips")

    def __init__(self) -> None:
        self._backoff = 0
        self.skips = 0  # clients from now on that are not asked

    def read(self, fd: int, read: Callable[[int, int], bytes] = read) -> bytes:
        """Return what a client has sent. No bytes: nothing yet, or not asked, or an end, which the loop reports. Raises
        OSError for one that is gone: read(2) reports a reset once, and the loop would report an end only. `read(fd,
        size)` is read(2), or decrypts what that gives."""
        if self.skips:
            self.skips -= 1
            return b""
        try:
            data = read(fd, LIMIT)
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            data = b""
        if data:
            self._backoff = 0
        else:
            self.skips = self._backoff
            self._backoff = min(2 * self._backoff + 1, MOST_SKIPS)
        return data
