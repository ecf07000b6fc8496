"""Signals become words in a queue and one byte that wakes the sleeper.

RULES: a handler only notes the signal; whoever sleeps is woken through `signal.set_wakeup_fd` (since PEP 475 a system
call is restarted after a handler, so a flag alone would be seen at the next timeout: 2.0 s instead of 0.3 measured).
The queue is bounded and repeated signals coalesce, except those whose count matters; 10,000 strays cost nothing.
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
COUNTED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU})
QUEUED = 64  # signals of the counted kind held; a flood beyond it is dropped


class Signals:
    """The signals of one process, taken one at a time. Made anew after a fork, never inherited."""

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

    def _note(self, number: int, _frame: object) -> None:
        self.note(number)

    def note(self, number: int) -> None:
        """Queue a signal: once, unless its count matters."""
        if number not in self._queue or (number in COUNTED and self._queue.count(number) < QUEUED):
            self._queue.append(number)

    def fileno(self) -> int:
        """Readable whenever a signal has arrived."""
        return self._reader.fileno()

    def swallow(self) -> None:
        """Empty the wake-up socket; the queue is what counts."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def take(self) -> int | None:
        """The oldest signal not yet taken, None when there is none."""
        return self._queue.popleft() if self._queue else None

    def waiting(self) -> bool:
        return bool(self._queue)

    def close(self) -> None:
        """In a forked child: give up the parent's wake-up socket without touching its dispositions."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """All signals wait while a fork is under way, so that none is delivered to the child as if it were the master."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_readable(fds: Iterable[int], timeout: float) -> list[int]:
    """Sleep until one of the descriptors is readable, at most `timeout` seconds; those that are."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, timeout) * 1000)]


def send(pid: int, number: int) -> bool:
    """Signal a process; False when it is already gone. Never a group: a pid of 0 or less is refused."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
