"""The policies that hash the client's address: a client keeps its backend, in every worker and in every balancer.

RULES: pure. Backends are known by address and port, not by name or block: balancers with the same set agree, in whatever
order and under whatever names it is written. Structures are made of the whole tier, so that a verdict rebuilds nothing.
"""

from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from hashlib import blake2b
from operator import itemgetter

from balancer.pool.choice import Candidate, Choice, Pick

POINTS = 160  # on the ring per unit of weight: shares within about 8 % (1 / sqrt(160))
_POINTS_PER_HASH = 8
TABLE = 65537  # places of Maglev's table, a prime: 100 for each of 600 backends


def source(choice: Choice) -> Pick:
    """The owner of the next ring point after the client's address; points of a backend that is not eligible are skipped.

    Rejected: rendezvous hashing, 1000 scores per session with 1000 backends. The ring is made of the whole tier, so a
    verdict costs no rebuild, and the points of a name do not depend on the other names.
    """
    points, owners = _ring(tuple(choice.everyone))
    size = len(points)

    def owners_from(number: int) -> Iterator[int]:
        at = bisect(points, number)
        return (owners[(at + step) % size] for step in range(size))

    return _first_allowed(choice, owners_from)


def maglev(choice: Choice) -> Pick:
    """The owner of the client's place in a table of TABLE places, of which each backend has its share by weight, to one
    place. Whose backend is not eligible goes to another place, by a second hash, so that the clients of one that is down
    are spread over all others.

    After "Maglev: A Fast and Reliable Software Network Load Balancer" (2016, section 3.4). The table is made of the whole
    tier: a verdict costs no rebuild, and balancers that differ in a verdict differ in that backend's clients only.
    """
    table = _table(tuple(choice.everyone))

    def owners_from(number: int) -> Iterator[int]:
        at, step = number % TABLE, 1 + (number >> 32) % (TABLE - 1)
        return (table[(at + turn * step) % TABLE] for turn in range(TABLE))

    return _first_allowed(choice, owners_from)


def _first_allowed(choice: Choice, owners_from: Callable[[int], Iterator[int]]) -> Pick:
    """A pick of the first owner that is eligible, not skipped, and within the bound of its load."""
    allowed = frozenset(candidate.index for candidate in choice.eligible)
    everyone = len(choice.everyone)
    within = _bound(choice)

    def pick(source: str, skip: Collection[int]) -> int | None:
        number = int.from_bytes(blake2b(source.encode(), digest_size=8).digest(), "big")
        full = within() if within is not None else ()
        refused: set[int] = set()
        beyond: int | None = None  # the first that only its load speaks against
        for owner in owners_from(number):
            if owner in allowed and owner not in skip:
                if owner not in full:
                    return owner
                beyond = owner if beyond is None else beyond
            refused.add(owner)
            if len(refused) == everyone:
                break
        return beyond

    return pick


def _bound(choice: Choice) -> Callable[[], Collection[int]] | None:
    """Those of the eligible that hold their bound of sessions at the moment of the call: `hash_load` percent of their
    share of all, the new session included, rounded up."""
    if not choice.hash_load:
        return None
    indexes = [candidate.index for candidate in choice.eligible]
    weights = [candidate.weight for candidate in choice.eligible]
    parts = [choice.hash_load * weight for weight in weights]
    whole, loads = 100 * sum(weights), choice.loads

    def full() -> Collection[int]:
        sessions = loads()
        total = sum(sessions) + 1
        bounded = zip(indexes, sessions, parts, strict=True)
        return {index for index, held, part in bounded if held >= -(-total * part // whole)}

    return full


@lru_cache(maxsize=4)
def _ring(everyone: tuple[Candidate, ...]) -> tuple["array[int]", "array[int]"]:
    """(points ascending, index of each point's owner). 1000 backends of weight 1: 160,000 points, once at boot."""
    pairs = sorted(
        (point, candidate.index)
        for key, candidate in _keyed(everyone)
        for point in _points(key, candidate.weight * POINTS)
    )
    return array("Q", [point for point, _ in pairs]), array("l", [index for _, index in pairs])


def _points(name: str, count: int) -> "array[int]":
    points = array("Q")
    for part in range(-(-count // _POINTS_PER_HASH)):
        points.frombytes(blake2b(f"{part}/{name}".encode(), digest_size=8 * _POINTS_PER_HASH).digest())
    return points


@lru_cache(maxsize=4)
def _table(everyone: tuple[Candidate, ...]) -> "array[int]":
    """The index of the owner of each place. In its turn each backend takes the next free place of its own order; of the
    last places, which are the most costly to find, each goes to the owner of the next. 25 ms for 10 backends, 60 ms for
    1,000, once for a set; `everyone` may come in any order."""
    table = array("l", [-1]) * TABLE
    turns = []
    for key, candidate in sorted(_keyed(everyone), key=itemgetter(0)):
        digest = blake2b(f"maglev/{key}".encode(), digest_size=16).digest()
        at, step = int.from_bytes(digest[:8], "big") % TABLE, int.from_bytes(digest[8:], "big") % (TABLE - 1)
        turns.append([at, step + 1, candidate.index, candidate.weight, 0])
    heaviest = max(candidate.weight for candidate in everyone)
    left = TABLE - TABLE // 32
    while left > 0:
        for turn in turns:
            turn[4] += turn[3]
            if turn[4] < heaviest:
                continue
            turn[4] -= heaviest
            at, step = turn[0], turn[1]
            while table[at] >= 0:
                at += step
                if at >= TABLE:
                    at -= TABLE
            table[at], turn[0] = turn[2], at
            left -= 1
            if not left:
                break
    following = next(owner for owner in table if owner >= 0)
    for at in range(TABLE - 1, -1, -1):
        following = table[at] if table[at] >= 0 else following
        table[at] = following
    return table


def _keyed(everyone: tuple[Candidate, ...]) -> list[tuple[str, Candidate]]:
    """Each with the text that it is hashed by: two of one address would share all points."""
    seen: Counter[str] = Counter()
    found = []
    for candidate in everyone:
        again = seen[candidate.identity]
        seen[candidate.identity] += 1
        found.append((f"{candidate.identity}#{again}" if again else candidate.identity, candidate))
    return found
