"""The last 500 events of all processes: what the log said of them, kept in shared memory for page, balancerctl and JSON.

RULES
- One ring per writer: a process appends to the ring of its own row, so there is no lock. A ring is not wiped when its row
  is leased again; the next process appends behind the events of the last one.
- `serial` orders the events of all rings: a writer takes the highest serial that is visible, plus one. An event that was
  appended after another one was visible has the higher serial. Two that were appended at the same moment may share one.
- A record carries its number, a checksum and a sequence lock; a reader leaves out what it cannot read whole. HEAD_COUNT
  is odd while its writer appends: a reader that follows then gets nothing, since that event may come before one that is
  visible already. A count that stays odd (its writer was stopped or killed there) holds followers up for STUCK at most.
- Sparse: a ring costs memory once its row has had events. A reader touches the rings that have some.
- `tell` writes the line of the log and its event; nothing else appends to the ring of events. That of failures
  (relay/failures.py) is another one of the same make.
"""

import heapq
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal, NamedTuple, Protocol

from balancer.shm.memory import shared_memory

Level = Literal["info", "warning", "error"]
Verb = Literal[
    "up",
    "down",
    "all-down",
    "some-up",
    "operator",
    "reload",
    "respawn",
    "hang",
    "limit",
    "upgrade",
    "resolve",
    "panic",
    "agent",
    "stop",
]

KEPT = 500
TEXT_BYTES = 240
_RING = 512  # records; 12 may be overwritten while a reader reads
_VERB_BYTES = 16
_RECORD = struct.Struct(
    "=qqqqqq"
)  # number from 1, serial, wall clock ns, monotonic ms, length of the text, checksum
_RECORD_BYTES = _RECORD.size + _VERB_BYTES + TEXT_BYTES
_NUMBER = struct.Struct("=q")
HEAD_COUNT, HEAD_SERIAL = (
    0,
    1,
)  # of a ring: twice the events appended, odd while one is being appended; the last serial
_HEAD = 2
STUCK = 1.0  # seconds in which every living writer ends an append, which takes some 15 us


class Event(NamedTuple):
    """One event. `text` is key=value ... as in the log."""

    serial: int
    wall_ns: int
    at_ms: int
    verb: str
    text: str


class EventRing:
    """The rings of all rows, made before the first fork."""

    def __init__(self, rows: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.heads = memoryview(shared_memory(rows * _HEAD * 8)).cast("q")
        self.records = memoryview(shared_memory(rows * _RING * _RECORD_BYTES))
        self._clock = clock
        self._appending: dict[tuple[int, int], float] = {}  # row and odd count -> since when it has been seen

    def append(self, row: int, verb: str, text: str, wall_ns: int, at_ms: int) -> None:
        """Append to the ring of the own row; `text` is cut to 240 bytes."""
        raw = text.encode("utf-8", "backslashreplace")
        if len(raw) > TEXT_BYTES:
            raw = raw[: TEXT_BYTES - 3].decode("utf-8", "ignore").encode() + b"..."
        heads, at = self.heads, row * _HEAD
        begun = heads[at + HEAD_COUNT] | 1  # a killed process may have left it odd
        heads[at + HEAD_COUNT] = begun
        serial = max(heads[HEAD_SERIAL::_HEAD].tolist()) + 1
        number = begun // 2 + 1
        record = self._record(row, number)
        body = verb.encode().ljust(_VERB_BYTES, b"\0") + raw
        _NUMBER.pack_into(record, 0, 0)
        record[_RECORD.size : _RECORD.size + len(body)] = body
        check = _checksum(serial, wall_ns, at_ms, body)
        _RECORD.pack_into(record, 0, 0, serial, wall_ns, at_ms, len(raw), check)
        _NUMBER.pack_into(record, 0, number)
        heads[at + HEAD_SERIAL] = serial
        heads[at + HEAD_COUNT] = begun + 1

    def read(self, since: int = 0) -> list[Event]:
        """The last events in order, at most 500. To follow, pass the last serial as `since`: only later ones then."""
        heads: list[int] = self.heads.tolist()
        if since and not self._is_settled(heads):
            return []
        rings = [
            self._newest_first(row, heads[row * _HEAD + HEAD_COUNT] // 2, since)
            for row, serial in enumerate(heads[HEAD_SERIAL::_HEAD])
            if serial > since
        ]
        newest = heapq.merge(*rings, key=lambda event: -event.serial)
        return list(islice(newest, KEPT))[::-1]

    def _is_settled(self, heads: list[int]) -> bool:
        """Whether these are the heads of one moment, in which no writer was in the middle of an append; one that is stuck
        there does not count."""
        odd = [(row, count) for row, count in enumerate(heads[HEAD_COUNT::_HEAD]) if count & 1]
        if odd or self._appending:
            now, seen = self._clock(), self._appending
            self._appending = {one: seen.get(one, now) for one in odd}
            if any(now - since < STUCK for since in self._appending.values()):
                return False
        return bool(heads == self.heads.tolist())

    def _newest_first(self, row: int, count: int, since: int) -> Iterator[Event]:
        for number in range(count, max(0, count - KEPT), -1):
            event = self._event(row, number)
            if event is None:
                continue
            if event.serial <= since:
                return
            yield event

    def _event(self, row: int, number: int) -> Event | None:
        """One event, None when it has been overwritten or cannot be read whole."""
        raw = bytes(self._record(row, number))
        found, serial, wall_ns, at_ms, length, check = _RECORD.unpack_from(raw)
        body = raw[_RECORD.size : _RECORD.size + _VERB_BYTES + length]
        if found != number or check != _checksum(serial, wall_ns, at_ms, body):
            return None
        verb = body[:_VERB_BYTES].rstrip(b"\0").decode()
        return Event(serial, wall_ns, at_ms, verb, body[_VERB_BYTES:].decode())

    def _record(self, row: int, number: int) -> memoryview:
        at = (row * _RING + number % _RING) * _RECORD_BYTES
        return self.records[at : at + _RECORD_BYTES]


def _checksum(serial: int, wall_ns: int, at_ms: int, body: bytes) -> int:
    return zlib.crc32(b"%d %d %d" % (serial, wall_ns, at_ms) + body)


class EventWriter(NamedTuple):
    """The events of one process: the rings, and the row that is its own."""

    ring: EventRing
    row: int


class LineLog(Protocol):
    """The log (eventloop.log.Log). `write` returns the fields as logged, the time of day in ns, monotonic ms."""

    def write(self, level: str, verb: str, fields: dict[str, object]) -> tuple[str, int, int]: ...


def tell(log: LineLog, events: EventWriter, level: Level, verb: Verb, **fields: object) -> None:
    """Log a line and append its event: the same verb, fields and time."""
    text, wall_ns, at_ms = log.write(level, verb, fields)
    events.ring.append(events.row, verb, text, wall_ns, at_ms)
