"""The state of each slot: whether new connections may go to it, and which process adopts its queue.

RULES: pure. What was read from the board goes in, a verdict per slot comes out; `now` is an argument.
- A hung worker must not blackhole its share: 22 of 40 new connections hang when one of two workers is stopped. So
  nothing is steered to a slot whose process is hung, dead, paused or not wanted any more, AND another worker adopts the
  slot: it accepts what was queued before and what the kernel still sends there.
- An adopter stays for as long as it serves itself, else queues would change hands at every tick.
- `is_hung` is the one notion of a hung process: the slots table and the status use it; the watchdog (`wants_abort`)
  comes later.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from balancer.shm.layout import (
    MAX_SLOTS,
    SLOT_EMPTY,
    SLOT_HUNG,
    SLOT_PAUSED,
    SLOT_SERVED,
    SLOT_STARTING,
    SLOT_SURPLUS,
)

TICK = 0.25  # seconds between two ticks of the master, and between two heartbeats of a child
HUNG_AFTER = 0.75  # three heartbeats missed
DUMP_TIME = 0.3  # seconds between SIGABRT (a stack dump) and SIGKILL
STARTING_GRACE = 10.0  # a child that is not ready yet may import and check for so long without a heartbeat

NAMES = {
    SLOT_SERVED: "served",
    SLOT_STARTING: "starting",
    SLOT_PAUSED: "paused",
    SLOT_HUNG: "hung",
    SLOT_EMPTY: "empty",
    SLOT_SURPLUS: "surplus",
}


def is_hung(age: float) -> bool:
    """Whether a process that was ready and whose last heartbeat is `age` seconds old counts as hung."""
    return age > HUNG_AFTER


class HeartbeatWatch:
    """Ages of heartbeats, less the time in which the watching process itself stood still.

    After a stop of the master, or a suspend of the machine, every heartbeat looks old. So no time before the last jump of
    the master's own clock counts.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self._since = now

    def look(self, now: float) -> bool:
        """Once a tick; True when the clock has jumped: ages count from now."""
        jumped = now - self._last > 2 * TICK
        self._last = now
        if jumped:
            self._since = now
        return jumped

    def age(self, beat_ms: int, now: float) -> float:
        """Seconds without heartbeat, as far as the watching process was awake."""
        return now - max(beat_ms / 1000, self._since)


def wants_abort(age: float, is_ready: bool, hang_after: float) -> bool:
    """Whether a process has been without heartbeat for so long that it is killed; hang_after 0 = never."""
    limit = hang_after if is_ready else max(hang_after, STARTING_GRACE)
    return hang_after > 0 and age > limit


@dataclass(frozen=True)
class SlotView:
    """What is known of one slot and the process in it. `row` 0: there is none; `age`: seconds since its heartbeat;
    `reach`: slots whose sockets it has."""

    row: int = 0
    is_ready: bool = False
    is_accepting: bool = False
    age: float = 0.0
    load: int = 0
    reach: int = MAX_SLOTS
    is_surplus: bool = False


@dataclass(frozen=True)
class SlotVerdict:
    """`state`: a SLOT_ value; `adopter`: row of the process that adopts the slot, 0 when none needs to or can."""

    state: int
    adopter: int


def state_of(view: SlotView) -> int:
    """The SLOT_ value of one slot."""
    if view.is_surplus:
        return SLOT_SURPLUS
    if not view.row:
        return SLOT_EMPTY
    if not view.is_ready:
        return SLOT_STARTING
    if is_hung(view.age):
        return SLOT_HUNG
    return SLOT_SERVED if view.is_accepting else SLOT_PAUSED


def judge(views: Sequence[SlotView], adopters: Sequence[int]) -> list[SlotVerdict]:
    """A verdict per slot; `adopters` are the rows that adopt so far (0 = none)."""
    states = [state_of(view) for view in views]
    serving = {view.row: view for view, state in zip(views, states, strict=True) if state == SLOT_SERVED}
    adopted = dict.fromkeys(serving, 0)
    verdicts: list[SlotVerdict] = []
    for index, state in enumerate(states):
        adopter = 0
        able = [row for row, view in serving.items() if view.reach > index]
        if state != SLOT_SERVED and able:
            before = adopters[index] if index < len(adopters) else 0
            if before in able:
                adopter = before
            else:
                adopter = min(able, key=lambda row: (adopted[row], serving[row].load, row))
            adopted[adopter] += 1
        verdicts.append(SlotVerdict(state, adopter))
    return verdicts


def eligible_loads(views: Sequence[SlotView], verdicts: Sequence[SlotVerdict]) -> list[int | None]:
    """Load of each slot that may be steered to, None for the others.

    When no slot is served at the moment, those that will be soonest: a connection then waits in their queues.
    """
    states = [verdict.state for verdict in verdicts]
    for choice in ({SLOT_SERVED}, {SLOT_PAUSED, SLOT_STARTING}, {SLOT_EMPTY, SLOT_HUNG}):
        if choice & set(states):
            return [view.load if state in choice else None for view, state in zip(views, states, strict=True)]
    return [0] * len(views)
