"""Records the elections of a worker's sessions (pool/election_log.py): of all while an operator asks for it, of one in N
by configuration.

RULES
- A worker that records nothing pays nothing: `Session.dial` and the electors' `elect` are replaced for the time of a
  recording only, and put back behind it.
- Whether a session is one of the N is told by its ID alone, so that all its elections are recorded or none.
- Nothing is recorded of framed mode, where each request has an election of its own.
"""

from collections.abc import Collection, Iterable
from os import getpid

from balancer.options import Pool
from balancer.pool.backend import Backend
from balancer.pool.election import NONE_TRIED, Elector
from balancer.pool.election_log import MOST_BACKENDS, Election, SeenBackend, SessionKey, is_sampled, tag_of
from balancer.pool.serving import state_of
from balancer.pool.targets import DialTarget, tag_of_backend
from balancer.relay.context import WorkerContext
from balancer.relay.session import Session


def key_of(session: Session) -> SessionKey:
    """What names a session for good: the numbers of its ID."""
    return SessionKey(getpid(), int(session.accepted_at * 1e6), session.client_fd)


class ElectionRecorder:
    """Of one worker. `look` begins and ends. `one_in` is N of the configuration, 0: none without an operator."""

    def __init__(self, context: WorkerContext[Session], electors: Iterable[tuple[Pool, Elector]]) -> None:
        self._context, self._log = context, context.board.elections
        self._electors = list(electors)
        self._session: Session | None = None  # that dials now
        self._plain_dial = Session.dial
        self.one_in = 0
        self.every = 0  # one session in so many has its elections recorded; 0: none

    def look(self, now: float) -> None:
        """Record from now on, or no longer; `now` is monotonic seconds."""
        before, self.every = self.every, 1 if self._log.until_ms > now * 1000 else self.one_in
        if bool(before) is not bool(self.every):
            self._begin() if self.every else self._end()

    def _begin(self) -> None:
        def dial(session: Session, target: DialTarget | None = None) -> None:
            if not is_sampled(key_of(session), self.every):
                self._plain_dial(session, target)
                return
            self._session = session
            try:
                self._plain_dial(session, target)
            finally:
                self._session = None

        setattr(Session, "dial", dial)  # noqa: B010 - a method may not be assigned for type checkers
        for pool, elector in self._electors:
            vars(elector)["elect"] = self._recording(pool, elector)

    def _end(self) -> None:
        setattr(Session, "dial", self._plain_dial)  # noqa: B010
        for _, elector in self._electors:
            del vars(elector)["elect"]

    def _recording(self, pool: Pool, elector: Elector) -> object:
        plain = elector.elect

        def elect(source_ip: str, tried: Collection[int] = NONE_TRIED) -> Backend | None:
            if self._session is None:
                return plain(source_ip, tried)
            seen = [found for one in pool.backends if (found := self._seen(one, tried)).state != "empty"]
            backend = plain(source_ip, tried)
            self._write(pool, backend, seen, self._session)
            return backend

        return elect

    def _seen(self, backend: Backend, tried: Collection[int]) -> SeenBackend:
        board, index = self._context.board, backend.index
        weight, sessions = board.weight_of(index, backend.weight), board.tenant_sessions(index)
        return SeenBackend(
            tag_of_backend(board, backend), index, state_of(board, backend), index in tried, weight, sessions
        )

    def _write(self, pool: Pool, elected: Backend | None, seen: list[SeenBackend], session: Session) -> None:
        index = None if elected is None else elected.index
        first = sorted(seen, key=lambda one: one.block != index)[:MOST_BACKENDS]
        at_ms = int(self._context.loop.now * 1000)
        tag = tag_of(pool.name)
        self._log.append(
            self._context.row, Election(at_ms, key_of(session), tag, index, len(seen), tuple(first))
        )
