"""The unsent answers of one client: messages of several parts, some of them in slots of the arena.

RULES: pure; says what to send and is told how much was sent. The slot of a message is handed back exactly once: with its
last byte, or when the client is given up.

    0 <= pending;  pending == 0 exactly when no message is left;  a sent part is never offered again
"""

from collections import deque
from collections.abc import Sequence
from itertools import chain, islice

PARTS_PER_CALL = 16  # well below IOV_MAX (1024): more would not fill a socket buffer any better

Part = bytes | memoryview


class Outbox:
    """Messages in the order in which they leave."""

    __slots__ = ("_messages", "pending")

    def __init__(self) -> None:
        self.pending = 0  # bytes
        self._messages: deque[tuple[Sequence[Part], int]] = deque()  # parts, slot they occupy or -1

    def put(self, parts: Sequence[Part], slot: int = -1) -> None:
        """Append a message; `sent` or `clear` returns `slot` when it is free. Parts are not copied."""
        size = sum(map(len, parts))
        if not size:
            raise ValueError("the slot of an empty message would never be free")
        self._messages.append((parts, slot))
        self.pending += size

    def gather(self) -> Sequence[Part]:
        """The parts to pass to sendmsg(2) next."""
        if len(self._messages) == 1:
            return self._messages[0][0]
        return list(islice(chain.from_iterable(parts for parts, _ in self._messages), PARTS_PER_CALL))

    def sent(self, count: int) -> list[int]:
        """Remove `count` bytes of what was gathered. Returns the slots that are free now."""
        if count == self.pending:
            return self.clear()
        self.pending -= count
        freed = []
        while count:
            parts, slot = self._messages.popleft()
            size = sum(map(len, parts))
            if count < size:
                self._messages.appendleft((_skip(parts, count), slot))
                break
            count -= size
            if slot >= 0:
                freed.append(slot)
        return freed

    def keep_copies(self, limit: int) -> list[int]:
        """Copy what is pending to ordinary memory, if it has at most `limit` bytes. Returns the slots that are free now.

        For a client slower than its answers: a few KiB of ordinary memory cost less than a slot that is not free.
        """
        if self.pending > limit:
            return []
        freed = [slot for _, slot in self._messages if slot >= 0]
        if freed:
            joined = b"".join(chain.from_iterable(parts for parts, _ in self._messages))
            self._messages.clear()
            self._messages.append(((joined,), -1))
        return freed

    def clear(self) -> list[int]:
        """Drop all messages. Returns the slots that are free now."""
        freed = [slot for _, slot in self._messages if slot >= 0]
        self._messages.clear()
        self.pending = 0
        return freed


def _skip(parts: Sequence[Part], count: int) -> list[Part]:
    """`parts` without their first `count` bytes."""
    left: list[Part] = []
    for part in parts:
        if count < len(part):
            left.append(memoryview(part)[count:])
        count = max(0, count - len(part))
    return left
