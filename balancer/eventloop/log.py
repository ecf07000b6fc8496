"""The log: one line per event. Writing one neither waits nor raises.

    2026-11-22T12:00:00.123Z info worker 2 pid=4711 refuse client=10.0.0.9:5012 sessions=8/8 then=close
    when                     level process  pid      verb   key=value ...                       what next

RULES: never raises and never blocks. A line that cannot be written (reader stalled, disk full, pipe closed) is dropped
and counted; when writing works again, the count is the first line. A line has at most 4000 bytes and is written whole
or not at all. No character of a value can end a line or begin another. This module alone reads the time of day.

Not to block takes O_NONBLOCK, a flag of the open file description, which a shell shares with every other process that
writes to the same terminal or pipe. The log therefore opens its own description of the file through /proc. A socket
(journald's stream) cannot be opened that way; there each call has MSG_DONTWAIT.

A symbolic link is not followed: root would write to a file that the owner of the log's directory has chosen, and give it
away."""

import errno
import fcntl
import os
import re
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

LONGEST_LINE = 4000  # below PIPE_BUF (4096): one write of a whole line to a pipe is atomic
BUFFERED_LINES = 512  # session lines held until flush(); at this number they are written at once
_OWN_DESCRIPTOR = re.compile(
    r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+"
)  # links that the kernel's own file systems make
_SAFE = frozenset(map(chr, range(33, 127))) - {'"', "\\"}


def printable(text: str) -> str:
    """`text` fit for a line or a terminal: \\n, \\x1b or \\u202e in place of each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _value(value: object) -> str:
    """A field's value: bare when it is printable ASCII without spaces and quotes, else quoted."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and _SAFE.issuperset(text):
        return text
    return quoted(text)


def quoted(text: str) -> str:
    """`text` in quotes, as a field's value that nobody can end from within."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


class LoggedLine(NamedTuple):
    """A line as it was logged: its fields (key=value ...), the time of day and the monotonic time."""

    text: str
    wall_ns: int
    at_ms: int


class Sink:
    """The open log file. write() returns how many bytes were written, 0 for none; it neither raises nor blocks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problem = ""  # why `path` could not be opened; at boot a reason to exit
        self.fd = -1
        self._socket: socket.socket | None = None
        self.is_pipe = False
        self.is_new = False  # the file was created by the last open()
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
            mode = os.fstat(2).st_mode
        except OSError:
            return  # closed: every line is dropped and counted
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


class Log:
    """The log of one process. `level`: 0 lifecycle and health, 1 also a line per session, 2 also debug.

    A forked child makes its own with child(): it shares the descriptor (appends are atomic), not pid and buffer."""

    def __init__(
        self,
        process: str,
        path: str = "",
        level: int = 0,
        sink: Sink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.level = level
        self.dropped = 0  # lines lost since this object was made
        self._reported = 0  # how many of them a `log dropped=` line has counted
        self._is_torn = False  # the last write ended inside a line
        self._sink = Sink(path) if sink is None else sink
        self._clock = clock
        self._buffer: list[str] = []
        self._prefix = f"{process} pid={os.getpid()} "
        self._info = f"Z info {self._prefix}"
        self._second = -1
        self._stamp = ""
        self._wall = 0.0  # the time of day of the last line
        self._retry_at = 0.0

    @property
    def problem(self) -> str:
        """Why the log file could not be opened, "" when it is open. Lines go to stderr meanwhile."""
        return self._sink.problem

    def info(self, verb: str, **fields: object) -> None:
        self.write("info", verb, fields)

    def warning(self, verb: str, **fields: object) -> None:
        self.write("warning", verb, fields)

    def error(self, verb: str, **fields: object) -> None:
        self.write("error", verb, fields)

    def debug(self, verb: str, **fields: object) -> None:
        if self.level >= 2:
            self.write("debug", verb, fields)

    def write(self, level: str, verb: str, fields: dict[str, object]) -> LoggedLine:
        """Log a line of any level; returns what was logged. `fields` may hold `then`, which comes last."""
        then = fields.get("then")
        words = [f"{key}={_value(value)}" for key, value in fields.items() if key != "then"]
        if then is not None:
            words.append(f"then={printable(str(then))}")
        text = " ".join(words)
        after = f" {text}\n" if words else "\n"
        self._buffer.append(f"{self._timestamp()}Z {level} {self._prefix}{verb}{after}")
        self.flush()
        return LoggedLine(text, int(self._wall * 1e9), int(self._clock() * 1000))

    def session(self, line: str) -> None:
        """Log the line of one session, from its verb on; buffered until flush(). 1.7 us, the write included."""
        if self.level < 1:
            return
        if not line.isprintable():
            line = printable(line)
        self._buffer.append(f"{self._timestamp()}{self._info}{line}\n")
        if len(self._buffer) >= BUFFERED_LINES:
            self.flush()

    def flush(self) -> None:
        """Write the buffered lines, in one write where the file allows. Called once a turn; 50 ns without a line."""
        if self._buffer:
            lines, self._buffer = self._buffer, []
            self._emit(lines)
        elif self._reported != self.dropped and self._clock() >= self._retry_at:
            self._emit([])

    def reopen(self) -> None:
        """Open the path again, after a rotation. On failure log that, to the old file."""
        self.flush()
        self._sink.open()
        if self._sink.problem:
            self.warning("log", problem=self._sink.problem, then="keep the old file")

    def chown(self, uid: int, gid: int) -> None:
        """Give the log file to the user that the process will run as, so that a later reopen() succeeds: only one that
        was created here."""
        if self._sink.path and not self._sink.problem and self._sink.is_new:
            try:
                os.fchown(self._sink.fd, uid, gid)
            except OSError:
                pass  # reopen() logs what fails

    def child(self, process: str, level: int) -> "Log":
        """The log of a process just forked: the same file, its own pid and an empty buffer."""
        return Log(process, level=level, sink=self._sink, clock=self._clock)

    def _timestamp(self) -> str:
        self._wall = now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._stamp}{int((now - second) * 1000):03d}"

    def _encode(self, line: str) -> bytes:
        data = line.encode("utf-8", "backslashreplace")
        if len(data) <= LONGEST_LINE:
            return data
        return data[: LONGEST_LINE - 4].decode("utf-8", "ignore").encode() + b"...\n"

    def _emit(self, lines: list[str]) -> None:
        """Write whole lines, as many in one write as stay together; count those that were not written."""
        if self._reported != self.dropped:
            lost = self.dropped - self._reported
            lines.insert(0, f"{self._timestamp()}Z warning {self._prefix}log dropped={lost}\n")
            if not self._write([self._encode(lines.pop(0))]):
                self.dropped += len(lines)
                self._retry_at = self._clock() + 0.25
                return
            self._reported += lost
        batch: list[bytes] = []
        size = 0
        for data in map(self._encode, lines):
            if size + len(data) > self._sink.atomic_bytes:
                self._put(batch)
                batch, size = [], 0
            batch.append(data)
            size += len(data)
        self._put(batch)

    def _put(self, batch: list[bytes]) -> None:
        self.dropped += len(batch) - self._write(batch)

    def _write(self, batch: list[bytes]) -> int:
        """Write one batch; returns how many lines were written whole. The next write ends a line that was cut."""
        if not batch:
            return 0
        data = (b"\n" if self._is_torn else b"") + b"".join(batch)
        done = self._sink.write(data)
        if done <= 0:
            return 0
        self._is_torn = done < len(data) and data[done - 1 : done] != b"\n"
        return len(batch) if done == len(data) else data[:done].count(b"\n") - data.startswith(b"\n")
