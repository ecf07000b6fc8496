"""What a backend says of itself: the words of HAProxy's agents, and a talk that fetches them.

RULES: pure. An agent is a layer of its own between operator and check: what it says never lifts what one of them has
decided, and an agent that cannot be reached has said nothing new.

    "up 75%"   "drain"   "ready"   "down #no memory"   "maxconn:30, weight:50%"

    ready, drain, maint             mode: takes new sessions, or not; only `ready` ends drain and maint
    up; down, fail, failed, stopped state: works, or not; behind # stands why
    N%, weight:N%, weight:N         weight: of the configured one, or absolute
    maxconn:N                       in place of the configured maxconn, where there is one
"""

import re
from dataclasses import dataclass, replace

from balancer.checks.talk import Steps, Talk, printable

MOST_LINE = 512  # bytes
_DOWN = ("down", "fail", "failed", "stopped")
_WEIGHT = re.compile(r"(?:weight:)?(\d{1,4})%")
_NUMBER = re.compile(r"(weight|maxconn):(\d{1,7})")


@dataclass(frozen=True, slots=True)
class AgentWords:
    """What an agent has said up to now. `weight` in percent of the configured one."""

    mode: str = "ready"  # or "drain", "maint"
    is_down: bool = False
    weight: int = 100
    maxconn: int | None = None
    reason: str = ""

    def then(self, line: bytes, configured: int) -> "AgentWords":
        """After one more line, of a backend of that configured weight. Words that are not known change nothing."""
        text, _, reason = line.decode("ascii", "replace").partition("#")
        found = self
        for word in re.split(r"[\s,]+", text.strip().lower()):
            if word in ("ready", "drain", "maint"):
                found = replace(found, mode=word)
            elif word == "up" or word in _DOWN:
                said = printable(reason.encode("ascii", "replace")) if word != "up" else ""
                found = replace(found, is_down=word != "up", reason=said)
            elif percent := _WEIGHT.fullmatch(word):
                found = replace(found, weight=int(percent[1]))
            elif number := _NUMBER.fullmatch(word):
                if number[1] == "maxconn":
                    found = replace(found, maxconn=int(number[2]))
                else:
                    percent_of = round(100 * int(number[2]) / configured)
                    found = replace(found, weight=percent_of or min(1, int(number[2])))  # only 0 is none
        return found


def first_line(data: bytes) -> bytes:
    """Up to the first CR or LF, and no more than an agent may say: a last word that may be cut there is no word."""
    line = re.split(rb"[\r\n]", data[:MOST_LINE], maxsplit=1)[0]
    if len(line) < MOST_LINE or b"#" in line:
        return line
    return re.sub(rb"[^\s,]+$", b"", line)


def listen(talk: Talk) -> Steps:
    """An agent on a port of its own: it speaks first. Its line may end with the connection, unless that is reset."""
    talk.may_be_cut = True
    while not re.search(rb"[\r\n]", talk.received) and len(talk.received) < MOST_LINE:
        yield


def request(talk: Talk, path: str, host: str) -> Steps:
    """An agent over HTTP: what is left in the talk begins with its line. HTTP/1.0 has no chunks."""
    talk.send(f"GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: balancer-agent\r\n\r\n".encode("latin-1"))
    yield from talk.line(r"HTTP/1\.[01] 2\d\d\b", "status")
    yield from talk.pattern(re.compile(rb"(?:^|\r?\n)\r?\n"))
    yield from listen(talk)
