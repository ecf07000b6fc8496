from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.unit.balancer.relay.simulation import Make, WorkerSimulation


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes workers, which are closed after the test."""
    with ExitStack() as stack:

        def build(**options: Any) -> WorkerSimulation:
            worker = WorkerSimulation(**options)
            stack.callback(worker.close)
            return worker

        yield build


@pytest.fixture(params=[True, False], ids=["splice", "copy"])
def worker(make: Make, request: pytest.FixtureRequest) -> WorkerSimulation:
    return make(splice=request.param)
