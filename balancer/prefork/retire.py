"""How a generation ends: who is told first, how long all may take, what happens then.

RULES: runs in the master, one `advance` a turn, never waits. Those who serve clients drain first; processes that serve
THEM (roles with channels; at the final stop also the helpers, so that status can be asked while sessions finish) are
told only when the last of the first is gone, and are replaced if they die before.

    drain --all first ones gone--> stop the rest --none left--> gone
      +-----deadline----> QUIT ----1 s----> KILL
"""

import signal
from collections.abc import Iterable

from balancer.eventloop.signals import send
from balancer.prefork.plan import Plan
from balancer.prefork.processes import ProcessManager

CUT_GRACE = 0.5  # seconds after the drain's deadline: children cut their sessions by themselves
KILL_GRACE = 1.0  # seconds after QUIT


def first_to_go(plan: Plan, is_final: bool) -> frozenset[str]:
    """Roles that drain at once when their generation retires."""
    if is_final:
        return frozenset({plan.listening()})
    return frozenset(role.name for role in plan.roles if not role.channel)


class Retirement:
    """One generation on its way out."""

    def __init__(self, processes: ProcessManager, generation: int, is_final: bool, now: float) -> None:
        plan = processes.plans[generation]
        self.generation = generation
        self.deadline = now + plan.drain_timeout
        self._processes = processes
        self._first = first_to_go(plan, is_final)
        self._all_told = False
        self._cut_at: float | None = None
        self._stop(role.name for role in plan.roles if role.name in self._first)

    def _stop(self, roles: Iterable[str]) -> None:
        names = frozenset(roles)
        children = self._processes.children
        for place in children.of_generation(self.generation):
            if place.role in names:
                process = children.unwant(*place.key)
                if process is not None:
                    send(process.pid, signal.SIGTERM)

    def cut(self, now: float) -> None:
        """No more patience: everyone finishes at once. Asked again it changes nothing: the kill must come in its time."""
        if self._cut_at is not None:
            return
        self._stop_the_rest()
        self._cut_at = now
        for process in self._processes.children.living(self.generation):
            send(process.pid, signal.SIGQUIT)

    @property
    def is_cut(self) -> bool:
        return self._cut_at is not None

    def _stop_the_rest(self) -> None:
        if not self._all_told:
            self._all_told = True
            self._stop({place.role for place in self._processes.children.of_generation(self.generation)})

    def advance(self, now: float) -> bool:
        """One step; True when the generation is gone."""
        living = list(self._processes.children.living(self.generation))
        if not any(process.role in self._first for process in living):
            self._stop_the_rest()
        if not living and self._all_told:
            return True
        if self._cut_at is None and now > self.deadline + CUT_GRACE:
            left = ",".join(f"{process.role}-{process.slot}" for process in living)
            self._processes.log.warning("drain", generation=self.generation, left=left, then="cut them")
            self.cut(now)
        elif self._cut_at is not None and now > self._cut_at + KILL_GRACE:
            for process in living:
                process.killed = True
                send(process.pid, signal.SIGKILL)
        return False
