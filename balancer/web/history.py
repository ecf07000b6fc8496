"""One hour of figures in steps of 10 s: a ring of floats for each thing that is watched, and its chart.

RULES
- A figure is stored at its step (monotonic seconds / 10), with the number of the step beside it. So there is no head that
  has to be kept: a process that takes over goes on, a step that nobody wrote is a gap, two writers write the same.
- The memory is handed in. 16 figures take 24 KiB for each thing; one that was never written costs nothing.
- Pure: floats in, floats and points of a polyline out.
"""

from collections.abc import Iterable, Sequence
from math import isnan, nan

STEP = 10.0  # seconds
STEPS = 360  # one hour
FIGURES = 16  # of a thing
BLOCK = STEPS * (FIGURES + 1)  # floats of a thing: numbers of steps, then each figure
_MOST = 1 << 24  # a step's number is an exact float below it
WIDTH, HEIGHT = 120, 28  # of a chart
_BIN = STEPS // WIDTH


class History:
    """`cells`: floats, BLOCK for each thing."""

    def __init__(self, cells: "memoryview[float]") -> None:
        self._cells = cells

    def write(self, thing: int, now: float, figures: Iterable[float]) -> None:
        """The figures of a thing at this moment; nan for one that is not known."""
        step, at = number_of(now), thing * BLOCK
        place = step % STEPS
        for figure, value in enumerate(figures, 1):
            self._cells[at + figure * STEPS + place] = value
        self._cells[at + place] = step

    def read(self, thing: int, figure: int, now: float) -> list[float]:
        """STEPS values, the oldest first, the last one of the present step; nan where there is none."""
        last, at = number_of(now), thing * BLOCK
        steps = self._cells[at : at + STEPS].tolist()
        values = self._cells[at + (figure + 1) * STEPS : at + (figure + 2) * STEPS].tolist()
        return [
            values[step % STEPS] if step > 0 and steps[step % STEPS] == step else nan
            for step in range(last - STEPS + 1, last + 1)
        ]

    def clear(self, thing: int) -> None:
        """Another thing has this place."""
        for at in range(thing * BLOCK, thing * BLOCK + STEPS):
            self._cells[at] = 0.0

    def is_known(self, thing: int) -> bool:
        """Whether any step of it has been written."""
        return any(self._cells[thing * BLOCK : thing * BLOCK + STEPS])

    def export(self, thing: int) -> bytes:
        """All that is known of it, for `restore` in another process."""
        return self._cells[thing * BLOCK : (thing + 1) * BLOCK].tobytes()

    def restore(self, thing: int, block: bytes) -> None:
        """Raises ValueError for bytes of another size."""
        if len(block) != BLOCK * self._cells.itemsize:
            raise ValueError(f"{len(block)} bytes of history")
        self._cells[thing * BLOCK : (thing + 1) * BLOCK] = memoryview(block).cast("f")

    def chart(self, thing: int, figure: int, now: float) -> str:
        """The points of a polyline. Its last bin is a whole one, so that the points stay the same for 30 s."""
        last = int(now / STEP) // _BIN * _BIN - 1
        return points(self.read(thing, figure, max(last, 0) * STEP))


def number_of(now: float) -> int:
    """The step of a monotonic time, in seconds. 0 is none."""
    return int(now / STEP) % (_MOST - 1) + 1


def points(values: Sequence[float]) -> str:
    """A polyline of WIDTH points at most, each the highest of its bin; from 0 at the bottom to the highest of all."""
    bins = [values[at : at + _BIN] for at in range(0, len(values), _BIN)]
    tops = [max((one for one in each if not isnan(one)), default=nan) for each in bins]
    highest = max((top for top in tops if not isnan(top)), default=0.0) or 1.0
    shown = ((x, HEIGHT - 2 - (HEIGHT - 4) * top / highest) for x, top in enumerate(tops) if not isnan(top))
    return " ".join(f"{x},{y:.0f}" for x, y in shown)
