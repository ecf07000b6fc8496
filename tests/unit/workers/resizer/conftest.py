"""The house that tests of the desk, its crew and their dispatch live in."""

import os
from collections.abc import Iterator

import pytest

from tests.unit.workers.resizer.house import House


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    house = House(monkeypatch)
    yield house
    house.loop.close()
    for seat in house.seats:
        seat.channel.close()
    house.cpu.close()
    house.express.close()
    for fd in house.life.values():
        os.close(fd)


@pytest.fixture
def open_house(house: House) -> House:
    """Both processes have said hello: pids 11 and 12."""
    house.open()
    house.hello(house.cpu, 11)
    house.hello(house.express, 12)
    return house
