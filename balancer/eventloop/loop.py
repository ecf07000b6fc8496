"""The event loop of every process of ours: edge-triggered, one clock reading per turn.

RULES: knows file descriptors, handlers and timers; knows neither traffic nor pictures, opens and closes
nothing.
- A socket is registered ONCE, edge-triggered: a level-triggered loop pays an epoll_ctl for every change of mind, measured
  at 137 us against 90 us of CPU for one whole short session. The price: a handler must go on until EAGAIN or a short
  read, or ask to be called again by itself (`again`).
- `watch` is for everything (IN|OUT|RDHUP). `watch_reading` leaves OUT out until somebody lacks room (`widen`): of the
  events of a short session every second one would only say that there is room.
- What others must be able to drain as well (listeners, pipes, wake-up sockets) is watched level-triggered.
- `now` is read once per turn, after the wait. Handlers use it; nobody else asks for the time.
- `forget` takes effect at once, inside the batch; closing waits for the end of the batch (`retire`), so that the
  kernel cannot give the number away while events of its former owner are still to come.

    turn:  wait (epoll, next timer) -> now -> handlers of the batch -> `again` of the last turn
           -> due timers -> retired (closes) -> turn-end hooks (log flush)
"""

import select
import selectors
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from balancer.eventloop.timers import Timer, Timers

READ: int = select.EPOLLIN
WRITE: int = select.EPOLLOUT
HANGUP: int = select.EPOLLHUP
READ_HANGUP: int = select.EPOLLRDHUP
ERROR: int = select.EPOLLERR
URGENT: int = select.EPOLLPRI
EDGE_READING: int = READ | READ_HANGUP | URGENT | select.EPOLLET
EDGE: int = EDGE_READING | WRITE

BATCH = 256  # events per turn: bounds how long `now` may be stale and how long timers wait

LONGEST_WAIT = 86_400.0  # seconds in one wait: without a timer due_at is infinite, which epoll does not take

Handler = Callable[[int], object]


class EdgeSelector(selectors.BaseSelector):
    """A `selectors` selector on edge-triggered epoll: one registration covers reading, writing and half-close.

    `register(..., events)` keeps the `selectors` meaning (events filters what `select` reports); `poll` and
    `data` are the hot path under it: raw (fd, mask) pairs and the dict fd -> data, no SelectorKey per event.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._files: dict[int, tuple[Any, int]] = {}
        self.data: dict[int, Any] = {}
        self.poll = self._epoll.poll
        self.admit = self._epoll.register
        self.change = self._epoll.modify

    def add(self, fd: int, data: Any, mask: int = EDGE) -> None:
        """Watch a raw descriptor. Raises OSError as epoll_ctl does (EEXIST, EPERM for a regular file)."""
        self._epoll.register(fd, mask)
        self.data[fd] = data

    def drop(self, fd: int) -> None:
        """Stop watching; the descriptor must still be open. Raises KeyError when it is not watched."""
        del self.data[fd]
        self._files.pop(fd, None)
        self._epoll.unregister(fd)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _descriptor(fileobj)
        if not events or events & ~(selectors.EVENT_READ | selectors.EVENT_WRITE):
            raise ValueError(f"invalid events: {events!r}")
        if fd in self.data:
            raise KeyError(f"{fileobj!r} (fd {fd}) is already registered")
        self.add(fd, data)
        self._files[fd] = (fileobj, events)
        return selectors.SelectorKey(fileobj, fd, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._key(_descriptor(fileobj))
        self.drop(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Changes what is reported and re-arms the edge: a condition that holds is reported once more."""
        fd = self._key(_descriptor(fileobj)).fd
        self._epoll.modify(fd, EDGE)
        self.data[fd] = data
        self._files[fd] = (fileobj, events)
        return selectors.SelectorKey(fileobj, fd, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        wait = -1 if timeout is None else max(timeout, 0)
        ready = []
        for fd, mask in self.poll(wait, BATCH):
            if fd not in self.data:
                continue
            key = self._key(fd)
            events = 0
            if mask & ~WRITE:
                events |= selectors.EVENT_READ
            if mask & ~(READ | READ_HANGUP):
                events |= selectors.EVENT_WRITE
            if events & key.events:
                ready.append((key, events & key.events))
        return ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return _KeyView(self)

    def close(self) -> None:
        self.data.clear()
        self._files.clear()
        self._epoll.close()

    def _key(self, fd: int) -> selectors.SelectorKey:
        fileobj, events = self._files.get(fd, (fd, selectors.EVENT_READ | selectors.EVENT_WRITE))
        return selectors.SelectorKey(fileobj, fd, events, self.data[fd])


class _KeyView(Mapping[Any, selectors.SelectorKey]):
    """What `get_map` promises, built on demand so that a watched descriptor costs one dict entry."""

    def __init__(self, selector: EdgeSelector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return len(self._selector.data)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._selector.data))

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector._key(_descriptor(fileobj))


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


class Loop:
    """One per process, made after the fork: an epoll shared with the parent would report the parent's sockets."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.now = clock()
        self.turns = 0
        self.selector = EdgeSelector()
        self.on_error: Callable[[Handler, Exception], None] | None = None
        self._handlers: dict[int, Handler] = self.selector.data
        self._register = self.selector.admit  # `watch` runs twice a session: one call less each
        self._timers = Timers()
        self._again: list[Callable[[], object]] = []
        self._retired: list[Callable[[], object]] = []
        self._turn_end: list[Callable[[], object]] = []
        self._stopped = False

    # -- descriptors --

    def watch(self, fd: int, handler: Handler) -> None:
        """Edge-triggered, for everything; handler(mask) must exhaust the descriptor or call `again`."""
        register = self._register
        register(fd, EDGE)
        self._handlers[fd] = handler

    def watch_reading(self, fd: int, handler: Handler) -> None:
        """As `watch`, without word of room for writing; errors and hang-ups are always told."""
        register = self._register
        register(fd, EDGE_READING)
        self._handlers[fd] = handler

    def rearm(self, fd: int) -> None:
        """What is watched for reading is told of once more, as far as it still holds."""
        self.selector.change(fd, EDGE_READING)

    def widen(self, fd: int) -> None:
        """What was watched for reading is watched for everything from now on; room that is there is told at once."""
        self.selector.change(fd, EDGE)

    def watch_level(self, fd: int, handler: Handler, mask: int = READ) -> None:
        """Level-triggered: reported every turn as long as it holds."""
        self.selector.add(fd, handler, mask)

    def forget(self, fd: int) -> None:
        """At once: no later event of this batch reaches the handler. The descriptor must still be open."""
        self.selector.drop(fd)

    def leave(self, fd: int, other: int = -1) -> None:
        """As `forget` for descriptors that will be closed at the end of this batch: closing the last reference
        takes them out of epoll, so the system call is saved. Harmless when they are not watched."""
        handlers = self._handlers
        handlers.pop(fd, None)
        handlers.pop(other, None)

    def is_watched(self, fd: int) -> bool:
        return fd in self._handlers

    def rename(self, fd: int, handler: Handler) -> None:
        """A watched descriptor goes on with another handler; no system call."""
        self._handlers[fd] = handler

    # -- later --

    def again(self, act: Callable[[], object]) -> None:
        """Run `act` in the next turn, after that turn's events: how a bulk flow yields to everyone else."""
        self._again.append(act)

    def retire(self, finish: Callable[[], object]) -> None:
        """Run `finish` after this turn's batch: the place to close descriptors."""
        self._retired.append(finish)

    def at_turn_end(self, hook: Callable[[], object]) -> None:
        """Run `hook` at the end of every turn, for ever."""
        self._turn_end.append(hook)

    def call_at(self, when: float, act: Callable[[], object]) -> Timer:
        return self._timers.add(Timer(when, act))

    def call_later(self, delay: float, act: Callable[[], object]) -> Timer:
        """`delay` counts from `now`, the time of this turn."""
        return self._timers.add(Timer(self.now + delay, act))

    def every(self, seconds: float, act: Callable[[], object]) -> Timer:
        """At a fixed rate from now on; beats missed by a long turn are skipped, not made up for."""
        return self._timers.add(Timer(self.now + seconds, act, period=seconds))

    # -- turns --

    def run(self) -> None:
        """Until `stop`; a stop from before counts."""
        self.now = self._clock()
        while not self._stopped:
            self.run_once(None)
        self._stopped = False

    def stop(self) -> None:
        """The turn under way is the last."""
        self._stopped = True

    def run_once(self, timeout: float | None) -> None:
        """One turn, waiting at most `timeout` seconds (None: until an event or the next timer)."""
        again = self._again
        handlers = self._handlers
        wait = 0.0 if again else self._timers.due_at - self.now
        if timeout is not None and timeout < wait:
            wait = timeout
        events = self.selector.poll(min(wait, LONGEST_WAIT) if wait > 0 else 0, BATCH)
        self.now = now = self._clock()
        self.turns += 1
        if again:
            self._again = []
        for fd, mask in events:
            if fd in handlers:
                handler = handlers[fd]
                try:
                    handler(mask)
                except Exception as error:
                    self._complain(handler, error)
        for act in again:
            self._guarded(act)
        if now >= self._timers.due_at:
            self._timers.fire_due(now)
        if self._retired:
            self._finish_retired()
        for hook in self._turn_end:
            hook()

    def close(self) -> None:
        self.selector.close()

    def _finish_retired(self) -> None:
        while self._retired:  # a finisher may retire more
            retired, self._retired = self._retired, []
            for finish in retired:
                finish()

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self._complain(act, error)

    def _complain(self, handler: Callable[..., object], error: Exception) -> None:
        """A handler's failure: told to `on_error` when there is one, else fatal to the process."""
        if self.on_error is None:
            raise error
        self.on_error(handler, error)
