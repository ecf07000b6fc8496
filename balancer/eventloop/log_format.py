"""How a line of the log is written: text for people, logfmt and JSON for programs; and how often sessions have one.

    text     2026-11-22T12:00:00.123Z info worker 2 pid=4711 refuse client=10.0.0.9:5012 sessions=8/8 then=close
    logfmt   time=2026-11-22T12:00:00.123Z level=info process="worker 2" pid=4711 verb=refuse client=10.0.0.9:5012 ...
    json     {"time":"2026-...Z","level":"info","process":"worker 2","pid":4711,"verb":"refuse","client":...}

RULES: pure; reads no clock. A line ends with a newline and has no other. logfmt and JSON have the same keys: those of the
text behind time, level, process, pid and verb. Whole numbers are numbers in JSON, everything else is a string.
"""

import json
import re
from dataclasses import dataclass

FORMATS = ("text", "logfmt", "json")
SEVERITY = {"error": 3, "warning": 4, "info": 6, "debug": 7}  # as syslog and journald count them
WORTH_CUTTING = 32  # characters of a value in a line that is too long
_DAEMON = 3 << 3  # syslog's facility
_SAFE = frozenset(map(chr, range(33, 127))) - {'"', "\\"}
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # 007 is a name
_FIELD = re.compile(r'([\w.-]+)=("(?:[^"\\]|\\.)*"|\S*)')


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What a reload may change of a log: `level` 0, 1 or 2; `format` one of FORMATS; `sessions` all, bad, none or 1/N."""

    level: int = 0
    format: str = "text"
    sessions: str = "all"


def printable(text: str) -> str:
    """`text` fit for a line or a terminal: \\n, \\x1b or \\u202e in place of each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def value_text(value: object) -> str:
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


def fields_in(text: str) -> dict[str, str | int]:
    """The fields of `key=value ...`, quotes and escapes undone; whole numbers as such. Of text that was cut, an
    escape may have been: it is U+FFFD."""
    return {key: _undone(value) for key, value in _FIELD.findall(text)}


def shortened(text: str, most: int) -> str:
    """Return `key=value ...` with its longest value cut by an eighth, to at most `most` characters, and `...` behind it;
    as it is when no value is long."""
    fields = fields_in(text)
    longest = max(fields, key=lambda key: len(str(fields[key])), default="")
    value = str(fields.get(longest, "")).removesuffix("...")
    if len(value) < WORTH_CUTTING:
        return text
    cut: dict[str, object] = {**fields, longest: value[: min(most, len(value) * 7 // 8)] + "..."}
    return " ".join(f"{key}={value_text(one)}" for key, one in cut.items())


def _undone(value: str) -> str | int:
    if value.startswith('"'):
        return value[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape", "replace")
    return int(value) if _NUMBER.fullmatch(value) else value


class SessionSample:
    """Which sessions have a line: all, bad (those that did not end cleanly), none, or 1/N: the bad ones and one in N of
    the others."""

    def __init__(self, sessions: str) -> None:
        self._has_bad = sessions != "none"
        self._every = {"all": 1, "bad": 0, "none": 0}.get(sessions) or int(sessions.partition("/")[2] or 0)
        self._clean = 0

    def has(self, is_clean: bool) -> bool:
        """Whether this one has a line; asked once for each."""
        if not is_clean:
            return self._has_bad
        self._clean += 1
        return self._every > 0 and self._clean % self._every == 0


class LineFormat:
    """The form of one process's lines. `destination` is "journal" (a priority before each line), "syslog" (RFC 5424) or
    ""."""

    def __init__(
        self, form: str, process: str, pid: int, destination: str = "", program: str = "balancer"
    ) -> None:
        self._form, self._destination = form, destination
        self._process, self._pid, self._program = process, pid, program
        # The usual form: what stands between the time and the verb of a session's line, "" if it takes more than that.
        self.plain = f"Z info {process} pid={pid} " if form == "text" and not destination else ""

    def line(self, stamp: str, level: str, verb: str, text: str, then: object = None) -> str:
        """A line. `stamp` is the time without its Z, `text` the fields, `then` what happens next."""
        body = self._body(stamp, level, verb, text, then)
        if self._destination == "journal":
            return f"<{SEVERITY[level]}>{body}\n"
        if self._destination == "syslog":
            return f"<{_DAEMON + SEVERITY[level]}>1 {stamp}Z - {self._program} {self._pid} {verb} - {body}\n"
        return body + "\n"

    def _body(self, stamp: str, level: str, verb: str, text: str, then: object) -> str:
        if self._form == "text":
            words = f"{verb} {text_with(text, then)}".rstrip(" ")
            if self._destination == "syslog":
                return f"{self._process} {words}"
            return f"{stamp}Z {level} {self._process} pid={self._pid} {words}"
        fields = f"{text} then={value_text(then)}".lstrip() if then is not None else text
        head = {"time": f"{stamp}Z", "level": level, "process": self._process, "pid": self._pid, "verb": verb}
        if self._form == "json":
            return json.dumps(head | fields_in(fields), separators=(",", ":"))
        return " ".join([*(f"{key}={value_text(value)}" for key, value in head.items()), fields]).rstrip(" ")


def text_with(text: str, then: object) -> str:
    """Fields with what happens next, which comes last and is not quoted."""
    return text if then is None else f"{text} then={printable(str(then))}".lstrip()
