"""Generations of processes: the one that serves, one that a reload brings up beside it, those that drain.

RULES: runs in the master, never blocks; `advance` carries everything one step further each turn.
- Everything in a reload that can fail comes before the old generation hears of it. When it fails, the old generation has
  not noticed; the reason is in the log and in the notice that the console reads. HUPs during a reload become one more
  reload.
- Success is told when no process of an older generation accepts any more: who reads it meets the new configuration with
  every connection from then on. A process that hangs is killed before SETTLE_WITHIN, after which it is told anyway.
- A generation sees the sockets of its own plan only, under the names of its own plan.
- A reload to an equal plan (changes.is_same) forks nothing and says so.
- Sessions of an old generation have its reload timeout, which may be for ever. At most MOST_GENERATIONS live: the next
  reload waits until the oldest is gone, which then has the drain timeout. So has every one at a stop.
- Nothing binds while a successor starts (`may_bind`): reloads and growth wait for its end, or are owed to it.
- Only removed addresses are closed, as the last step of a reload: not before the processes that served them accept no
  more. Where a kept address covers a removed one (0.0.0.0 after 127.0.0.1), the removed one has no new clients meanwhile:
  those that came after its processes accept no more, and before it is closed, would be reset.

    reload:      read -> bind what is new -> fork -> all ready -> old ones drain -> close what was removed -> report
                   |         |                 |
                   +---------+-----------------+--> given up: unbind, let the new ones go, the old configuration stays
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from balancer.config.option import ConfigError
from balancer.config.units import counted
from balancer.eventloop.log import Log
from balancer.prefork.bind import CannotBind
from balancer.prefork.changes import PlanChanges, compare, is_same, obstacle, report
from balancer.prefork.children import ChildProcess
from balancer.prefork.notify import Notifier
from balancer.prefork.plan import Plan, Service
from balancer.prefork.processes import ProcessManager
from balancer.prefork.retirement import Retirement, reload_window
from balancer.prefork.sockets import PlanSockets, SocketGroup
from balancer.shm.events import tell
from balancer.shm.layout import (
    ACCEPTING,
    DRAINING,
    LOAD,
    MASTER_GENERATION,
    MASTER_RELOADS,
    MASTER_UPCOMING,
    MAX_SLOTS,
    STATE,
)

READY_WITHIN = 12.0  # seconds for a whole new generation
MOST_GENERATIONS = 16  # alive at once
QUEUE_GRACE = (
    0.2  # seconds that draining processes have to empty the queues of an address before a stop closes it
)
SETTLE_WITHIN = 5.0  # seconds that a reload waits for them at most, to close and to report; hangs end earlier
LOOK = 0.01  # seconds between two looks whether they have


class GivenUp(Exception):
    """The reload stops here; the text is the reason."""


class Reload:
    """One reload under way. `step` is called every turn until it returns True (commit) or raises GivenUp."""

    def __init__(
        self, processes: ProcessManager, plan: Plan, generation: int, slots: int, now: float
    ) -> None:
        """Bind, ask for the new processes. Raises GivenUp with nothing changed."""
        self.generation = generation
        self._processes = processes
        self._deadline = now + READY_WITHIN
        self.old = processes.plan
        self.plan = plan
        log_notes(self.plan, processes.log)
        self.wanted = self.plan.role(self.plan.listening()).count
        self.slots = max(slots, self.wanted)
        self.listening = PlanSockets()
        try:
            self.listening = processes.sockets.open(self.plan.binds, self.slots)
            processes.sockets.grow(self.slots)
        except CannotBind as error:
            self._unbind()
            raise GivenUp(str(error)) from error
        try:
            processes.want_all(generation, self.plan, self.listening, now)
        except OSError as error:
            self._unbind()
            processes.forget(generation)
            raise GivenUp(f"no channels for the new processes: {error.strerror}") from error

    def step(self, now: float) -> bool:
        """True once every new process is ready. Raises GivenUp when one died before, or time is up."""
        children = self._processes.children
        for place in children.of_generation(self.generation):
            if place.unready_deaths:
                self._unbind()
                raise GivenUp(f"the new {place.role} {place.slot} died before it was ready")
        if children.is_all_ready(self.generation):
            return True
        if now > self._deadline:
            self._unbind()
            raise GivenUp(f"the new generation was not ready within {READY_WITHIN:g} s")
        return False

    def _unbind(self) -> None:
        self._processes.sockets.remove(self.listening.added)
        self.listening = PlanSockets()

    def removed(self) -> list[SocketGroup]:
        """Groups of sockets that the new plan does not bind."""
        kept = [group for _, group in self.listening.pairs]
        return [group for group in self._processes.sockets.groups if group not in kept]

    def rebind(self) -> None:
        """Addresses that stay: the name, backlog, options and mode of the new plan."""
        for bind, group in self.listening.pairs:
            if group.bind != bind:
                group.rebind(bind)


@dataclass
class Closing:
    """Addresses about to be closed: when at the latest, and when to look again."""

    groups: Sequence[SocketGroup]
    deadline: float
    look_at: float


@dataclass
class Settling:
    """A reload in force: its report, when it is given at the latest, and when to look again."""

    changes: PlanChanges
    deadline: float
    look_at: float


class Generations:
    """All generations of one master. `wanted`: processes of the listening role; `slots`: how many of them own sockets."""

    def __init__(self, processes: ProcessManager, service: Service, notifier: Notifier) -> None:
        self.wanted = 0
        self.slots = 0
        self._processes = processes
        self._service = service
        self._notifier = notifier
        self._log = processes.log
        self._newest = 0
        self._reports = 0
        self._wants_reload = False
        self._may_bind = True
        self._growth = 0  # how many processes are wanted, where sockets for them may not be made now
        self._needs_room = False  # the reload that is wanted waits for the end of the oldest generation
        self._reload: Reload | None = None
        self._retiring: list[Retirement] = []
        self._closing: Closing | None = None
        self._settling: Settling | None = None

    # -- the first one --

    def begin(self, plan: Plan, listening: PlanSockets, now: float) -> None:
        """Ask for the first generation. A former master may have left sockets for more slots than are wanted."""
        self.wanted = plan.role(plan.listening()).count
        self.slots = max(self.wanted, self._processes.sockets.slots())
        self._newest = self._processes.current = self._processes.row[MASTER_GENERATION] = 1
        self._processes.want_all(1, plan, listening, now)

    def close_leftover(self, now: float) -> None:
        """The first generation serves. Close the addresses of a former master that the configuration does not have
        any more, once its processes have emptied the queues."""
        if self._processes.sockets.leftover:
            self._close_soon(self._processes.sockets.leftover, now, look_at=now + QUEUE_GRACE)

    # -- one turn --

    def advance(self, now: float, may_bind: bool, may_reload: bool = True) -> None:
        """Carry everything that is under way one step further. `may_bind`: slots may be added, and a reload may begin if
        `may_reload`."""
        self._may_bind = may_bind
        for retirement in list(self._retiring):
            if retirement.advance(now):
                self._retiring.remove(retirement)
                self._processes.forget(retirement.generation)
                self._service.retired(retirement.generation)
        if self._closing is not None and now >= self._closing.look_at:
            if now >= self._closing.deadline or not self._is_accepting(self._closing.groups):
                self._close_now()
            else:
                self._closing.look_at = now + LOOK
        if self._settling is not None and now >= self._settling.look_at:
            self._settle(self._settling, now)
        if self._reload is not None:
            self._step_reload(self._reload, now)
        if may_bind and not self.is_stopping:
            if self._growth:
                self.scale(self._growth, now)
            if self._wants_reload and self._reload is None and self._settling is None and may_reload:
                self._begin_reload(now)

    def next_moment(self) -> float | None:
        """When something is due between two ticks."""
        moments = [each.look_at for each in (self._closing, self._settling) if each is not None]
        return min(moments, default=None)

    @property
    def is_stopping(self) -> bool:
        """Whether all generations have been told to end."""
        return self._processes.is_stopping

    @property
    def is_gone(self) -> bool:
        """Whether no process and no retirement is left."""
        return not self._processes.children.processes and not self._retiring

    @property
    def is_changing(self) -> bool:
        """Whether a reload is under way, not reported yet, or removed addresses are not closed yet."""
        return any(each is not None for each in (self._reload, self._closing, self._settling))

    @property
    def wanted_at_last(self) -> int:
        """Processes of the listening role, once growth that waits is done."""
        return self._growth or self.wanted

    def owed_signals(self) -> list[signal.Signals]:
        """What a successor that serves now has to be told: what was asked for while it started."""
        reload = [signal.SIGHUP] if self._wants_reload or self._reload is not None else []
        return reload + [signal.SIGTTIN] * (self.wanted_at_last - self.wanted)

    # -- reload --

    def ask_reload(self) -> None:
        """HUP; any number of them while one is under way become one more."""
        if not self.is_stopping:
            self._wants_reload = True

    def refresh(self, now: float) -> None:
        """Have the living processes take over what needs no new ones (see Plan.refresh)."""
        refresh = self._processes.plan.refresh
        if self.is_stopping or refresh is None:
            return
        try:
            self._report(now, "", PlanChanges(), refresh())
        except ConfigError as error:
            self._report(now, str(error), PlanChanges())

    def _begin_reload(self, now: float) -> None:
        if self._needs_room and not self._has_room():
            return
        self._needs_room = self._wants_reload = False
        self._notifier.reloading(now)
        upcoming = self._processes.row[MASTER_UPCOMING] = self._newest + 1
        try:
            plan = self._read_plan()
            if plan is None:
                self._processes.row[MASTER_RELOADS] += 1
                self._report(now, "", PlanChanges())
            elif self._has_room():
                self._close_now()
                self._newest = upcoming
                self._reload = Reload(self._processes, plan, upcoming, self.slots, now)
                self.slots = max(
                    self.slots, self._reload.slots
                )  # sockets stay, even if the reload is given up
            else:
                self._needs_room = self._wants_reload = True
                self._make_room(now)
        except GivenUp as reason:
            self._report(now, str(reason), PlanChanges())
        if self._reload is None:
            self._service.retired(upcoming)

    def _read_plan(self) -> Plan | None:
        """The new plan; None when a generation of it would be the one that serves. Raises GivenUp."""
        old, plan = self._processes.plan, read_plan(self._service, self._processes)
        reason = obstacle(old, plan)
        if reason:
            raise GivenUp(f"{reason}: that needs a restart")
        return None if is_same(old, plan) and old.role(old.listening()).count == self.wanted else plan

    def _has_room(self) -> bool:
        """Whether one more generation may live. It has about as many processes as the one that serves."""
        children = self._processes.children
        count = sum(role.count for role in self._processes.plan.roles)
        is_full = len(children.generations()) >= MOST_GENERATIONS or children.leases.free < count
        return not (is_full and self._retiring)

    def _make_room(self, now: float) -> None:
        """The oldest generation ends within the drain timeout."""
        oldest, within = self._retiring[0], self._processes.plan.drain_timeout
        if oldest.hasten(now, within):
            living = list(self._processes.children.living(oldest.generation))
            sessions = sum(self._processes.shared.rows.row(process.row)[LOAD] for process in living)
            self._log.warning(
                "drain",
                generation=oldest.generation,
                sessions=sessions,
                within=f"{within:g}s",
                then=f"cut what is left: a reload waits, and {len(self._processes.children.generations())} "
                "generations live",
            )

    def _step_reload(self, reload: Reload, now: float) -> None:
        try:
            if reload.step(now):
                self._commit(reload, now)
        except GivenUp as reason:
            self._give_up(reload, str(reason), now)

    def _commit(self, reload: Reload, now: float) -> None:
        """The new generation serves: the old one drains, then the removed addresses are closed."""
        old = self._processes.current
        self._reload = None
        reload.rebind()
        removed = reload.removed()
        kept = [group for _, group in reload.listening.pairs]
        for group in removed:
            if group.is_part_of(kept):
                group.divert()
        self._processes.current = self._processes.row[MASTER_GENERATION] = reload.generation
        self._processes.row[MASTER_RELOADS] += 1
        changes = compare(reload.old, reload.plan, self.wanted)
        self.wanted, self.slots = reload.wanted, max(self.slots, reload.slots)
        self._retire(old, is_final=False, now=now, within=reload_window(reload.old))
        self._log.apply(reload.plan.log)
        if removed:
            self._close_soon(removed, now, within=SETTLE_WITHIN)
        if not any(vars(changes).values()):
            changes = PlanChanges(changed=("settings",))
        self._settling = Settling(changes, now + SETTLE_WITHIN, now)

    def _settle(self, settling: Settling, now: float) -> None:
        """Report the reload once only its generation accepts clients, or when the time is up."""
        role, current = self._processes.plan.listening(), self._processes.current
        older = (
            process
            for process in self._processes.children.living()
            if process.role == role and process.generation != current
        )
        if now < settling.deadline and any(map(self._may_accept, older)):
            settling.look_at = now + LOOK
            return
        self._settling = None
        self._report(now, "", settling.changes)

    def _give_up(self, reload: Reload, reason: str, now: float) -> None:
        """Processes of the new generation may hold sessions already: they drain like any other."""
        self._reload = None
        self._retire(reload.generation, is_final=False, now=now, within=reload_window(reload.plan))
        self._report(now, reason, PlanChanges())

    def _report(self, now: float, error: str, changes: PlanChanges, done: str = "") -> None:
        """One JSON text in the notice, one line in the log, one word to the service manager. `error` "": success."""
        self._reports += 1
        text = error or done or str(changes)
        head = {"serial": self._reports, "ok": not error, "at_ms": int(now * 1000)}
        self._processes.shared.notice.write(report(head, text, changes))
        events = self._processes.events
        if error:
            tell(self._log, events, "error", "reload", error=error, then="the old configuration stays")
        else:
            tell(self._log, events, "info", "reload", generation=self._processes.current, result=text)
        self._notifier.ready(f"reload failed: {error}" if error else self.status())

    def status(self) -> str:
        """What the service manager shows."""
        wanted = counted(self.wanted, self._processes.plan.listening())
        return f"{wanted}, generation {self._processes.current}"

    # -- removed addresses --

    def _close_soon(
        self,
        groups: Sequence[SocketGroup],
        now: float,
        look_at: float | None = None,
        within: float = QUEUE_GRACE,
    ) -> None:
        self._closing = Closing(groups, now + within, now + LOOK if look_at is None else look_at)

    def _is_accepting(self, groups: Sequence[SocketGroup]) -> bool:
        """Whether a process may still accept from one of these addresses."""
        for process in self._processes.children.living():
            bound = self._processes.listening[process.generation].pairs
            has_it = any(group in groups and bind.role == process.role for bind, group in bound)
            if has_it and self._may_accept(process):
                return True
        return False

    def _may_accept(self, process: ChildProcess) -> bool:
        cells = self._processes.shared.rows.row(process.row)
        return cells[STATE] != DRAINING or bool(cells[ACCEPTING])

    def _close_now(self) -> None:
        """What a reload removed, or at the final stop everything of the listening role."""
        if self._closing is None:
            return
        groups, self._closing = self._closing.groups, None
        for group in groups:
            then = "the service manager holds it" if group.is_external else "new clients are refused"
            self._log.info("unbind", address=group.address, then=then)
        self._processes.sockets.remove(groups)

    # -- growing and shrinking --

    def scale(self, wanted: int, now: float) -> None:
        """So many processes of the listening role from now on; a slot without process keeps its sockets."""
        plan, processes = self._processes.plan, self._processes
        wanted = min(max(1, wanted), plan.most or MAX_SLOTS)
        before, self._growth = self._growth, 0
        if self.is_stopping or wanted == self.wanted:
            return
        role, generation = plan.listening(), processes.current
        if wanted > self.slots and not self._may_bind:
            self._growth = wanted
            if before != wanted:
                self._log.info(
                    "scale", workers=f"{self.wanted}->{wanted}", then="once the successor serves or is gone"
                )
            return
        if wanted > self.slots:
            try:
                processes.sockets.grow(wanted)
            except CannotBind as error:
                self._log.error(
                    "scale", error=error, workers=f"{self.wanted}/{wanted}", then="stay as we are"
                )
                return
        for slot in range(self.wanted, wanted):
            processes.children.want(generation, role, slot, now)
        leaving = [processes.children.unwant(generation, role, slot) for slot in range(wanted, self.wanted)]
        self._log.info("scale", workers=f"{self.wanted}->{wanted}", slots=max(self.slots, wanted))
        self.wanted, self.slots = wanted, max(self.slots, wanted)
        processes.extend_reach()
        for process in leaving:
            if process is not None:
                processes.drain(process, plan.drain_timeout)

    # -- the end of all --

    def retire_all(self, now: float, is_final: bool) -> None:
        """Every generation drains, within the drain timeout of the newest. `is_final`: the sockets go too, no successor
        uses them."""
        within = self._processes.plans[max(self._processes.plans)].drain_timeout
        self._wants_reload = False
        if self._reload is not None:
            self._give_up(self._reload, "the master is told to stop", now)
        if self._settling is not None:
            self._settling.deadline = now
            self._settle(self._settling, now)
        self._processes.was_cut = False  # sessions that a reload has cut, maybe weeks ago, do not count
        self._processes.is_stopping = True
        for retirement in self._retiring:
            retirement.hasten(now, within)
        retiring = {retirement.generation for retirement in self._retiring}
        for generation in self._processes.children.generations():
            if generation not in retiring:
                self._retire(generation, is_final, now, within)

    def close_all(self, now: float) -> None:
        """The final stop: no new clients, once those in the queues have been accepted."""
        role = self._processes.plan.listening()
        groups = [group for group in self._processes.sockets.groups if group.bind.role == role]
        self._close_soon(groups, now)

    def cut_all(self, now: float) -> None:
        for retirement in self._retiring:
            retirement.cut(now)

    def _retire(self, generation: int, is_final: bool, now: float, within: float) -> None:
        self._retiring.append(Retirement(self._processes, generation, is_final, now, within))


def log_notes(plan: Plan, log: Log) -> None:
    """Settings that look like a mistake, a line each."""
    for note in plan.notes:
        log.warning("config", note=note)


def read_plan(service: Service, processes: ProcessManager) -> Plan:
    """The service's new plan. Raises GivenUp; a bug in reading a configuration must not end a serving master."""
    try:
        return service.plan(processes.shared)
    except (ConfigError, OSError, ValueError) as error:
        raise GivenUp(str(error)) from error
    except Exception as error:
        processes.log.error(
            "reload", error=f"{type(error).__name__}: {error}", then="this is a bug, please report it"
        )
        raise GivenUp(f"{type(error).__name__}: {error}") from error
