"""The log: one line an event, and never a reason to wait or to die.

    2026-11-22T12:00:00.123Z info worker 2 pid=4711 refuse client=10.0.0.9:5012 sessions=8/8 then=close
    when                     level who      pid      verb   key=value ...                       what next

RULES: never raises and never blocks. A line that cannot be written now (reader stalled, disk full, pipe
closed) is dropped and counted, and the count is the first thing written when writing works again. A line is
at most 4000 bytes, whole or absent, and nothing in a value can end it or start another. The wall clock is
read here and nowhere else.

Never blocking needs O_NONBLOCK, a flag of the open file description, which a shell shares with whatever else
writes to the same terminal or pipe. So the log opens its own description of the same file through /proc; only
sockets (journald's stream) refuse that, and those take MSG_DONTWAIT per call."""

import errno
import fcntl
import os
import select
import socket
import stat
import time

LONGEST_LINE = 4000  # below PIPE_BUF (4096): one write of a whole line to a pipe is atomic
BUFFERED_LINES = 512  # session lines held until flush(); a flood between two flushes goes out early
_SAFE = frozenset(map(chr, range(33, 127))) - {'"', "\\"}


def _escape(text: str) -> str:
    """Every character that is not printable as \\n, \\x1b or \\u202e; printable text is returned as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _value(value: object) -> str:
    """A field's value: bare when nobody can mistake its end, else quoted."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and _SAFE.issuperset(text):
        return text
    return '"' + _escape(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


class Sink:
    """Where the lines go. write() returns how many bytes went out, 0 when none could; never raises, never
    blocks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problem = ""  # why `path` could not be opened: the caller of a boot should refuse to go on
        self.fd = -1
        self._socket: socket.socket | None = None
        self.is_pipe = False
        self._must_poll = False  # the description could not be made our own: ask before every write
        self.open()

    def open(self) -> None:
        """(Re)open; on failure what was open stays so, and a log that never opened goes to stderr."""
        self.problem = ""
        if self.path:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            try:
                self._replace(os.open(self.path, flags, 0o640))
                return
            except OSError as error:
                self.problem = f"cannot open log {self.path}: {error.strerror}"
        if self.fd < 0:
            self._open_stderr()

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
            # A traceback written through fd 2 must not overwrite what we append.
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
    """One process's voice. `level`: 0 lifecycle and health, 1 one line per session too, 2 debug too.

    After a fork the child makes its own with child(): the descriptor is shared (appends are atomic), pid and
    buffer are not."""

    def __init__(self, who: str, path: str = "", level: int = 0, sink: Sink | None = None) -> None:
        self.who = who
        self.level = level
        self.dropped = 0  # lines lost since this object was made; only ever grows
        self._told = 0  # how many of them a `log dropped=` line has reported
        self._torn = False  # the last write ended inside a line
        self._sink = Sink(path) if sink is None else sink
        self._buffer: list[str] = []
        self._prefix = f"{who} pid={os.getpid()} "
        self._info = f"Z info {self._prefix}"
        self._second = -1
        self._stamp = ""
        self._retry_at = 0.0

    @property
    def problem(self) -> str:
        """Why the log file could not be opened ("" when it could); lines go to stderr meanwhile."""
        return self._sink.problem

    def info(self, verb: str, **fields: object) -> None:
        self._say("info", verb, fields)

    def warning(self, verb: str, **fields: object) -> None:
        self._say("warning", verb, fields)

    def error(self, verb: str, **fields: object) -> None:
        self._say("error", verb, fields)

    def debug(self, verb: str, **fields: object) -> None:
        if self.level >= 2:
            self._say("debug", verb, fields)

    def session(self, line: str) -> None:
        """One session's line, from its verb on; held until flush(). The hot path: 1.7 us, the write
        included."""
        if self.level < 1:
            return
        if not line.isprintable():
            line = _escape(line)
        self._buffer.append(f"{self._clock()}{self._info}{line}\n")
        if len(self._buffer) >= BUFFERED_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered, in one write where the sink allows. Called once a loop turn; nothing to do
        costs 50 ns."""
        if self._buffer:
            lines, self._buffer = self._buffer, []
            self._emit(lines)
        elif self._told != self.dropped and time.monotonic() >= self._retry_at:
            self._emit([])

    def reopen(self) -> None:
        """Open the path again (after a rotation); on failure go on with the old file and say so."""
        self.flush()
        self._sink.open()
        if self._sink.problem:
            self.warning("log", problem=self._sink.problem, then="keep the old file")

    def give_to(self, uid: int, gid: int) -> None:
        """Hand the log file to the user the process is about to become, so that a later reopen() succeeds."""
        if self._sink.path and not self._sink.problem:
            try:
                os.fchown(self._sink.fd, uid, gid)
            except OSError:
                pass  # reopen() will say what does not work

    def child(self, who: str, level: int) -> "Log":
        """A log for the process just forked, with its own pid and an empty buffer, on the same file."""
        return Log(who, level=level, sink=self._sink)

    def _clock(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._stamp}{int((now - second) * 1000):03d}"

    def _say(self, level: str, verb: str, fields: dict[str, object]) -> None:
        then = fields.pop("then", None)
        words = [f"{self._clock()}Z {level} {self._prefix}{verb}"]
        words += [f"{key}={_value(value)}" for key, value in fields.items()]
        if then is not None:
            words.append(f"then={_escape(str(then))}")
        self._buffer.append(" ".join(words) + "\n")
        self.flush()

    def _encode(self, line: str) -> bytes:
        data = line.encode("utf-8", "backslashreplace")
        if len(data) <= LONGEST_LINE:
            return data
        return data[: LONGEST_LINE - 4].decode("utf-8", "ignore").encode() + b"...\n"

    def _emit(self, lines: list[str]) -> None:
        """Write whole lines, as many at once as the sink keeps together; count those that did not go out."""
        if self._told != self.dropped:
            lost = self.dropped - self._told
            lines.insert(0, f"{self._clock()}Z warning {self._prefix}log dropped={lost}\n")
            if not self._write([self._encode(lines.pop(0))]):
                self.dropped += len(lines)
                self._retry_at = time.monotonic() + 0.25
                return
            self._told += lost
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
        """Lines written whole. A torn one is ended by the next write, so that it cannot swallow a good
        line."""
        if not batch:
            return 0
        data = (b"\n" if self._torn else b"") + b"".join(batch)
        done = self._sink.write(data)
        if done <= 0:
            return 0
        self._torn = done < len(data) and data[done - 1 : done] != b"\n"
        return len(batch) if done == len(data) else data[:done].count(b"\n") - data.startswith(b"\n")
