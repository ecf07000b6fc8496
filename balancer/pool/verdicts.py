"""How the prober writes verdicts and addresses onto the board, and which prober may.

RULES: used by the prober only; decides nothing. It writes words while its process holds the prober's lease (see board),
and totals of checks in the process's own row.
"""

import os
from collections.abc import Iterable

from balancer.options import Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_MAINT,
    ALL_DOWN,
    ANNOUNCED,
    ANNOUNCED_MS,
    B_CHECK_FAILURES,
    B_CHECKS,
    B_DOWNS,
    CHECK_NAMES,
    DOWN,
    MAX_QUEUE,
    NAME_ANSWERED,
    NAME_FAILED,
    SOME_UP,
    TENANT_WORDS,
    UNKNOWN,
    UP,
    W_ADDRESS,
    W_ADDRESSES,
    W_ADMIN_STATE,
    W_AGENT,
    W_AGENT_MAXCONN,
    W_AGENT_MODE,
    W_AGENT_WEIGHT,
    W_CHECK,
    W_CHECK_US,
    W_EJECTIONS,
    W_IN_USE,
    W_LIMITS_OF,
    W_MAXCONN,
    W_NAME,
    W_PENALTIES,
    W_PENALTY_MS,
    W_RAMP,
    W_SINCE_MS,
    W_STREAK,
    W_SUBJECT,
    W_TENANT_KEY,
    W_VERDICT,
    Board,
)
from balancer.pool.targets import NameAddresses, pack_addresses, subject_of
from balancer.shm.layout import GENERATION

AGENT_WORDS = (W_AGENT, W_AGENT_WEIGHT, W_AGENT_MAXCONN, W_AGENT_MODE)
# What is found out about an address.
_VERDICT_WORDS = (
    W_VERDICT, W_SINCE_MS, W_CHECK, W_STREAK, W_ADDRESSES, W_IN_USE, W_NAME, W_PENALTIES, W_PENALTY_MS,
    W_EJECTIONS, *AGENT_WORDS, W_RAMP, *TENANT_WORDS, W_TENANT_KEY,
)  # fmt: skip


def fresh_words(backend: Backend) -> dict[int, int]:
    """What the board says of a backend of which nothing was found out yet."""
    return dict.fromkeys(_VERDICT_WORDS, 0) | {W_SUBJECT: subject_of(backend)}


class VerdictWriter:
    """The lease of one prober, and what it writes while it holds it."""

    def __init__(self, board: Board, row: int) -> None:
        self._board = board
        self._row = row
        self._own = board.shared.rows.row(row)

    # -- the lease

    def acquire(self, pools: Iterable[int]) -> None:
        """Take the lease for these pools: its last holder finds out before it writes again."""
        self._board.take_prober_lease(self._row, os.getpid(), pools)

    def holds(self) -> bool:
        """This process is the one that writes."""
        return self._board.prober_lease() == (self._row, os.getpid(), True)

    def is_vacant(self) -> bool:
        """The process that took the lease is gone."""
        return not self._board.prober_lease()[2]

    # -- verdicts

    def restore(self, backend: Backend, now: float) -> tuple[bool, float]:
        """(up, since) as the last prober left it; (True, now), and unknown on the board, when that was about another
        address."""
        word, index = self._board.word, backend.index
        subject = subject_of(backend)
        if word(index, W_SUBJECT) == subject:
            return word(index, W_VERDICT) != DOWN, word(index, W_SINCE_MS) / 1000
        self._board.write_verdict(index, fresh_words(backend).items())
        return True, now

    def write_verdict(self, index: int, up: bool, since: float) -> None:
        """Workers see it at their next election."""
        words = ((W_VERDICT, UP if up else DOWN), (W_SINCE_MS, round(since * 1000)))
        self._board.write_verdict(index, words)

    def penalty(self, index: int) -> tuple[int, float]:
        """(penalties that are not forgotten, end of the one it is out by or 0) as the last prober left it."""
        return self._board.word(index, W_PENALTIES), self._board.word(index, W_PENALTY_MS) / 1000

    def note_penalty(self, index: int, level: int, until: float) -> None:
        """For the next prober; workers go by the verdict."""
        self._board.note(index, W_PENALTIES, level)
        self._board.note(index, W_PENALTY_MS, round(until * 1000))

    def ejections(self, index: int) -> int:
        """How many times failed connects have taken it out, without checks, that the last prober had not forgiven."""
        return self._board.word(index, W_EJECTIONS)

    def note_ejections(self, index: int, count: int) -> None:
        """For the next prober."""
        if self.ejections(index) != count:
            self._board.note(index, W_EJECTIONS, count)

    def note_outcome(self, index: int, outcome: str) -> None:
        """What people read of the last check, or of what counts instead of it (one of CHECK_NAMES)."""
        self._board.note(index, W_CHECK, CHECK_NAMES.index(outcome))

    def count_down(self, index: int) -> None:
        self._own[self._board.backend_at(index) + B_DOWNS] += 1

    def note_check(self, index: int, outcome: str, seconds: float, streak: int) -> None:
        """What people read of a check: its outcome (one of CHECK_NAMES), how long it took, how many results in a row
        speak against the verdict."""
        at = self._board.backend_at(index)
        self._own[at + B_CHECKS] += 1
        self._own[at + B_CHECK_FAILURES] += outcome != "ok"
        self.note_outcome(index, outcome)
        self._board.note(index, W_STREAK, streak)
        if outcome == "ok":
            self._board.note(index, W_CHECK_US, round(seconds * 1e6))

    def is_unknown(self, index: int) -> bool:
        """No prober has ever had a result for this backend."""
        return self._board.word(index, W_VERDICT) == UNKNOWN

    def is_in_maintenance(self, index: int) -> bool:
        """An operator has put it into maintenance: it is not checked."""
        return self._board.admin_word(index, W_ADMIN_STATE) == ADMIN_MAINT

    # -- weight

    def ramp(self, index: int) -> int:
        """Permille of its share that a slow start allows, 0 = all of it."""
        return self._board.word(index, W_RAMP)

    def write_ramp(self, index: int, permille: int) -> None:
        if self.ramp(index) != permille:
            self._board.write_verdict(index, [(W_RAMP, permille)])

    def agent_words(self, index: int) -> tuple[int, ...]:
        """AGENT_WORDS as they are."""
        return tuple(self._board.word(index, column) for column in AGENT_WORDS)

    def write_agent(self, index: int, words: tuple[int, ...]) -> bool:
        """What the agent of a backend says, as AGENT_WORDS; whether that is something new."""
        if self.agent_words(index) == words:
            return False
        self._board.write_verdict(index, zip(AGENT_WORDS, words, strict=True))
        return True

    # -- limits

    def write_limits(self, pool: Pool) -> None:
        """The limits of this configuration hold from now on, for the workers of older ones too: their clients may wait
        for just the place that a reload has made."""
        board = self._board
        board.words.cells[board.pool_words_at(pool.index) + MAX_QUEUE] = pool.max_queue + 1
        generation = board.cells[self._row * board.columns + GENERATION]
        wanted = {
            one.index: ((W_MAXCONN, one.maxconn + 1), (W_LIMITS_OF, generation)) for one in pool.backends
        }
        changes = [
            (index, words)
            for index, words in wanted.items()
            if any(board.word(index, column) != value for column, value in words)
        ]
        if changes:
            board.write_verdicts(changes)

    # -- what the log has said of a pool

    def announced(self, pool: int) -> tuple[bool, float]:
        """(whether the log has said last that no backend of it is up, when); of this prober or one before it."""
        words, at = self._board.words.cells, self._board.pool_words_at(pool)
        return words[at + ANNOUNCED] == ALL_DOWN, words[at + ANNOUNCED_MS] / 1000

    def announce(self, pool: int, is_all_down: bool, now: float) -> None:
        """The log says now that all are down, or that some are up again."""
        words, at = self._board.words.cells, self._board.pool_words_at(pool)
        words[at + ANNOUNCED] = ALL_DOWN if is_all_down else SOME_UP
        words[at + ANNOUNCED_MS] = round(now * 1000)

    # -- addresses

    def write_addresses(self, index: int, addresses: NameAddresses) -> None:
        """The name server has answered: the addresses of the backend's name from now on."""
        words = [(W_NAME, NAME_ANSWERED), (W_ADDRESSES, len(addresses.hosts)), (W_IN_USE, addresses.in_use)]
        words += enumerate(pack_addresses(addresses.hosts), W_ADDRESS)
        self._board.write_verdict(index, words)

    def write_in_use(self, index: int, place: int) -> None:
        """Another of the addresses is tried first from now on."""
        self._board.write_verdict(index, [(W_IN_USE, place)])

    def write_name_failed(self, index: int) -> None:
        """The name server knows no address of the name, or has not answered within the time sessions wait for it."""
        if self._board.word(index, W_NAME) != NAME_FAILED:
            self._board.write_verdict(index, [(W_NAME, NAME_FAILED)])
