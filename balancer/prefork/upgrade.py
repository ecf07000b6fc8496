"""Sockets that outlive the master: handed over an exec, or handed in by a service manager.

RULES: the environment carries descriptors' numbers, and every one of them is checked before use (it must be a listening
stream socket). `LISTEN_FDS` meant for another process (LISTEN_PID) is not ours. Parsing is pure.

    old master --fork, exec(same argv)--> new master: binds nothing it was handed, forks, all ready
        ^                                     |
        +----- one byte on a pipe ------------+   then the old one drains; EOF without the byte: it goes on serving
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LISTENERS, READY_FD, PIDFILE_FD = "PREFORK_LISTENERS", "PREFORK_READY_FD", "PREFORK_PIDFILE_FD"
HANDOVER_STATE = "PREFORK_HANDOVER_STATE"
MOST_STATE = 100_000  # characters; execve(2) takes 128 KiB in one string
FIRST_ACTIVATED = 3
GIVE_UP_AFTER = 30.0  # seconds a new master has to get ready


@dataclass(frozen=True)
class InheritedSocket:
    """A listener handed to us: for which role and configured address (empty: whoever's address it has)."""

    fd: int
    role: str = ""
    wanted: str = ""


@dataclass(frozen=True)
class InheritedFds:
    """Descriptors found in the environment; -1 or empty when there are none."""

    listeners: tuple["InheritedSocket", ...] = ()
    ready_fd: int = -1
    pidfile_fd: int = -1


def activated_fds(environ: Mapping[str, str], pid: int) -> tuple[int, ...]:
    """Descriptors of socket activation; none when they were meant for another process."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID", "") != str(pid) or not count.isdigit():
        return ()
    return tuple(range(FIRST_ACTIVATED, FIRST_ACTIVATED + int(count)))


def parse_listeners(text: str) -> tuple[InheritedSocket, ...]:
    """What `format_listeners` wrote, nothing when it is not that. Configured addresses tell port 0 apart."""
    try:
        return tuple(
            InheritedSocket(int(fd), str(role), str(wanted)) for fd, role, wanted in json.loads(text or "[]")
        )
    except (ValueError, TypeError):
        return ()


def format_listeners(inherited: Iterable[InheritedSocket]) -> str:
    return json.dumps([(item.fd, item.role, item.wanted) for item in inherited])


def read_inheritance(environ: Mapping[str, str], pid: int) -> InheritedFds:
    """What a former master, or the service manager, left us."""
    handed = parse_listeners(environ.get(LISTENERS, ""))
    ready, pidfile = environ.get(READY_FD, ""), environ.get(PIDFILE_FD, "")
    return InheritedFds(
        listeners=handed or tuple(InheritedSocket(fd) for fd in activated_fds(environ, pid)),
        ready_fd=int(ready) if ready.isdigit() else -1,
        pidfile_fd=int(pidfile) if pidfile.isdigit() else -1,
    )


def forget_inheritance() -> None:
    """Take our words out of the environment: a later upgrade must not find old numbers."""
    for name in (
        LISTENERS,
        READY_FD,
        PIDFILE_FD,
        HANDOVER_STATE,
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
    ):
        os.environ.pop(name, None)


def adopt_sockets(inherited: Iterable[InheritedSocket]) -> list[tuple[InheritedSocket, socket.socket]]:
    """Socket objects of the descriptors that are listening stream sockets; others are left alone."""
    found = []
    for item in inherited:
        try:
            sock = socket.socket(fileno=item.fd)
        except OSError:
            continue
        if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            os.set_inheritable(item.fd, False)
            found.append((item, sock))
        else:
            sock.detach()
    return found


@dataclass
class Successor:
    """The new master under way: its pid, and the pipe on which it says that it serves."""

    pid: int
    ready_fd: int
    give_up_at: float
    serves: bool = False
    is_reaped: bool = False

    def hears(self) -> bool | None:
        """True: it serves; False: it is gone without a word; None: not yet."""
        try:
            word = os.read(self.ready_fd, 1)
        except BlockingIOError:
            return None
        return word == b"1"

    def close(self) -> None:
        os.close(self.ready_fd)


def start_successor(
    inherited: Iterable[InheritedSocket], pidfile_fd: int, handover_state: str, now: float
) -> Successor:
    """Fork and exec this program again with its listeners and its handover_state. Raises OSError when the fork fails.

    Called with signals held back; the new program starts with none blocked.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid:
        os.close(writer)
        return Successor(pid, reader, now + GIVE_UP_AFTER)
    try:
        _become(list(inherited), writer, pidfile_fd, handover_state)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"upgrade: cannot run {sys.executable}: {error}\n".encode())
    os._exit(1)


def _become(inherited: list[InheritedSocket], writer: int, pidfile_fd: int, handover_state: str) -> None:
    environ = dict(os.environ)
    environ[LISTENERS] = format_listeners(inherited)
    environ[READY_FD] = str(writer)
    environ[HANDOVER_STATE] = handover_state
    if pidfile_fd >= 0:
        environ[PIDFILE_FD] = str(pidfile_fd)
        os.set_inheritable(pidfile_fd, True)
    if "WATCHDOG_PID" in environ:
        environ["WATCHDOG_PID"] = str(os.getpid())
    for fd in (*(item.fd for item in inherited), writer):
        os.set_inheritable(fd, True)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def say_ready(fd: int) -> None:
    """In the new master: tell the old one that it may drain."""
    with contextlib.suppress(OSError):
        os.write(fd, b"1")
    os.close(fd)
