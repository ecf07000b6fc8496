"""The prober: the one process that checks backends and resolves their names.

RULES
- One prober serves all workers: N workers that check by themselves check N times as often and disagree. It writes the
  verdict on the board and logs every change once; workers only read.
- It never blocks: connects run in its loop, threads resolve names (see discovery.resolver).
- Nothing is lost with it. Its verdicts stay on the board when it dies, its successor begins with them, and only the
  prober that holds the lease writes (see pool.board). While there is no prober, traffic goes on with the last verdicts.

    workers' failed connects (totals) --+                                        +--> verdict, since --> version
    checks ------- outcome -------------+--> health state (rise, fall) --changed-+--> log: down, up, all-down
    resolver ----- address --------------------------------------------------------> address words ----> version

A drain ends it at once: it has no sessions.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from balancer.checks.probe import Done, Probe
from balancer.config.units import format_duration
from balancer.discovery.resolver import Resolver, choose
from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer
from balancer.pool.backend import Backend
from balancer.pool.board import B_CONNECT_FAILURES, Board
from balancer.pool.health import HealthState, PassiveHealth, Schedule, first_due
from balancer.pool.targets import Target, target_of
from balancer.pool.verdicts import VerdictWriter
from balancer.prefork.child import Child


class Settings(Protocol):
    """What the prober reads of balancer.options.Options. Times in seconds."""

    @property
    def check(self) -> str: ...  # "tcp" | "none"
    @property
    def check_interval(self) -> float: ...
    @property
    def check_rise(self) -> int: ...
    @property
    def check_fall(self) -> int: ...
    @property
    def connect_timeout(self) -> float: ...


@dataclass(slots=True)
class MonitoredBackend:
    """One backend, its health and its next check."""

    backend: Backend
    health: HealthState | PassiveHealth
    schedule: Schedule
    host: str = ""  # the resolved address of a name
    failures: int = 0  # connect failures of all workers, as last seen
    probe: Probe | None = None
    timer: Timer | None = None
    reason: str = ""


def run(child: Child, options: Settings, board: Board, backends: Sequence[Backend]) -> int:
    """The role: probe until told to stop. Returns the exit code."""
    prober = Prober(child, options, board, backends)
    child.on_drain = lambda deadline: child.loop.stop()
    child.on_tick = prober.tick
    prober.start()
    child.ready()
    return child.run()


class Prober:
    """Checks the backends and publishes their verdicts."""

    def __init__(
        self,
        child: Child,
        options: Settings,
        board: Board,
        backends: Sequence[Backend],
        resolver: Resolver | None = None,
        probe: Callable[[Loop, Target, float, Done], Probe] = Probe,
    ) -> None:
        self._child, self._options, self._board = child, options, board
        self._loop, self._log = child.loop, child.log
        self._writer = VerdictWriter(board, child.row)
        self._resolver = resolver or Resolver()
        self._probe = probe
        self._random = random.Random().random
        # connect-timeout 0 means the kernel's patience, which is longer than any interval.
        self._timeout = min(options.connect_timeout or options.check_interval, options.check_interval)
        self._monitored = [self._monitor(backend) for backend in backends]
        self._ask_at = 0.0

    def _monitor(self, backend: Backend) -> MonitoredBackend:
        options = self._options
        health: HealthState | PassiveHealth
        if options.check == "none":
            health = PassiveHealth(options.check_fall, options.check_interval)
        else:
            health = HealthState(options.check_rise, options.check_fall)
        return MonitoredBackend(backend, health, Schedule(options.check_interval, 0.0))

    def start(self) -> None:
        """Acquire the lease, continue with the last verdicts, begin to check."""
        self._loop.watch_level(self._resolver.wake_fd, self._collect)
        self._take_over()
        self._ask_names(self._loop.now)
        self._show(self._loop.now)

    def tick(self, now: float) -> None:
        """Four times a second: what workers, operators and time have changed."""
        if not self._may_write():
            return
        self._ask_names(now)
        totals = self._board.every_total(B_CONNECT_FAILURES)
        for one in self._monitored:
            total = totals[one.backend.index]
            if total > one.failures:
                self._on_session_failure(one, now)
            one.failures = total
            if isinstance(one.health, PassiveHealth) and one.health.has_recovered(now):
                self._publish(one, now)
        self._show(now)

    # -- the lease

    def _may_write(self) -> bool:
        if self._writer.holds():
            return True
        if self._child.draining or not self._writer.is_vacant():
            return False
        # The prober that took the lease is gone (a reload that failed): this one is the newest again.
        self._take_over()
        return True

    def _take_over(self) -> None:
        """Acquire the lease and go on with what the last prober knew."""
        now = self._loop.now
        self._writer.acquire()
        totals = self._board.every_total(B_CONNECT_FAILURES)
        for place, one in enumerate(self._monitored):
            one.health.up, one.health.since = self._writer.restore(one.backend, now)
            one.health.streak = 0
            target = target_of(self._board, one.backend)
            one.host = str(target[1][0]) if target is not None else ""
            one.failures = totals[one.backend.index]
            one.schedule.due = first_due(now, place, len(self._monitored), self._options.check_interval)
            self._arm(one)

    # -- checks

    def _arm(self, one: MonitoredBackend) -> None:
        if one.timer is not None:
            one.timer.cancel()
        one.timer = None
        if isinstance(one.health, HealthState) and one.probe is None:
            one.timer = self._loop.call_at(one.schedule.due, partial(self._begin, one))

    def _begin(self, one: MonitoredBackend) -> None:
        one.timer = None
        if one.probe is not None:
            return
        one.schedule.begun(self._loop.now)
        target = target_of(self._board, one.backend)
        if not self._writer.holds() or self._writer.is_in_maintenance(one.backend.index):
            self._rest(one)
        elif target is None:
            self._ended(one, "unresolved", 0.0)
        else:
            probe = self._probe(self._loop, target, self._timeout, partial(self._ended, one))
            one.probe = None if probe.is_over else probe

    def _ended(self, one: MonitoredBackend, outcome: str, seconds: float) -> None:
        one.probe = None
        now, index, health = self._loop.now, one.backend.index, one.health
        if outcome and isinstance(health, HealthState) and self._writer.holds():
            changed = health.passed(now) if outcome == "ok" else health.failed(now)
            self._writer.note_check(index, outcome, seconds, health.streak)
            if outcome != "ok":
                one.reason = outcome
            if changed or (outcome == "ok" and self._writer.is_unknown(index)):
                self._publish(one, now, changed)
        self._rest(one)

    def _rest(self, one: MonitoredBackend) -> None:
        settled = not isinstance(one.health, HealthState) or one.health.is_settled()
        one.schedule.ended(settled, self._random())
        self._arm(one)

    def _on_session_failure(self, one: MonitoredBackend, now: float) -> None:
        one.reason = "session-failed"
        if one.health.failed(now):
            self._publish(one, now)
        one.schedule.hasten(now)
        self._arm(one)

    # -- verdicts

    def _publish(self, one: MonitoredBackend, now: float, changed: bool = True) -> None:
        """Write a verdict; log it when it has changed."""
        index, health = one.backend.index, one.health
        self._writer.write_verdict(index, health.up, health.since or now)
        if not changed:
            return
        up = sum(other.health.up for other in self._monitored)
        share = f"{up}/{len(self._monitored)}"
        about = {"backend": one.backend.name, "address": one.backend.address}
        if health.up:
            passed = {"passed": f"{health.rise}/{health.rise}"} if isinstance(health, HealthState) else {}
            self._log.info("up", **about, **passed, up=share)
        else:
            self._writer.count_down(index)
            failed = f"{health.fall}/{health.fall}"
            pause = format_duration(self._options.check_interval)
            then = f"next try in {pause}"
            self._log.warning("down", **about, check=one.reason, failures=failed, up=share, then=then)
        if not up:
            self._log.error("all-down", up=share, then="clients are refused until a backend is back")
        self._show(now)

    def _show(self, now: float) -> None:
        up = sum(one.health.up for one in self._monitored)
        self._child.title.set(f"prober [{up}/{len(self._monitored)} up]", now)

    # -- names

    def _ask_names(self, now: float) -> None:
        if now < self._ask_at:
            return
        self._ask_at = now + self._options.check_interval
        addresses = [one.backend.address for one in self._monitored]
        for name in {address.host for address in addresses if address.family == "name"}:
            self._resolver.ask(name)

    def _collect(self, mask: int) -> None:
        """Lookups have ended: publish new addresses, keep the last good ones where there is none."""
        for name, answers, error in self._resolver.collect():
            for one in self._monitored:
                address = one.backend.address
                if address.family != "name" or address.host != name:
                    continue
                host = choose(answers, one.host)
                if host and host != one.host and self._writer.holds():
                    self._moved(one, host)
                elif not host:
                    kept = one.host or "nothing"
                    self._log.debug("resolve", backend=one.backend.name, error=error, then=f"keeps {kept}")

    def _moved(self, one: MonitoredBackend, host: str) -> None:
        self._log.info("resolve", backend=one.backend.name, old=one.host or "-", address=host)
        one.host = host
        self._writer.write_address(one.backend.index, host)
        one.schedule.hasten(self._loop.now)
        self._arm(one)
