"""The admin commands: each reads the board, or writes the few words whose writer is the console.

RULES
- The console is the only writer of admin states (drain, ready, maint, weight) and of the wanted number of workers. Each
  is a plain store on the board, so that nothing is lost when a reload replaces the console.
- The master acts by itself: it reads the number that `workers` stores within 0.25 s; `reload` sends it SIGHUP, and it
  writes the outcome into its notice.
- Every refusal is a sentence that names what is wrong and, where possible, what to do instead.
"""

import json
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from balancer.config.ini import did_you_mean
from balancer.console.answers import STATUS_JSON, Answers
from balancer.eventloop.loop import Loop
from balancer.options import Pool
from balancer.pool.backend import Backend
from balancer.pool.board import ADMIN_DRAIN, ADMIN_MAINT, ADMIN_READY, Board
from balancer.shm.layout import ADMIN_ROW, MAX_SLOTS, WANTED_WORKERS, WORKERS_REQUESTS

MAX_WEIGHT = 256
MOST_NAMES = 20  # of backends that one refusal lists
RELOAD_DEADLINE = 50.0  # seconds; below the timeout of balancerctl
RELOAD_POLL = 0.05  # seconds between two looks at the notice

ADMIN_STATES = {"drain": ADMIN_DRAIN, "ready": ADMIN_READY, "maint": ADMIN_MAINT}


class Reply(Protocol):
    """Where the answer of one command goes."""

    def send(self, answer: dict[str, Any]) -> None: ...

    def send_bytes(self, answer: bytes | memoryview) -> None: ...


class CommandRefused(Exception):
    """The command cannot be done; the text is for the person who typed it."""


class Commands:
    """Interprets one command line at a time."""

    def __init__(
        self,
        board: Board,
        pools: Sequence[Pool],
        loop: Loop,
        master_pid: int,
        answers: Answers,
        send_signal: Callable[[int, int], object] = os.kill,
    ) -> None:
        self.board = board
        self.backends = [backend for pool in pools for backend in pool.backends]
        self.loop = loop
        self.master_pid = master_pid
        self.answers = answers
        self._send_signal = send_signal

    def handle(self, words: list[str], reply: Reply) -> None:
        """Run one command; the answer is sent once, now or (status, reload) later."""
        try:
            match words:
                case ["status"]:
                    self.answers.ask(
                        STATUS_JSON, lambda answer: reply.send_bytes(answer.body), is_shared=False
                    )
                case ["drain" | "ready" | "maint" as state, name]:
                    reply.send(self.set_admin_state(state, name))
                case ["weight", name, weight]:
                    reply.send(self.set_weight(name, weight))
                case ["workers", count]:
                    reply.send(self.set_workers(count))
                case ["reload"]:
                    self.reload(reply)
                case _:
                    raise CommandRefused(
                        f"unknown command {' '.join(words)[:80]!r}; there are: status, drain NAME, ready NAME, "
                        "maint NAME, weight NAME N, workers N, reload"
                    )
        except CommandRefused as refusal:
            reply.send({"error": str(refusal)})

    def find(self, name: str) -> Backend:
        """The backend POOL/NAME, or NAME while one pool only has it. Raises CommandRefused."""
        found = [one for one in self.backends if name in (one.name, f"{one.pool}/{one.name}")]
        if len(found) == 1:
            return found[0]
        if found:
            each = ", ".join(f"{one.pool}/{one.name}" for one in found)
            raise CommandRefused(f"several backends are called {name!r}: name one of {each}")
        names = sorted(one.identity for one in self.backends)
        few = ", ".join(names[:MOST_NAMES]) + (
            f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else ""
        )
        raise CommandRefused(f"no backend is called {name!r}{did_you_mean(name, names)}; there are: {few}")

    def set_admin_state(self, state: str, name: str) -> dict[str, Any]:
        backend = self.find(name)
        self.board.set_admin_state(backend.index, ADMIN_STATES[state])
        if state == "ready":
            self.board.set_weight(backend.index, None)
        held = self.board.sessions(backend.index)
        tail = "" if state == "ready" else f"; {held} session{'' if held == 1 else 's'} left there"
        text = f"{backend.identity} is {state}{tail}"
        return {"text": text, "name": backend.identity, "admin_state": state, "sessions": held}

    def set_weight(self, name: str, text: str) -> dict[str, Any]:
        backend = self.find(name)
        weight = whole_number(text, "a weight", 0, MAX_WEIGHT)
        self.board.set_weight(backend.index, weight)
        said = f"{backend.identity} has weight {weight} (configured: {backend.weight})"
        return {"text": said, "name": backend.identity, "weight": weight}

    def set_workers(self, text: str) -> dict[str, Any]:
        count = whole_number(text, "the number of workers", 1, MAX_SLOTS)
        admin = self.board.shared.rows.row(ADMIN_ROW)
        admin[WANTED_WORKERS] = count
        admin[WORKERS_REQUESTS] += 1
        return {"text": f"{count} workers wanted", "workers": count}

    def reload(self, reply: Reply) -> None:
        """Send SIGHUP to the master; answer when its notice has the outcome."""
        before, _ = self.board.shared.notice.read()
        give_up = self.loop.now + RELOAD_DEADLINE
        self._send_signal(self.master_pid, signal.SIGHUP)

        def poll() -> None:
            serial, text = self.board.shared.notice.read()
            if serial > before:
                reply.send(outcome_of(text))
            elif self.loop.now > give_up:
                reply.send({"error": f"no outcome after {RELOAD_DEADLINE:.0f} s; see the log"})
            else:
                self.loop.call_later(RELOAD_POLL, poll)

        poll()


def outcome_of(text: str) -> dict[str, Any]:
    """The master's notice as an answer: a failed reload is an error with its reason."""
    try:
        outcome = json.loads(text)
    except ValueError:
        return {"error": f"the master's notice is not readable: {text[:200]!r}"}
    if not outcome.get("ok"):
        return {**outcome, "error": f"the old configuration stays: {outcome.get('text', 'no reason given')}"}
    lines = [outcome.get("text", "reloaded")]
    lines += [f"{kind}: {item}" for kind in ("added", "removed", "changed") for item in outcome.get(kind, ())]
    return {**outcome, "text": "\n".join(lines)}


def whole_number(text: str, what: str, least: int, most: int) -> int:
    """Raises CommandRefused naming the range."""
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:9]) <= most:
        raise CommandRefused(f"{what} is a whole number from {least} to {most}, not {text[:40]!r}")
    return int(text)
