"""The end of one generation: drain, then cut, then kill.

RULES: runs in the master, never blocks; `advance` is called every turn until the generation is gone. How long sessions
have is the caller's to say, and may become less later.

    drain --processes that serve clients gone--> stop the rest --none left--> gone
      +-----deadline----> QUIT ----1 s----> KILL
"""

import signal
from collections.abc import Iterable

from balancer.prefork.plan import Plan
from balancer.prefork.processes import ProcessManager

CUT_GRACE = 0.5  # seconds after the drain's deadline: children cut their sessions by themselves
KILL_GRACE = 1.0  # seconds after QUIT


class Retirement:
    """One generation on its way out: drain, at the deadline cut, then kill.

    Processes that serve clients drain first. Those that serve THEM (roles with channels; at the final stop the helpers
    too, so that the console answers while sessions finish) are told when the first ones are gone, and replaced if they
    die before.
    """

    def __init__(
        self, processes: ProcessManager, generation: int, is_final: bool, now: float, within: float
    ) -> None:
        plan = processes.plans[generation]
        self.generation = generation
        self.deadline = now + within
        self._processes = processes
        self._first = first_to_go(plan, is_final)
        self._all_told = False
        self._cut_at: float | None = None
        self._stop((role.name for role in plan.roles if role.name in self._first), now)

    def hasten(self, now: float, within: float) -> bool:
        """End within so many seconds; False when it does anyway."""
        if now + within >= self.deadline:
            return False
        self.deadline = now + within
        for process in self._processes.children.living(self.generation):
            if process.draining:
                self._processes.drain(process, within)
        return True

    def _stop(self, roles: Iterable[str], now: float) -> None:
        names = frozenset(roles)
        children = self._processes.children
        for place in children.of_generation(self.generation):
            if place.role in names:
                process = children.unwant(*place.key)
                if process is not None:
                    self._processes.drain(process, self.deadline - now)

    def cut(self, now: float) -> None:
        """Sessions end at once. A second call changes nothing: it must not put off the kill."""
        if self._cut_at is not None:
            return
        self._stop_the_rest(now)
        self._cut_at = now
        for process in self._processes.children.living(self.generation):
            self._processes.send(process.pid, signal.SIGQUIT)

    def _stop_the_rest(self, now: float) -> None:
        if not self._all_told:
            self._all_told = True
            self._stop({place.role for place in self._processes.children.of_generation(self.generation)}, now)

    def advance(self, now: float) -> bool:
        """One step; True when the generation is gone."""
        living = list(self._processes.children.living(self.generation))
        if not any(process.role in self._first for process in living):
            self._stop_the_rest(now)
        if not living and self._all_told:
            return True
        if self._cut_at is None and now > self.deadline + CUT_GRACE:
            left = ",".join(f"{process.role}-{process.slot}" for process in living)
            self._processes.log.warning("drain", generation=self.generation, left=left, then="cut them")
            self.cut(now)
        elif self._cut_at is not None and now > self._cut_at + KILL_GRACE:
            for process in living:
                process.killed = True
                self._processes.send(process.pid, signal.SIGKILL)
        return False


def first_to_go(plan: Plan, is_final: bool) -> frozenset[str]:
    """Roles that drain at once when their generation retires."""
    if is_final:
        return frozenset({plan.listening()})
    return frozenset(role.name for role in plan.roles if not role.channel)


def reload_window(plan: Plan) -> float:
    """Seconds that sessions of a generation have after a reload."""
    return plan.drain_timeout if plan.reload_timeout is None else plan.reload_timeout
