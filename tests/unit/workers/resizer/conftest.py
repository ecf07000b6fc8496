"""The fixture that tests of the scheduler, its pool and their dispatch live in."""

import os
from collections.abc import Iterator

import pytest

from tests.unit.workers.resizer.scheduler_fixture import SchedulerFixture


@pytest.fixture
def fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[SchedulerFixture]:
    fixture = SchedulerFixture(monkeypatch)
    yield fixture
    fixture.loop.close()
    for worker in fixture.workers:
        worker.channel.close()
    fixture.cpu.close()
    fixture.express.close()
    for fd in fixture.life.values():
        os.close(fd)


@pytest.fixture
def ready(fixture: SchedulerFixture) -> SchedulerFixture:
    """Both processes have said hello: pids 11 and 12."""
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    fixture.hello(fixture.express, 12)
    return fixture
