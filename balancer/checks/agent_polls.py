"""Asks the agents of backends, in the prober, and writes what they say onto the board.

RULES: one question to each agent at a time, every `agent-interval` with the jitter of checks. An agent that cannot be
reached, or answers with an error, has said nothing: what it said before goes on. A question is asked where new sessions
go; nothing is asked of a backend in maintenance. A change of state is told at once, of weight, maxconn or reason at most
every QUIET, with the last values: an agent that tells its load changes them with every answer. On the board all are at
once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from balancer.checks.agent import AgentWords, first_line, listen, request
from balancer.checks.monitored import MonitoredBackend, host_of
from balancer.checks.race import StartProbe
from balancer.checks.talk import Dialogue
from balancer.eventloop.loop import Loop
from balancer.options import Pool
from balancer.pool.board import ADMIN_NAMES, AGENT_DOWN, AGENT_OUT, AGENT_READY, Board
from balancer.pool.health import Schedule, first_due
from balancer.pool.targets import Target, target_at, targets_of
from balancer.pool.verdicts import VerdictWriter

QUIET = 10.0  # seconds between two lines of the log about a backend whose agent changes no state

OnChange = Callable[[MonitoredBackend, AgentWords], object]


def board_words(said: AgentWords) -> tuple[int, int, int, int]:
    """What an agent has said as words of the board: state, weight, maxconn, mode."""
    is_out = said.mode != "ready" or said.weight == 0
    state = AGENT_DOWN if said.is_down else AGENT_OUT if is_out else AGENT_READY
    weight = 0 if said.weight == 100 else said.weight + 1
    return state, weight, 0 if said.maxconn is None else said.maxconn + 1, ADMIN_NAMES.index(said.mode)


def from_board(words: tuple[int, ...]) -> AgentWords:
    """What an agent had said to the prober before this one. Its mode is a word of its own: it says once that it drains,
    and may be down meanwhile. Versions before wrote none."""
    state, weight, maxconn, place = words
    mode = ADMIN_NAMES[place or (state == AGENT_OUT and weight != 1)]
    return AgentWords(
        mode, state == AGENT_DOWN, weight - 1 if weight else 100, maxconn - 1 if maxconn else None
    )


def agent_target(pool: Pool, target: Target) -> Target:
    """Where the agent of a backend is, which is served at `target`."""
    if not pool.agent_port:
        return target
    return target_at("127.0.0.1" if isinstance(target[1], str) else target[1][0], pool.agent_port)


@dataclass(slots=True)
class AgentPoll:
    """One backend's agent."""

    one: MonitoredBackend
    schedule: Schedule
    said: AgentWords
    told: AgentWords  # to `on_change`, or known from the last prober
    told_at: float = -QUIET  # monotonic seconds
    tenants: int = 0  # that its slot has had: an answer is about the one that was asked

    def is_news(self, now: float) -> bool:
        """Whether `said` is to be told now."""
        if self.said == self.told:
            return False
        return now - self.told_at >= QUIET or _state_of(self.said) != _state_of(self.told)


def _state_of(said: AgentWords) -> tuple[str, int]:
    return said.mode, board_words(said)[0]


class AgentPolls:
    """The agents of all backends that have one. `chance` gives 0..1; `write` puts words on the board; `on_change` is told
    of news."""

    def __init__(
        self,
        loop: Loop,
        board: Board,
        writer: VerdictWriter,
        backends: Iterable[MonitoredBackend],
        probe: StartProbe,
        chance: Callable[[], float],
        write: Callable[[MonitoredBackend, tuple[int, ...]], object],
        on_change: OnChange,
    ) -> None:
        self._loop, self._board, self._writer = loop, board, writer
        self._probe, self._chance = probe, chance
        self._write, self._on_change = write, on_change
        self._backends = list(backends)
        self._polls: dict[int, AgentPoll] = {}  # by the index of the backend

    def start(self) -> None:
        """Begin to ask. What agents have said to the last prober holds until they say something else."""
        now = self._loop.now
        asked = [one for one in self._backends if one.pool.pool.has_agent]
        for place, one in enumerate(asked):
            interval = one.pool.pool.agent_interval
            due = first_due(now, place, len(asked), interval)
            said = from_board(self._writer.agent_words(one.backend.index))
            poll = AgentPoll(one, Schedule(interval, due), said, said)
            self._polls[one.backend.index] = poll
            self._loop.call_at(due, partial(self._ask, poll))

    def forget(self, one: MonitoredBackend) -> None:
        """Another backend has its slot: what its agent has said is about the one before."""
        if one.backend.index in self._polls:
            poll = self._polls[one.backend.index]
            poll.said = poll.told = AgentWords()
            poll.told_at, poll.tenants = -QUIET, poll.tenants + 1

    def clear_unasked(self) -> None:
        """The words of agents that are not asked any longer, after a reload, hold no longer."""
        for one in self._backends:
            if not one.pool.pool.has_agent:
                self._writer.write_agent(one.backend.index, board_words(AgentWords()))

    def _ask(self, poll: AgentPoll) -> None:
        backend, pool = poll.one.backend, poll.one.pool.pool
        poll.schedule.begun(self._loop.now)
        targets = targets_of(self._board, backend)
        if not targets or not self._writer.holds() or self._writer.is_in_maintenance(backend.index):
            self._rest(poll)
            return
        target = agent_target(pool, targets[0])
        path, host = pool.agent_path, host_of(target)
        dialogue = Dialogue(lambda talk: request(talk, path, host) if path else listen(talk))
        timeout = min(pool.connect_timeout, pool.agent_interval)
        done = partial(self._ended, poll, dialogue, poll.tenants)
        self._probe(self._loop, target, timeout, done, None, dialogue)

    def _ended(
        self, poll: AgentPoll, dialogue: Dialogue, tenants: int, outcome: str, seconds: float, came: str
    ) -> None:
        if outcome == "ok" and tenants == poll.tenants and self._writer.holds():
            said = poll.said.then(first_line(dialogue.rest), poll.one.backend.weight)
            if said != poll.said:
                poll.said = said
                self._write(poll.one, board_words(said))
        self._rest(poll)

    def _rest(self, poll: AgentPoll) -> None:
        now = self._loop.now
        if poll.is_news(now) and self._writer.holds():
            poll.told, poll.told_at = poll.said, now
            self._on_change(poll.one, poll.said)
        poll.schedule.ended(True, self._chance())
        self._loop.call_at(poll.schedule.due, partial(self._ask, poll))
