"""Which slots may be given new connections, and who helps a slot that cannot help itself.

RULES: pure. What was read from the board goes in, a verdict per slot comes out; `now` is an argument.
- A hung worker must not blackhole its share: 22 of 40 new connections hang when one of two workers is stopped. So a slot
  whose holder is stale, dead, paused or not wanted any more is steered away AND a sibling is named to accept from its
  queue: what was queued before, and what the kernel still sends there, is served.
- An adopter once named stays named while it is fit, else queues would change hands at every tick.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from balancer.shm.layout import (
    MAX_SLOTS,
    SLOT_EMPTY,
    SLOT_PAUSED,
    SLOT_SERVED,
    SLOT_STALE,
    SLOT_STARTING,
    SLOT_SURPLUS,
)

TICK = 0.25  # seconds between two looks of the master, and between two heartbeats of a child
STALE_AFTER = 0.75  # three beats missed
DUMP_TIME = 0.3  # seconds between SIGABRT (a stack dump) and SIGKILL
STARTING_GRACE = 10.0  # a child that is not ready yet may import and check this long without a beat

NAMES = {
    SLOT_SERVED: "served",
    SLOT_STARTING: "starting",
    SLOT_PAUSED: "paused",
    SLOT_STALE: "stale",
    SLOT_EMPTY: "empty",
    SLOT_SURPLUS: "surplus",
}


class HeartbeatWatch:
    """Ages of heartbeats, forgiving what the watcher slept through.

    When the master itself was stopped, or the whole machine suspended, every heartbeat looks old at its next tick. So
    nothing counts as stale from before the last jump of the master's own clock.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self._since = now

    def look(self, now: float) -> bool:
        """Once a tick; True when the clock has jumped and this round should judge nobody."""
        jumped = now - self._last > 2 * TICK
        self._last = now
        if jumped:
            self._since = now
        return jumped

    def age(self, beat_ms: int, now: float) -> float:
        """Seconds since the heartbeat that may be held against its process."""
        return now - max(beat_ms / 1000, self._since)


def wants_abort(age: float, is_ready: bool, hang_after: float) -> bool:
    """Whether a process has been silent for so long that it is killed; hang_after 0 = never."""
    limit = hang_after if is_ready else max(hang_after, STARTING_GRACE)
    return hang_after > 0 and age > limit


@dataclass(frozen=True)
class SlotView:
    """What is known of one slot. `row` 0: nobody holds it; `age`: seconds since its holder's heartbeat;
    `reach`: slots whose sockets the holder has."""

    row: int = 0
    is_ready: bool = False
    is_accepting: bool = False
    age: float = 0.0
    load: int = 0
    reach: int = MAX_SLOTS
    is_surplus: bool = False


@dataclass(frozen=True)
class SlotVerdict:
    """`state`: a SLOT_ value; `adopter`: row of the sibling named to help, 0 when none is needed or fit."""

    state: int
    adopter: int


def state_of(view: SlotView) -> int:
    """One word for one slot."""
    if view.is_surplus:
        return SLOT_SURPLUS
    if not view.row:
        return SLOT_EMPTY
    if not view.is_ready:
        return SLOT_STARTING
    if view.age > STALE_AFTER:
        return SLOT_STALE
    return SLOT_SERVED if view.is_accepting else SLOT_PAUSED


def judge(views: Sequence[SlotView], adopters: Sequence[int]) -> list[SlotVerdict]:
    """A verdict per slot; `adopters` are the rows named so far (0 = none)."""
    states = [state_of(view) for view in views]
    fit = {view.row: view for view, state in zip(views, states, strict=True) if state == SLOT_SERVED}
    burden = dict.fromkeys(fit, 0)
    verdicts: list[SlotVerdict] = []
    for index, state in enumerate(states):
        adopter = 0
        able = [row for row, view in fit.items() if view.reach > index]
        if state != SLOT_SERVED and able:
            before = adopters[index] if index < len(adopters) else 0
            adopter = (
                before if before in able else min(able, key=lambda row: (burden[row], fit[row].load, row))
            )
            burden[adopter] += 1
        verdicts.append(SlotVerdict(state, adopter))
    return verdicts


def eligible_loads(views: Sequence[SlotView], verdicts: Sequence[SlotVerdict]) -> list[int | None]:
    """Load of each slot that may be steered to, None for the others.

    When nobody serves at the moment, those that will soonest: a connection then waits in a queue somebody will empty.
    """
    states = [verdict.state for verdict in verdicts]
    for choice in ({SLOT_SERVED}, {SLOT_PAUSED, SLOT_STARTING}, {SLOT_EMPTY, SLOT_STALE}):
        if choice & set(states):
            return [view.load if state in choice else None for view, state in zip(views, states, strict=True)]
    return [0] * len(views)
