"""Log lines that a crowd would repeat: a few of each second, then one with how many were left out.

RULES: bounded lines at any rate, and every occurrence is in some line or in some count.
"""

from collections.abc import Callable

from balancer.eventloop.loop import Loop

SECOND = 1.0
FIRST = 5  # lines of one second that are written as they come


class RepeatedLine:
    """One kind of line. `write(**fields)` writes it."""

    def __init__(self, loop: Loop, write: Callable[..., object]) -> None:
        self._loop = loop
        self._write = write
        self._until = loop.now
        self._written = 0
        self._omitted = 0
        self._last: dict[str, object] = {}

    def report(self, **fields: object) -> None:
        """Write the line, or count it: the last one of a second that has too many is written with `omitted=`."""
        if self._loop.now >= self._until and not self._omitted:
            self._until, self._written = self._loop.now + SECOND, 0
        if self._written < FIRST:
            self._written += 1
            self._write(**fields)
            return
        if not self._omitted:
            self._loop.call_at(self._until, self._write_last)
        self._omitted += 1
        self._last = fields

    def _write_last(self) -> None:
        omitted, self._omitted = self._omitted, 0
        self._until, self._written = self._loop.now + SECOND, 1
        count = {"omitted": omitted - 1} if omitted > 1 else {}
        self._write(**self._last, **count)
