"""Fixtures for the tests of the scheduler, its pool and the dispatch."""

from collections.abc import Iterator

import pytest

from tests.unit.workers.resizer.scheduler_fixture import SchedulerFixture


@pytest.fixture
def fixture() -> Iterator[SchedulerFixture]:
    fixture = SchedulerFixture()
    yield fixture
    fixture.close()


@pytest.fixture
def ready(fixture: SchedulerFixture) -> SchedulerFixture:
    """Both processes, 11 and 12, have sent Hello."""
    fixture.open()
    fixture.hello(fixture.cpu, 11)
    fixture.hello(fixture.express, 12)
    return fixture
