"""The master's hands: fork who is due, hear who is ready, reap who died, end who hangs.

RULES: runs in the master only, never blocks, decides nothing about lifecycle (master.py, reload.py, retire.py do) and
nothing about back-off (children.py does). The only writer of the master's row and of RETIRED_ROW.
"""

import os
import signal
from collections.abc import Callable

from balancer.eventloop.log import Log
from balancer.eventloop.signals import send
from balancer.prefork.child import EXIT_CUT
from balancer.prefork.children import ChildProcess, Children, Leases, NoLease, Place
from balancer.prefork.fork import Nursery, Seat
from balancer.prefork.plan import Plan
from balancer.prefork.slots import DUMP_TIME, HeartbeatWatch, wants_abort
from balancer.prefork.sockets import Sockets
from balancer.shm.layout import (
    BEAT_MS,
    FIRST_LEASE,
    MASTER_HANGS,
    MASTER_LIVE_ROWS,
    MASTER_RESPAWNS,
    MASTER_ROW,
    Shared,
)
from balancer.shm.table import RETIRED_ROW


class ProcessManager:
    """All processes of one master. `plans` has the plan each living generation was forked from."""

    def __init__(self, shared: Shared, sockets: Sockets, log: Log, now: float) -> None:
        self.shared = shared
        self.sockets = sockets
        self.log = log
        self.children = Children(Leases(FIRST_LEASE, shared.rows.rows))
        self.nursery = Nursery(shared)
        self.watch = HeartbeatWatch(now)
        self.plans: dict[int, Plan] = {}
        self.current = 0  # the generation that serves
        self.was_cut = False  # a process ended with sessions left, by our order
        self.drop: Callable[[], None] = lambda: None  # what a child closes of the master's own
        self.row = shared.rows.row(MASTER_ROW)

    # -- births --

    def want_all(self, generation: int, plan: Plan, now: float) -> None:
        """Ask for every process of a plan; they are forked in this turn."""
        self.plans[generation] = plan
        self.nursery.open_channels(plan, generation)
        for role in plan.roles:
            for slot in range(role.count):
                self.children.want(generation, role.name, slot, now)

    def spawn_due(self, now: float) -> None:
        """Fork who is due. A failed fork is tried again in a second; the others serve meanwhile."""
        for place in self.children.due(now):
            try:
                self._spawn(place, now)
            except (OSError, NoLease) as error:
                self.children.fork_failed(place, now)
                self.log.warning("spawn", role=place.role, slot=place.slot, error=error, then="again in 1 s")

    def _spawn(self, place: Place, now: float) -> None:
        plan = self.plans[place.generation]
        role = plan.roles[plan.role_index(place.role)]
        row = self.children.leases.take()
        self._write_live_rows()
        seat = Seat(role, place.slot, place.generation, row)
        self.nursery.seed(plan, seat, now)
        try:
            pid, control = self.nursery.fork(plan, seat, self.sockets, self.log, self._drop_in_child)
        except OSError:
            self._free(row, ())
            raise
        self.row[MASTER_RESPAWNS] += place.was_held
        process = self.children.spawned(place, pid, row, now)
        process.control, process.reach = control, len(self.sockets.of_role(place.role))
        self.log.info("spawn", role=process, child=pid, generation=place.generation, row=row)

    def hear(self, now: float) -> None:
        """Take the words of children that got ready."""
        for pid in self.nursery.hear():
            self.children.became_ready(pid, now)

    # -- deaths --

    def reap(self, now: float) -> list[tuple[int, int]]:
        """Reap every dead child; (pid, status) of those that are not in the registry."""
        unknown: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            process = self.children.reaped(pid, now)
            if process is None:
                unknown.append((pid, status))
                continue
            if process.control is not None:
                process.control.close()
            self._tell_death(process, status, now)
            self._free(process.row, self.plans[process.generation].totals)
        return unknown

    def _free(self, row: int, totals: tuple[range, ...]) -> None:
        """Fold, zero, free: in this order a total may be seen twice for an instant but is never lost."""
        self.shared.rows.fold(row, RETIRED_ROW, totals)
        self.children.leases.give_back(row)
        self._write_live_rows()

    def _tell_death(self, process: ChildProcess, status: int, now: float) -> None:
        code = os.waitstatus_to_exitcode(status)
        if process.draining and (code == EXIT_CUT or process.killed):
            self.was_cut = True
        words: dict[str, object] = {
            "role": process,
            "child": process.pid,
            "lived": f"{now - process.started:.3f}s",
        }
        words["exit" if code >= 0 else "signal"] = abs(code)
        if code == -signal.SIGKILL and not process.killed:
            words["hint"] = "out of memory, or somebody's kill -9"
        place = self.children.places.get((process.generation, process.role, process.slot))
        if process.draining or place is None:
            self.log.info("reap", **words)
            return
        delay = max(0.0, place.due - now)
        words["failures"] = place.failures
        self.log.warning("reap", **words, then=f"a new one in {delay:g} s" if delay else "a new one at once")

    # -- the watchdog --

    def end_the_hung(self, now: float) -> float | None:
        """Stack dump, then death, to processes whose heartbeat stands still; when to look again before the next tick."""
        again: float | None = None
        for process in self.children.living():
            if process.aborted_at is not None:
                if now - process.aborted_at >= DUMP_TIME:
                    process.killed = True
                    send(process.pid, signal.SIGKILL)
                else:
                    again = process.aborted_at + DUMP_TIME
                continue
            plan = self.plans[process.generation]
            hang_after = plan.roles[plan.role_index(process.role)].hang_after
            age = self.watch.age(self.shared.rows.row(process.row)[BEAT_MS], now)
            if wants_abort(age, process.ready_at is not None, hang_after):
                self.log.error(
                    "hang",
                    role=process,
                    child=process.pid,
                    silent=f"{age:.2f}/{hang_after:g}s",
                    then=f"dump its stack, kill it in {DUMP_TIME:g} s, replace it",
                )
                self.row[MASTER_HANGS] += 1
                process.aborted_at = now
                send(process.pid, signal.SIGABRT)
                again = now + DUMP_TIME
        return again

    # -- words to all --

    def extend_reach(self) -> None:
        """Sockets of slots made after a process was forked: it must have them before it can be named their adopter."""
        for process in self.children.living():
            plan = self.plans[process.generation]
            if process.draining or process.role != plan.listening():
                continue
            self.nursery.extend(process, self.sockets.of_role(process.role))

    def _drop_in_child(self) -> None:
        for process in self.children.living():
            if process.control is not None:
                process.control.close()
        self.drop()

    def tell_all(self, number: int) -> None:
        for process in self.children.living():
            send(process.pid, number)

    def _write_live_rows(self) -> None:
        self.row[MASTER_LIVE_ROWS] = self.children.leases.end

    def forget(self, generation: int) -> None:
        """The last process of a generation is gone."""
        self.nursery.close_channels(generation)
        self.plans.pop(generation, None)
