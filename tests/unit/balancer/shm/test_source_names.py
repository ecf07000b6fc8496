"""Names of sources: those with the most sessions stay, and those refused last."""

import random
from collections import Counter

import pytest

from balancer.shm.memory import shared_memory
from balancer.shm.source_names import LIMITS, NAMES_BYTES, PLACES, Source, SourceNames, read_names

AT = 64  # bytes before the lists


def name(number: int) -> Source:
    return number.to_bytes(17)


class Names:
    """The lists of one process, and how many sessions each source has."""

    def __init__(self) -> None:
        self.memory = shared_memory(AT + NAMES_BYTES)
        self.names = SourceNames(self.memory, AT)
        self.sessions: Counter[Source] = Counter()

    def begin(self, source: Source) -> None:
        self.sessions[source] += 1
        self.names.note_busy(source, self.sessions[source], self.sessions.__getitem__)

    def busy(self) -> set[Source]:
        return {one.source for one in read_names(self.memory, AT) if not one.limit}

    def refused(self) -> dict[Source, tuple[str, int, float]]:
        return {
            one.source: (one.limit, one.refused, one.at) for one in read_names(self.memory, AT) if one.limit
        }


@pytest.fixture
def names() -> Names:
    return Names()


def test_the_sources_with_the_most_sessions_are_among_the_busy_however_many_others_come(names: Names) -> None:
    rng = random.Random(5)
    heavy = [name(number) for number in range(20)]
    for _ in range(100):
        for source in heavy:
            names.begin(source)
            for _ in range(10):
                names.begin(name(rng.randrange(1 << 20, 1 << 30)))
    assert set(heavy) <= names.busy() and len(names.busy()) == PLACES


def test_a_source_whose_sessions_have_ended_makes_room(names: Names) -> None:
    for number in range(PLACES):
        for _ in range(5):
            names.begin(name(number))
    names.begin(name(1000))
    assert name(1000) not in names.busy()
    names.sessions.clear()
    for number in range(2000, 2000 + PLACES):
        names.begin(name(number))
    assert names.busy() == {name(number) for number in range(2000, 2000 + PLACES)}
    for _ in range(PLACES):
        names.begin(name(7))
    assert name(7) in names.busy(), "it comes back"


def test_refusals_are_counted_and_the_oldest_gives_way(names: Names) -> None:
    for number in range(PLACES):
        names.names.note_refused(name(number), 0, 10.0)
    names.names.note_refused(name(0), 1, 20.5)
    names.names.note_refused(name(77), 0, 21.0)
    found = names.refused()
    assert found[name(0)] == (LIMITS[1], 2, 20.5) and found[name(77)] == (LIMITS[0], 1, 21.0)
    assert name(1) not in found and len(found) == PLACES
    names.names.note_refused(name(1), 0, 22.0)
    assert names.refused()[name(1)] == (LIMITS[0], 1, 22.0), "counted from its new entry on"
    assert name(2) not in names.refused()


def test_nothing_is_written_outside_of_the_lists(names: Names) -> None:
    for number in range(300):
        names.begin(name(number))
        names.names.note_refused(name((1 << 136) - 1 - number), 1, 1e9)
    assert names.memory[:AT] == bytes(AT)
