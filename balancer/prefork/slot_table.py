"""The slots table: which process serves each queue, which one adopts it, what share of new connections goes there.

RULES: runs in the master; the only writer of the slots table. Verdicts (slots.py) and shares (steering.py) are computed
by pure functions; here the board is read, the table written, adopters are woken, the kernel is told the shares.
"""

import signal
from collections.abc import Sequence

from balancer.prefork.children import ChildProcess
from balancer.prefork.processes import ProcessManager
from balancer.prefork.slots import NAMES, SlotVerdict, SlotView, eligible_loads, judge
from balancer.prefork.sockets import SocketGroup
from balancer.prefork.steering import Smoother, attach, is_material, portions, program, shares
from balancer.shm.layout import (
    ACCEPTING,
    ADOPTER,
    BEAT_MS,
    LOAD,
    MASTER_STEERED,
    PID,
    SHARE,
    SLOT_EMPTY,
    SLOT_HUNG,
    SLOT_PID,
    SLOT_STATE,
    SLOT_UNUSED,
)

LOGGED_AS_INFO = frozenset({SLOT_HUNG, SLOT_EMPTY})


class SlotTable:
    """Keeps the slots table up to date."""

    def __init__(self, processes: ProcessManager) -> None:
        self._processes = processes
        self._shared = processes.shared
        self._log = processes.log
        self._smoother = Smoother()

    def refresh(self, now: float, wanted: int, slots: int) -> None:
        """Look at every slot of the listening role, in the generation that serves, and act on what is seen."""
        processes, table = self._processes, self._shared.slots
        plan = processes.plan
        role = plan.listening()
        holders = [processes.children.holder(processes.current, role, slot) for slot in range(slots)]
        views = [self._view(holder, slot >= wanted, now) for slot, holder in enumerate(holders)]
        before = [int(table.cells[slot * table.columns + ADOPTER]) for slot in range(slots)]
        verdicts = judge(views, before)
        parts = shares(self._smoother.smooth(eligible_loads(views, verdicts), now))
        self._write(holders, verdicts, parts)
        self._steer(role, parts, plan.steering)
        for row in {v.adopter for v, was in zip(verdicts, before, strict=True) if v.adopter != was}:
            self._wake(row)

    def _view(self, holder: ChildProcess | None, is_surplus: bool, now: float) -> SlotView:
        if holder is None or holder.draining:
            return SlotView(is_surplus=is_surplus)
        cells = self._shared.rows.row(holder.row)
        return SlotView(
            row=holder.row,
            is_ready=holder.ready_at is not None,
            is_accepting=bool(cells[ACCEPTING]),
            age=self._processes.watch.age(cells[BEAT_MS], now),
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
            is_info = verdict.state in LOGGED_AS_INFO and was != SLOT_UNUSED
            tell = self._log.info if is_info else self._log.debug
            then = {"then": f"row {verdict.adopter} accepts from its queue"} if verdict.adopter else {}
            tell("steer", slot=slot, state=NAMES[verdict.state], share=f"{part}/1000", **then)

    def _steer(self, role: str, parts: list[int], steer: bool) -> None:
        """One table of shares for all addresses; the kernel keeps a program for each group of sockets."""
        steered = False
        for group in self._processes.sockets.groups:
            if group.bind.role != role or group.is_shared or not group.is_steerable:
                continue
            if steer and is_material(group.steered_by, parts) and len(group.sockets) == len(parts):
                self._attach(group, parts)
            elif not steer and group.steered_by:
                self._attach(group, portions([1.0] * len(group.sockets)))  # as even as the plain hash
            steered |= steer and bool(group.steered_by)
        self._processes.row[MASTER_STEERED] = int(steered)

    def _attach(self, group: SocketGroup, parts: list[int]) -> None:
        try:
            attach(group.sockets[0], program(parts))
        except OSError as error:
            group.is_steerable = False
            group.steered_by = []
            reason = error.strerror or error
            self._log.warning(
                "steer", address=group.address, error=reason, then="the kernel's plain hash stays"
            )
            return
        group.steered_by = parts
        self._log.debug("steer", address=group.address, shares=",".join(map(str, parts)))

    def _wake(self, row: int) -> None:
        if row:
            self._processes.send(int(self._shared.rows.row(row)[PID]), signal.SIGURG)
