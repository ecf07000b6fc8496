from collections.abc import Iterator

import pytest

from tests.unit.balancer.relay.world import World


@pytest.fixture(params=[True, False], ids=["splice", "copy"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(splice=request.param)
    yield world
    world.close()
