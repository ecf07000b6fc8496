"""Which slot of a set belongs to which backend, from one answer to the next. Pure.

RULES
- A backend that is still in the answer keeps its slot, whatever the order of the answer.
- One that is missing keeps it until it was missing `obsolete` times in a row: servers that cut or shuffle their answers
  leave some out each time.
- One that comes back takes the slot that it had, while no other has taken it: what operators have made of it is there.
- A new one takes the free slot that has the least left of its last tenants, as the caller says.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from balancer.discovery.answers import Member


@dataclass(slots=True)
class Slot:
    """`member`: the tenant, None while the slot is empty; `missing`: answers in a row without it; `key`: that of the last
    tenant, 0 before the first one."""

    member: Member | None = None
    missing: int = 0
    key: int = 0


def place(
    slots: Sequence[Slot],
    answer: Iterable[Member],
    obsolete: int,
    left_over: Callable[[int], tuple[int, ...]],
) -> tuple[dict[int, Member | None], int]:
    """What changes, by the number of the slot (None: it is empty now), and how many of the answer found no slot.

    `left_over(slot)`: what a free slot still has of its last tenants; a new one takes the slot with the least."""
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
    known = {member.tenant_key: key for key, member in wanted.items()}
    for number in [number for number in free if slots[number].key in known]:
        changes[number] = wanted.pop(known[slots[number].key])
        free.remove(number)
    free.sort(key=left_over)
    changes.update(zip(free, wanted.values(), strict=False))
    for number, tenant in changes.items():
        slot = slots[number]
        slot.member, slot.missing, slot.key = tenant, 0, tenant.tenant_key if tenant else slot.key
    return changes, max(0, len(wanted) - len(free))
