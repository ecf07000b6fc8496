"""The old master's side of an upgrade: start a successor, wait for its word, be ready to go on without it.

RULES: runs in the master, never blocks. The successor serves before anybody here drains; one that dies, or is silent for
too long, changes nothing.
"""

import signal

from balancer.eventloop.log import Log
from balancer.eventloop.signals import send, signals_blocked
from balancer.prefork.pidfile import PidFile
from balancer.prefork.sockets import Sockets
from balancer.prefork.upgrade import MOST_STATE, Successor, start_successor


class Handover:
    """At most one successor at a time."""

    def __init__(self, log: Log, sockets: Sockets) -> None:
        self._log = log
        self._sockets = sockets
        self._successor: Successor | None = None

    @property
    def pid(self) -> int:
        """The successor's, 0 when there is none."""
        return 0 if self._successor is None else self._successor.pid

    def start(self, now: float, pidfile: PidFile | None, handover_state: str = "") -> None:
        """Start this program anew with our sockets, and with what our memory has to tell it."""
        if self._successor is not None:
            self._log.warning("upgrade", successor=self.pid, then="refused: one is under way")
            return
        inherited = self._sockets.to_hand_over()
        if len(handover_state) > MOST_STATE:
            self._log.warning(
                "upgrade", handover_state=f"{len(handover_state)}/{MOST_STATE}", then="it starts without"
            )
            handover_state = ""
        try:
            with signals_blocked():
                pidfile_fd = -1 if pidfile is None else pidfile.fd
                self._successor = start_successor(inherited, pidfile_fd, handover_state, now)
        except OSError as error:
            self._log.error("upgrade", error=error, then="the old version goes on")
            return
        self._log.info(
            "upgrade", successor=self.pid, sockets=len(inherited), then="it serves before we drain"
        )

    def hear(self, now: float) -> bool:
        """True once, when the successor has said that it serves."""
        successor = self._successor
        if successor is None or successor.serves:
            return False
        word = successor.hears()
        if word:
            successor.serves = True
            self._log.info("upgrade", successor=successor.pid, then="it serves; we drain")
            return True
        if word is False or now > successor.give_up_at:
            self._send(signal.SIGKILL)
            successor.close()
            self._successor = None
            self._log.error(
                "upgrade", successor=successor.pid, error="never got ready", then="the old version goes on"
            )
        return False

    def unknown_child_died(self, pid: int, code: int) -> None:
        """The end of its life is seen on the pipe; here its exit code is told, and its pid is nobody's any more."""
        if self._successor is not None and pid == self.pid:
            self._successor.is_reaped = True
            self._log.error("upgrade", successor=pid, exit=code)
        else:
            self._log.debug("reap", stranger=pid, exit=code)

    def call_off(self) -> None:
        """We are told to stop ourselves: a successor that does not serve yet goes with us."""
        if self._successor is not None and not self._successor.serves:
            self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        if self._successor is not None and not self._successor.is_reaped:
            send(self._successor.pid, number)

    def fds(self) -> list[int]:
        """The pipe on which it will speak."""
        return [] if self._successor is None or self._successor.serves else [self._successor.ready_fd]

    def drop_in_child(self) -> None:
        if self._successor is not None:
            self._successor.close()
