"""What `ps` shows of this process.

RULES: at most one change a second, the last text asked for wins; the caller brings the time. Imported early: setproctitle
must find argv before anything has copied the environment."""

from collections.abc import Callable

from setproctitle import setproctitle


class Title:
    """The title of this process, "<program>: <text>"."""

    __slots__ = ("_apply", "_next", "_shown", "_wanted", "program")

    def __init__(self, program: str, apply: Callable[[str], object] = setproctitle) -> None:
        self.program = program
        self._apply = apply
        self._shown = self._wanted = ""
        self._next = float("-inf")  # a first text shows at once

    def set(self, text: str, now: float) -> None:
        """Ask for a text; shown at once, or by a later set() or settle() when the last change is under a second old."""
        self._wanted = text
        self.settle(now)

    def settle(self, now: float) -> None:
        """Show what was asked for last, if it is time. Called on every tick."""
        if self._wanted != self._shown and now >= self._next:
            self._shown = self._wanted
            self._next = now + 1.0
            self._apply(f"{self.program}: {self._wanted}")

    def fresh(self, text: str, now: float) -> None:
        """Show a text now: a process just forked still has its parent's title."""
        self._next = float("-inf")
        self._shown = ""
        self.set(text, now)
