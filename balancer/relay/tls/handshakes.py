"""The handshakes of one worker: how many are unfinished, and when each goes on.

RULES: knows no TLS. A step of a handshake is 0.1 to 1 ms of CPU, a hundred times a message. So steps take TURN of each
turn of the loop at most, and the rest waits behind the events of the sessions: 300 clients that come at once delay the
others by some 10 ms instead of 40 (100 with RSA). First come first served.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from balancer.eventloop.loop import Loop

TURN = 0.001  # seconds of handshakes in one turn of the loop
MOST = 1_000  # unfinished ones; beyond them the listeners with TLS accept nothing


class Handshake(Protocol):
    """What the queue needs of a handshake."""

    @property
    def fd(self) -> int: ...
    def advance(self) -> None: ...


class Handshakes:
    """One per worker."""

    def __init__(self, loop: Loop, clock: Callable[[], float] = perf_counter, most: int = MOST) -> None:
        self._loop = loop
        self._clock = clock
        self.most = most
        self._waiting: dict[Handshake, None] = {}
        self._turn = -1
        self._spent = 0.0  # seconds, in that turn
        self.unfinished = 0

    def room(self) -> int:
        """Return how many more clients may begin one."""
        return self.most - self.unfinished

    def go_on(self, handshake: Handshake) -> None:
        """Take the next step of a handshake: now, or when its turn comes."""
        if not self._waiting and self._has_time():
            self._step(handshake)
            return
        if not self._waiting:
            self._loop.call_next_turn(self._work)
        self._waiting[handshake] = None

    def forget(self, handshake: Handshake) -> None:
        """It is over."""
        self._waiting.pop(handshake, None)

    def _has_time(self) -> bool:
        turn = self._loop.turns
        if turn != self._turn:
            self._turn, self._spent = turn, 0.0
        return self._spent < TURN

    def _work(self) -> None:
        while self._waiting and self._has_time():
            handshake = next(iter(self._waiting))
            del self._waiting[handshake]
            try:
                self._step(handshake)
            except Exception as error:  # a defect costs this one, not those behind it
                if self._loop.on_error is None:
                    raise
                self._loop.on_error(handshake.fd, error)
        if self._waiting:
            self._loop.call_next_turn(self._work)

    def _step(self, handshake: Handshake) -> None:
        began = self._clock()
        try:
            handshake.advance()
        finally:
            self._spent += self._clock() - began
