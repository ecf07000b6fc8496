"""Signals of one process: a queue of numbers, and a byte on a wake-up socket that ends the wait.

RULES: a Python signal handler only queues the number. `signal.set_wakeup_fd` ends the wait: PEP 475 restarts a system
call after a handler, so a flag alone would be seen at the next timeout (measured: 2.0 s instead of 0.3 s).
The mask is inherited over fork and exec; a parent may have blocked TERM and CHLD. Signals unblocks every signal once the
handlers are set; one that was pending is queued then.
The queue is bounded. A repeated signal is queued once, except the signals in COUNTED; a flood of 10,000 costs nothing.
"""

import contextlib
import os
import select
import signal
import socket
from collections import deque
from collections.abc import Iterable, Iterator

MASTER_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)
IGNORED_BY_MASTER = (signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH, signal.SIGALRM)
# Each one counts: a second SIGTERM means at once, each SIGTTIN is one worker more.
COUNTED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU})
QUEUED = 64  # of each signal in COUNTED; more are dropped


class Signals:
    """The signals of one process, taken one at a time. A forked child makes its own. From here on none is blocked."""

    def __init__(self, numbers: Iterable[signal.Signals], ignored: Iterable[signal.Signals] = ()) -> None:
        self._queue: deque[int] = deque()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        for number in numbers:
            signal.signal(number, self._note)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _note(self, number: int, _frame: object) -> None:
        self.note(number)

    def note(self, number: int) -> None:
        """Queue a signal: once, unless it is in COUNTED."""
        if number not in self._queue or (number in COUNTED and self._queue.count(number) < QUEUED):
            self._queue.append(number)

    def fileno(self) -> int:
        """The wake-up socket, readable after a signal has arrived."""
        return self._reader.fileno()

    def clear_wakeup(self) -> None:
        """Empty the wake-up socket. The signals are in the queue."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def take(self) -> int | None:
        """Remove and return the oldest signal, None when there is none."""
        return self._queue.popleft() if self._queue else None

    def waiting(self) -> bool:
        return bool(self._queue)

    def close(self) -> None:
        """Give up the wake-up socket; in a forked child, the parent's. Dispositions stay as they are."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block all signals around a fork, so that the master's handlers do not run in the child."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_readable(fds: Iterable[int], timeout: float) -> list[int]:
    """Wait until a descriptor is readable, at most `timeout` seconds; returns those that are."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, timeout) * 1000)]


def send(pid: int, number: int) -> bool:
    """Signal a process; False when it is gone. Refuses a pid of 0 or less, which kill(2) takes as a group."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
