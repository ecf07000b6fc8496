"""Animations: frames drawn one over another, their times, how often they are played.

RULES: knows no format. Times are milliseconds, fractional where the format can say so. `plays` is how often an animation
is shown in all, 0 for ever; GIF counts repetitions instead, so its reader and its writer add and subtract one.
"""

from collections.abc import Iterable

from PIL import Image

from workers.imaging.geometry import Size
from workers.imaging.modes import without_needless_alpha

KEEP, CLEAR, RESTORE = range(3)  # what happens to the area of a frame before the next one is drawn

# Browsers show a frame of at most 10 ms for 100 ms, so a GIF frame between 10 and 20 ms becomes one of 20.
_SHOWN_AS_STATED = 10.0
_SHORTEST = 20.0


class Canvas:
    """The picture on which the frames of an animation are drawn. It is transparent at first."""

    def __init__(self, size: Size) -> None:
        self._image = Image.new("RGBA", size)
        self._disposal = KEEP
        self._area = (0, 0, 0, 0)
        self._before: Image.Image | None = None

    def draw(self, part: Image.Image, at: tuple[int, int], disposal: int, over: bool) -> Image.Image:
        """What is seen once `part`, an RGBA picture, lies at `at`: blended over the canvas, or in place of it.

        An RGB picture where no pixel is transparent, else RGBA. It is valid until the next call."""
        self._dispose()
        canvas = self._image
        self._area = (
            at[0],
            at[1],
            min(at[0] + part.width, canvas.width),
            min(at[1] + part.height, canvas.height),
        )
        if at[0] < canvas.width and at[1] < canvas.height:
            self._disposal = disposal
            self._before = canvas.crop(self._area) if disposal == RESTORE else None
            if over:
                canvas.alpha_composite(part.crop((0, 0, *self._extent())), at)
            else:
                canvas.paste(part, at)
        return without_needless_alpha(canvas)

    def _extent(self) -> Size:
        left, top, right, bottom = self._area
        return right - left, bottom - top

    def _dispose(self) -> None:
        if self._disposal == CLEAR:
            self._image.paste((0, 0, 0, 0), self._area)
        elif self._disposal == RESTORE and self._before is not None:
            self._image.paste(self._before, self._area[:2])
        self._disposal, self._before = KEEP, None


def whole_delays(delays: Iterable[float], unit: float, most: int) -> list[int]:
    """`delays` in whole units of `unit` milliseconds, at most `most` each. What rounding adds or takes is made up for
    by the next frame, but no frame of 20 ms becomes shorter than that."""
    found: list[int] = []
    owed = 0.0
    for delay in delays:
        wanted = delay + owed
        units = round(wanted / unit)
        if delay > _SHOWN_AS_STATED:
            least = min(delay, _SHORTEST) if unit == 1 else _SHORTEST
            units = max(units, -int(-least // unit))
        units = min(max(units, 0), most)
        found.append(units)
        owed = wanted - units * unit if units < most else 0.0
    return found
