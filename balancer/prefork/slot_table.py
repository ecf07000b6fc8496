"""The slots table: who serves which queue, who helps, and what share of new connections goes where.

RULES: runs in the master; the only writer of the slots table. Judging (slots.py) and computing shares (steering.py) are
pure and elsewhere; here the board is read, the verdicts are written, adopters are rung, the kernel is told.
"""

import signal
from collections.abc import Sequence

from balancer.eventloop.log import Log
from balancer.eventloop.signals import send
from balancer.prefork.children import ChildProcess, Children
from balancer.prefork.slots import NAMES, HeartbeatWatch, SlotVerdict, SlotView, eligible_loads, judge
from balancer.prefork.sockets import SocketGroup, Sockets
from balancer.prefork.steering import Smoother, attach, is_material, portions, program, shares
from balancer.shm.layout import (
    ACCEPTING,
    ADOPTER,
    BEAT_MS,
    LOAD,
    MASTER_ROW,
    MASTER_STEERED,
    PID,
    SHARE,
    SLOT_EMPTY,
    SLOT_PID,
    SLOT_STALE,
    SLOT_STATE,
    SLOT_UNUSED,
    Shared,
)

WORTH_A_LINE = frozenset({SLOT_STALE, SLOT_EMPTY})


class SlotTable:
    """Keeps the slots table true."""

    def __init__(
        self, shared: Shared, children: Children, sockets: Sockets, watch: HeartbeatWatch, log: Log
    ) -> None:
        self._shared = shared
        self._children = children
        self._sockets = sockets
        self._watch = watch
        self._log = log
        self._smoother = Smoother()

    def refresh(self, now: float, generation: int, role: str, wanted: int, slots: int, steer: bool) -> None:
        """Look at every slot of the listening role and act on what is seen."""
        holders = [self._children.holder(generation, role, slot) for slot in range(slots)]
        views = [self._view(holder, slot >= wanted, now) for slot, holder in enumerate(holders)]
        table = self._shared.slots
        before = [int(table.cells[slot * table.columns + ADOPTER]) for slot in range(slots)]
        verdicts = judge(views, before)
        parts = shares(self._smoother.smooth(eligible_loads(views, verdicts), now))
        self._write(holders, verdicts, parts)
        self._steer(role, parts, steer)
        for row in {v.adopter for v, was in zip(verdicts, before, strict=True) if v.adopter != was}:
            self._ring(row)

    def _view(self, holder: ChildProcess | None, is_surplus: bool, now: float) -> SlotView:
        if holder is None or holder.draining:
            return SlotView(is_surplus=is_surplus)
        cells = self._shared.rows.row(holder.row)
        return SlotView(
            row=holder.row,
            is_ready=holder.ready_at is not None,
            is_accepting=bool(cells[ACCEPTING]),
            age=self._watch.age(cells[BEAT_MS], now),
            load=cells[LOAD],
            reach=holder.reach,
            is_surplus=is_surplus,
        )

    def _write(
        self, holders: Sequence[ChildProcess | None], verdicts: Sequence[SlotVerdict], parts: Sequence[int]
    ) -> None:
        for slot, (holder, verdict, part) in enumerate(zip(holders, verdicts, parts, strict=True)):
            cells = self._shared.slots.row(slot)
            was = cells[SLOT_STATE]
            cells[ADOPTER], cells[SHARE] = verdict.adopter, part
            cells[SLOT_PID] = holder.pid if holder is not None else 0
            cells[SLOT_STATE] = verdict.state
            if verdict.state == was:
                continue
            tell = self._log.info if verdict.state in WORTH_A_LINE and was != SLOT_UNUSED else self._log.debug
            then = {"then": f"row {verdict.adopter} accepts from its queue"} if verdict.adopter else {}
            tell("steer", slot=slot, state=NAMES[verdict.state], share=f"{part}/1000", **then)

    def _steer(self, role: str, parts: list[int], steer: bool) -> None:
        steered = False
        for group in self._sockets.groups.values():
            if group.bind.role != role or group.shared or not group.is_steerable:
                continue
            if steer and is_material(group.steered_by, parts) and len(group.sockets) == len(parts):
                self._tell_kernel(group, parts)
            elif not steer and group.steered_by:
                self._tell_kernel(group, portions([1.0] * len(group.sockets)))  # as even as the plain hash
            steered |= steer and bool(group.steered_by)
        self._shared.rows.row(MASTER_ROW)[MASTER_STEERED] = int(steered)

    def _tell_kernel(self, group: SocketGroup, parts: list[int]) -> None:
        try:
            attach(group.sockets[0].sock, program(parts))
        except OSError as error:
            group.is_steerable = False
            group.steered_by = []
            self._log.warning(
                "steer",
                address=group.address,
                error=error.strerror or error,
                then="the kernel's plain hash stays",
            )
            return
        group.steered_by = parts
        self._log.debug("steer", address=group.address, shares=",".join(map(str, parts)))

    def _ring(self, row: int) -> None:
        if row:
            send(int(self._shared.rows.row(row)[PID]), signal.SIGURG)
