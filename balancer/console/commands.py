"""The admin commands: each reads the board, or writes the few words whose writer is the console.

RULES
- The console is the only writer of admin states (drain, ready, maint, weight) and of the wanted number of workers. Each
  is a plain store on the board, so that nothing is lost when a reload replaces the console.
- The master acts by itself: it reads the number that `workers` stores within 0.25 s; `reload` sends it SIGHUP, and it
  writes the outcome into its notice.
- Every act is a line of the log, at every loglevel, and an event: who, what, before and after, why. Answers of acts on a
  backend say when no backend of its pool serves any more.
- Every refusal is a sentence that names what is wrong and, where possible, what to do instead.
"""

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from balancer.config.ini import did_you_mean
from balancer.config.units import counted
from balancer.console.answers import STATUS_JSON, Answers
from balancer.console.events import describe_events
from balancer.console.peer import AdminPeer
from balancer.console.sources import describe_sources
from balancer.console.status import describe_serving, serving_workers
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.options import Listener, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_DRAIN,
    ADMIN_MAINT,
    ADMIN_NAMES,
    ADMIN_READY,
    CHECK_NAMES,
    W_ADMIN_STATE,
    W_CHECK,
    Board,
)
from balancer.pool.serving import serving, state_of
from balancer.shm.events import EventWriter, tell
from balancer.shm.layout import (
    ADMIN_ROW,
    MASTER_GENERATION,
    MASTER_ROW,
    MAX_SLOTS,
    WANTED_WORKERS,
    WORKERS_REQUESTS,
)

MAX_WEIGHT = 256
MOST_NAMES = 20  # of backends that one refusal lists
RELOAD_DEADLINE = 50.0  # seconds; below the timeout of balancerctl
RELOAD_POLL = 0.05  # seconds between two looks at the notice
REASON = "--reason"
LONGEST_REASON = 500  # characters

ADMIN_STATES = {"drain": ADMIN_DRAIN, "ready": ADMIN_READY, "maint": ADMIN_MAINT}
USAGES = {
    "status": "status",
    "events": "events [SINCE]",
    "sources": "sources",
    "drain": "drain NAME",
    "ready": "ready NAME",
    "maint": "maint NAME",
    "weight": "weight NAME N",
    "workers": "workers N",
    "reload": "reload",
}
ACTS = tuple(USAGES)[3:]


class Reply(Protocol):
    """Where the answer of one command goes, and who is there."""

    @property
    def peer(self) -> AdminPeer: ...

    def send(self, answer: dict[str, Any]) -> None: ...

    def send_bytes(self, answer: bytes | memoryview) -> None: ...


class CommandRefused(Exception):
    """The command cannot be done; the text is for the person who typed it."""


@dataclass(frozen=True, slots=True)
class Act:
    """One act of an operator: its words without the reason, and the reason that was given."""

    words: Sequence[str]
    peer: AdminPeer
    reason: str = ""

    def labels(self) -> dict[str, object]:
        """Who asks, for the log."""
        return {"uid": self.peer.uid, "pid": self.peer.pid, "program": self.peer.program() or "?"}


class Commands:
    """Interprets one command line at a time."""

    def __init__(
        self,
        board: Board,
        listeners: Sequence[Listener],
        pools: Sequence[Pool],
        loop: Loop,
        master_pid: int,
        answers: Answers,
        log: Log,
        row: int,
        send_signal: Callable[[int, int], object] = os.kill,
    ) -> None:
        self.board = board
        self.listeners = listeners
        self.pools = {pool.name: pool for pool in pools}
        self.backends = [backend for pool in pools for backend in pool.backends]
        self.loop = loop
        self.master_pid = master_pid
        self.answers = answers
        self.log = log
        self.events = EventWriter(board.shared.events, row)
        self._send_signal = send_signal

    def handle(self, words: Sequence[str], reply: Reply) -> None:
        """Run one command; the answer is sent once, now or (status, reload) later."""
        try:
            act = act_of(words, reply.peer)
            match act.words:
                case ["status"]:
                    self.answers.ask(
                        STATUS_JSON, lambda answer: reply.send_bytes(answer.body), is_shared=False
                    )
                case ["events", *since]:
                    reply.send(self.read_events(since))
                case ["sources"]:
                    reply.send(describe_sources(self.board, self.listeners, self.loop.now))
                case ["drain" | "ready" | "maint" as state, name]:
                    reply.send(self.set_admin_state(act, state, name))
                case ["weight", name, weight]:
                    reply.send(self.set_weight(act, name, weight))
                case ["workers", count]:
                    reply.send(self.set_workers(act, count))
                case ["reload"]:
                    self.reload(act, reply)
                case _:
                    raise CommandRefused(unknown_command(act.words))
        except CommandRefused as refusal:
            self._tell_refusal(words, reply.peer, str(refusal))
            reply.send({"error": str(refusal)})

    # -- what the log says

    def _tell(self, act: Act, **about: object) -> None:
        """The line and the event of an act that was done."""
        why = {"reason": act.reason} if act.reason else {}
        tell(self.log, self.events, "info", "operator", **act.labels(), act=act.words[0], **about, **why)

    def _tell_refusal(self, words: Sequence[str], peer: AdminPeer, refusal: str) -> None:
        """The line of an act that was refused; a wrong question leaves none."""
        if words[:1] and words[0] in ACTS:
            act = Act(words, peer)
            self.log.warning("operator", **act.labels(), act=" ".join(words)[:200], refused=refusal[:200])

    # -- backends

    def find(self, name: str) -> Backend:
        """The backend POOL/NAME, or NAME while one pool only has it. Raises CommandRefused."""
        found = [one for one in self.backends if name in spellings(one)]
        if len(found) == 1:
            return found[0]
        if found:
            each = ", ".join(f"{one.pool}/{one.name}" for one in found)
            raise CommandRefused(f"several backends are called {name!r}: name one of {each}")
        names = sorted(one.identity for one in self.backends)
        few = ", ".join(names[:MOST_NAMES]) + (
            f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else ""
        )
        raise CommandRefused(
            f"no backend is called {name!r}{did_you_mean(name, names) or f'; there are: {few}'}"
        )

    def set_admin_state(self, act: Act, state: str, name: str) -> dict[str, Any]:
        backend, at_ms = self.find(name), int(self.loop.now * 1000)
        before = self._condition_of(backend)
        self.board.set_admin_state(backend.index, ADMIN_STATES[state], at_ms)
        if state == "ready":
            self.board.set_weight(backend.index, None, at_ms)
        self._tell(act, backend=backend.identity, before=before, after=self._condition_of(backend))
        return self._answer(backend, f"{backend.identity} is {state}", admin_state=state)

    def set_weight(self, act: Act, name: str, text: str) -> dict[str, Any]:
        backend = self.find(name)
        weight = whole_number(text, "a weight", 0, MAX_WEIGHT)
        before = self._condition_of(backend)
        self.board.set_weight(backend.index, weight, int(self.loop.now * 1000))
        self._tell(act, backend=backend.identity, before=before, after=self._condition_of(backend))
        done = f"{backend.identity} has weight {weight} (configured: {backend.weight})"
        return self._answer(backend, done, weight=weight)

    def _condition_of(self, backend: Backend) -> str:
        """What operators have made of a backend."""
        admin = ADMIN_NAMES[self.board.word(backend.index, W_ADMIN_STATE)]
        return f"{admin} weight {self.board.weight_of(backend.index, backend.weight)}"

    def _answer(self, backend: Backend, done: str, **about: object) -> dict[str, Any]:
        """What was done, what became of the backend, and whether its pool can still serve."""
        board, index = self.board, backend.index
        sessions, state = board.sessions(index), state_of(board, backend)
        pool = serving(board, self.pools[backend.pool])
        parts = [done]
        if state in ("down", "unresolved"):
            check = CHECK_NAMES[board.word(index, W_CHECK)]
            parts.append(f"it is down ({check})" if state == "down" else "its name is not resolved yet")
        elif state != "up":
            parts.append(f"{counted(sessions, 'session')} left there")
        if not pool.is_serving:
            parts.append(f"no backend of pool {backend.pool} serves now: {pool.reason}")
        return {
            "text": "; ".join(parts),
            "name": backend.identity,
            "state": state,
            "sessions": sessions,
            "pool": {"name": backend.pool, **describe_serving(pool)},
            **about,
        }

    # -- the master

    def set_workers(self, act: Act, text: str) -> dict[str, Any]:
        count = whole_number(text, "the number of workers", 1, MAX_SLOTS)
        before = serving_workers(self.board)
        admin = self.board.shared.rows.row(ADMIN_ROW)
        admin[WANTED_WORKERS] = count
        admin[WORKERS_REQUESTS] += 1
        self._tell(act, before=before, after=count)
        return {"text": f"{counted(count, 'worker')} wanted", "workers": count}

    def reload(self, act: Act, reply: Reply) -> None:
        """Send SIGHUP to the master; answer when its notice has the outcome."""
        before, _ = self.board.shared.notice.read()
        give_up = self.loop.now + RELOAD_DEADLINE
        generation = self.board.cells[MASTER_ROW * self.board.columns + MASTER_GENERATION]
        self._tell(act, before=f"generation {generation}", then="the line of the reload says the outcome")
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

    # -- events

    def read_events(self, since: Sequence[str]) -> dict[str, Any]:
        """The last events, or those after a serial. Raises CommandRefused."""
        if len(since) > 1:
            raise CommandRefused(f"usage: {USAGES['events']}")
        last = whole_number(since[0], "SINCE", 0, 1 << 53) if since else 0
        return describe_events(self.board, last, self.loop.now)


def act_of(words: Sequence[str], peer: AdminPeer) -> Act:
    """The words without `--reason TEXT`. Raises CommandRefused."""
    if REASON not in words:
        return Act(words, peer)
    at = list(words).index(REASON)
    if len(words) != at + 2:
        raise CommandRefused(f"{REASON} takes one text, in quotes, and is the last")
    if words[0] not in ACTS:
        raise CommandRefused(f"{REASON} goes with {', '.join(ACTS)}")
    reason = " ".join(words[at + 1].split())
    if len(reason) > LONGEST_REASON:
        raise CommandRefused(f"a reason has at most {LONGEST_REASON} characters")
    return Act(words[:at], peer, reason)


def unknown_command(words: Sequence[str]) -> str:
    """The sentence about words that are no command."""
    if words[0] in USAGES:
        return f"usage: {USAGES[words[0]]}"
    near = did_you_mean(words[0], USAGES)
    return f"unknown command {' '.join(words)[:80]!r}{near}; there are: {', '.join(USAGES.values())}"


def spellings(backend: Backend) -> set[str]:
    """The names that mean a backend. The one that a unix path with blanks gives has quotes, which a shell takes away."""
    names = {backend.name}
    if backend.address.family == "unix" and backend.name == str(backend.address):
        names.add(f"unix:{backend.address.path}")
    return names | {f"{backend.pool}/{name}" for name in names}


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
    is_number = text.isascii() and text.isdecimal() and len(text) <= 16
    if not is_number or not least <= int(text) <= most:
        raise CommandRefused(f"{what} is a whole number from {least} to {most}, not {text[:40]!r}")
    return int(text)
