"""When a CPU process gives its pages back, from the numbers in a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.resizer.arena import PAGE
from workers.resizer.footprint import KEPT_BYTES, KEPT_SECONDS, Footprint

MUCH = KEPT_BYTES + PAGE


class FootprintFixture:
    """A footprint with the figures that a test writes. `trims`: how often it has trimmed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trims = 0
        self.write(0)
        self.footprint = Footprint(self.trim, str(path))

    def write(self, anonymous: int) -> None:
        self.path.write_text(f"50000 {2000 + anonymous // PAGE} 2000 1 0 900 0\n")

    def trim(self) -> None:
        self.trims += 1
        self.write(0)


@pytest.fixture
def fixture(tmp_path: Path) -> Iterator[FootprintFixture]:
    fixture = FootprintFixture(tmp_path / "statm")
    yield fixture
    fixture.footprint.close()


def test_the_figures(fixture: FootprintFixture) -> None:
    fixture.write(MUCH)
    assert fixture.footprint.anonymous() == MUCH and fixture.footprint.address_space() == 50000 * PAGE


def test_pages_of_a_big_picture_go_back_after_a_while_though_small_ones_follow(
    fixture: FootprintFixture,
) -> None:
    fixture.write(MUCH)
    assert not fixture.footprint.look(10.0, True)
    assert not fixture.footprint.look(10.0 + KEPT_SECONDS - 0.1, True)
    assert fixture.footprint.look(10.0 + KEPT_SECONDS, True) and fixture.trims == 1
    assert not fixture.footprint.look(20.0, True) and not fixture.footprint.look(30.0, True)


def test_they_go_back_when_nothing_follows(fixture: FootprintFixture) -> None:
    fixture.write(MUCH)
    fixture.footprint.look(10.0, True)
    assert fixture.footprint.look(10.0 + KEPT_SECONDS, False)


def test_few_pages_stay_and_what_cannot_be_given_back_is_not_tried_without_a_picture(
    fixture: FootprintFixture,
) -> None:
    fixture.write(KEPT_BYTES)
    assert not fixture.footprint.look(10.0, True) and not fixture.footprint.look(20.0, False)
    fixture.write(MUCH)
    fixture.footprint.look(30.0, True)
    assert fixture.footprint.look(40.0, False)
    fixture.write(MUCH)
    assert not any(fixture.footprint.look(50.0 + second, False) for second in range(9))
