"""Where the log goes: a file, the process's own stderr, or syslog's socket. Writing neither waits nor raises.

RULES
- Not to block takes O_NONBLOCK, a flag of the open file description, which a shell shares with every other process that
  writes to the same terminal or pipe. The log therefore opens its own description of the file through /proc. A socket
  (journald's stream) cannot be opened that way; there each call has MSG_DONTWAIT.
- A symbolic link is not followed: root would write to a file that the owner of the log's directory has chosen, and give
  it away.
- syslog: one datagram a line, by write(2), which the sandbox of a resizer's CPU process allows. A socket that a restarted
  syslogd has left behind is connected again, once a line.
"""

import errno
import fcntl
import os
import re
import select
import socket
import stat

from balancer.eventloop.errnos import PEER_IS_GONE

LONGEST_LINE = 4000  # below PIPE_BUF (4096): one write of a whole line to a pipe is atomic
SYSLOG = "syslog:"  # before the path of a socket
SYSLOG_SOCKET = "/dev/log"
_OWN_DESCRIPTOR = re.compile(
    r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+"
)  # links that the kernel's own file systems make


class Sink:
    """The open log file. write() returns how many bytes were written, 0 for none; it neither raises nor blocks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problem = ""  # why `path` could not be opened; at boot a reason to exit
        self.fd = -1
        self._socket: socket.socket | None = None
        self.is_pipe = False
        self.is_new = False  # the file was created by the last open()
        self.destination = ""  # "journal" or "syslog": what a line needs before it
        self._must_poll = False  # the description is shared and may block: poll(2) before every write
        self.open()

    def open(self) -> None:
        """Open or reopen. On failure the file that is open stays open, and stderr is used if there is none."""
        self.problem = ""
        if self.path:
            try:
                self._replace(self._open_path())
                return
            except OSError as error:
                reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
                self.problem = f"cannot open log {self.path}: {reason}"
        if self.fd < 0:
            self._open_stderr()

    def _open_path(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        if not _OWN_DESCRIPTOR.fullmatch(self.path):
            flags |= os.O_NOFOLLOW
        try:
            fd = os.open(self.path, flags | os.O_EXCL, 0o640)
        except FileExistsError:
            self.is_new = False
            return os.open(self.path, flags, 0o640)
        self.is_new = True
        return fd

    def _open_stderr(self) -> None:
        try:
            found = os.fstat(2)
        except OSError:
            return  # closed: every line is dropped and counted
        mode = found.st_mode
        if os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}":
            self.destination = "journal"
        if stat.S_ISSOCK(mode):
            self._replace(os.dup(2))
            self._socket = socket.socket(fileno=os.dup(2))
            return
        if stat.S_ISREG(mode):
            # A traceback written through fd 2 must not overwrite lines appended here.
            fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        try:
            self._replace(os.open("/proc/self/fd/2", flags))
        except OSError:  # no /proc, or another user's pipe
            self._replace(fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3))
            self._must_poll = True

    def _replace(self, fd: int) -> None:
        old, self.fd = self.fd, fd
        self.is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
        if old >= 0:
            os.close(old)

    def write(self, data: bytes) -> int:
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._must_poll and not self._may_write():
                return 0
            return os.write(self.fd, data)
        except OSError as error:
            if error.errno == errno.EMSGSIZE and len(data) > LONGEST_LINE:
                return self.write(data[: data.rfind(b"\n", 0, LONGEST_LINE) + 1])
            return 0

    def _may_write(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return any(mask & select.POLLOUT for _, mask in poll.poll(0))

    @property
    def atomic_bytes(self) -> int:
        """The longest write that is whole or nothing."""
        return select.PIPE_BUF if self.is_pipe or self._must_poll else 1 << 16


class SyslogSink(Sink):
    """syslog's unix socket, at `path` behind `syslog:`, else /dev/log."""

    def open(self) -> None:
        """Connect. On failure the socket that is connected stays."""
        self.destination, self.problem = "syslog", ""
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            with sock:
                sock.connect(self.path.removeprefix(SYSLOG) or SYSLOG_SOCKET)
                self._replace(os.dup(sock.fileno()))
        except OSError as error:
            self.problem = f"cannot reach {self.path}: {error.strerror}"

    def write(self, data: bytes) -> int:
        for _ in range(2):
            try:
                return os.write(self.fd, data.rstrip(b"\n")) and len(data)
            except OSError as error:
                if error.errno not in PEER_IS_GONE:
                    return 0
            self.open()
        return 0

    @property
    def atomic_bytes(self) -> int:
        return 1  # a line a datagram


def open_sink(path: str) -> Sink:
    """The sink of a --log value."""
    return SyslogSink(path) if path.startswith(SYSLOG) else Sink(path)
