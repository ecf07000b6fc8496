"""The log: one line per event. Writing one neither waits nor raises.

    2026-11-22T12:00:00.123Z info worker 2 pid=4711 refuse client=10.0.0.9:5012 sessions=8/8 then=close
    when                     level process  pid      verb   key=value ...                       what next

RULES: never raises and never blocks. A line that cannot be written (reader stalled, disk full, pipe closed) is dropped
and counted; when writing works again, the count is the first line. A line has at most 4000 bytes and is written whole
or not at all. No character of a value can end a line or begin another. This module alone reads the time of day. The forms
of a line are log_format.py's, where it goes log_sink.py's.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from balancer.eventloop.log_format import (
    LineFormat,
    LogSettings,
    SessionSample,
    printable,
    shortened,
    text_with,
    value_text,
)
from balancer.eventloop.log_sink import LONGEST_LINE, Sink, open_sink

BUFFERED_LINES = 512  # session lines held until flush(); at this number they are written at once


class LoggedLine(NamedTuple):
    """A line as it was logged: its fields (key=value ...), the time of day and the monotonic time."""

    text: str
    wall_ns: int
    at_ms: int


class Log:
    """The log of one process. `level`: 0 lifecycle and health, 1 also a line per session, 2 also debug.

    A forked child makes its own with child(): it shares the descriptor (appends are atomic), not pid and buffer.
    `form` and `sessions`: the others of LogSettings; `program` is what syslog knows it by."""

    def __init__(
        self,
        process: str,
        path: str = "",
        level: int = 0,
        sink: Sink | None = None,
        clock: Callable[[], float] = time.monotonic,
        form: str = "text",
        sessions: str = "all",
        program: str = "balancer",
    ) -> None:
        self.dropped = 0  # lines lost since this object was made
        self._reported = 0  # how many of them a `log dropped=` line has counted
        self._is_torn = False  # the last write ended inside a line
        self._sink = open_sink(path) if sink is None else sink
        self._clock = clock
        self._buffer: list[str] = []
        self._process, self._program = process, program
        self.apply(LogSettings(level, form, sessions))
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
        text = " ".join(f"{key}={value_text(value)}" for key, value in fields.items() if key != "then")
        stamp = self._timestamp()
        line = self._format.line(stamp, level, verb, text, then)
        while len(_bytes(line)) > LONGEST_LINE and (cut := shortened(text, LONGEST_LINE)) != text:
            text = cut  # so that the line is whole in its form: a program reads it
            line = self._format.line(stamp, level, verb, text, then)
        self._buffer.append(line)
        self.flush()
        return LoggedLine(text_with(text, then), int(self._wall * 1e9), int(self._clock() * 1000))

    def wants_session(self, is_clean: bool) -> bool:
        """Whether a session (of framed mode: a request) that has ended has a line; asked once for each."""
        return self.level >= 1 and self._sample.has(is_clean)

    def session(self, line: str) -> None:
        """Log the line of one session, from its verb on; buffered until flush(). 1.7 us, the write included."""
        if self.level < 1:
            return
        if not line.isprintable():
            line = printable(line)
        if plain := self._format.plain:
            self._buffer.append(f"{self._timestamp()}{plain}{line}\n")
        else:
            verb, _, text = line.partition(" ")
            self._buffer.append(self._format.line(self._timestamp(), "info", verb, text))
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

    def apply(self, settings: LogSettings) -> None:
        """Go on with these settings."""
        self.level = settings.level
        self._sample = SessionSample(settings.sessions)
        self._format = LineFormat(
            settings.format, self._process, os.getpid(), self._sink.destination, self._program
        )

    def child(self, process: str, settings: LogSettings) -> "Log":
        """The log of a process just forked: the same file, its own pid and an empty buffer."""
        one = Log(process, sink=self._sink, clock=self._clock, program=self._program)
        one.apply(settings)
        return one

    def time_before(self, seconds: float) -> str:
        """The time of day so many seconds ago, as lines have it."""
        then = time.time() - seconds
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S.', time.gmtime(then))}{int(then % 1 * 1000):03d}Z"

    def _timestamp(self) -> str:
        self._wall = now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._stamp}{int((now - second) * 1000):03d}"

    def _encode(self, line: str) -> bytes:
        data = _bytes(line)
        if len(data) <= LONGEST_LINE:
            return data
        return data[: LONGEST_LINE - 4].decode("utf-8", "ignore").encode() + b"...\n"

    def _emit(self, lines: list[str]) -> None:
        """Write whole lines, as many in one write as stay together; count those that were not written."""
        if self._reported != self.dropped:
            lost = self.dropped - self._reported
            lines.insert(0, self._format.line(self._timestamp(), "warning", "log", f"dropped={lost}"))
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


def _bytes(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace")
