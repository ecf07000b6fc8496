"""What the master is about: serving, reloading, growing and shrinking, handing over, stopping.

RULES: runs in the master, never blocks; every wish is noted at once and carried further by `advance` each turn. One
reload at a time; HUPs during it become one more. Nothing is ever closed but the ports a reload removed, and those last.
"""

import os
import signal

from balancer.eventloop.signals import send
from balancer.prefork.child import EXIT_CUT
from balancer.prefork.handover import Handover
from balancer.prefork.notify import Notifier
from balancer.prefork.pidfile import PidFile
from balancer.prefork.plan import Plan, Service
from balancer.prefork.processes import ProcessManager
from balancer.prefork.reload import MOST_GENERATIONS, GivenUp, PlanChanges, Reload, ReloadReport, compare
from balancer.prefork.retire import Retirement
from balancer.prefork.sockets import CannotBind
from balancer.shm.layout import MASTER_GENERATION, MASTER_UPCOMING, MAX_SLOTS

QUEUE_GRACE = (
    0.2  # seconds between telling workers to drain and closing a port: they take what is queued first
)


class Lifecycle:
    """State of the master beyond its processes."""

    def __init__(
        self,
        processes: ProcessManager,
        service: Service,
        pidfile: PidFile | None,
        notifier: Notifier,
        is_heir: bool,
    ) -> None:
        self.processes = processes
        self.log = processes.log
        self.notifier = notifier
        self.wanted = 0
        self.slots = 0
        self.is_stopping = False
        self.is_superseded = False
        self._service = service
        self._is_heir = is_heir  # started by a former master, who goes on if we fail
        self._pidfile = pidfile
        self._outcome = ReloadReport(processes)
        self._generation = 0
        self._is_ready = False
        self._wants_reload = False
        self._reload: Reload | None = None
        self._retiring: list[Retirement] = []
        self._closing: tuple[float, list[tuple[str, object]]] | None = None
        self._handover = Handover(processes.log, processes.sockets)

    @property
    def plan(self) -> Plan:
        return self.processes.plans[self.processes.current]

    # -- boot --

    def begin(self, plan: Plan, wanted: int, now: float) -> None:
        """Ask for the first generation. A former master may have left sockets for more slots than it wants."""
        self.wanted, self.slots = wanted, max(wanted, self.processes.sockets.slots())
        self._generation = self.processes.current = self.processes.row[MASTER_GENERATION] = 1
        self.processes.want_all(1, plan, now)
        self.processes.spawn_due(now)

    def now_ready(self, now: float) -> None:
        """Every process of the first generation serves."""
        self._is_ready = True
        if self._pidfile is not None:
            self._pidfile.write(os.getpid())
        self.notifier.ready(self.status())

    # -- one turn --

    def advance(self, now: float) -> None:
        """Carry everything that is under way one step further."""
        for retirement in list(self._retiring):
            if retirement.advance(now):
                self._retiring.remove(retirement)
                self.processes.forget(retirement.generation)
                self._service.retired(retirement.generation)
        if self._closing is not None and now >= self._closing[0]:
            self._close_ports()
        if self._handover.hear(now):
            self.is_superseded = True
            self._retire_all(now, is_final=False)
            self.notifier.superseded(
                self._handover.pid
            )  # last: a reload given up just now has named ourselves
        if self._reload is not None:
            self._step_reload(self._reload, now)
        if self._wants_reload and self._reload is None and self._is_ready and not self.is_stopping:
            self._begin_reload(now)

    def tick(self, now: float) -> None:
        if not self._is_ready:
            return
        self.notifier.beat(now)
        if not self.is_stopping:
            self.notifier.status(self.status())

    def next_moment(self) -> float | None:
        """When something is due between two ticks."""
        return self._closing[0] if self._closing is not None else None

    def fds(self) -> list[int]:
        """Descriptors that wake the master for us."""
        return self._handover.fds()

    def exit_code(self) -> int | None:
        """None while there is something left to do."""
        if not self.is_stopping or self.processes.children.processes or self._retiring:
            return None
        code = EXIT_CUT if self.processes.was_cut else 0
        self.log.info("stop", exit=code, superseded="yes" if self.is_superseded else "no")
        return code

    # -- stop --

    def stop(self, now: float) -> None:
        """Drain everyone, within the drain timeout; asked again: now."""
        if self.is_stopping:
            self.cut(now)
            return
        self._retire_all(now, is_final=True)
        self.notifier.stopping()
        plan = self.processes.plans[max(self.processes.plans)]
        self.log.info("stop", within=f"{plan.drain_timeout:g}s", then="workers finish their sessions")
        listening = plan.listening()
        keys: list[tuple[str, object]] = [
            key for key, group in self.processes.sockets.groups.items() if group.bind.role == listening
        ]
        self._closing = (now + QUEUE_GRACE, keys)

    def cut(self, now: float) -> None:
        """Everyone finishes at once."""
        if not self.is_stopping:
            self._retire_all(now, is_final=True)
            self.notifier.stopping()
        self.log.info("stop", within="0s", then="sessions are cut")
        for retirement in self._retiring:
            retirement.cut(now)

    def _retire_all(self, now: float, is_final: bool) -> None:
        self._wants_reload = False
        if self._reload is not None:
            self._give_up_reload(self._reload, "the master is told to stop", now)
        self._handover.call_off()
        self.processes.was_cut = False  # what a reload has cut, maybe weeks ago, says nothing about this stop
        self.is_stopping = True
        retiring = {retirement.generation for retirement in self._retiring}
        for generation in self.processes.children.generations():
            if generation not in retiring:
                self._retiring.append(Retirement(self.processes, generation, is_final, now))

    # -- reload --

    def ask_reload(self) -> None:
        """HUP; any number of them while one is under way become one more."""
        if not self.is_stopping:
            self._wants_reload = True

    def _begin_reload(self, now: float) -> None:
        alive = self.processes.children.generations()
        if len(alive) >= MOST_GENERATIONS:
            for retirement in self._retiring[:1]:
                if not retirement.is_cut:
                    self.log.info(
                        "drain", generation=retirement.generation, then="cut: too many generations alive"
                    )
                retirement.cut(now)
            return  # tried again each turn until the oldest is gone
        self._wants_reload = False
        self._close_ports()
        self.notifier.reloading(now)
        self._generation += 1
        self.processes.row[MASTER_UPCOMING] = self._generation
        try:
            self._reload = Reload(self.processes, self._service, self._generation, self.slots, now)
        except GivenUp as reason:
            self._service.retired(self._generation)
            self._tell_reload(now, str(reason), PlanChanges())
            return
        self.slots = max(self.slots, self._reload.slots)  # sockets stay, even if the reload is given up

    def _step_reload(self, reload: Reload, now: float) -> None:
        try:
            if reload.step(now):
                self._commit(reload, now)
        except GivenUp as reason:
            self._give_up_reload(reload, str(reason), now)

    def _commit(self, reload: Reload, now: float) -> None:
        """The new generation serves: the old one drains."""
        old = self.processes.current
        self._reload = None
        reload.take_over_options()
        removed = reload.removed()
        self.processes.current = self.processes.row[MASTER_GENERATION] = reload.generation
        self.wanted, self.slots = reload.wanted, max(self.slots, reload.slots)
        self._retiring.append(Retirement(self.processes, old, is_final=False, now=now))
        self.log.level = reload.plan.loglevel
        if removed:
            self._closing = (now + QUEUE_GRACE, removed)
        self._tell_reload(now, "", compare(reload.old, reload.plan))

    def _give_up_reload(self, reload: Reload, reason: str, now: float) -> None:
        """Processes of the new generation may hold sessions already: they drain like any other."""
        self._reload = None
        self._retiring.append(Retirement(self.processes, reload.generation, is_final=False, now=now))
        self._tell_reload(now, reason, PlanChanges())

    def _tell_reload(self, now: float, error: str, difference: PlanChanges) -> None:
        self._outcome.tell(now, error, difference)
        self.notifier.ready(f"reload failed: {error}" if error else self.status())

    def _close_ports(self) -> None:
        """What a reload removed, or all of the listening role at the final stop."""
        if self._closing is None:
            return
        groups = {
            key: group for key, group in self.processes.sockets.groups.items() if key in self._closing[1]
        }
        self._closing = None
        self.processes.sockets.remove(groups)
        for group in groups.values():
            self.log.info("unbind", address=group.address, then="new clients are refused")

    # -- grow and shrink --

    def scale(self, wanted: int, now: float) -> None:
        """So many processes of the listening role from now on; a slot that has no process keeps its sockets."""
        wanted = min(max(1, wanted), self.plan.most or MAX_SLOTS)
        if self.is_stopping or wanted == self.wanted:
            return
        role, generation = self.plan.listening(), self.processes.current
        if wanted > self.slots:
            try:
                self.processes.sockets.grow(wanted)
            except CannotBind as error:
                self.log.error("scale", error=error, workers=f"{self.wanted}/{wanted}", then="stay as we are")
                return
        for slot in range(self.wanted, wanted):
            self.processes.children.want(generation, role, slot, now)
        leaving = [
            self.processes.children.unwant(generation, role, slot) for slot in range(wanted, self.wanted)
        ]
        self.log.info("scale", workers=f"{self.wanted}->{wanted}", slots=max(self.slots, wanted))
        self.wanted, self.slots = wanted, max(self.slots, wanted)
        self.processes.extend_reach()
        for process in leaving:
            if process is not None:
                send(process.pid, signal.SIGTERM)

    # -- upgrade --

    def upgrade(self, now: float) -> None:
        """USR2: start this program anew with our sockets; we serve until it says that it does."""
        if self.is_stopping or not self._is_ready:
            self.log.warning("upgrade", then="refused: not now")
            return
        self._handover.start(now, self._pidfile, self.plan.handover_state())

    def unknown_child_died(self, pid: int, status: int) -> None:
        """A pid that is no child of the registry: the successor, or an orphan given to us as a container's init."""
        self._handover.unknown_child_died(pid, os.waitstatus_to_exitcode(status))

    # -- words --

    def status(self) -> str:
        plural = "s" if self.wanted != 1 else ""
        return f"{self.wanted} {self.plan.listening()}{plural}, generation {self.processes.current}"

    def title(self) -> str:
        """What `ps` shows after the program's name."""
        if self.is_superseded:
            return "master [draining, another one serves]"
        if self.is_stopping:
            return f"master [stopping, {len(self.processes.children.processes)} processes left]"
        role = self.plan.listening()
        return f"master [{self.wanted} {role}{'s' if self.wanted != 1 else ''}]"

    # -- the end --

    def drop_in_child(self) -> None:
        """In a forked child: what only a master may hold."""
        self.notifier.close()
        if self._pidfile is not None:
            os.close(self._pidfile.fd)
        self._handover.drop_in_child()

    def leave(self) -> None:
        """The master's last act: nothing of ours stays behind, unless a successor uses it."""
        others_hold_it = self.is_superseded or (self._is_heir and not self._is_ready)
        if not others_hold_it:
            self.processes.sockets.unlink()
        if self._pidfile is not None:
            self._pidfile.release(keep=others_hold_it)
        self.log.flush()
