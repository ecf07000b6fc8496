"""What one client has still to be sent: parcels of several parts, some of them lying in slots of the arena.

RULES: pure; says what to send and is told how much went. A parcel's slot is handed back when its last byte
is gone, and exactly once, also when the client is given up.

    0 <= pending;  pending == 0 exactly when no parcel is left;  a sent part is never offered again
"""

from collections import deque
from collections.abc import Sequence

PARTS_PER_CALL = 16  # well below IOV_MAX (1024): more would not fill a socket buffer any better

Part = bytes | memoryview


class Outbox:
    """Parcels in the order in which they leave."""

    __slots__ = ("_parts", "pending")

    def __init__(self) -> None:
        self.pending = 0  # bytes
        # (part, slot): slot is -1 but for the last part of a parcel that occupies one
        self._parts: deque[tuple[memoryview, int]] = deque()

    def put(self, parts: Sequence[Part], slot: int = -1) -> None:
        """Append a parcel; `slot` is freed (by `sent` or `clear`) when its last byte has gone. Parts are not
        copied.
        """
        views = [memoryview(part) for part in parts if len(part)]
        if not views:
            raise ValueError("an empty parcel would never give its slot back")
        for view in views[:-1]:
            self._parts.append((view, -1))
        self._parts.append((views[-1], slot))
        self.pending += sum(map(len, views))

    def gather(self) -> list[memoryview]:
        """What to offer to sendmsg next."""
        if len(self._parts) <= PARTS_PER_CALL:
            return [view for view, _ in self._parts]
        return [self._parts[i][0] for i in range(PARTS_PER_CALL)]

    def sent(self, count: int) -> list[int]:
        """`count` bytes of what was gathered are gone; the slots that are free now."""
        self.pending -= count
        freed = []
        parts = self._parts
        while count:
            view, slot = parts[0]
            if count < len(view):
                parts[0] = (view[count:], slot)
                break
            count -= len(view)
            parts.popleft()
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
        freed = [slot for _, slot in self._parts if slot >= 0]
        if freed:
            joined = b"".join(view for view, _ in self._parts)
            self._parts.clear()
            self._parts.append((memoryview(joined), -1))
        return freed

    def clear(self) -> list[int]:
        """Give up everything; the slots that are free now."""
        freed = [slot for _, slot in self._parts if slot >= 0]
        self._parts.clear()
        self.pending = 0
        return freed
