"""Wait for a condition with a deadline.

Deadlines are written for a machine at rest and count PATIENCE times: several test processes share a few cores, and a wait
that succeeds costs nothing. The environment's LAB_PATIENCE decides otherwise.
"""

import os
import select
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class HasFileno(Protocol):
    """A socket, a file."""

    def fileno(self) -> int: ...


PATIENCE = float(os.environ.get("LAB_PATIENCE", "3"))


class WaitFailed(AssertionError):
    """The deadline has passed; the text names the condition and its last value."""


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = 5.0, every: float = 0.005) -> T:
    """The first true value of `condition`, asked each `every` s. Raises WaitFailed after PATIENCE x `seconds`."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise WaitFailed(f"waited {seconds:g} s in vain for {what}; last value: {value!r}")
        time.sleep(every)


def best_of(attempt: Callable[[], float], bound: float, what: str, tries: int = 5) -> float:
    """Measure seconds until they are below `bound`, at most `tries` times; the smallest. For a time that has to be held
    on a machine where something else may run just then: that spoils one try, a defect spoils each. Raises WaitFailed."""
    found: list[float] = []
    while not found or found[-1] >= bound:
        if len(found) == tries:
            shown = ", ".join(f"{seconds:.3f}" for seconds in found)
            raise WaitFailed(f"{what}: {shown} s, {bound:g} s allowed")
        found.append(attempt())
    return min(found)


def is_readable(*files: HasFileno | int, within: float = 0.0) -> bool:
    """Whether one of them can be read, or is at its end, within so many seconds. Descriptors above 1,023, too, which
    `select.select` refuses."""
    return bool(readable(files, within))


F = TypeVar("F", bound=HasFileno | int)


def readable(files: Iterable[F], within: float = 0.0) -> list[F]:
    """Those that can be read, or are at their end, within so many seconds."""
    poll, found = select.poll(), {}
    for each in files:
        poll.register(each, select.POLLIN)
        found[each if isinstance(each, int) else each.fileno()] = each
    return [found[fd] for fd, _ in poll.poll(within * 1000)]
