"""Which slot of a set belongs to which backend, from one answer to the next. Pure.

RULES
- A backend that is still in the answer keeps its slot, whatever the order of the answer.
- One that is missing keeps it until it was missing `obsolete` times in a row: servers that cut or shuffle their answers
  leave some out each time.
- A new one takes the free slot that has the fewest sessions left, of those that would be counted as its own first: a slot
  counts its tenants in turn in one of two gauges, and the sessions of the tenant before may last.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from balancer.discovery.answers import Member


@dataclass(slots=True)
class Slot:
    """`member`: the tenant, None while the slot is empty; `missing`: answers in a row without it."""

    member: Member | None = None
    missing: int = 0


def place(
    slots: Sequence[Slot],
    answer: Iterable[Member],
    obsolete: int,
    left_over: Callable[[int], tuple[int, int]],
) -> tuple[dict[int, Member | None], int]:
    """What changes, by the number of the slot (None: it is empty now), and how many of the answer found no slot.

    `left_over(slot)`: sessions that are still counted where those of its next tenant would be, and in the other gauge."""
    wanted = {member.key: member for member in answer}
    changes: dict[int, Member | None] = {}
    free = []
    for number, slot in enumerate(slots):
        if slot.member is None:
            free.append(number)
            continue
        now = wanted.pop(slot.member.key, None)
        slot.missing = 0 if now is not None else slot.missing + 1
        if now is not None and now != slot.member:
            changes[number] = now
        elif slot.missing >= obsolete:
            changes[number] = None
            free.append(number)
    free.sort(key=left_over)
    changes.update(zip(free, wanted.values(), strict=False))
    for number, tenant in changes.items():
        slots[number].member, slots[number].missing = tenant, 0
    return changes, max(0, len(wanted) - len(free))
