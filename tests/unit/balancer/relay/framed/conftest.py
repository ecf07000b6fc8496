"""Workers in framed mode, with TLS on no side, either or both."""

from collections.abc import Iterator

import pytest

from tests.unit.balancer.relay.framed.framed_simulation import Start, simulations


@pytest.fixture(params=["", "clients", "backends", "clients and backends"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    with simulations(request.param) as begin:
        yield begin
