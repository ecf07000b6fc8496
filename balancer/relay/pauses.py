"""A peer that stops reading for a while is alive as long as its kernel answers window probes.

RULES: works on descriptors, keeps its state in the caller. Nothing here runs per message: the sweep asks, once a second,
for sessions that have moved or have bytes under way.

TCP_USER_TIMEOUT ends a connection whose sent bytes stay unacknowledged for that time. Linux counts the time during which
the peer's receive window is closed as well, answered probes or not: a client that pauses for longer than the timeout is
reset (tcp_probe_timer in net/ipv4/tcp_timer.c; its clock starts with the first probe and only an open window stops it).
While the window is closed the timeout is therefore moved ahead of that clock, as long as the peer answers. The kernel
also shortens its probe interval to what is left of the timeout, so a peer that has vanished is noticed within about
the configured time after its last answer.
"""

from collections.abc import Callable
from math import inf

from balancer.relay.sockets import set_user_timeout, unacknowledged, window_state

FIN = 1  # what an unacknowledged FIN counts in `unacknowledged`


class PauseGuard:
    """Keeps the TCP_USER_TIMEOUT of sockets from ending peers that pause. `slack` is the time between two looks, in
    seconds; the rest are the system calls."""

    def __init__(
        self,
        slack: float,
        unacknowledged: Callable[[int], int] = unacknowledged,
        window_state: Callable[[int], tuple[bool, float]] = window_state,
        set_user_timeout: Callable[[int, float], None] = set_user_timeout,
    ) -> None:
        self._slack = 2 * slack
        self._unacknowledged = unacknowledged
        self._window_state = window_state
        self._set = set_user_timeout

    def look(self, fd: int, paused_since: float, now: float, user_timeout: float) -> tuple[bool, float]:
        """Look at one socket of a session whose TCP_USER_TIMEOUT is `user_timeout` (seconds, 0: none).

        Return whether sent bytes are under way, and since when the peer's window has been closed (0.0: it is open),
        which is `paused_since` in the next call. A descriptor of -1 has nothing under way."""
        is_under_way = fd >= 0 and self._unacknowledged(fd) > FIN
        is_closed, since_ack = self._window_state(fd) if is_under_way else (False, inf)
        if not is_closed:
            if paused_since and user_timeout and fd >= 0:
                self._set(fd, user_timeout)
            return is_under_way, 0.0
        paused_since = paused_since or now
        if user_timeout and since_ack <= user_timeout + self._slack:
            self._set(fd, now - paused_since + self._slack + user_timeout)
        return True, paused_since


def leave_socket(
    fd: int,
    unacknowledged: Callable[[int], int] = unacknowledged,
    set_user_timeout: Callable[[int, float], None] = set_user_timeout,
) -> None:
    """Prepare the close of a socket with bytes under way: the kernel goes on sending them, by its own limits."""
    if fd >= 0 and unacknowledged(fd) > FIN:
        set_user_timeout(fd, 0.0)
