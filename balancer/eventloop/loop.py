"""The event loop of every process: epoll, timers, one clock reading per turn.

RULES: knows file descriptors, handlers and timers. Opens and closes no descriptor.
- A socket is registered once, edge-triggered. A level-triggered loop pays an epoll_ctl(2) for every change of interest:
  137 us of CPU against 90 us for one whole short session. In return a handler reads until EAGAIN or a short read, or
  asks for another call with `call_next_turn`.
- `watch` registers for EPOLLIN, EPOLLOUT and EPOLLRDHUP. `watch_reading` leaves EPOLLOUT out until `watch_writing`: every
  second event of a short session would only say that the socket has room.
- A descriptor that several processes read (listening sockets, pipes, wake-up sockets) is watched level-triggered.
- `now` is read once per turn, after the wait. Handlers use it and read no clock.
- `forget` takes effect inside the batch. A descriptor is closed at the end of the batch (`retire`), so that the kernel
  cannot hand out its number while events of the old one are still to come.
- A handler that raises is a defect. The loop passes its descriptor to `on_error`.

    turn:  wait (epoll, next timer) -> now -> handlers of the batch -> `call_next_turn` acts of the last turn
           -> due timers -> retired (closes) -> turn-end hooks (log flush)
"""

import select
import selectors
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

BATCH = 256  # events per turn: bounds the age of `now` and the delay of timers

LONGEST_WAIT = (
    86_400.0  # seconds in one wait: without a timer due_at is infinite, which epoll_wait(2) refuses
)

Handler = Callable[[int], object]


class EdgeSelector(selectors.BaseSelector):
    """A `selectors` selector on edge-triggered epoll: one registration covers reading, writing and half-close.

    `register(..., events)` has the `selectors` meaning: `events` filters what `select` reports. The loop uses `poll`, raw
    (fd, mask) pairs, and `data`, the dict fd -> data, and so makes no SelectorKey per event.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._files: dict[int, tuple[Any, int]] = {}
        self.data: dict[int, Any] = {}
        self.poll = self._epoll.poll
        self.epoll_register = self._epoll.register
        self.epoll_modify = self._epoll.modify

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
        """Change what is reported, and re-arm the edge: a condition that holds is reported once more."""
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
    """The mapping of `get_map`, built on demand, so that a watched descriptor costs one dict entry."""

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
    """One per process, made after the fork: an epoll shared with the parent would report the parent's sockets.

    `on_error(fd, error)` is called when a handler or a `call_next_turn` act raises; fd is -1 for an act without one. When
    it is None, or raises, the error ends the process. The loop keeps no owner per descriptor, because a mapping would
    cost every session. `on_error` finds the owner by search: a descriptor keeps its number until the end of the batch,
    so the one session (or connection) that holds fd is to blame.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.now = clock()
        self.turns = 0
        self.selector = EdgeSelector()
        self.on_error: Callable[[int, Exception], None] | None = None
        self._handlers: dict[int, Handler] = self.selector.data
        self._poll, self._register = self.selector.poll, self.selector.epoll_register
        self._timers = Timers()
        self._next_turn: list[tuple[Callable[[], object], int]] = []
        self._retired: list[Callable[[], object]] = []
        self._turn_end: list[Callable[[], object]] = []
        self._stopped = False

    # -- descriptors --

    def watch(self, fd: int, handler: Handler) -> None:
        """Watch for everything, edge-triggered; handler(mask) exhausts the descriptor or uses `call_next_turn`."""
        register = self._register
        register(fd, EDGE)
        self._handlers[fd] = handler

    def watch_reading(self, fd: int, handler: Handler) -> None:
        """Watch for everything but room for writing; epoll always reports errors and hang-ups."""
        register = self._register
        register(fd, EDGE_READING)
        self._handlers[fd] = handler

    def rearm(self, fd: int) -> None:
        """Report once more what holds on a descriptor watched for reading."""
        self.selector.epoll_modify(fd, EDGE_READING)

    def watch_writing(self, fd: int) -> None:
        """Report room for writing as well from now on, at once if there is room, on a descriptor watched for reading."""
        self.selector.epoll_modify(fd, EDGE)

    def watch_level(self, fd: int, handler: Handler, mask: int = READ) -> None:
        """Watch level-triggered: reported in every turn in which it holds."""
        self.selector.add(fd, handler, mask)

    def forget(self, fd: int) -> None:
        """Stop watching, for the rest of this batch too. The descriptor must still be open."""
        self.selector.drop(fd)

    def forget_closing(self, fd: int, other: int = -1) -> None:
        """Stop watching descriptors that are closed at the end of this batch. The close of the last reference takes them
        out of epoll, which saves the system call. Does nothing for a descriptor that is not watched."""
        handlers = self._handlers
        handlers.pop(fd, None)
        handlers.pop(other, None)

    def is_watched(self, fd: int) -> bool:
        return fd in self._handlers

    def set_handler(self, fd: int, handler: Handler) -> None:
        """Replace the handler of a watched descriptor; no system call."""
        self._handlers[fd] = handler

    # -- later --

    def call_next_turn(self, act: Callable[[], object], fd: int = -1) -> None:
        """Run `act` in the next turn, after that turn's events: a bulk flow yields to the other connections this way.
        `fd` goes to `on_error` if the act raises."""
        self._next_turn.append((act, fd))

    def retire(self, finish: Callable[[], object]) -> None:
        """Run `finish` after this turn's batch. Descriptors are closed here."""
        self._retired.append(finish)

    def at_turn_end(self, hook: Callable[[], object]) -> None:
        """Run `hook` at the end of every turn."""
        self._turn_end.append(hook)

    def call_at(self, when: float, act: Callable[[], object]) -> Timer:
        """Run `act` once, at the time `when`."""
        return self._timers.add(Timer(when, act))

    def call_later(self, delay: float, act: Callable[[], object]) -> Timer:
        """Run `act` once, `delay` seconds after `now`, the time of this turn."""
        return self._timers.add(Timer(self.now + delay, act))

    def every(self, seconds: float, act: Callable[[], object]) -> Timer:
        """Run `act` at a fixed rate from now on. Beats that fall into a long turn are skipped."""
        return self._timers.add(Timer(self.now + seconds, act, period=seconds))

    # -- turns --

    def run(self) -> None:
        """Run turns until `stop`; returns at once when `stop` was called before."""
        self.now = self._clock()
        while not self._stopped:
            self.run_once()
        self._stopped = False

    def stop(self) -> None:
        """Return from `run` after the turn under way."""
        self._stopped = True

    def run_once(self, timeout: float = LONGEST_WAIT) -> None:
        """Run one turn, waiting at most `timeout` seconds, for an event or the next timer."""
        acts: Sequence[tuple[Callable[[], object], int]] = ()
        handlers = self._handlers
        wait = self._timers.due_at - self.now
        if self._next_turn:  # taken before the handlers run: what they add belongs to the turn after this one
            acts, self._next_turn = self._next_turn, []
            wait = 0.0
        if timeout < wait:  # `min` would be 3 % of a small message
            wait = timeout
        events = self._poll(wait if wait > 0 else 0, BATCH)
        self.now = now = self._clock()
        self.turns += 1
        for fd, mask in events:
            if fd in handlers:
                try:
                    handlers[fd](mask)
                except Exception as error:
                    self._report(fd, error)
        for act, fd in acts:
            try:
                act()
            except Exception as error:
                self._report(fd, error)
        if now >= self._timers.due_at:
            self._timers.fire_due(now)
        if self._retired:
            self._finish_retired()
        for hook in self._turn_end:
            hook()

    def close(self) -> None:
        self.selector.close()

    def _finish_retired(self) -> None:
        while self._retired:  # `finish` may retire more
            retired, self._retired = self._retired, []
            for finish in retired:
                finish()

    def _report(self, fd: int, error: Exception) -> None:
        """Pass a handler's error to `on_error`; without one it ends the process."""
        if self.on_error is None:
            raise error
        self.on_error(fd, error)
