"""A crowd costs a few lines a second, and the counts add up."""

from collections.abc import Iterator

import pytest

from balancer.eventloop.loop import Loop
from balancer.eventloop.repeats import FIRST, RepeatedLine


class Clocked:
    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        self.lines: list[dict[str, object]] = []
        self.line = RepeatedLine(self.loop, lambda **fields: self.lines.append(fields))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.loop.run_once(0)

    def occurrences(self) -> int:
        return len(self.lines) + sum(int(str(line.get("omitted", 0))) for line in self.lines)


@pytest.fixture
def clocked() -> Iterator[Clocked]:
    clocked = Clocked()
    yield clocked
    clocked.loop.close()


def test_a_few_are_written_as_they_come(clocked: Clocked) -> None:
    for n in range(FIRST):
        clocked.line.report(client=n)
    assert clocked.lines == [{"client": n} for n in range(FIRST)]
    clocked.pass_time(2.0)
    clocked.line.report(client="later")
    assert len(clocked.lines) == FIRST + 1


@pytest.mark.parametrize(("seconds", "each"), [(1, 2000), (5, 400), (20, 3)])
def test_a_crowd_is_a_few_lines_and_a_count(clocked: Clocked, seconds: int, each: int) -> None:
    for second in range(seconds):
        for n in range(each):
            clocked.line.report(client=(second, n))
        clocked.pass_time(1.0)
    clocked.pass_time(1.0)
    assert clocked.occurrences() == seconds * each
    assert len(clocked.lines) <= (FIRST + 1) * (seconds + 1)


def test_the_last_of_a_storm_is_written_when_nothing_follows(clocked: Clocked) -> None:
    for n in range(100):
        clocked.line.report(client=n)
    clocked.pass_time(1.0)
    assert clocked.lines[-1] == {"client": 99, "omitted": 100 - FIRST - 1}
