"""What the prober says: verdicts on the board, and a line of the log and an event for each change.

RULES: decides nothing about a backend's health. A change is told once; what a pool can serve is counted again when a
version on the board has changed: a check, an operator, a name, a reload.
- A verdict on one backend, or a word of its agent, does not count the others: when the 1,000 backends of a pool went down
  at once, all were looked at for each of them, and the prober was replaced for want of a heartbeat.
"""

from collections.abc import Sequence, Set

from balancer.checks.agent import AgentWords
from balancer.checks.monitored import MonitoredBackend, MonitoredPool
from balancer.config.units import format_duration
from balancer.pool.board import Board
from balancer.pool.health import HealthState, PassiveHealth, ramp
from balancer.pool.serving import BackendState, availability, is_panic_of, state_of, tiers_of
from balancer.pool.targets import is_backup
from balancer.pool.verdicts import VerdictWriter
from balancer.prefork.child import Child
from balancer.shm.events import EventWriter, Level, Verb, tell


class Announcer:
    """Publishes verdicts and what pools can serve. `unanswered` are the names that are waited for at a start."""

    def __init__(
        self,
        child: Child,
        board: Board,
        writer: VerdictWriter,
        pools: Sequence[MonitoredPool],
        unanswered: Set[str],
    ) -> None:
        self._title, self._log = child.title, child.log
        self._events = EventWriter(board.shared.events, child.row)
        self._board, self._writer, self._pools = board, writer, pools
        self._unanswered = unanswered

    def publish(self, one: MonitoredBackend, now: float, failures: str = "", wait: float = 0.0) -> None:
        """Write a verdict; log it when it has changed. Failures of their limit and seconds to wait are a penalty's."""
        index, health, pool, is_up = one.backend.index, one.health, one.pool, one.is_up()
        versions, state = self._board.versions(pool.pool.index), state_of(self._board, one.backend)
        changed, one.was_up = is_up != one.was_up, is_up
        if changed:
            one.since = now
        if changed and (pool.pool.slow_start or one.ramp_from):
            one.ramp_from = now if is_up else 0.0
            self._writer.write_ramp(index, ramp(now, pool.pool.slow_start, now) if is_up else 0)
        self._writer.write_verdict(index, is_up, one.since or now)
        self._recount_after(one, versions, state)
        if not changed:
            return
        labels = one.labels() | one.where()
        if is_up:
            rise = health.rise if isinstance(health, HealthState) and one.reason != "early-end" else 0
            passed = {"passed": f"{rise}/{rise}"} if rise else {}
            self.tell("info", "up", **labels, **passed, up=pool.share())
        else:
            self._writer.count_down(index)
            about = {"check": one.reason, "failures": failures or f"{health.fall}/{health.fall}"}
            if one.came and not failures:
                about["got"] = one.came
            if isinstance(health, PassiveHealth):
                wait = wait or health.wait
            then = f"next try in {format_duration(wait or one.schedule.interval)}"
            if one.is_itself:
                about = {"check": one.reason, "reason": "this balancer itself listens there"}
                then = "no session goes there"
            self.tell("warning", "down", **labels, **about, up=pool.share(), then=then)
        self._announce(pool, now)
        self._show(now)

    def write_agent(self, one: MonitoredBackend, words: tuple[int, ...]) -> None:
        """Write what an agent has said. What the pool can serve by now is told at the next tick."""
        versions, state = self._board.versions(one.pool.pool.index), state_of(self._board, one.backend)
        if self._writer.write_agent(one.backend.index, words):
            self._recount_after(one, versions, state)

    def judge_all(self, now: float) -> None:
        """Whatever has changed what a pool can serve: a check, an operator, a name, a reload."""
        for pool in self._pools:
            self.refresh(pool)
            if pool.has_changed:
                pool.has_changed = False
                self._announce(pool, now)
        self._show(now)

    def refresh(self, pool: MonitoredPool) -> None:
        """Count what a pool can serve by now. Costs nothing while nothing has changed."""
        pool.has_changed |= self._recount(pool)

    def _recount_after(self, one: MonitoredBackend, versions: tuple[int, int], before: BackendState) -> None:
        """Count again after a verdict on one backend: the others only where they may have changed as well, or where none
        is up. `versions` of the board and the state of the backend are those before the verdict."""
        pool, board = one.pool, self._board
        state = state_of(board, one.backend)
        up = pool.serving.up + (state == "up") - (before == "up")
        if versions != pool.judged or (state != before and not up):
            self.refresh(pool)
            return
        pool.judged = board.versions(pool.pool.index)[0], versions[1]
        if state != before:
            pool.has_changed = True
            pool.serving = pool.serving._replace(up=up, is_serving=True, reason="")
            if pool.pool.panic:
                tier = pool.tiers[is_backup(board, one.backend)]
                tier[before] -= 1
                tier[state] += 1

    def _recount(self, pool: MonitoredPool) -> bool:
        """Count the backends that are up again; False when nothing has changed since the last time."""
        versions = self._board.versions(pool.pool.index)
        if versions == pool.judged:
            return False
        pool.judged = versions
        pool.serving = availability(self._board, pool.pool)
        if pool.pool.panic:
            pool.tiers = tiers_of(self._board, pool.pool)
        return True

    def _announce(self, pool: MonitoredPool, now: float) -> None:
        """Log it when the last backend has gone or the first one is back, compared with what the log has said last."""
        if (in_panic := is_panic_of(pool.pool.panic, *pool.tiers)) != pool.is_panic:
            pool.is_panic = in_panic
            limit = f"{pool.pool.panic}%"
            then = "those that are down are elected as well" if in_panic else "over"
            self.tell(
                "warning" if in_panic else "info",
                "panic",
                **pool.labels(),
                up=pool.share(),
                limit=limit,
                then=then,
            )
        found, index = pool.serving, pool.pool.index
        was_down, since = self._writer.announced(index)
        if found.is_serving != was_down:
            return
        if not found.is_serving and self._unanswered & pool.names():
            pool.has_changed = True  # look again at the next tick
            return
        self._writer.announce(index, not found.is_serving, now)
        if found.is_serving:
            self.tell("info", "some-up", **pool.labels(), up=pool.share(), after=f"{now - since:.1f}s")
        else:
            then = "clients are closed until a backend is back"
            self.tell("error", "all-down", **pool.labels(), up=pool.share(), reason=found.reason, then=then)

    def tell_agent(self, one: MonitoredBackend, said: AgentWords) -> None:
        state = "down" if said.is_down else said.mode
        more: dict[str, object] = {"maxconn": said.maxconn} if said.maxconn is not None else {}
        if said.reason:
            more["reason"] = said.reason
        self.tell("info", "agent", **one.labels(), state=state, weight=f"{said.weight}%", **more)

    def tell(self, level: Level, verb: Verb, **fields: object) -> None:
        tell(self._log, self._events, level, verb, **fields)

    def _show(self, now: float) -> None:
        up = sum(pool.serving.up for pool in self._pools)
        count = sum(pool.serving.all for pool in self._pools)
        self._title.set(f"prober [{up}/{count} up]", now)
