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
from functools import partial
from typing import Any, Protocol

from balancer.config.ini import did_you_mean
from balancer.config.units import counted
from balancer.console.answers import STATUS_JSON, Answers
from balancer.console.peer import Operator
from balancer.console.questions import QUESTION_USAGES, CommandRefused, Questions, whole_number
from balancer.console.session_query import ask_workers, filter_of, sessions_answer
from balancer.console.session_server import SessionFilter
from balancer.console.sets import is_shown
from balancer.console.spare_slots import SpareSlots
from balancer.console.status import describe_serving, serving_workers, worker_rows
from balancer.console.table import of_former
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.options import Options, Pool
from balancer.pool.backend import MOST_SESSIONS, Backend, is_called
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
    DRAINING,
    MASTER_GENERATION,
    MASTER_ROW,
    MAX_SLOTS,
    PID,
    READY,
    REFRESH_REQUESTS,
    STATE,
    WANTED_WORKERS,
    WORKERS_REQUESTS,
)

MAX_WEIGHT = 256
MOST_RECORDING = 86_400  # seconds
MOST_NAMES = 20  # of backends that one refusal lists
RELOAD_DEADLINE = 50.0  # seconds; below the timeout of balancerctl
RELOAD_POLL = 0.05  # seconds between two looks at the notice
REASON = "--reason"
LONGEST_REASON = 500  # characters

DONE = {
    "drain": "takes no new sessions (drain)",
    "ready": "takes sessions again (ready)",
    "maint": "takes no new sessions and is not checked (maint)",
}
ADMIN_STATES = {"drain": ADMIN_DRAIN, "ready": ADMIN_READY, "maint": ADMIN_MAINT}
ACT_USAGES = {
    "kill": "kill id=ID | client=ADDRESS | backend=NAME ...",
    "drain": "drain NAME...",
    "ready": "ready NAME...",
    "maint": "maint NAME...",
    "weight": "weight NAME N",
    "maxconn": "maxconn NAME N",
    "add": "add POOL ADDRESS [weight=N]",
    "remove": "remove POOL ADDRESS|NAME",
    "workers": "workers N",
    "record": "record SECONDS",
    "reload": "reload [certificates]",
}
ACTS = tuple(ACT_USAGES)
USAGES = QUESTION_USAGES | ACT_USAGES


class Reply(Protocol):
    """Where the answer of one command goes, and who is there."""

    @property
    def peer(self) -> Operator: ...

    def send(self, answer: dict[str, Any]) -> None: ...

    def send_bytes(self, answer: bytes | memoryview) -> None: ...


@dataclass(frozen=True, slots=True)
class Act:
    """One act of an operator: its words without the reason, and the reason that was given."""

    words: Sequence[str]
    peer: Operator
    reason: str = ""


class Commands:
    """Interprets one command line at a time."""

    def __init__(
        self,
        board: Board,
        options: Options,
        loop: Loop,
        master_pid: int,
        answers: Answers,
        log: Log,
        row: int,
        send_signal: Callable[[int, int], object] = os.kill,
        former: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`former`: the pid of the master before an upgrade, while it lives."""
        self.board = board
        self.questions = Questions(board, options, loop)
        self.recorded = options.process.record_elections
        self.pools = {pool.name: pool for pool in options.pools}
        self.backends = [backend for pool in options.pools for backend in pool.backends]
        self.spares = SpareSlots(board, loop, self._answer)
        self.loop = loop
        self.master_pid = master_pid
        self.answers = answers
        self.log = log
        self.events = EventWriter(board.shared.events, row)
        self._send_signal = send_signal
        self._former = former

    def handle(self, words: Sequence[str], reply: Reply) -> None:
        """Run one command; the answer is sent once, now or (status, reload) later."""
        try:
            act = act_of(words, reply.peer)
            match act.words:
                case ["status"]:
                    self.answers.ask(
                        STATUS_JSON, lambda answer: reply.send_bytes(answer.body), is_shared=False
                    )
                case ["sessions", *conditions]:
                    self.ask_for_sessions(conditions, reply)
                case ["record", seconds]:
                    reply.send(self.record_elections(act, seconds))
                case ["kill", _, *_]:
                    self.kill(act, reply)
                case ["drain" | "ready" | "maint" as state, _, *_]:
                    reply.send(self.set_admin_states(act, state))
                case ["weight", name, weight]:
                    reply.send(self.set_weight(act, name, weight))
                case ["maxconn", name, maxconn]:
                    reply.send(self.set_maxconn(act, name, maxconn))
                case ["add", pool, address]:
                    self.spares.add(self._pool(pool), address, "1", partial(self._tell, act), reply.send)
                case ["add", pool, address, terms] if terms.startswith("weight="):
                    self.spares.add(
                        self._pool(pool), address, terms[7:], partial(self._tell, act), reply.send
                    )
                case ["remove", pool, name]:
                    self.spares.remove(self._pool(pool), name, partial(self._tell, act), reply.send)
                case ["workers", count]:
                    reply.send(self.set_workers(act, count))
                case ["reload"]:
                    self.reload(act, reply)
                case ["reload", "certificates"]:
                    self.reload_certificates(act, reply)
                case [question, *_] if question in self.questions.answers:
                    reply.send(self.questions.answer(act.words))
                case _:
                    raise CommandRefused(unknown_command(act.words))
        except CommandRefused as refusal:
            self._tell_refusal(words, reply.peer, str(refusal))
            reply.send({"error": str(refusal)})

    # -- what the log says

    def _tell(self, act: Act, **about: object) -> None:
        """The line and the event of an act that was done."""
        why = {"reason": act.reason} if act.reason else {}
        tell(self.log, self.events, "info", "operator", **act.peer.labels(), act=act.words[0], **about, **why)

    def _tell_refusal(self, words: Sequence[str], peer: Operator, refusal: str) -> None:
        """The line of an act that was refused; a wrong question leaves none."""
        if words[:1] and words[0] in ACTS:
            self.log.warning("operator", **peer.labels(), act=" ".join(words)[:200], refused=refusal[:200])

    # -- backends

    def find(self, name: str) -> Backend:
        """The backend POOL/NAME, or NAME while one pool only has it; an empty slot where no other is called so. Raises
        CommandRefused."""
        every = [one for one in self.backends if name in one.spellings()]
        found = [one for one in every if is_shown(self.board, one)] or every
        if len(found) == 1:
            return found[0]
        if found:
            each = ", ".join(f"{one.pool}/{one.name}" for one in found)
            raise CommandRefused(f"several backends are called {name!r}: name one of {each}")
        raise CommandRefused(self._unknown(name))

    def _pool(self, name: str) -> Pool:
        if name not in self.pools:
            raise CommandRefused(self._unknown_pool(name))
        return self.pools[name]

    def _unknown_pool(self, name: str) -> str:
        near = did_you_mean(name, self.pools)
        return f"no pool is called {name!r}{near or '; there are: ' + ', '.join(self.pools)}"

    def _unknown(self, name: str) -> str:
        """The sentence about a name that no backend has."""
        names = sorted(one.identity for one in self.backends if is_shown(self.board, one))
        few = ", ".join(names[:MOST_NAMES]) + (
            f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else ""
        )
        return f"no backend is called {name!r}{did_you_mean(name, names) or f'; there are: {few}'}"

    def find_all(self, patterns: Sequence[str]) -> list[Backend]:
        """The backends that names mean, a pattern (web-*, api/*) all that match. Raises CommandRefused."""
        found: dict[str, Backend] = {}
        for pattern in patterns:
            if not set(pattern) & set("*?[") or any(pattern in one.spellings() for one in self.backends):
                matching = [self.find(pattern)]
            else:
                matching = [
                    one
                    for one in self.backends
                    if is_called(one.spellings(), pattern) and is_shown(self.board, one)
                ]
            if not matching:
                raise CommandRefused(f"no backend's name matches {pattern!r}")
            found |= {one.identity: one for one in matching}
        return list(found.values())

    def set_admin_states(self, act: Act, state: str) -> dict[str, Any]:
        """One or several backends; nothing is done when one of the names is wrong."""
        backends = self.find_all(act.words[1:])
        for backend in backends:
            self.set_admin_state(act, state, backend)
        # What became of each is said when all are done: the pool that the first leaves without a backend gets the second.
        done = DONE[state]
        answers = [self._answer(one, f"{one.identity} {done}", admin_state=state) for one in backends]
        if len(answers) == 1:
            return answers[0]
        return {"text": "\n".join(one["text"] for one in answers), "backends": answers}

    def set_admin_state(self, act: Act, state: str, backend: Backend) -> None:
        at_ms = int(self.loop.now * 1000)
        before = self._condition_of(backend)
        self.board.set_admin_state(backend.index, ADMIN_STATES[state], at_ms)
        if state == "ready":
            self.board.set_weight(backend.index, None, at_ms)
            self.board.set_maxconn(backend.index, None)
        self._tell(act, backend=backend.identity, before=before, after=self._condition_of(backend))

    def set_weight(self, act: Act, name: str, text: str) -> dict[str, Any]:
        backend = self.find(name)
        weight = whole_number(text, "a weight", 0, MAX_WEIGHT)
        before = self._condition_of(backend)
        self.board.set_weight(backend.index, weight, int(self.loop.now * 1000))
        self._tell(act, backend=backend.identity, before=before, after=self._condition_of(backend))
        done = f"{backend.identity} has weight {weight} (configured: {backend.weight})"
        return self._answer(backend, done, weight=weight)

    def set_maxconn(self, act: Act, name: str, text: str) -> dict[str, Any]:
        backend = self.find(name)
        maxconn = whole_number(text, "a maxconn", 0, MOST_SESSIONS)
        before = self._condition_of(backend)
        self.board.set_maxconn(backend.index, maxconn)
        self._tell(act, backend=backend.identity, before=before, after=self._condition_of(backend))
        limit = str(maxconn) if maxconn else "no limit"
        return self._answer(
            backend,
            f"{backend.identity} has maxconn {limit} until `ready` or a reload that changes something "
            f"(configured: {backend.maxconn or 'no limit'})",
            maxconn=maxconn,
        )

    def _condition_of(self, backend: Backend) -> str:
        """What operators have made of a backend."""
        index = backend.index
        admin = ADMIN_NAMES[self.board.admin_word(index, W_ADMIN_STATE)]
        maxconn = self.board.admin_maxconn(index)
        limit = "" if maxconn is None else f" maxconn {maxconn}"
        return f"{admin} weight {self.board.weight_of(index, backend.weight)}{limit}"

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
            parts += self._not_counted()
        if not pool.is_serving:
            parts.append(f"no backend of pool {backend.pool} serves now: {pool.reason}")
        return {
            "text": "; ".join(parts),
            "name": backend.identity,
            "state": state,
            "sessions": sessions,
            "former_master": self._former(),
            "pool": {"name": backend.pool, **describe_serving(pool)},
            **about,
        }

    def _not_counted(self) -> list[str]:
        """What figures of sessions leave out."""
        former = of_former({"former_master": self._former()})
        return [f"{former}, which are not counted here"] if former else []

    # -- sessions

    def ask_for_sessions(self, conditions: Sequence[str], reply: Reply) -> None:
        """Answer with the sessions of all workers. Raises CommandRefused."""
        meant, pids = self._meant(conditions)
        ask_workers(
            self.loop, self.master_pid, pids, "sessions", meant,
            lambda answers, missing: self._tell_sessions(meant, answers, missing, reply),
        )  # fmt: skip

    def _tell_sessions(
        self, meant: SessionFilter, answers: dict[int, bytes], missing: list[int], reply: Reply
    ) -> None:
        has_any = missing or any(answer.strip() for answer in answers.values())
        if not has_any and (why := self._why_none(meant)):
            reply.send({"error": why})
        else:
            reply.send_bytes(sessions_answer(answers, missing, self._former()))

    def kill(self, act: Act, reply: Reply) -> None:
        """Close the sessions that are meant, in every worker. Raises CommandRefused."""
        meant, pids = self._meant(act.words[1:])

        def done(answers: dict[int, bytes], missing: list[int]) -> None:
            closed = sum(int(json.loads(answer)["closed"]) for answer in answers.values())
            if not closed and not missing and (why := self._why_none(meant)):
                self._tell_refusal(act.words, reply.peer, why)
                reply.send({"error": why})
                return
            self._tell(act, sessions=closed, meant=" ".join(act.words[1:])[:200])
            parts = [f"{counted(closed, 'session')} closed"]
            parts += [f"no answer from {', '.join(f'pid {pid}' for pid in missing)}"] if missing else []
            parts += self._not_counted()
            reply.send(
                {
                    "text": "; ".join(parts),
                    "closed": closed,
                    "unanswered": missing,
                    "former_master": self._former(),
                }
            )

        ask_workers(self.loop, self.master_pid, pids, "kill", meant, done)

    def _meant(self, conditions: Sequence[str]) -> tuple[SessionFilter, list[int]]:
        """The sessions that the words mean, and the workers that may have them. Raises CommandRefused."""
        meant, is_draining = filter_of(conditions, CommandRefused)
        states = {DRAINING} if is_draining else {READY, DRAINING}
        at = [row * self.board.columns for row in worker_rows(self.board)]
        return meant, [self.board.cells[row + PID] for row in at if self.board.cells[row + STATE] in states]

    def _why_none(self, meant: SessionFilter) -> str:
        """What is wrong with a filter that no session matches, nothing when there are none now. Sessions of a former
        configuration may be of backends and pools that there are no more, so this is asked last."""
        if meant.pool and meant.pool not in self.pools:
            return self._unknown_pool(meant.pool)
        if meant.backend and not any(meant.backend in one.spellings() for one in self.backends):
            return self._unknown(meant.backend)
        return "; ".join([f"no session has the ID {meant.id!r}", *self._not_counted()]) if meant.id else ""

    # -- the master

    def record_elections(self, act: Act, text: str) -> dict[str, Any]:
        seconds, now = whole_number(text, "the time to record", 0, MOST_RECORDING), self.loop.now
        left = max(0, self.board.elections.until_ms - int(now * 1000)) / 1000
        self.board.elections.until_ms = int((now + seconds) * 1000) if seconds else 0
        self._tell(act, before=f"{left:.0f}s", after=f"{seconds}s")
        which = self.recorded
        then = (
            "no election is recorded"
            if which == "off"
            else f"elections of {which} of the sessions are recorded"
        )
        if seconds:
            then = f"elections are recorded for {seconds} s; then `balancerctl explain --session ID`"
        return {"text": then}

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
        generation = self.board.cells[MASTER_ROW * self.board.columns + MASTER_GENERATION]
        self._tell(act, before=f"generation {generation}", then="the line of the reload says the outcome")
        self._send_signal(self.master_pid, signal.SIGHUP)
        self._await_outcome(before, reply)

    def reload_certificates(self, act: Act, reply: Reply) -> None:
        """Have the master read the certificates again; answer when its notice has the outcome."""
        before, _ = self.board.shared.notice.read()
        self._tell(act, what="certificates", then="the line of the reload says the outcome")
        self.board.shared.rows.row(ADMIN_ROW)[REFRESH_REQUESTS] += 1
        self._await_outcome(before, reply)

    def _await_outcome(self, before: int, reply: Reply) -> None:
        give_up = self.loop.now + RELOAD_DEADLINE

        def poll() -> None:
            serial, text = self.board.shared.notice.read()
            if serial > before:
                reply.send(outcome_of(text))
            elif self.loop.now > give_up:
                reply.send({"error": f"no outcome after {RELOAD_DEADLINE:.0f} s; see the log"})
            else:
                self.loop.call_later(RELOAD_POLL, poll)

        poll()


def act_of(words: Sequence[str], peer: Operator) -> Act:
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
