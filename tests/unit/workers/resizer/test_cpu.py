"""A CPU process without a process: what `ps` says of it."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from balancer.eventloop.loop import Loop
from balancer.prefork.child import Child
from balancer.prefork.titles import Title
from workers.resizer import tally
from workers.resizer.arena import Arena
from workers.resizer.cpu import Worker
from workers.resizer.options import ResizerOptions


class Post:
    """The worker's own: cells, titles shown, a channel that nobody reads."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.ours, theirs = socket.socketpair()
        self.cells = memoryview(bytearray(8 * tally.COLUMNS)).cast("q")
        child = SimpleNamespace(
            loop=Loop(lambda: 100.0),
            channel=theirs,
            slot=0,
            role="cpu",
            cells=self.cells,
            title=Title("resizer", self.shown.append),
        )
        self.worker = Worker(cast(Child, child), ResizerOptions(), Arena(1, 4096))

    def tick(self, now: float, worked: float) -> None:
        """`worked`: seconds in pictures since the last tick."""
        self.cells[tally.PICTURE_US] += int(worked * 1e6)
        self.worker.tick(now)


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    post.ours.close()
    post.worker.channel.close()
    post.worker.child.loop.close()


def test_busy_is_who_works_for_most_of_the_time_whatever_he_does_at_the_tick(post: Post) -> None:
    for number in range(1, 9):
        post.tick(100 + number / 4, 0.24)
    assert post.shown == ["resizer: cpu 0 [busy]"]
    post.tick(103, 0.01)
    post.tick(104.5, 0.2)
    assert post.shown == ["resizer: cpu 0 [busy]", "resizer: cpu 0"]
