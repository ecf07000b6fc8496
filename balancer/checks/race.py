"""A check of a backend whose name has several addresses: whether one of them answers, and which.

RULES: the address in use is asked first. The next one is asked as soon as one has failed, or beside it when it has not
answered for STAGGER. The first answer wins. It ends in exactly one call of `done`, within the time limit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from balancer.checks.probe import Done, Secure
from balancer.checks.talk import Dialogue
from balancer.edge.proxy_protocol import SendProxy
from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer
from balancer.pool.targets import Target

STAGGER = 0.25  # seconds without an answer before the next address is asked as well

# (outcome, seconds, what came instead, the address that answered or None)
RaceDone = Callable[[str, float, str, Target | None], object]


class RunningProbe(Protocol):
    """What a check of one address gives back."""

    @property
    def is_over(self) -> bool: ...
    def abandon(self) -> None: ...


class StartProbe(Protocol):
    """Begins a check of one address."""

    def __call__(
        self,
        loop: Loop,
        target: Target,
        timeout: float,
        done: Done,
        send_proxy: SendProxy | None,
        dialogue: Dialogue | None,
        *,
        secure: Secure | None = None,
    ) -> RunningProbe: ...


class AddressRace:
    """The checks of several addresses under way."""

    def __init__(
        self,
        loop: Loop,
        targets: Sequence[Target],
        timeout: float,
        done: RaceDone,
        probe: Callable[[Loop, Target, float, Done], RunningProbe],
    ) -> None:
        self._loop = loop
        self._left = list(targets)
        self._done = done
        self._probe = probe
        self._begun = loop.now
        self._deadline = loop.now + timeout
        self._running: dict[Target, RunningProbe] = {}
        self._ended: set[Target] = set()
        self._outcome = self._came = ""  # of the first address that has failed
        self._timer: Timer | None = None
        self.is_over = False
        self._ask_next()

    def abandon(self) -> None:
        """Give up without an answer; `done` is not called."""
        self.is_over = True
        self._release()

    def _ask_next(self) -> None:
        """Ask the next address; those that fail at once are passed by."""
        if self._timer is not None:
            self._timer.cancel()
        while self._left and not self.is_over:
            target = self._left.pop(0)
            timeout = max(0.0, self._deadline - self._loop.now)
            running = self._probe(self._loop, target, timeout, partial(self._on_answer, target))
            if not running.is_over and target not in self._ended:
                self._running[target] = running
                if self._left:
                    self._timer = self._loop.call_at(self._loop.now + STAGGER, self._ask_next)
                return
        if not self.is_over and not self._running:
            self._end(self._outcome, None, self._loop.now - self._begun, self._came)

    def _on_answer(self, target: Target, outcome: str, seconds: float, came: str) -> None:
        self._ended.add(target)
        is_first = self._running.pop(target, None) is None  # it ended within its own beginning
        if self.is_over:
            return
        if outcome == "ok":
            self._end("ok", target, seconds)
            return
        if not self._outcome:
            self._outcome, self._came = outcome, came
        if not is_first and (self._left or not self._running):
            self._ask_next()

    def _end(self, outcome: str, target: Target | None, seconds: float, came: str = "") -> None:
        self.is_over = True
        self._release()
        self._done(outcome, seconds, came, target)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for running in self._running.values():
            running.abandon()
        self._running.clear()
