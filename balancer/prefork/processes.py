"""The master's child processes: fork the due ones, hear which are ready, reap the dead, end the hung.

RULES: runs in the master only, never blocks. Decides nothing about generations (generations.py) and nothing about
back-off (children.py). The only writer of the master's row and of RETIRED_ROW.
"""

import os
import signal
from collections.abc import Callable, Iterable

from balancer.eventloop.log import Log
from balancer.eventloop.signals import send
from balancer.prefork.channels import Channels
from balancer.prefork.child import EXIT_CUT, READY_WORD, ChildSpec, send_drain, send_sockets
from balancer.prefork.children import ChildProcess, Children, Leases, NoLease, Place
from balancer.prefork.fork import ChildParts, fork_child, seed_row
from balancer.prefork.plan import Plan
from balancer.prefork.slots import DUMP_TIME, HeartbeatWatch, wants_abort
from balancer.prefork.sockets import BySlot, ListeningSocket, PlanSockets, SocketGroup, Sockets
from balancer.shm.events import EventWriter, tell
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
    """All processes of one master.

    `plans` and `listening` have what each living generation was forked from: its plan, and the sockets of that plan.
    """

    def __init__(
        self,
        shared: Shared,
        sockets: Sockets,
        log: Log,
        now: float,
        send: Callable[[int, int], object] = send,
    ) -> None:
        self.shared = shared
        self.sockets = sockets
        self.log = log
        self.send = send
        self.children = Children(Leases(FIRST_LEASE, shared.rows.rows))
        self.channels = Channels()
        self.watch = HeartbeatWatch(now)
        self.plans: dict[int, Plan] = {}
        self.listening: dict[int, PlanSockets] = {}
        self.current = 0  # the generation that serves
        self.is_stopping = False
        self.events = EventWriter(shared.events, MASTER_ROW)
        self._owed: dict[int, list[SocketGroup]] = {}  # pid -> groups whose new sockets it has not been sent
        self.was_cut = False  # a process ended with sessions left, by the master's order
        self.close_masters: Callable[[], None] = lambda: (
            None
        )  # in a child: close what only the master may hold
        self.row = shared.rows.row(MASTER_ROW)
        self.ready_fd, self._ready_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def plan(self) -> Plan:
        """Of the generation that serves."""
        return self.plans[self.current]

    # -- forks --

    def want_all(self, generation: int, plan: Plan, listening: PlanSockets, now: float) -> None:
        """Ask for every process of a plan; they are forked in this turn. Raises OSError when there are no channels."""
        self.plans[generation], self.listening[generation] = plan, listening
        self.channels.open(plan, generation)
        for role in plan.roles:
            for slot in range(role.count):
                self.children.want(generation, role.name, slot, now)

    def fork_due(self, now: float) -> None:
        """Fork what is due. A failed fork is tried again in a second; the others serve meanwhile."""
        by_slot: dict[tuple[int, str], BySlot] = {}  # the same for all processes of a role
        for place in self.children.due(now):
            key = place.generation, place.role
            if key not in by_slot:
                by_slot[key] = self.listening[place.generation].by_slot(place.role)
            try:
                self._fork(place, by_slot[key], now)
            except (OSError, NoLease) as error:
                self.children.fork_failed(place, now)
                self.log.warning("spawn", role=place.role, slot=place.slot, error=error, then="again in 1 s")

    def _fork(self, place: Place, listening: BySlot, now: float) -> None:
        plan = self.plans[place.generation]
        row = self.children.leases.take()
        self._write_live_rows()
        addresses = self.listening[place.generation].addresses()
        spec = ChildSpec(
            place.role, place.slot, place.generation, row, os.getpid(), plan.drain_timeout, addresses
        )
        seed_row(self.shared, plan, spec, now)
        parts = ChildParts(self.shared, self.log, self.channels, listening, self._ready_writer)
        try:
            pid, control = fork_child(plan, spec, parts, lambda: self._close_in_child(listening))
        except OSError:
            self._free(row, ())
            raise
        self.row[MASTER_RESPAWNS] += place.was_held
        process = self.children.spawned(place, pid, row, now)
        process.control = control
        process.given, process.reach = len(in_order(listening)), len(listening)
        about: dict[str, object] = {"child": pid, "generation": place.generation, "row": row}
        if place.ended:
            tell(self.log, self.events, "info", "respawn", role=process, after=place.ended, **about)
        else:
            self.log.info("spawn", role=process, **about)

    def _close_in_child(self, kept: BySlot) -> None:
        """The master's pipe, the other children's control sockets, and every listening socket but those of its own
        plan and role: a generation must not serve an address that its configuration does not know."""
        os.close(self.ready_fd)
        for process in self.children.living():
            if process.control is not None:
                process.control.close()
        mine = {one.fd for one in in_order(kept)}
        for group in (*self.sockets.groups, *self.sockets.leftover):
            for sock in group.sockets:
                if sock.fileno() not in mine:
                    sock.close()
        self.close_masters()

    def hear(self, now: float) -> None:
        """Note the children that have said that they are ready."""
        try:
            words = os.read(self.ready_fd, 512 * READY_WORD.size)
        except BlockingIOError:
            return
        for (pid,) in READY_WORD.iter_unpack(words[: len(words) // READY_WORD.size * READY_WORD.size]):
            self.children.became_ready(pid, now)

    # -- deaths --

    def reap(self, now: float) -> list[tuple[int, int]]:
        """Reap every dead child; (pid, status) of those that are not registered."""
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
            self._owed.pop(pid, None)
            if process.control is not None:
                process.control.close()
            self._log_death(process, status, now)
            self._free(process.row, self.plans[process.generation].totals)
        return unknown

    def _free(self, row: int, totals: tuple[range, ...]) -> None:
        """Fold, zero, free: in this order a total may be seen twice for an instant but is never lost."""
        self.shared.rows.fold(row, RETIRED_ROW, totals)
        self.children.leases.give_back(row)
        self._write_live_rows()

    def _log_death(self, process: ChildProcess, status: int, now: float) -> None:
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
            words["hint"] = "out of memory, or a kill -9"
        place = self.children.places.get((process.generation, process.role, process.slot))
        if self.is_stopping and place is not None and not code and not self._serves_children(process):
            # A TERM to the process group: no replacement.
            self.children.unwant(*place.key)
            place = None
        if process.draining or place is None:
            self.log.info("reap", **words)
            return
        place.ended = f"exit {code}" if code >= 0 else f"signal {-code}"
        if self.is_stopping:
            self.log.warning("reap", **words, then="a new one for the sessions that are left")
            return
        delay = max(0.0, place.due - now)
        words["failures"] = place.failures
        self.log.warning("reap", **words, then=f"a new one in {delay:g} s" if delay else "a new one at once")

    def _serves_children(self, process: ChildProcess) -> bool:
        return self.plans[process.generation].role(process.role).channel

    # -- the watchdog --

    def end_the_hung(self, now: float) -> float | None:
        """SIGABRT (a stack dump), then SIGKILL, to processes whose heartbeat stands still; when to look again before the
        next tick."""
        again: float | None = None
        for process in self.children.living():
            if process.aborted_at is not None:
                if now - process.aborted_at >= DUMP_TIME:
                    process.killed = True
                    self.send(process.pid, signal.SIGKILL)
                else:
                    again = process.aborted_at + DUMP_TIME
                continue
            hang_after = self.plans[process.generation].role(process.role).hang_after
            age = self.watch.age(self.shared.rows.row(process.row)[BEAT_MS], now)
            if wants_abort(age, process.ready_at is not None, hang_after):
                tell(
                    self.log,
                    self.events,
                    "error",
                    "hang",
                    role=process,
                    child=process.pid,
                    silent=f"{age:.2f}/{hang_after:g}s",
                    then=f"dump its stack, kill it in {DUMP_TIME:g} s, replace it",
                )
                self.row[MASTER_HANGS] += 1
                process.aborted_at = now
                self.send(process.pid, signal.SIGABRT)
                again = now + DUMP_TIME
        return again

    # -- messages to children --

    def extend_reach(self) -> None:
        """Send living processes the sockets of slots made after their fork: without them they cannot adopt such a
        slot."""
        for process in self.children.living():
            listening = self.listening[process.generation]
            is_complete = process.reach >= listening.slots(process.role)
            if is_complete or process.draining or process.control is None:
                continue
            sockets = in_order(listening.by_slot(process.role))
            process.given = send_sockets(process.control, sockets, process.given)
            rest = sockets[process.given :]
            process.reach = rest[0].slot if rest else listening.slots(process.role)

    def send_again(self, groups: Iterable[SocketGroup]) -> None:
        """Send living processes the new sockets of these groups, in this tick or as soon as they take them."""
        for group in groups:
            for process in self.children.living():
                pairs = self.listening[process.generation].pairs
                if any(one is group and bind.role == process.role for bind, one in pairs):
                    self._owed.setdefault(process.pid, []).append(group)
        for pid, owed in list(self._owed.items()):
            owed[:] = [group for group in owed if not self._has_sent(self.children.processes[pid], group)]
            if not owed:
                del self._owed[pid]

    def _has_sent(self, process: ChildProcess, group: SocketGroup) -> bool:
        if process.control is None or process.draining or group not in self.sockets.groups:
            return True
        every = in_order(self.listening[process.generation].by_slot(process.role))
        sockets = [one for one in every if one.address == group.address]
        return send_sockets(process.control, sockets, 0) == len(sockets)

    def drain(self, process: ChildProcess, within: float) -> None:
        """Tell a process to end within so many seconds; inf: when its sessions have ended. May be called again."""
        if process.control is not None:
            send_drain(process.control, within)
        self.send(process.pid, signal.SIGTERM)

    def tell_all(self, number: int) -> None:
        for process in self.children.living():
            self.send(process.pid, number)

    def _write_live_rows(self) -> None:
        self.row[MASTER_LIVE_ROWS] = self.children.leases.end

    def forget(self, generation: int) -> None:
        """The last process of a generation is gone."""
        self.channels.close(generation)
        self.plans.pop(generation, None)
        self.listening.pop(generation, None)


def in_order(listening: BySlot) -> list[ListeningSocket]:
    """The sockets one after another, by slot."""
    return [one for slot in sorted(listening) for one in listening[slot]]
