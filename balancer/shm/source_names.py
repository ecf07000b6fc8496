"""Names of sources, for people: a sample of those with the most sessions and of those refused last, per process.

The table of counts (source_table.py) knows no names. A process keeps two lists of PLACES entries:

    busy     a new client's source replaces the entry at a hand that goes round, when it has more sessions by then
    refused  a refused client's source replaces the one whose last refusal is the oldest

A source with many sessions has tried to enter as many times, so it is in; who has few may be missing.

RULES: an entry has one writer. A reader may see one that is being written: the mark is taken off before and set last.
"""

import mmap
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PLACES = 64
_ENTRY = struct.Struct("=17sBxxIq")  # source, mark, times it was refused, milliseconds of the last time
_MARK = 17
_EMPTY, _BUSY, _REFUSED = 0, 1, 2  # from _REFUSED on: which of LIMITS
NAMES_BYTES = 2 * PLACES * _ENTRY.size

LIMITS = ("source-maxconn", "source-rate")
Source = bytes  # 17 bytes: the number of edge/access.py


@dataclass(frozen=True, slots=True)
class NamedSource:
    """An entry. `limit`: the one of LIMITS that it exceeded last, "" where it was not refused; `at`: when, in seconds."""

    source: Source
    limit: str = ""
    refused: int = 0
    at: float = 0.0


class SourceNames:
    """The lists that one process writes, from byte `at` of the memory on, which is zero."""

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory, self._at = memory, at
        self._places: dict[Source, int] = {}
        self._names: list[Source] = [b""] * PLACES
        self._hand = 0
        self._refused: OrderedDict[Source, tuple[int, int]] = OrderedDict()  # place, times

    def note_busy(self, source: Source, sessions: int, sessions_of: Callable[[Source], int]) -> None:
        """A source has so many sessions, with the one that begins now."""
        if source in self._places:
            return
        place = self._hand
        self._hand = (place + 1) % PLACES
        known = self._names[place]
        if known and sessions_of(known) >= sessions:
            return
        self._places.pop(known, None)
        self._places[source], self._names[place] = place, source
        self._write(place, source, _BUSY, 0, 0)

    def note_refused(self, source: Source, limit: int, now: float) -> None:
        """A client of a source was refused, or would be: which limit it exceeds."""
        place, times = self._refused.pop(source, (len(self._refused), 0))
        if place == PLACES:
            _, (place, _) = self._refused.popitem(last=False)
        self._refused[source] = place, times + 1
        self._write(PLACES + place, source, _REFUSED + limit, times + 1, int(now * 1000))

    def _write(self, place: int, source: Source, mark: int, times: int, at_ms: int) -> None:
        at = self._at + place * _ENTRY.size
        self._memory[at + _MARK] = _EMPTY
        _ENTRY.pack_into(self._memory, at, source, _EMPTY, min(times, 0xFFFFFFFF), at_ms)
        self._memory[at + _MARK] = mark


def read_names(memory: mmap.mmap, at: int) -> Iterator[NamedSource]:
    """The entries of one process."""
    for source, mark, times, at_ms in _ENTRY.iter_unpack(memory[at : at + NAMES_BYTES]):
        if mark != _EMPTY:
            limit = LIMITS[mark - _REFUSED] if mark >= _REFUSED else ""
            yield NamedSource(source, limit, times, at_ms / 1000)
