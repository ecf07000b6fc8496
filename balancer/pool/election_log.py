"""Records of elections, kept in shared memory: of all sessions while an operator asks for them (`balancerctl record
TIME`), of one in N by configuration (`record-elections`).

RULES
- A record outlives the configuration it was made by, and a backend that a reload removes leaves its block to another: so
  pools and backends are known by a checksum (`tag_of`), never by their place.
- One ring of int64 cells per row, one writer each. A record's number is written last and zeroed first: a reader leaves
  out what it does not find whole.
- Sparse: a ring costs memory once its row has recorded. `until_ms` is written by the console only.

    number | monotonic ms | pid | accept, us | descriptor | pool | elected + 1, 0: none | backends there are | 16 of them
    a backend: two cells, its tag | index << 45 | state << 41 | tried << 40 | weight << 24 | sessions
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from balancer.shm.memory import shared_memory

MOST_BACKENDS = 16  # of a record
KEPT = 1024  # records of a row
_HEAD = 8
_RECORD = _HEAD + 2 * MOST_BACKENDS
_MOST_SESSIONS, _MOST_WEIGHT = (1 << 24) - 1, (1 << 16) - 1
STATES = ("up", "down", "unresolved", "empty", "agent", "weight-0", "drain", "maint")


def tag_of(text: str) -> int:
    """What stands in a record for a name, for good."""
    return crc32(text.encode())


class SeenBackend(NamedTuple):
    """A backend as an election saw it. `tag` names it, `block` only within this election."""

    tag: int
    block: int
    state: str
    was_tried: bool
    weight: int
    sessions: int

    def pack(self) -> tuple[int, int]:
        """The cells."""
        weight, sessions = min(self.weight, _MOST_WEIGHT), min(self.sessions, _MOST_SESSIONS)
        state = STATES.index(self.state)
        return self.tag, self.block << 45 | state << 41 | self.was_tried << 40 | weight << 24 | sessions


def unpack(tag: int, cell: int) -> SeenBackend:
    """What `pack` wrote."""
    weight, sessions = cell >> 24 & _MOST_WEIGHT, cell & _MOST_SESSIONS
    return SeenBackend(tag, cell >> 45, STATES[cell >> 41 & 15], bool(cell >> 40 & 1), weight, sessions)


class SessionKey(NamedTuple):
    """What the ID of a session is made of."""

    pid: int
    accepted_us: int
    descriptor: int


def is_sampled(key: SessionKey, every: int) -> bool:
    """Whether a session is the one in `every` whose elections are recorded. What its ID is made of is mixed: those that
    one turn accepts have the same time, and clients that come in a rhythm have similar ones."""
    return hash(key) % every == 0


class Election(NamedTuple):
    """One election, of `of` backends: the elected one and the first others. `pool` is a tag, `elected` a block."""

    at_ms: int
    key: SessionKey
    pool: int
    elected: int | None
    of: int
    backends: tuple[SeenBackend, ...]


class ElectionLog:
    """The rings of all rows, made before the first fork."""

    def __init__(self, rows: int) -> None:
        self._heads = memoryview(shared_memory(8 * (1 + rows))).cast("q")  # until when, then records by row
        self.cells = memoryview(shared_memory(8 * rows * KEPT * _RECORD)).cast("q")

    @property
    def until_ms(self) -> int:
        """Monotonic ms until which elections are recorded, 0: none ever was."""
        return int(self._heads[0])

    @until_ms.setter
    def until_ms(self, at_ms: int) -> None:
        self._heads[0] = at_ms

    def append(self, row: int, one: Election) -> None:
        """Record an election in the ring of the own row."""
        number = self._heads[1 + row] + 1
        elected = 0 if one.elected is None else one.elected + 1
        packed = [cell for seen in one.backends[:MOST_BACKENDS] for cell in seen.pack()]
        packed += [-1] * (2 * MOST_BACKENDS - len(packed))
        at, cells = (row * KEPT + number % KEPT) * _RECORD, self.cells
        cells[at] = 0
        cells[at + 1 : at + _RECORD] = memoryview(
            array("q", [one.at_ms, *one.key, one.pool, elected, one.of, *packed])
        )
        cells[at] = number
        self._heads[1 + row] = number

    def find(self, key: SessionKey) -> list[Election]:
        """The elections of a session, the oldest first. Only one process has its pid, and so one row."""
        found = [one for row in range(len(self._heads) - 1) for one in self._of_row(row, key)]
        return sorted(found, key=lambda one: one.at_ms)

    def _of_row(self, row: int, key: SessionKey) -> list[Election]:
        last, first = self._heads[1 + row], row * KEPT * _RECORD
        found = []
        for number in range(max(1, last - KEPT + 2), last + 1):
            at = first + number % KEPT * _RECORD
            if self.cells[at + 3] != key.accepted_us:
                continue
            record = self.cells[at : at + _RECORD].tolist()
            if record[0] == self.cells[at] == number and tuple(record[2:5]) == key:
                found.append(_election(record))
        return found


def _election(record: Sequence[int]) -> Election:
    cells = [cell for cell in record[_HEAD:] if cell >= 0]
    backends = tuple(map(unpack, cells[::2], cells[1::2]))
    elected = record[6] - 1 if record[6] else None
    return Election(record[1], SessionKey(*record[2:5]), record[5], elected, record[7], backends)
