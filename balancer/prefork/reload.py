"""A new generation beside the old one: all of it ready, or none of it.

RULES: runs in the master, never blocks. Everything that can fail comes before the old generation hears a word; when it
does fail, the old one has not noticed, and the reason is in the log and in the notice that the console reads.

    read -> bind what is new -> fork -> all ready -> old ones drain -> close what was removed
      |         |                 |
      +---------+-----------------+--> given up: unbind, let the new ones go, the old configuration stays
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from balancer.config.option import ConfigError
from balancer.eventloop.log import Log
from balancer.prefork.plan import Plan, Service
from balancer.prefork.processes import ProcessManager
from balancer.prefork.sockets import CannotBind, SocketGroup
from balancer.shm.notice import NOTICE_BYTES

READY_WITHIN = 12.0  # seconds for a whole new generation
MOST_GENERATIONS = 3  # alive at once; the oldest is cut before a fourth begins


@dataclass(frozen=True)
class PlanChanges:
    """What a reload changes, in words."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(names)} {word}" for word, names in vars(self).items() if names]
        return ", ".join(parts) or "nothing changed"


def summary_of(plan: Plan) -> dict[str, str]:
    """A plan as names and values."""
    summary = {
        f"bind {bind.address}": f"{bind.role} backlog={bind.backlog} mode={bind.mode:o}"
        for bind in plan.binds
    }
    summary |= {f"{role.name}s": str(role.count) for role in plan.roles}
    summary |= {"drain-timeout": f"{plan.drain_timeout:g}s", "steering": "on" if plan.steering else "off"}
    summary |= {"loglevel": str(plan.loglevel)}
    return summary | dict(plan.summary)


def compare(old: Plan, new: Plan) -> PlanChanges:
    """What changes from one plan to the next."""
    before, after = summary_of(old), summary_of(new)
    return PlanChanges(
        added=tuple(f"{name} {after[name]}" for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(
            f"{name} {before[name]} -> {after[name]}"
            for name in after
            if name in before and before[name] != after[name]
        ),
    )


def obstacle(old: Plan, new: Plan) -> str:
    """Why a plan cannot follow another without a restart; empty when it can."""
    if new.columns != old.columns:
        return f"the shared table has {old.columns} columns and the new configuration needs {new.columns}"
    names = [role.name for role in old.roles], [role.name for role in new.roles]
    if names[0] != names[1]:
        return f"the processes are {', '.join(names[0])} and would become {', '.join(names[1])}"
    for name in ("user", "group", "pidfile", "log_path", "title"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            return f"{name.removesuffix('_path')} changes from {before or 'none'} to {after or 'none'}"
    return ""


class GivenUp(Exception):
    """The reload stops here; the text is the reason."""


class Reload:
    """One reload under way. `step` is called every turn until it says True (committed) or raises GivenUp."""

    def __init__(
        self, processes: ProcessManager, service: Service, generation: int, slots: int, now: float
    ) -> None:
        """Read, bind, ask for the new processes. Raises GivenUp with nothing changed."""
        self.generation = generation
        self._processes = processes
        self._deadline = now + READY_WITHIN
        self.old = processes.plans[processes.current]
        self.plan = read_plan(service, processes)
        reason = obstacle(self.old, self.plan)
        if reason:
            raise GivenUp(f"{reason}: that needs a restart")
        warn_of(self.plan, processes.log)
        role = self.plan.roles[self.plan.role_index(self.plan.listening())]
        self.wanted = role.count
        self.slots = max(slots, role.count)
        self._added: list[SocketGroup] = []
        try:
            self._added = processes.sockets.open(self.plan.binds, self.slots)
            processes.sockets.grow(self.slots)
        except CannotBind as error:
            self._unbind()
            raise GivenUp(str(error)) from error
        try:
            processes.want_all(generation, self.plan, now)
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
        self._processes.sockets.remove(group.key for group in self._added)
        self._added = []

    def removed(self) -> list[tuple[str, object]]:
        """Keys of the socket groups that the new plan does not want."""
        wanted = {(bind.role, bind.address) for bind in self.plan.binds}
        return [key for key in self._processes.sockets.groups if key not in wanted]

    def take_over_options(self) -> None:
        """Addresses that stay: their backlog, options and mode as the new plan has them."""
        for bind in self.plan.binds:
            group = self._processes.sockets.groups[bind.role, bind.address]
            if group.bind != bind:
                group.rebind(bind)


def warn_of(plan: Plan, log: Log) -> None:
    """What was read and looks like a slip, a line each."""
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


def abridged(head: Mapping[str, object], text: str, difference: PlanChanges) -> str:
    """JSON that fits the notice whole: what does not is cut word by word, for half an object is nobody's answer."""
    found = ""
    for longest in (100, 40, 8):  # characters of a name; one of them may take six bytes
        record: dict[str, object] = {**head, "text": text[: 8 * longest]}
        for word, names in vars(difference).items():
            record[word] = [name[:longest] for name in names[:10]]
        found = json.dumps(record, separators=(",", ":"))
        if len(found) <= NOTICE_BYTES:
            break
    return found


class ReloadReport:
    """Tells how reloads ended: one JSON text in the notice, one line in the log."""

    def __init__(self, processes: ProcessManager) -> None:
        self._processes = processes
        self._serial = 0

    def tell(self, now: float, error: str, difference: PlanChanges) -> None:
        """`error` empty: it went through."""
        self._serial += 1
        text = error or str(difference)
        head = {"serial": self._serial, "ok": not error, "at_ms": int(now * 1000)}
        self._processes.shared.notice.write(abridged(head, text, difference))
        if error:
            self._processes.log.error("reload", error=error, then="the old configuration stays")
        else:
            self._processes.log.info("reload", generation=self._processes.current, result=text)
