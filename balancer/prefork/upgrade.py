"""Upgrade (USR2): this program started anew, with the same sockets, beside the master that serves.

RULES: runs in the master, never blocks. The environment carries numbers of descriptors; every one of them is checked
before use (it must be a listening stream socket), and parsing is pure. LISTEN_FDS with another LISTEN_PID is another
process's. A successor that ends, or is silent for too long, changes nothing.
- While a successor is under way nothing binds: it would not know the socket. What was asked for meanwhile is done once it
  is given up, or handed on once it serves (generations.py, master.py).
- A master that is told to stop tells its successor too, and waits for it. Between fork and exec the child has the default
  dispositions before it unblocks signals: a handler of ours would swallow the signal, and a whole balancer would stay.

    old master --fork, exec(same argv)--> new master: takes over the sockets, forks, all ready
        ^                                     |
        +----- one byte on a pipe ------------+   then the old one drains; EOF without the byte: it goes on serving
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from balancer.eventloop.log import Log
from balancer.eventloop.signals import IGNORED_BY_MASTER, MASTER_SIGNALS, send, signals_blocked
from balancer.prefork.bind import seen_address
from balancer.prefork.inherited import InheritedSocket
from balancer.prefork.pidfile import PidFile
from balancer.prefork.sockets import Sockets
from balancer.shm.events import EventWriter, Level, tell

LISTENERS, READY_FD, PIDFILE_FD = "PREFORK_LISTENERS", "PREFORK_READY_FD", "PREFORK_PIDFILE_FD"
HANDOVER_FD = "PREFORK_HANDOVER_FD"
HANDOVER_STATE = "PREFORK_HANDOVER_STATE"  # the text itself, of a version before
ACTIVATION = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
FILE_NAME = "balancer-handover"
MOST_STATE = 64 << 20  # bytes of a handover state that are read
FIRST_ACTIVATED = 3
GIVE_UP_AFTER = 30.0  # seconds a new master has to get ready


# -- what a process finds at its start --


@dataclass(frozen=True)
class InheritedFds:
    """Descriptors found in the environment; -1 or empty when there are none."""

    sockets: tuple[InheritedSocket, ...] = ()
    ready_fd: int = -1
    pidfile_fd: int = -1


def activated_sockets(environ: Mapping[str, str], pid: int) -> tuple[InheritedSocket, ...]:
    """Sockets of a service manager, with the names it gives them; none when they are meant for another process."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID", "") != str(pid) or not count.isdigit():
        return ()
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return tuple(
        InheritedSocket(
            FIRST_ACTIVATED + index, name=names[index] if index < len(names) else "", is_external=True
        )
        for index in range(int(count))
    )


def parse_listeners(text: str) -> tuple[InheritedSocket, ...]:
    """What `format_listeners` wrote, nothing when it is something else. A version before listeners had names wrote
    the first three values for each socket."""
    try:
        return tuple(
            InheritedSocket(int(fd), str(role), str(wanted), str(*rest[:1]), rest[1:] == [True])
            for fd, role, wanted, *rest in json.loads(text or "[]")
        )
    except (ValueError, TypeError):
        return ()


def format_listeners(sockets: Iterable[InheritedSocket]) -> str:
    """Configured addresses, not real ones: they tell port 0 of one listener from that of another."""
    values = [(item.fd, item.role, item.wanted, item.name, item.is_external) for item in sockets]
    return json.dumps(values)


def read_inheritance(environ: Mapping[str, str], pid: int) -> InheritedFds:
    """What a former master, or the service manager, has left to this process."""
    handed = parse_listeners(environ.get(LISTENERS, ""))
    ready, pidfile = environ.get(READY_FD, ""), environ.get(PIDFILE_FD, "")
    return InheritedFds(
        sockets=handed or activated_sockets(environ, pid),
        ready_fd=int(ready) if ready.isdigit() else -1,
        pidfile_fd=int(pidfile) if pidfile.isdigit() else -1,
    )


def read_handover(environ: Mapping[str, str]) -> str:
    """What only the memory of a former master knew; empty without one. Its descriptor is closed.

    A version before wrote the text itself; it has left the descriptor that it was given, and did not know, open."""
    number = environ.get(HANDOVER_FD, "")
    state = _read_file(int(number)) if number.isdigit() else ""
    return environ.get(HANDOVER_STATE, state)


def _read_file(fd: int) -> str:
    """What `written` has put there. Any other descriptor is left alone: its number may come from a copied environment."""
    try:
        if not os.readlink(f"/proc/self/fd/{fd}").startswith(f"/memfd:{FILE_NAME}"):
            return ""
        with open(fd, "rb") as file:
            return file.read(MOST_STATE).decode(errors="replace")
    except OSError:
        return ""


def inherited_paths(environ: Mapping[str, str], pid: int, role: str) -> set[str]:
    """Paths of the unix sockets left to this process that a former master has made for the role, or whose role is not
    known: a service manager's."""
    items = [item for item in read_inheritance(environ, pid).sockets if item.role in ("", role)]
    return {path for item in items if (path := _path_of(item.fd))}


def _path_of(fd: int) -> str:
    """The path of a unix socket, nothing when the descriptor is anything else."""
    try:
        copy = os.dup(fd)
    except OSError:
        return ""
    try:
        with socket.socket(fileno=copy) as sock:
            return seen_address(sock).path if sock.family == socket.AF_UNIX else ""
    except OSError:
        os.close(copy)
        return ""


def forget_inheritance() -> None:
    """Take the numbers out of the environment: after a later upgrade they would name other descriptors."""
    for name in (LISTENERS, READY_FD, PIDFILE_FD, HANDOVER_FD, HANDOVER_STATE, *ACTIVATION):
        os.environ.pop(name, None)


def say_ready(fd: int) -> bool:
    """In the new master: tell the old one that it may drain; whether it is still there."""
    try:
        return os.write(fd, b"1") == 1
    except OSError:
        return False
    finally:
        os.close(fd)


# -- the old master's side --


@contextlib.contextmanager
def written(state: str) -> Iterator[int]:
    """A descriptor of a file without a name from which the text can be read, for the time of the block. It has no limit,
    as the environment has (128 KiB in one string). -1 without a text: a service that has none does not read it, and each
    process of the successor would hold it. Raises OSError.
    """
    if not state:
        yield -1
        return
    with open(os.memfd_create(FILE_NAME, os.MFD_CLOEXEC), "w+b", buffering=0) as file:
        file.write(state.encode())
        file.seek(0)
        yield file.fileno()


@dataclass
class Successor:
    """The new master under way: its pid, and the pipe on which it says that it serves."""

    pid: int
    ready_fd: int
    give_up_at: float
    serves: bool = False
    is_reaped: bool = False
    is_called_off: bool = False

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
    sockets: Iterable[InheritedSocket], pidfile_fd: int, handover_fd: int, now: float
) -> Successor:
    """Fork and exec this program again with its sockets and its handover state. Raises OSError when the fork fails.

    Called with signals blocked; the new program starts with none blocked.
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
        become(list(sockets), writer, pidfile_fd, handover_fd)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"upgrade: cannot run {sys.executable}: {error}\n".encode())
    os._exit(1)


def become(
    sockets: list[InheritedSocket],
    writer: int,
    pidfile_fd: int,
    handover_fd: int,
    execve: Callable[[str, list[str], dict[str, str]], object] = os.execve,
) -> None:
    """In the forked child: exec this program anew, with default dispositions and no signal blocked."""
    environ = dict(os.environ)
    environ[LISTENERS] = format_listeners(sockets)
    environ[READY_FD] = str(writer)
    for name, fd in ((PIDFILE_FD, pidfile_fd), (HANDOVER_FD, handover_fd)):
        if fd >= 0:
            environ[name] = str(fd)
            os.set_inheritable(fd, True)
    if "WATCHDOG_PID" in environ:
        environ["WATCHDOG_PID"] = str(os.getpid())
    for fd in (*(item.fd for item in sockets), writer):
        os.set_inheritable(fd, True)
    signal.set_wakeup_fd(-1)
    for number in (*MASTER_SIGNALS, *IGNORED_BY_MASTER):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


StartSuccessor = Callable[[Iterable[InheritedSocket], int, int, float], Successor]


class Upgrade:
    """The successor of this master: at most one at a time."""

    def __init__(
        self,
        log: Log,
        sockets: Sockets,
        events: EventWriter,
        start_successor: StartSuccessor = start_successor,
        send: Callable[[int, int], object] = send,
    ) -> None:
        self._log = log
        self._sockets = sockets
        self._events = events
        self._start_successor = start_successor
        self._send = send
        self._successor: Successor | None = None
        self._handed: set[int] = set()  # inodes of the sockets that it was given

    @property
    def is_under_way(self) -> bool:
        """Whether a successor lives that does not serve yet; one that was called off, until it has been reaped."""
        one = self._successor
        return one is not None and not one.serves and not (one.is_called_off and one.is_reaped)

    @property
    def pid(self) -> int:
        """The successor's, 0 when there is none."""
        return 0 if self._successor is None else self._successor.pid

    def start(self, now: float, pidfile: PidFile | None, handover_state: str = "") -> None:
        """Start this program anew with our sockets and with what only our memory knows."""
        if self._successor is not None:
            self._tell("warning", successor=self.pid, then="refused: one is under way")
            return
        handed = self._sockets.to_hand_over()
        self._handed = {os.fstat(one.fd).st_ino for one in handed}
        try:
            with signals_blocked(), written(handover_state) as handover_fd:
                pidfile_fd = -1 if pidfile is None else pidfile.fd
                self._successor = self._start_successor(handed, pidfile_fd, handover_fd, now)
        except OSError as error:
            self._tell("error", error=error, then="the old version goes on")
            return
        self._tell("info", successor=self.pid, sockets=len(handed), then="it serves before we drain")

    def hear(self, now: float) -> bool:
        """True once, when the successor has said that it serves."""
        successor = self._successor
        if successor is None or successor.serves:
            return False
        if successor.is_called_off:
            if now > successor.give_up_at:
                self._signal(signal.SIGKILL)
            return False
        word = successor.hears()
        if word:
            successor.serves = True
            self._tell("info", successor=successor.pid, then="it serves; we drain")
            return True
        if word is False or now > successor.give_up_at:
            self._signal(signal.SIGKILL)
            successor.close()
            self._successor = None
            pid, then = successor.pid, "the old version goes on"
            self._tell("error", successor=pid, error="never got ready", then=then)
        return False

    def unknown_child_died(self, pid: int, code: int) -> None:
        """A reaped pid that is not registered: the successor, whose end shows on the pipe too, or an orphan that was
        given to us as a container's init. Its pid may be another process's from now on."""
        if self._successor is not None and pid == self.pid:
            self._successor.is_reaped = True
            self._tell("info" if self._successor.is_called_off else "error", successor=pid, exit=code)
        else:
            self._log.debug("reap", unknown_child=pid, exit=code)

    def call_off(self, number: int, give_up_at: float) -> None:
        """This master is told to stop: a successor that does not serve yet is told the same, and killed when it lives at
        that time. Its word that it serves comes too late then. `is_under_way` until it is gone."""
        if self._successor is not None and not self._successor.serves:
            self._successor.is_called_off = True
            self._successor.give_up_at = give_up_at
            self._signal(number)

    def hand_on(self, number: int) -> None:
        """A signal for the successor that serves."""
        self._signal(number)

    def not_handed_over(self) -> list[str]:
        """Addresses with a socket that the successor does not know: its clients would be reset by our end."""
        return sorted(
            {
                item.wanted
                for item in self._sockets.to_hand_over()
                if os.fstat(item.fd).st_ino not in self._handed
            }
        )

    def _tell(self, level: Level, **fields: object) -> None:
        tell(self._log, self._events, level, "upgrade", **fields)

    def _signal(self, number: int) -> None:
        if self._successor is not None and not self._successor.is_reaped:
            self._send(self._successor.pid, number)

    def fds(self) -> list[int]:
        """The pipe on which it will speak."""
        one = self._successor
        return [] if one is None or one.serves or one.is_called_off else [one.ready_fd]

    def close_in_child(self) -> None:
        if self._successor is not None:
            self._successor.close()
