"""Who yields its slot when slots run out."""

from workers.resizer.holders import FAST, GRACE, SlotHolders
from workers.resizer.task import Origin, QueueClient


class Holder:
    def __init__(self, name: str, origin: Origin | None = None) -> None:
        self.name = name
        self.client = QueueClient(origin or Origin(name))
        self.moved = 1000

    def yield_slot(self) -> None:
        raise AssertionError("the caller has it yield")


def held(*holders: Holder) -> SlotHolders:
    found = SlotHolders()
    for slot, holder in enumerate(holders):
        found.begin(slot, holder, 100.0)
    return found


def test_the_slowest_yields_after_a_grace() -> None:
    still, slow, fast = Holder("still"), Holder("slow"), Holder("fast")
    holders = held(slow, still, fast)
    slow.moved += 500
    fast.moved += FAST
    assert holders.slowest(100.0 + GRACE - 0.01) is None
    assert holders.slowest(100.0 + GRACE) is still
    holders.end(1)
    assert holders.slowest(100.5) is slow
    holders.end(0)
    assert holders.slowest(100.5) is None, "it will be through soon"


def test_of_the_origin_that_holds_most() -> None:
    crowd = Origin("crowd")
    many = [Holder(f"{number}", crowd) for number in range(3)]
    holders = held(Holder("alone and still"), *many)
    for holder in many:
        holder.moved += 10_000
    many[1].moved -= 1
    assert holders.slowest(101.0) is many[1]


def test_bytes_count_from_the_moment_the_slot_was_given() -> None:
    old, new = Holder("old"), Holder("new")
    old.moved = 1 << 30
    new.moved = 0
    holders = held(old, new)
    new.moved += 1
    assert holders.slowest(101.0) is old
