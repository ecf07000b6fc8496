"""The order in which tasks are begun: origins in turn, of each its clients in turn; served longest ago is first."""

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.imaging.job import ResizeJob
from workers.resizer.fair_queue import FairQueue
from workers.resizer.task import Origin, QueueClient, Task


class Fixture:
    """A queue, with clients called `a1` (client 1 of origin a) and tasks called by their client."""

    def __init__(self) -> None:
        self.picks, self.serials = count(1), count(1)
        self.queue = FairQueue(self.picks)
        self.origins: dict[str, Origin] = {}
        self.clients: dict[str, QueueClient] = {}
        self.names: dict[QueueClient, str] = {}

    def client(self, name: str) -> QueueClient:
        origin = self.origins.setdefault(name[0], Origin(name[0]))
        client = self.clients.setdefault(name, QueueClient(origin))
        self.names[client] = name
        return client

    def task(self, name: str) -> Task:
        return Task(next(self.serials), None, ResizeJob(9, 9), client=self.client(name))  # type: ignore[arg-type]

    def put(self, names: str) -> list[Task]:
        tasks = [self.task(name) for name in names.split()]
        for task in tasks:
            self.queue.append(task)
        return tasks

    def take(self, number: int = 1000) -> str:
        taken = []
        while self.queue and len(taken) < number:
            head = self.queue.head
            assert self.queue.popleft() is head
            taken.append(self.names[head.client])
        return " ".join(taken)


@pytest.mark.parametrize(
    ("put", "taken"),
    [
        ("a1 a1 a1 b1 b1", "a1 b1 a1 b1 a1"),
        ("a1 a2 a3 b1", "a1 b1 a2 a3"),
        ("a1 a1 a2 a2", "a1 a2 a1 a2"),
        ("a1 a2 a3 a4 b1 b2", "a1 b1 a2 b2 a3 a4"),
    ],
)
def test_origins_have_their_turns_and_of_each_its_clients(put: str, taken: str) -> None:
    fixture = Fixture()
    fixture.put(put)
    assert fixture.take() == taken


def test_who_asks_now_and_then_goes_before_those_who_ask_all_the_time() -> None:
    """Eighty connections of one address send again at once; one of another, and one of theirs, ask once."""
    fixture = Fixture()
    greedy = [f"g{number}" for number in range(80)]
    fixture.put(" ".join(greedy))
    for _ in range(200):
        fixture.put(fixture.take(1))
    fixture.put("m1 g80")
    assert fixture.take(3).split()[:1] == ["m1"] and "g80" not in fixture.take(), "taken second"


def test_each_greedy_connection_has_its_share() -> None:
    fixture = Fixture()
    fixture.put("a1 a2 a3 a3 a3 b1 b1 b1 b1")
    served: Counter[str] = Counter()
    for _ in range(120):
        name = fixture.take(1)
        served[name] += 1
        fixture.put(name)
    assert served == {"a1": 20, "a2": 20, "a3": 20, "b1": 60}


def test_what_was_put_back_is_begun_first_and_the_oldest_of_it_before_the_others() -> None:
    fixture = Fixture()
    fixture.put("a1 a1 b1 b2")
    first, second = fixture.queue.popleft(), fixture.queue.popleft()
    fixture.put("c1")
    fixture.queue.appendleft(second)
    fixture.queue.appendleft(first)
    assert fixture.take(2) == "a1 b1"
    assert fixture.take() == "c1 a1 b2" and not fixture.queue


def test_the_turns_before_a_client_are_told_before_it_asks() -> None:
    fixture = Fixture()

    def turns_before(name: str) -> int:
        return fixture.queue.turns_before(fixture.client(name))

    assert turns_before("a1") == 0
    fixture.put("a1 a2 b1 b2")
    assert fixture.take(2) == "a1 b1"
    assert turns_before("c1") == 0, "never served"
    assert turns_before("a3") == 2, "behind a2, which came first, and b2"
    assert turns_before("a1") == 2, "served after both"
    assert turns_before("b1") == 2 and turns_before("b2") == 2, "all, since another of its own waits"
    first, second = fixture.queue.popleft(), fixture.queue.popleft()
    fixture.queue.appendleft(second)
    fixture.queue.appendleft(first)
    assert turns_before("c1") == 2, "what was put back is first"


@given(
    st.lists(st.sampled_from("abcd"), max_size=12),
    st.lists(st.sampled_from("abcd"), max_size=8),
    st.integers(0, 8),
)
def test_no_more_are_begun_before_it_than_was_told(first: list[str], then: list[str], taken: int) -> None:
    """Clients 1 of each origin ask, some are served; then client 2 of origin a asks."""
    fixture = Fixture()
    fixture.put(" ".join(f"{name}1" for name in first))
    fixture.take(taken)
    fixture.put(" ".join(f"{name}3" for name in then))
    told = fixture.queue.turns_before(fixture.client("a2"))
    fixture.put("a2")
    place = fixture.take().split().index("a2")
    assert place <= told and (not told) is (not place)


def test_the_turns_of_two_queues_are_compared_by_client() -> None:
    fixture, other = Fixture(), Fixture()
    other.queue = FairQueue(fixture.picks)
    other.origins, other.clients, other.serials = fixture.origins, fixture.clients, fixture.serials
    fixture.put("a1 a2")
    other.put("b1 a3")
    assert fixture.queue.turn < other.queue.turn, "the older one"
    first = fixture.queue.popleft()
    assert other.queue.turn < fixture.queue.turn, "b was served longer ago than a"
    other.queue.popleft()
    assert fixture.queue.turn < other.queue.turn, "a2 before a3, by age"
    fixture.queue.appendleft(first)
    assert fixture.queue.turn < other.queue.turn


EVENTS = st.sampled_from(["append", "append", "put_back", "pop", "remove"])


@given(st.lists(st.tuples(EVENTS, st.integers(0, 7)), max_size=60))
def test_nothing_is_lost_or_doubled_and_the_counts_are_right(events: list[tuple[str, int]]) -> None:
    fixture = Fixture()
    waiting: list[Task] = []
    taken: list[Task] = []
    for event, number in events:
        if event == "append":
            waiting += fixture.put(f"{'abc'[number % 3]}{number}")
        elif event == "pop" and waiting:
            taken.append(fixture.queue.popleft())
            waiting.remove(taken[-1])
        elif event == "put_back" and taken:
            waiting.append(taken.pop())
            fixture.queue.appendleft(waiting[-1])
        elif event == "remove" and waiting:
            gone = waiting.pop(number % len(waiting))
            fixture.queue.remove(gone)
            with pytest.raises(ValueError):
                fixture.queue.remove(gone)
        assert set(fixture.queue) == set(waiting) and len(fixture.queue) == len(waiting)
        assert bool(fixture.queue) == bool(waiting)
        for name, client in fixture.clients.items():
            assert client.waiting == sum(task.client is client for task in waiting), name
        for name, origin in fixture.origins.items():
            assert origin.waiting == sum(task.client.origin is origin for task in waiting), name
    while waiting:
        waiting.remove(fixture.queue.popleft())
