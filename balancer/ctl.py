"""`balancerctl`: asks the console of a running balancer, over its admin socket, and prints what it answers.

RULES: parses, sends one line, reads one JSON object, prints it. Knows nothing of the board, keeps nothing between calls.
The exit code is the answer's: 0 done, 1 refused by the console, not answered by every worker, or no balancer there,
2 usage.
"""

import json
import os
import shlex
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil, inf
from typing import Any, TypeVar

from balancer import __version__
from balancer.admin_socket import NoAdminSocket, directories, find_socket, is_live, why_not_trusted
from balancer.config.loader import ask as ask_for
from balancer.config.streams import answer, complain, is_terminal, open_streams, wait_for_reader
from balancer.config.units import parse_duration
from balancer.console import waits
from balancer.console.table import sources_text, status_text
from balancer.console.views import certificates_text, explain_text, part_of, part_text, sessions_text
from balancer.ctl_options import PROGRAM, VIEWS, CommandLine, conditions_of, parse
from balancer.eventloop.log_format import printable

REPLY_LIMIT = 16 * 1024 * 1024  # bytes; a status of ten thousand backends is about 3 MB
ANSWER_TIMEOUT = 5.0  # seconds; every command but `reload` is answered from memory
LEAST_TIMEOUT = 1.0  # seconds of an answer, near the end of a time to wait
ONCE_COLUMNS = 80  # of `top` without a terminal
NO_SCREEN = ("", "dumb", "unknown")  # values of TERM: its cursor cannot be moved
FOLLOW_EVERY = 0.5  # seconds between two looks at the events
SCHEMA = 1  # of every JSON answer that does not say its own
TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "sources": sources_text,
    "certificates": certificates_text,
    "sessions": sessions_text,
    "explain": explain_text,
}
EXIT_INTERRUPTED = 130  # as a shell reports SIGINT
T = TypeVar("T")
Exchange = Callable[[str, Sequence[str], float], dict[str, Any]]
TIMEVAL = struct.Struct("@ll")
RELOAD_TIMEOUT = 60.0  # seconds; `reload` answers when the new generation is ready or was given up


class CannotAsk(Exception):
    """No answer from the console; the text says why, in one sentence."""


def ask(path: str, words: Sequence[str], timeout: float) -> dict[str, Any]:
    """Send one command to the admin socket at `path` and return its decoded reply.

    `timeout` is in seconds, for the whole exchange's single steps.
    Raises CannotAsk when the connect fails, the answer does not come in time, or it is not a JSON object.
    """
    line = shlex.join(words).encode("utf-8", "surrogateescape") + b"\n"
    chunks: list[bytes] = []
    size = 0
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
            # connect(2) waits while the queue is full, as long as SO_SNDTIMEO says; a non-blocking one fails at once.
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(int(timeout), 0))
            conn.connect(path)
            conn.settimeout(timeout)
            if why := why_not_trusted(conn, path, os.geteuid()):
                raise CannotAsk(why)
            while line:
                line = line[conn.send(line) :]
            conn.shutdown(socket.SHUT_WR)
            while size < REPLY_LIMIT and (chunk := conn.recv(65536)):
                chunks.append(chunk)
                size += len(chunk)
    except (TimeoutError, BlockingIOError):
        raise CannotAsk(f"the balancer at {path} did not answer within {timeout:g} s") from None
    except OSError as error:
        reason = error.strerror or error
        raise CannotAsk(
            f"cannot reach a balancer at {path}: {reason}; name its socket with --admin PATH"
        ) from None
    if not chunks:
        raise CannotAsk(
            f"the balancer at {path} closed the connection without an answer; its log may say why"
        )
    try:
        reply = json.loads(b"".join(chunks))
    except (ValueError, RecursionError):
        raise CannotAsk(f"the answer from {path} is not JSON: is it a balancer's admin socket?") from None
    if not isinstance(reply, dict):
        raise CannotAsk(f"the answer from {path} is not a JSON object")
    return reply


def path_of(line: CommandLine) -> str:
    """The admin socket that a command line means. Raises CannotAsk."""
    return line.options.get("admin") or admin_of(line.port, os.environ)


def admin_of(port: int | None, environ: Mapping[str, str]) -> str:
    """The admin socket of the balancer on `port`, or of the only one. Raises CannotAsk."""
    uid = os.geteuid()
    try:
        return find_socket(port, environ, directories(environ, uid), uid, is_live, listens_on)
    except NoAdminSocket as error:
        raise CannotAsk(str(error)) from None


def listens_on(path: str, port: int) -> bool:
    """Whether the balancer at the admin socket listens on the port, by its own account."""
    try:
        listeners = ask(path, ["status"], ANSWER_TIMEOUT).get("listeners", [])
        addresses = [str(address) for one in listeners for address in one["addresses"]]
    except (CannotAsk, LookupError, TypeError):
        return False
    return any(one.endswith(f":{port}") and not one.startswith("unix:") for one in addresses)


def words_of(line: CommandLine) -> list[str]:
    """The words that the console understands; a line has no line end in it."""
    if line.command in VIEWS and len(line.words) == 1:
        return ["status"]
    reason = " ".join(line.options.get("reason", "").split())
    words: Sequence[str] = line.words if line.command != "kill" else line.words[:1]
    if line.command == "record":
        words = ["record", str(ceil(parse_duration(line.words[1])))]
    return [*words, *conditions_of(line), *(("--reason", reason) if reason else ())]


def main(
    argv: Sequence[str] | None = None,
    exchange: Exchange = ask,
    wait: Callable[[float], bool] = wait_for_reader,
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    open_streams()
    try:
        words = sys.argv[1:] if argv is None else argv
        return ask_for(PROGRAM, lambda: run(parse(words), exchange, wait, pause, clock))
    except CannotAsk as error:
        complain(PROGRAM, lines_of(str(error)))
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def run(
    line: CommandLine,
    exchange: Exchange,
    wait: Callable[[float], bool],
    pause: Callable[[float], object],
    clock: Callable[[], float],
) -> int:
    """Ask, print, and return the exit code. Raises CannotAsk."""
    if line.command == "wait":
        wait_until(line, partial(waits.condition, line.words[1:], set()), exchange, pause, clock)
        return answer(PROGRAM, shown(line, {"text": "ok"}))
    path = path_of(line)
    if line.command == "events":
        return show_events(path, line, exchange, wait)
    if line.command == "top":
        return show_top(path, line, exchange)
    reply = exchange(path, words_of(line), RELOAD_TIMEOUT if line.command == "reload" else ANSWER_TIMEOUT)
    if line.command == "errors":  # counts are the status's, single ones the workers'
        reply |= exchange(path, ["errors"], ANSWER_TIMEOUT)
    if "error" in reply:
        raise CannotAsk(str(reply["error"]))
    code = answer(PROGRAM, understood(path, partial(shown, line, reply)))
    if reply.get("unanswered"):  # what was asked was done in part
        return code or 1
    if not code and "wait" in line.options:
        names = {one["name"] for one in reply.get("backends", [reply])}
        wait_until(line, partial(waits.after, line.command, names), exchange, pause, clock)
    return code


def shown(line: CommandLine, reply: dict[str, Any]) -> str:
    """What an answer looks like: as JSON, with the number of its schema, or as text."""
    is_view = line.command in VIEWS and len(line.words) == 1
    if "json" in line.options:
        return json.dumps({"schema": SCHEMA} | (part_of(reply, line.command) if is_view else reply), indent=2)
    colour = is_terminal(sys.stdout) and "NO_COLOR" not in os.environ
    if is_view:
        return part_text(reply, line.command, colour)
    if line.command == "status":
        return status_text(reply, colour)
    if line.command in TEXTS:
        return TEXTS[line.command](reply)
    return lines_of(str(reply.get("text", "ok")))


def wait_until(
    line: CommandLine,
    left_over: Callable[[Mapping[str, Any]], str],
    exchange: Exchange,
    pause: Callable[[float], object],
    clock: Callable[[], float],
) -> None:
    """Look at the status until nothing is left to wait for, also without a reader: the exit code says it. With --timeout,
    `wait ready` waits for the balancer itself too. Raises CannotAsk."""
    left = parse_duration(line.options["timeout"]) if "timeout" in line.options else inf
    may_be_absent = line.words == ("wait", "ready") and left < inf
    while True:
        begun = clock()
        try:
            path = path_of(line)
            status = exchange(path, ["status"], min(ANSWER_TIMEOUT, max(LEAST_TIMEOUT, left)))
            waits_for = understood(path, partial(left_over, status))
        except waits.NeverMet as reason:
            raise CannotAsk(str(reason)) from None
        except CannotAsk as error:
            if not may_be_absent:
                raise
            waits_for = str(error)
        if not waits_for:
            return
        left -= clock() - begun  # a console that has stopped takes the whole time of an answer
        if left <= 0:
            raise CannotAsk(f"gave up after --timeout {line.options['timeout']}: {waits_for}")
        pause(min(FOLLOW_EVERY, left))
        left -= FOLLOW_EVERY


def show_top(path: str, line: CommandLine, exchange: Exchange) -> int:
    """A live view until `q`; once, where standard output is no terminal or has no screen. Raises CannotAsk."""
    from balancer import ctl_top  # termios and a table library: for this command only

    def ask_console(words: Sequence[str]) -> dict[str, Any]:
        return exchange(path, words, ANSWER_TIMEOUT)

    has_screen = is_terminal(sys.stdout) and os.environ.get("TERM", "") not in NO_SCREEN
    if "json" not in line.options and has_screen:
        try:
            from balancer.ctl_rich import RichTerminal
        except ImportError:  # the extra `top` is not installed
            show = partial(ctl_top.run, ask_console, CannotAsk, ctl_top.PlainTerminal(), ctl_top.INSTALL)
        else:
            show = partial(ctl_top.run, ask_console, CannotAsk, RichTerminal())
        return understood(path, show)
    status = ask_console(["status"])
    if "json" in line.options:
        return answer(PROGRAM, json.dumps({"schema": SCHEMA} | status, indent=2))
    return answer(PROGRAM, understood(path, partial(ctl_top.once, status, ONCE_COLUMNS)))


def show_events(path: str, line: CommandLine, exchange: Exchange, wait: Callable[[float], bool]) -> int:
    """The last events; with --follow, also those to come, until the reader has gone. Raises CannotAsk."""
    boot, last = "", 0
    while True:
        reply = exchange(path, ["events", str(last)], ANSWER_TIMEOUT)
        if "error" in reply:
            raise CannotAsk(str(reply["error"]))
        found = understood(path, partial(EventsReply, reply))
        if boot in ("", found.boot):
            shown = understood(path, partial(events_text, found.events, "json" in line.options))
            code = answer(PROGRAM, shown) if shown else 0
            if code or "follow" not in line.options:
                return code
            boot, last = found.boot, found.last
        else:  # another master, with events of its own
            boot, last = found.boot, 0
        if not wait(FOLLOW_EVERY):
            return 0


class EventsReply:
    """What the console answers to `events`."""

    def __init__(self, reply: Mapping[str, Any]) -> None:
        self.boot = str(reply["boot"])
        self.last = int(reply["last"])
        self.events: list[Mapping[str, Any]] = list(reply["events"])


def events_text(events: Sequence[Mapping[str, Any]], is_json: bool) -> str:
    """One line for each event."""
    if is_json:
        return "\n".join(json.dumps({"schema": SCHEMA} | dict(event)) for event in events)
    return "\n".join(printable(f"{event['at']} {event['verb']} {event['text']}") for event in events)


def understood(path: str, show: Callable[[], T]) -> T:
    """What `show` makes of an answer. Raises CannotAsk when the answer is not as this version expects."""
    try:
        return show()
    except KeyError as error:
        what = f"it lacks {error.args[0]!r}"
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = str(error)
    raise CannotAsk(
        f"the answer from {path} is not understood: {what}; does {PROGRAM} {__version__} fit the balancer there? "
        "See --json"
    )


def lines_of(text: str) -> str:
    """The text with its line ends, and nothing else that would steer a terminal."""
    return "\n".join(printable(line) for line in text.split("\n"))


if __name__ == "__main__":
    sys.exit(main())
