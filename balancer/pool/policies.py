"""The policies: which backend is next. Pure.

RULES: no clock, no socket, no board. A policy is built for one set of eligible candidates and returns a pick function;
it is built anew when the set changes. The sessions per backend come in as functions. A pick skips the indexes in
`skip` (already tried, or full) and returns None when none is left. In a bigger pool a pick costs the logarithm more.

    choice ---POLICIES[name]---> pick(source, skip) -> index | None

    leastconn    min (sessions + 1) / weight over all workers; among equals the one furthest behind. Of more than FEW
                 the least that the worker knows of, whose sessions are read at the moment of the pick
    roundrobin   each its weight per round, spread evenly; exact in every worker
    random       by weight
    p2c          the less loaded of two distinct random ones: the cost does not grow with the pool
    source       consistent ring: an address stays with its backend, and only a removed backend's clients move
    maglev       the same by a table: shares are even, and balancers with the same backends agree (both in hashing.py)
    first        the first in the order of the configuration that is not full
    nq           one without a session first; else the shortest expected delay, min (sessions + 1) / weight
"""

import random
from bisect import bisect
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush, heapreplace
from itertools import accumulate

from balancer.pool.choice import Choice, Pick
from balancer.pool.hashing import maglev, source

FEW = (
    8  # up to so many backends, leastconn reads the sessions of all at every pick: 1.6 us, as a pick of many
)


def leastconn(choice: Choice) -> Pick:
    """Global least connections: the lowest (sessions + 1) / weight, counted in whole sessions of the
    lightest backend.

    Without rounding, the formula sends EVERY session of a quiet service to the heaviest backend, and weights 1:1:2
    with 5 clients settle at 1:1:3. So costs are rounded up to the lightest backend's next session (equal weights: no
    rounding at all), and tags decide among equals: a pick moves a tag on by 1 / weight, the lowest is next (start-time
    fair queueing). A tag that fell behind is lifted to the last pick's, less one round: a backend that was full or
    ahead for an hour must not get an hour's sessions back at once. Measured in simulation, 1,000 sessions, 4 workers,
    1 to 50 at a time: shares within 5 points of the weights.
    """
    return _least_of_few(choice) if len(choice.eligible) <= FEW else _least_of_many(choice)


def _least_of_few(choice: Choice) -> Pick:
    """leastconn by the sessions of all at the moment of the pick."""
    indexes = [candidate.index for candidate in choice.eligible]
    weights = [candidate.weight for candidate in choice.eligible]
    count = len(indexes)
    lightest = min(weights)
    is_even = lightest == max(weights)
    round_trip = 1 / lightest
    tags = [((place - choice.start) % count) / count / weight for place, weight in enumerate(weights)]
    clock = 0.0
    loads = choice.loads

    def pick(source: str, skip: Collection[int]) -> int | None:
        nonlocal clock
        if count == 1 and not skip:
            return indexes[0]
        costs = loads()
        if not is_even:  # ceil((load + 1) * lightest / weight) - 1
            costs = [(load * lightest + lightest - 1) // weights[place] for place, load in enumerate(costs)]
        if skip:
            places = [place for place, index in enumerate(indexes) if index not in skip]
            if not places:
                return None
            best = min(places, key=lambda place: (costs[place], tags[place]))
        else:
            least = min(costs)
            best = costs.index(least)
            ties = costs.count(least)
            if ties == count:
                best = tags.index(min(tags))
            elif ties > 1:
                for place in range(best + 1, count):
                    if costs[place] == least and tags[place] < tags[best]:
                        best = place
        behind = clock - round_trip
        clock = tag = tags[best] if tags[best] > behind else behind
        tags[best] = tag + 1 / weights[best]
        return indexes[best]

    return pick


def _least_of_many(choice: Choice) -> Pick:
    """leastconn by what this worker knows of the sessions.

    Those of the first are read: it is picked when it costs no more than was known, else it goes back with what it costs
    now. So all that other workers have given to a backend counts before it is given another session. What this worker
    has ended counts at once; what others have ended is seen when it comes first, or when its turn comes to be read: each
    pick reads one more. Measured in simulation, 1,000 backends, 5,000 sessions of 2 workers: the busiest holds 0.9 above
    the mean; when all are read at every pick 0.5, by p2c 3.1.
    """
    indexes = [candidate.index for candidate in choice.eligible]
    places = {index: place for place, index in enumerate(indexes)}
    count = len(indexes)
    order = _Order(choice, indexes)
    seen, note = order.seen, order.note
    load, ended = choice.load, choice.ended
    turn = choice.start % count

    def pick(source: str, skip: Collection[int]) -> int | None:
        nonlocal turn
        while ended:
            if (place := places.get(ended.pop())) is not None:
                note(place, seen[place] - 1)
        turn = turn + 1 if turn + 1 < count else 0
        note(turn, load(indexes[turn]))
        best = order.take(skip)
        return indexes[best] if best is not None else None

    return pick


class _Order:
    """The places of the eligible by (cost, tag), as far as their sessions are known."""

    __slots__ = ("_clock", "_entries", "_indexes", "_lightest", "_load", "_weights", "heap", "seen")

    def __init__(self, choice: Choice, indexes: list[int]) -> None:
        self._indexes = indexes
        self._weights = [candidate.weight for candidate in choice.eligible]
        self._lightest = min(self._weights)
        self._load = choice.load
        self._clock = 0.0
        self.seen = choice.loads()  # sessions, by place
        tags = [
            ((place - choice.start) % len(indexes)) / len(indexes) / weight
            for place, weight in enumerate(self._weights)
        ]
        costs = [self._cost(place, sessions) for place, sessions in enumerate(self.seen)]
        self._entries = list(zip(costs, tags, range(len(indexes)), strict=True))
        self.heap = sorted(self._entries)  # entries that are no longer those of their places are passed over

    def _cost(self, place: int, sessions: int) -> int:
        """ceil((sessions + 1) * lightest / weight) - 1"""
        return (sessions * self._lightest + self._lightest - 1) // self._weights[place]

    def note(self, place: int, sessions: int) -> None:
        """The backend of a place has so many sessions."""
        if sessions != self.seen[place]:
            self.seen[place] = sessions
            entry = self._entries[place] = (self._cost(place, sessions), self._entries[place][1], place)
            heappush(self.heap, entry)

    def take(self, skip: Collection[int]) -> int | None:
        """The place of the least that is not skipped, with one session more."""
        heap, entries, weights, lightest = self.heap, self._entries, self._weights, self._lightest
        best = None
        while heap:
            cost, tag, place = entry = heap[0]
            if entry is not entries[place] or self._indexes[place] in skip:
                heappop(heap)
                continue
            sessions = self._load(self._indexes[place])
            is_least = (sessions * lightest + lightest - 1) // weights[place] <= cost
            if is_least:
                best = place
                sessions += 1
                self._clock = max(tag, self._clock - 1 / lightest)
                tag = self._clock + 1 / weights[place]
            self.seen[place] = sessions
            entry = entries[place] = ((sessions * lightest + lightest - 1) // weights[place], tag, place)
            heapreplace(heap, entry)
            if is_least:
                break
        if skip or len(heap) > 4 * len(entries):
            heap[:] = sorted(entries)
        return best


def roundrobin(choice: Choice) -> Pick:
    """Smooth weighted: the k-th turn of a backend is due at (2k + 1) / weight, the earliest due is next.

    In every span of 2 each backend has exactly `weight` turns. Quotients are computed from k instead of added up:
    equal ones are then equal floats, and the order repeats for ever. A heap makes a pick O(log n).
    """
    count = len(choice.eligible)
    wheel = [
        (1 / candidate.weight, (place - choice.start) % count, 0, candidate.weight, candidate.index)
        for place, candidate in enumerate(choice.eligible)
    ]
    heapify(wheel)

    def advance() -> int:
        _, order, turn, weight, index = wheel[0]
        turn += 1
        heapreplace(wheel, ((2 * turn + 1) / weight, order, turn, weight, index))
        return index

    def pick(source: str, skip: Collection[int]) -> int | None:
        if not skip:
            return advance()
        ranked = [entry for entry in wheel if entry[4] not in skip]
        if not ranked:
            return None
        _, order, turn, weight, index = chosen = min(ranked)
        wheel[wheel.index(chosen)] = ((2 * turn + 3) / weight, order, turn + 1, weight, index)
        heapify(wheel)
        return index

    return pick


def weighted_random(choice: Choice) -> Pick:
    """Independent draws by weight."""
    indexes = [candidate.index for candidate in choice.eligible]
    weights = [candidate.weight for candidate in choice.eligible]
    bounds = list(accumulate(weights))
    dice = random.Random()

    def pick(source: str, skip: Collection[int]) -> int | None:
        if not skip:
            return indexes[bisect(bounds, dice.random() * bounds[-1])]
        left = [(i, w) for i, w in zip(indexes, weights, strict=True) if i not in skip]
        if not left:
            return None
        return dice.choices([i for i, _ in left], [w for _, w in left])[0]

    return pick


def p2c(choice: Choice) -> Pick:
    """The cheaper of two distinct draws. With two backends, drawing the same one twice would make it plain random."""
    indexes = [candidate.index for candidate in choice.eligible]
    weights = {candidate.index: candidate.weight for candidate in choice.eligible}
    is_even = len(set(weights.values())) == 1
    load = choice.load
    dice = random.Random().random

    def pick(source: str, skip: Collection[int]) -> int | None:
        pool = indexes if not skip else [index for index in indexes if index not in skip]
        count = len(pool)
        if count < 2:
            return pool[0] if pool else None
        first = int(dice() * count)
        second = int(dice() * (count - 1))
        if second >= first:
            second += 1
        # Which of two equals comes first is random already.
        index, other = pool[first], pool[second]
        if is_even:
            return index if load(index) <= load(other) else other
        # (a + 1) / w <= (b + 1) / v without dividing
        return index if (load(index) + 1) * weights[other] <= (load(other) + 1) * weights[index] else other

    return pick


def first(choice: Choice) -> Pick:
    """The order of the configuration: the next one serves when those before it are full."""
    indexes = [candidate.index for candidate in choice.eligible]

    def pick(source: str, skip: Collection[int]) -> int | None:
        return next((index for index in indexes if index not in skip), None)

    return pick


def expected_delay(sessions: int, weight: int) -> tuple[float, int]:
    """What `nq` compares: the time to the end of the next session, and of idle ones the weight. The least is next."""
    return (sessions + 1) / weight if sessions else 0.0, -weight


def nq(choice: Choice) -> Pick:
    """Never queue: for backends that work on one thing at a time, as a CPU-bound resizer does. Of those that are idle the
    heaviest, and the one longest idle of equals; when none is, the one whose next session is done first."""
    places = range(len(choice.eligible))
    indexes = [candidate.index for candidate in choice.eligible]
    weights = [candidate.weight for candidate in choice.eligible]
    last = [(place - choice.start) % len(indexes) - len(indexes) for place in places]  # turn of the last pick
    turn = 0
    loads = choice.loads

    def pick(source: str, skip: Collection[int]) -> int | None:
        nonlocal turn
        sessions = loads()
        left = [place for place in places if indexes[place] not in skip] if skip else places
        if not left:
            return None
        best = min(left, key=lambda place: (expected_delay(sessions[place], weights[place]), last[place]))
        turn += 1
        last[best] = turn
        return indexes[best]

    return pick


POLICIES: dict[str, Callable[[Choice], Pick]] = {
    "leastconn": leastconn,
    "roundrobin": roundrobin,
    "random": weighted_random,
    "p2c": p2c,
    "source": source,
    "maglev": maglev,
    "first": first,
    "nq": nq,
}
