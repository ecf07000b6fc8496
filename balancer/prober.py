"""The prober: the one process that asks backends whether they serve, and name servers where they are.

RULES
- One prober for all workers: N workers that check by themselves ask N times as often and disagree. It
  judges, writes the verdict on the board, and says every change once in the log; workers only read.
- Never blocks: connects run in its loop, name servers are asked by threads (see pool.resolver).
- Nothing is lost with it. Its verdicts stay on the board when it dies, its successor begins with them, and
  only the prober in the chair writes (see pool.board); so traffic goes on with the last verdicts while
  there is none.

    workers' failed connects (totals) --+                                +--> verdict, since --> version
    checks ------- outcome -------------+--> judge (rise, fall) --changed+--> log: down, up, all-down
    resolver ----- address ------------------------------------------------> address words ----> version

A drain ends it at once: it holds nobody's session.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from balancer.checks.probe import Probe
from balancer.config.units import format_duration
from balancer.discovery.resolver import Lookup, Resolver, choose, look_up
from balancer.eventloop.timers import Timer
from balancer.pool.backend import Backend
from balancer.pool.board import B_CONNECT_FAILURES, Board
from balancer.pool.health import Cooldown, Judge, Schedule, first_due
from balancer.pool.targets import target_of
from balancer.pool.verdicts import Pen
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
class Ward:
    """One backend under the prober's eye."""

    backend: Backend
    judge: Judge | Cooldown
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
    """The wards and what happens to them."""

    def __init__(
        self,
        child: Child,
        options: Settings,
        board: Board,
        backends: Sequence[Backend],
        lookup: Lookup = look_up,
    ) -> None:
        self._child, self._options, self._board = child, options, board
        self._loop, self._log = child.loop, child.log
        self._pen = Pen(board, child.row)
        self._resolver = Resolver(lookup)
        self._chance = random.Random().random
        # connect-timeout 0 means the kernel's patience, which is longer than any interval.
        self._timeout = min(options.connect_timeout or options.check_interval, options.check_interval)
        self._wards = [self._ward(backend) for backend in backends]
        self._ask_at = 0.0

    def _ward(self, backend: Backend) -> Ward:
        options = self._options
        judge: Judge | Cooldown
        if options.check == "none":
            judge = Cooldown(options.check_fall, options.check_interval)
        else:
            judge = Judge(options.check_rise, options.check_fall)
        return Ward(backend, judge, Schedule(options.check_interval, 0.0))

    def start(self) -> None:
        """Sit down, take over the last verdicts, begin to ask."""
        self._loop.watch_level(self._resolver.wake_fd, self._collect)
        self._take_over()
        self._ask_names(self._loop.now)
        self._show(self._loop.now)

    def tick(self, now: float) -> None:
        """Four times a second: what workers, operators and time have changed."""
        if not self._may_speak():
            return
        self._ask_names(now)
        totals = self._board.every_total(B_CONNECT_FAILURES)
        for ward in self._wards:
            total = totals[ward.backend.index]
            if total > ward.failures:
                self._on_session_failure(ward, now)
            ward.failures = total
            if isinstance(ward.judge, Cooldown) and ward.judge.waited(now):
                self._judged(ward, now)
        self._show(now)

    # -- the chair

    def _may_speak(self) -> bool:
        if self._pen.is_seated():
            return True
        if self._child.draining or not self._pen.is_vacant():
            return False
        # Whoever took the chair is gone (a reload that failed): this prober is the newest again.
        self._take_over()
        return True

    def _take_over(self) -> None:
        """Sit down and go on with what the last prober knew."""
        now = self._loop.now
        self._pen.sit()
        totals = self._board.every_total(B_CONNECT_FAILURES)
        for place, ward in enumerate(self._wards):
            ward.judge.up, ward.judge.since = self._pen.inherit(ward.backend, now)
            ward.judge.streak = 0
            target = target_of(self._board, ward.backend)
            ward.host = str(target[1][0]) if target is not None else ""
            ward.failures = totals[ward.backend.index]
            ward.schedule.due = first_due(now, place, len(self._wards), self._options.check_interval)
            self._arm(ward)

    # -- checks

    def _arm(self, ward: Ward) -> None:
        if ward.timer is not None:
            ward.timer.cancel()
        ward.timer = None
        if isinstance(ward.judge, Judge) and ward.probe is None:
            ward.timer = self._loop.call_at(ward.schedule.due, partial(self._begin, ward))

    def _begin(self, ward: Ward) -> None:
        ward.timer = None
        if ward.probe is not None:
            return
        ward.schedule.begun(self._loop.now)
        target = target_of(self._board, ward.backend)
        if not self._pen.is_seated() or self._pen.is_in_maintenance(ward.backend.index):
            self._rest(ward)
        elif target is None:
            self._ended(ward, "unresolved", 0.0)
        else:
            probe = Probe(self._loop, target, self._timeout, partial(self._ended, ward))
            ward.probe = None if probe.is_over else probe

    def _ended(self, ward: Ward, outcome: str, seconds: float) -> None:
        ward.probe = None
        now, index, judge = self._loop.now, ward.backend.index, ward.judge
        if outcome and isinstance(judge, Judge) and self._pen.is_seated():
            changed = judge.passed(now) if outcome == "ok" else judge.failed(now)
            self._pen.note_check(index, outcome, seconds, judge.streak)
            if outcome != "ok":
                ward.reason = outcome
            if changed or (outcome == "ok" and self._pen.is_unknown(index)):
                self._judged(ward, now, changed)
        self._rest(ward)

    def _rest(self, ward: Ward) -> None:
        settled = not isinstance(ward.judge, Judge) or ward.judge.is_settled()
        ward.schedule.ended(settled, self._chance())
        self._arm(ward)

    def _on_session_failure(self, ward: Ward, now: float) -> None:
        ward.reason = "session-failed"
        if ward.judge.failed(now):
            self._judged(ward, now)
        ward.schedule.hasten(now)
        self._arm(ward)

    # -- verdicts

    def _judged(self, ward: Ward, now: float, changed: bool = True) -> None:
        """Publish a verdict; say it when it is news."""
        index, judge = ward.backend.index, ward.judge
        self._pen.write_verdict(index, judge.up, judge.since or now)
        if not changed:
            return
        up = sum(other.judge.up for other in self._wards)
        share = f"{up}/{len(self._wards)}"
        about = {"backend": ward.backend.name, "address": ward.backend.address}
        if judge.up:
            passed = {"passed": f"{judge.rise}/{judge.rise}"} if isinstance(judge, Judge) else {}
            self._log.info("up", **about, **passed, up=share)
        else:
            self._pen.count_down(index)
            failed = f"{judge.fall}/{judge.fall}"
            pause = format_duration(self._options.check_interval)
            then = f"next try in {pause}"
            self._log.warning("down", **about, check=ward.reason, failures=failed, up=share, then=then)
        if not up:
            self._log.error("all-down", up=share, then="clients are refused until a backend is back")
        self._show(now)

    def _show(self, now: float) -> None:
        up = sum(ward.judge.up for ward in self._wards)
        self._child.title.set(f"prober [{up}/{len(self._wards)} up]", now)

    # -- names

    def _ask_names(self, now: float) -> None:
        if now < self._ask_at:
            return
        self._ask_at = now + self._options.check_interval
        addresses = [ward.backend.address for ward in self._wards]
        for name in {address.host for address in addresses if address.family == "name"}:
            self._resolver.ask(name)

    def _collect(self, mask: int) -> None:
        """Answers are in: publish new addresses, keep the last good ones where there is none."""
        for name, answers, error in self._resolver.collect():
            for ward in self._wards:
                address = ward.backend.address
                if address.family != "name" or address.host != name:
                    continue
                host = choose(answers, ward.host)
                if host and host != ward.host and self._pen.is_seated():
                    self._moved(ward, host)
                elif not host:
                    kept = ward.host or "nothing"
                    self._log.debug("resolve", backend=ward.backend.name, error=error, then=f"keeps {kept}")

    def _moved(self, ward: Ward, host: str) -> None:
        self._log.info("resolve", backend=ward.backend.name, old=ward.host or "-", address=host)
        ward.host = host
        self._pen.write_address(ward.backend.index, host)
        ward.schedule.hasten(self._loop.now)
        self._arm(ward)
