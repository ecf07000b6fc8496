from collections.abc import Iterator

import pytest

from tests.unit.balancer.relay.simulation import WorkerSimulation


@pytest.fixture(params=[True, False], ids=["splice", "copy"])
def worker(request: pytest.FixtureRequest) -> Iterator[WorkerSimulation]:
    worker = WorkerSimulation(splice=request.param)
    yield worker
    worker.close()
