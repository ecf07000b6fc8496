"""What every test gets: a system test has a wall limit, enforced from inside so its daemons are ended; and Pillow as it
was found, since resizing sets a limit that holds for the whole process."""

import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from PIL import Image

SYSTEM = Path(__file__).parent / "system"
WALL_SECONDS = 90
SOAK_SECONDS = 4 * 3600


@pytest.fixture(autouse=True)
def pillow_as_found() -> Iterator[None]:
    """One test's limit of pixels must not refuse the pictures that the next one makes."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        yield
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(autouse=True)
def wall_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """A system test that hangs fails, with its daemons' logs, instead of holding up the whole run."""
    if SYSTEM not in request.path.parents:
        yield
        return
    seconds = SOAK_SECONDS if request.node.get_closest_marker("soak") else WALL_SECONDS

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still running after its {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
