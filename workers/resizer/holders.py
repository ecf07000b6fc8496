"""Who holds a slot while bytes move: clients whose request arrives in it, and clients that are sent the answer out of it.

RULES: pure; time comes in. A slot in the queue or at work is held by nobody here. When slots run out the slowest yields:
of the origin that holds most, the client that has moved the fewest bytes a second since it has the slot. A fast one keeps
its slot, which will be free by itself soon.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from workers.resizer.task import QueueClient

GRACE = 0.25  # seconds before a holder is judged
FAST = 1 << 20  # bytes a second from which on a holder does not yield


class SlotHolder(Protocol):
    """What moves bytes of one client into or out of a slot."""

    @property
    def client(self) -> QueueClient: ...

    @property
    def moved(self) -> int:
        """Bytes moved so far."""

    def yield_slot(self) -> None:
        """Release the slot, at once: refuse the request that arrives, or close the connection."""


@dataclass(slots=True)
class Holding:
    """`before`: bytes that the holder had moved when it got the slot, at the loop time `since`."""

    holder: SlotHolder
    since: float
    before: int

    def rate(self, now: float) -> float:
        """Bytes a second."""
        return (self.holder.moved - self.before) / (now - self.since)


class SlotHolders:
    """The holdings of one front, by slot."""

    __slots__ = ("_by_slot",)

    def __init__(self) -> None:
        self._by_slot: dict[int, Holding] = {}

    def __len__(self) -> int:
        return len(self._by_slot)

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_slot)

    def begin(self, slot: int, holder: SlotHolder, now: float) -> None:
        """Bytes of `holder` move into or out of `slot` from now on."""
        self._by_slot[slot] = Holding(holder, now, holder.moved)

    def end(self, slot: int) -> None:
        """No more bytes move; harmless for a slot that nobody holds."""
        self._by_slot.pop(slot, None)

    def slowest(self, now: float) -> SlotHolder | None:
        """The holder that yields next; None when all are new or fast."""
        late = [one for one in self._by_slot.values() if now - one.since >= GRACE and one.rate(now) < FAST]
        if not late:
            return None
        of_origin = Counter(one.holder.client.origin for one in self._by_slot.values())
        return min(late, key=lambda one: (-of_origin[one.holder.client.origin], one.rate(now))).holder
