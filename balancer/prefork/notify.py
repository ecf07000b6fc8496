"""Messages to the service manager (sd_notify): datagrams of `KEY=value` lines to $NOTIFY_SOCKET.

RULES: never blocks, never raises, does nothing without a socket in the environment. READY comes when every process
serves; a reload is framed by RELOADING with the monotonic clock (`Type=notify-reload` waits for it) and READY; WATCHDOG
is sent in the master's own turn, at half the asked interval, so that a hung master is noticed.
"""

import contextlib
import os
import socket
from collections.abc import Mapping


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float:
    """Seconds between two keep-alives, half of what the manager asks; 0 when it asks for none, or another process."""
    usec, owner = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (owner and owner != str(pid)):
        return 0.0
    return int(usec) / 2_000_000


def message(**fields: object) -> bytes:
    """One datagram; a newline in a value would start another field, so it becomes a space."""
    return "\n".join(f"{key}={str(value).replace(chr(10), ' ')}" for key, value in fields.items()).encode()


class Notifier:
    """Sends to the service manager; every method does nothing when there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._interval = watchdog_seconds(environ, os.getpid())
        self._next = 0.0
        self._status = ""
        self._sock: socket.socket | None = None
        if path[:1] in ("/", "@"):
            self._sock = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )

    def _send(self, **fields: object) -> None:
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.sendto(message(**fields), self._address)

    def ready(self, status: str) -> None:
        self._status = status
        self._send(READY=1, MAINPID=os.getpid(), STATUS=status)

    def reloading(self, now: float) -> None:
        self._send(RELOADING=1, MONOTONIC_USEC=int(now * 1_000_000), STATUS="reloading")

    def stopping(self) -> None:
        self._send(STOPPING=1, STATUS="draining")

    def superseded(self, pid: int) -> None:
        """Another master has taken over: the manager watches that one from now on."""
        self._send(MAINPID=pid)

    def status(self, text: str) -> None:
        """Sent only when the text has changed."""
        if text != self._status:
            self._status = text
            self._send(STATUS=text)

    def beat(self, now: float) -> None:
        """Once a tick; keep-alives go out at their own interval."""
        if self._interval and now >= self._next:
            self._next = now + self._interval
            self._send(WATCHDOG=1)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
