"""The title of a CPU process, without a process."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from balancer.eventloop.loop import Loop
from balancer.prefork.child import Child
from balancer.prefork.titles import Title
from workers.imaging.limits import PictureLimits
from workers.resizer import counters
from workers.resizer.cpu import CpuWorker
from workers.resizer.footprint import Footprint
from workers.resizer.options import ResizerOptions


class CpuFixture:
    """A CpuWorker with its cells, the titles shown, and a channel."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.ours, theirs = socket.socketpair()
        self.cells = memoryview(bytearray(8 * counters.COLUMNS)).cast("q")
        child = SimpleNamespace(
            loop=Loop(lambda: 100.0),
            channel=theirs,
            slot=0,
            role="cpu",
            cells=self.cells,
            title=Title("resizer", self.shown.append),
        )
        footprint = cast(Footprint, SimpleNamespace(look=lambda now, has_worked: None))
        self.worker = CpuWorker(cast(Child, child), ResizerOptions(), PictureLimits(), footprint)

    def tick(self, now: float, worked: float) -> None:
        """`worked`: seconds of work since the last tick."""
        self.cells[counters.PICTURE_US] += int(worked * 1e6)
        self.worker.tick(now)


@pytest.fixture
def fixture() -> Iterator[CpuFixture]:
    fixture = CpuFixture()
    yield fixture
    fixture.ours.close()
    fixture.worker.channel.close()
    fixture.worker.child.loop.close()


def test_the_title_says_busy_when_most_of_the_interval_was_work(fixture: CpuFixture) -> None:
    for number in range(1, 9):
        fixture.tick(100 + number / 4, 0.24)
    assert fixture.shown == ["resizer: cpu 0 [busy]"]
    fixture.tick(103, 0.01)
    fixture.tick(104.5, 0.2)
    assert fixture.shown == ["resizer: cpu 0 [busy]", "resizer: cpu 0"]
