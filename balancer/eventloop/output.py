"""What one connection has still to send: parcels of several parts, in the order in which they leave.

RULES: pure; says what to send and is told how much was sent. Parts are not copied. The `release` of a parcel is called
exactly once: when its last byte was sent, when it was copied out, or when the queue is cleared.

    0 <= pending;  pending == 0 exactly when no parcel is left;  a sent part is never offered again
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain, islice

PARTS_PER_CALL = 64  # far below IOV_MAX (1024): more would not fill a socket buffer any better

Part = bytes | memoryview
Release = Callable[[], object]


class OutputQueue:
    """Parcels in the order in which they leave. `pending`: bytes."""

    __slots__ = ("_parcels", "pending")

    def __init__(self) -> None:
        self.pending = 0
        self._parcels: deque[tuple[Sequence[Part], Release | None]] = deque()

    def put(self, parts: Sequence[Part], release: Release | None = None) -> None:
        """Append a parcel; `release` is called when its memory is no longer needed."""
        size = sum(map(len, parts))
        if size:
            self._parcels.append((parts, release))
            self.pending += size
        elif release is not None:
            release()

    def gather(self) -> Sequence[Part]:
        """The parts to pass to sendmsg(2) next."""
        if len(self._parcels) == 1:
            return self._parcels[0][0]
        return list(islice(chain.from_iterable(parts for parts, _ in self._parcels), PARTS_PER_CALL))

    def sent(self, count: int) -> None:
        """Remove `count` bytes of what was gathered."""
        if count == self.pending:
            self.clear()
            return
        self.pending -= count
        while count:
            parts, release = self._parcels.popleft()
            size = sum(map(len, parts))
            if count < size:
                self._parcels.appendleft((_behind(parts, count), release))
                break
            count -= size
            if release is not None:
                release()

    def copy_out(self, limit: int) -> None:
        """Copy what is pending to memory of its own, if it has at most `limit` bytes, and release all parcels.

        For a peer that reads slower than its answers are made: a few KiB of ordinary memory cost less than a slot of
        shared memory that no other connection can use meanwhile.
        """
        if self.pending > limit or all(release is None for _, release in self._parcels):
            return
        parcels, self._parcels = self._parcels, deque()
        self._parcels.append(((b"".join(chain.from_iterable(parts for parts, _ in parcels)),), None))
        for _, release in parcels:
            if release is not None:
                release()

    def clear(self) -> None:
        """Drop all parcels."""
        parcels, self._parcels = self._parcels, deque()
        self.pending = 0
        for _, release in parcels:
            if release is not None:
                release()


def _behind(parts: Sequence[Part], count: int) -> list[Part]:
    """What is left of `parts` without their first `count` bytes."""
    left: list[Part] = []
    for part in parts:
        if count < len(part):
            left.append(memoryview(part)[count:])
        count = max(0, count - len(part))
    return left
