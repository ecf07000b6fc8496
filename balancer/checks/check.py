"""One health check as configured: `http GET /ready expect=200`, `redis role=primary`, or lines of send and expect.

RULES: pure; text to record and back, for balancer/options.py. What a check says is in protocols.py, what it does in
probe.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from balancer.config.ini import did_you_mean
from balancer.config.option import parse_flag
from balancer.config.units import parse_port, parse_positive_duration

KINDS = ("tcp", "none", "tls", "http", "redis", "smtp", "imap", "pgsql", "mysql", "mqtt", "frame", "script")
METHODS = ("GET", "HEAD", "OPTIONS")
ROLES = ("primary", "replica")
_WORDS = {"http": ("expect", "host"), "redis": ("role",), "pgsql": ("user", "role"), "mysql": ("user",)}
_COMMON = ("port", "address", "sni", "proxy", "timeout")
_NO_SNI = {
    "tcp": "write tls",
    "pgsql": "TLS begins within its protocol",
    "mysql": "TLS begins within its protocol",
}
_USER = re.compile(r"[A-Za-z0-9._-]{1,32}")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,253}")
_SNI = re.compile(r"(?=.{1,254}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_PATH = re.compile(r"/[\x21-\x7e]{0,1023}")
_RANGE = re.compile(r"([1-5]\d\d)(?:-([1-5]\d\d))?")
_STEP = re.compile(r"""(send|expect)\s+([\^~]?)"((?:\\.|[^"\\])*)"$""")
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.)")
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\", '"': '"', "0": "\0"}
MOST_STEPS = 16
FORM = 'send "TEXT", expect "TEXT" (contained), expect ^"TEXT" (next), or expect ~"REGEX"'


@dataclass(frozen=True, slots=True)
class ScriptStep:
    """One line of a script. `how`: "send", or of what is expected "contained", "prefix" or "pattern"."""

    how: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Check:
    """How the backends of a pool are checked. `port` 0 and `address` "" are the backend's own, `timeout` 0 is that of the
    pool; seconds."""

    kind: str = "tcp"
    method: str = "GET"
    path: str = "/"
    expect: tuple[int, int] = (200, 399)
    host: str = ""
    user: str = ""
    role: str = ""
    port: int = 0
    address: str = ""
    sni: str = ""  # makes it speak TLS, asks for this server name and verifies it
    proxy: bool | None = None  # whether it begins with a PROXY header; None: as the pool
    timeout: float = 0.0
    steps: tuple[ScriptStep, ...] = ()
    text: str = "tcp"

    def __str__(self) -> str:
        return self.text

    def speaks_tls(self, pool_does: bool) -> bool:
        """Whether it begins with a TLS handshake: where it says so, and where it looks at the address that serves the
        sessions of a pool, as they do."""
        return self.kind == "tls" or bool(self.sni) or (pool_does and not (self.port or self.address))


def check_of(lines: Sequence["Check | ScriptStep"]) -> Check:
    """The check that these lines make: one line, or a script, whose first line may be `script` with words. Raises
    ValueError with a sentence."""
    head = next((line for line in lines if isinstance(line, Check)), None)
    steps = tuple(line for line in lines if isinstance(line, ScriptStep))
    if not steps:
        if len(lines) > 1 or head is None:
            raise ValueError("one check is wanted; several lines are for send and expect")
        if head.kind == "script":
            raise ValueError(f"a script has no line: write {FORM}")
        return head
    if head is not None and (head.kind != "script" or lines[0] is not head or len(lines) > len(steps) + 1):
        raise ValueError(
            f"a script is lines of {FORM}; only a line `script port=N ...` may stand before them"
        )
    if len(steps) > MOST_STEPS:
        raise ValueError(f"a script has at most {MOST_STEPS} lines, not {len(steps)}")
    if all(step.how == "send" for step in steps):
        raise ValueError("a script without expect cannot fail")
    head = head or Check("script", text="script")
    shown = "; ".join([head.text, *(f"{step.how} {step.data!r}" for step in steps)])
    return replace(head, steps=steps, text=shown)


def parse_check_line(text: str) -> "Check | ScriptStep":
    """One line of `check`. Raises ValueError with a sentence."""
    words = text.split()
    if words and words[0] in ("send", "expect"):
        return _parse_step(text.strip())
    kind = words[0] if words else ""
    if kind not in KINDS:
        guess = did_you_mean(kind, KINDS)
        raise ValueError(f"{text!r} is no check: it begins with one of {', '.join(KINDS)}{guess}")
    fields: dict[str, object] = {"kind": kind, "text": " ".join(words)}
    rest = words[1:]
    if kind == "http":
        fields |= _request_of(text, rest[:2])
        rest = rest[2:]
    allowed = () if kind == "none" else (*_WORDS.get(kind, ()), *_COMMON)
    for word in rest:
        key, equals, value = word.partition("=")
        if key not in allowed or not equals:
            takes = f"takes {', '.join(f'{each}=' for each in allowed)}" if allowed else "takes no words"
            raise ValueError(f"{text!r}: {word!r} is not understood: {kind} {takes}")
        if key in fields:
            raise ValueError(f"{text!r}: {key} is given twice")
        if key == "sni" and kind in _NO_SNI:
            raise ValueError(f"{text!r}: {kind} takes no sni=: {_NO_SNI[kind]}")
        fields[key] = _value(text, key, value)
    return Check(**fields)  # type: ignore[arg-type]


def _request_of(text: str, words: Sequence[str]) -> dict[str, object]:
    if len(words) < 2 or words[0] not in METHODS or not _PATH.fullmatch(words[1]):
        raise ValueError(f"{text!r}: write http GET /path (or {' or '.join(METHODS[1:])})")
    return {"method": words[0], "path": words[1]}


def _value(text: str, key: str, value: str) -> object:
    match key:
        case "expect":
            return _parse_range(text, value)
        case "port":
            if not (port := parse_port(value)):
                raise ValueError(f"{text!r}: port 0 cannot be dialled")
            return port
        case "proxy":
            return parse_flag(value)
        case "timeout":
            return parse_positive_duration(value)
        case "address":
            return _parse_address(text, value)
        case "role" if value not in ROLES:
            raise ValueError(f"{text!r}: role={value} is neither primary nor replica")
    pattern = {"user": _USER, "host": _HOST, "sni": _SNI}.get(key)
    if pattern is not None and not pattern.fullmatch(value):
        raise ValueError(f"{text!r}: {key}={value} is not a {'name' if key == 'user' else 'host name'}")
    return value


def _parse_range(text: str, value: str) -> tuple[int, int]:
    if found := _RANGE.fullmatch(value):
        low, high = int(found[1]), int(found[2] or found[1])
        if low <= high:
            return low, high
    raise ValueError(f"{text!r}: expect={value} is no range of statuses: write expect=200 or expect=200-399")


def _parse_address(text: str, value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError(f"{text!r}: address={value} is no numeric address without port") from None


def _parse_step(text: str) -> ScriptStep:
    found = _STEP.fullmatch(text)
    if found is None or (found[1] == "send" and found[2]):
        raise ValueError(f"{text!r} is not understood: write {FORM}")
    if found[2] == "~":
        try:
            re.compile(pattern := found[3].replace('\\"', '"').encode("latin-1"))
        except (re.error, UnicodeEncodeError) as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from None
        return ScriptStep("pattern", pattern)
    try:
        data = _ESCAPE.sub(_unescape, found[3]).encode("latin-1")
    except (KeyError, UnicodeEncodeError):
        known = " ".join(f"\\{each}" for each in _ESCAPES)
        raise ValueError(f"{text!r} has an unknown escape: there are {known} and \\xHH") from None
    if not data:
        raise ValueError(f"{text!r} has no text between its quotes")
    return ScriptStep({"send": "send", "expect": "contained"}[found[1]] if not found[2] else "prefix", data)


def _unescape(found: "re.Match[str]") -> str:
    word = found[1]
    return chr(int(word[1:], 16)) if len(word) == 3 else _ESCAPES[word]
