"""What one client has still to be sent: parcels of several parts, some of them lying in slots of the arena.

RULES: pure; says what to send and is told how much went. A parcel's slot is handed back when its last byte
is gone, and exactly once, also when the client is given up.

    0 <= pending;  pending == 0 exactly when no parcel is left;  a sent part is never offered again
"""

from collections import deque
from collections.abc import Sequence
from itertools import chain, islice

PARTS_PER_CALL = 16  # well below IOV_MAX (1024): more would not fill a socket buffer any better

Part = bytes | memoryview


class Outbox:
    """Parcels in the order in which they leave."""

    __slots__ = ("_parcels", "pending")

    def __init__(self) -> None:
        self.pending = 0  # bytes
        self._parcels: deque[tuple[Sequence[Part], int]] = deque()  # parts, slot they occupy or -1

    def put(self, parts: Sequence[Part], slot: int = -1) -> None:
        """Append a parcel; `slot` is freed (by `sent` or `clear`) when its last byte has gone. Parts are not
        copied.
        """
        size = sum(map(len, parts))
        if not size:
            raise ValueError("an empty parcel would never give its slot back")
        self._parcels.append((parts, slot))
        self.pending += size

    def gather(self) -> Sequence[Part]:
        """What to offer to sendmsg next."""
        if len(self._parcels) == 1:
            return self._parcels[0][0]
        return list(islice(chain.from_iterable(parts for parts, _ in self._parcels), PARTS_PER_CALL))

    def sent(self, count: int) -> list[int]:
        """`count` bytes of what was gathered are gone; the slots that are free now."""
        if count == self.pending:
            return self.clear()
        self.pending -= count
        freed = []
        while count:
            parts, slot = self._parcels.popleft()
            size = sum(map(len, parts))
            if count < size:
                self._parcels.appendleft((_behind(parts, count), slot))
                break
            count -= size
            if slot >= 0:
                freed.append(slot)
        return freed

    def keep_copies(self, limit: int) -> list[int]:
        """Copy out what lies in slots, up to `limit` bytes in all; the slots that are free now.

        For a client slower than its answers: a few KiB of ordinary memory are cheaper than a slot nobody
        else can use.
        """
        if self.pending > limit:
            return []
        freed = [slot for _, slot in self._parcels if slot >= 0]
        if freed:
            joined = b"".join(chain.from_iterable(parts for parts, _ in self._parcels))
            self._parcels.clear()
            self._parcels.append(((joined,), -1))
        return freed

    def clear(self) -> list[int]:
        """Nothing of it is to be sent (any more); the slots that are free now."""
        freed = [slot for _, slot in self._parcels if slot >= 0]
        self._parcels.clear()
        self.pending = 0
        return freed


def _behind(parts: Sequence[Part], count: int) -> list[Part]:
    """What is left of `parts` without their first `count` bytes."""
    left: list[Part] = []
    for part in parts:
        if count < len(part):
            left.append(memoryview(part)[count:])
        count = max(0, count - len(part))
    return left
