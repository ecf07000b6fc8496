"""Workers in framed mode, with TLS on no side, either or both."""

from collections.abc import Callable, Iterator

import pytest

from tests.unit.balancer.relay.framed.framed_simulation import FramedSimulation


@pytest.fixture(params=["", "clients", "backends", "clients and backends"])
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., FramedSimulation]]:
    made: list[FramedSimulation] = []

    def begin(backends: int = 1, **options: object) -> FramedSimulation:
        made.append(FramedSimulation(backends, request.param, **options))
        return made[-1]

    yield begin
    for worker in made:
        worker.close()
        assert [worker.under_way(server) for server in range(len(worker.servers))] == [0] * len(
            worker.servers
        )
        assert worker.connections.queue.since == {}
        assert worker.context.pipes.held == 0
