"""`balancerctl`: asks the console of a running balancer, over its admin socket, and prints what it answers.

RULES: parses, sends one line, reads one JSON object, prints it. Knows nothing of the board, keeps nothing between calls.
The exit code is the answer's: 0 done, 1 refused by the console or no balancer there, 2 usage.
"""

import argparse
import json
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

from balancer import __version__
from balancer.console.table import status_text
from balancer.options import admin_path

DEFAULT_PORT = 9090  # as the balancer's own
REPLY_LIMIT = 16 * 1024 * 1024  # bytes; a status of ten thousand backends is about 3 MB
ANSWER_TIMEOUT = 5.0  # seconds; every command but `reload` is answered from memory
TIMEVAL = struct.Struct("@ll")
RELOAD_TIMEOUT = 60.0  # seconds; `reload` answers when the new generation is ready or was given up

EPILOG = """examples:
  balancerctl status                      tables of listeners, pools, backends and workers
  balancerctl -p 9090 status --json       the same as JSON, for scripts
  balancerctl drain backend-2             no new sessions for it; the ones it has go on
  balancerctl drain api/backend-2         the one of pool api, where another pool has one of that name
  balancerctl weight backend-1 4          until the next `ready` of it, or a reload that renames it
  balancerctl workers 4                   more or fewer workers, without losing a connection
  balancerctl reload                      read the configuration again; tells what changed, or why it stays
"""


class CannotAsk(Exception):
    """No answer from the console; the text says why, in one sentence."""


def ask(path: str, words: Sequence[str], timeout: float) -> dict[str, object]:
    """Send one command to the admin socket at `path` and return its decoded reply.

    `timeout` is in seconds, for the whole exchange's single steps.
    Raises CannotAsk when the connect fails, the answer does not come in time, or it is not a JSON object.
    """
    line = " ".join(words).encode() + b"\n"
    chunks: list[bytes] = []
    size = 0
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
            # connect(2) waits while the queue is full, as long as SO_SNDTIMEO says; a non-blocking one fails at once.
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(int(timeout), 0))
            conn.connect(path)
            conn.settimeout(timeout)
            while line:
                line = line[conn.send(line) :]
            conn.shutdown(socket.SHUT_WR)
            while size < REPLY_LIMIT and (chunk := conn.recv(65536)):
                chunks.append(chunk)
                size += len(chunk)
    except (TimeoutError, BlockingIOError):
        raise CannotAsk(f"the balancer at {path} did not answer within {timeout:g} s") from None
    except OSError as error:
        raise CannotAsk(f"cannot reach a balancer at {path}: {error.strerror or error}") from None
    try:
        reply = json.loads(b"".join(chunks))
    except ValueError:
        raise CannotAsk(f"the answer from {path} is not JSON: is it a balancer's admin socket?") from None
    if not isinstance(reply, dict):
        raise CannotAsk(f"the answer from {path} is not a JSON object")
    return reply


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="balancerctl",
        description="Look into a running balancer and steer it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--admin", metavar="PATH", help="the admin socket (default: BALANCER_ADMIN, or the one of the port)"
    )
    where.add_argument("-p", "--port", type=int, help=f"the balancer's port (default {DEFAULT_PORT})")
    parser.add_argument("--version", action="version", version=f"balancerctl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="listeners, pools, backends, workers and totals")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    for name, text in (
        ("drain", "no new sessions for this backend; open ones go on"),
        ("ready", "take new sessions again, with the configured weight"),
        ("maint", "as drain, and it is not checked"),
    ):
        commands.add_parser(name, help=text).add_argument(
            "name", metavar="NAME", help="the backend, or POOL/NAME"
        )
    weight = commands.add_parser("weight", help="change a backend's weight (0 = no new sessions)")
    weight.add_argument("name", metavar="NAME", help="the backend, or POOL/NAME")
    weight.add_argument("weight", type=int, metavar="N", help="0 to 256")
    workers = commands.add_parser("workers", help="set the number of workers")
    workers.add_argument("count", type=int, metavar="N")
    commands.add_parser("reload", help="read the configuration again and tell the outcome")
    return parser


def admin_of(port: int | None, environ: Mapping[str, str]) -> str:
    """The admin socket where the balancer's own environment would put it; a port on the command line wins."""
    if port is None and (told := environ.get("BALANCER_ADMIN", "")):
        return told
    if port is None:
        text = environ.get("BALANCER_PORT", "")
        port = int(text) if text.isdecimal() else DEFAULT_PORT
    return admin_path(port, environ)


def words_of(args: argparse.Namespace) -> list[str]:
    """The command line the console understands."""
    extras = (getattr(args, name) for name in ("name", "weight", "count") if hasattr(args, name))
    return [args.command, *map(str, extras)]


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    path = args.admin or admin_of(args.port, os.environ)
    words = words_of(args)
    if any(len(word.split()) != 1 for word in words):
        print("balancerctl: a backend's name has no spaces", file=sys.stderr)
        return 2
    try:
        reply = ask(path, words, RELOAD_TIMEOUT if args.command == "reload" else ANSWER_TIMEOUT)
    except CannotAsk as error:
        print(f"balancerctl: {error}", file=sys.stderr)
        return 1
    if "error" in reply:
        print(f"balancerctl: {reply['error']}", file=sys.stderr)
        return 1
    try:
        if args.command != "status":
            print(reply.get("text", "ok"))
        elif args.json:
            print(json.dumps(reply, indent=2))
        else:
            print(status_text(reply, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    except BrokenPipeError:
        # `balancerctl status | head -1`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
