"""The prober: the one process that checks backends and resolves their names.

RULES
- One prober serves all workers: N workers that check by themselves check N times as often and disagree. It writes the
  verdict on the board and logs every change once; workers only read.
- It never blocks: connects run in its loop, threads resolve names (see discovery.resolver).
- What one turn does is bounded: it begins MOST_BEGUN checks, and nothing that is done for each backend looks at all
  others. A turn for 1,000 backends that went down at once was long enough for the master to replace the prober.
- Nothing is lost with it. Its verdicts stay on the board when it dies, its successor begins with them, and only the
  prober that holds the lease writes (see pool.board). While there is no prober, traffic goes on with the last verdicts.

    workers' early ends (totals) -------> penalty, growing ----------------------+
    workers' failed connects (totals) --+                                        +--> verdict, since --> version
    checks ------- outcome -------------+--> health state (rise, fall) --changed-+--> log: down, up
    resolver ----- address --------------------------------------------------------> address words ----> version
    versions: verdicts, addresses, admin states, weights --> serving: is one up? --changed--> log: all-down, some-up

A drain ends it at once: it has no sessions. After an upgrade, where no other prober writes for the workers that drain, it
goes on while it may have to end theirs (`on-down = close`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from balancer.announcer import Announcer
from balancer.backend_names import BackendNames
from balancer.backend_sets import Ask, BackendSets, asking
from balancer.checks.agent_polls import AgentPolls
from balancer.checks.monitored import (
    NO_ADDRESS,
    MonitoredBackend,
    check_targets,
    header_of,
    host_of,
    monitor,
    monitored,
)
from balancer.checks.own_listeners import OwnListeners, numeric
from balancer.checks.probe import Done, Probe, ProbeStream
from balancer.checks.protocols import dialogue_of
from balancer.checks.race import AddressRace, RunningProbe, StartProbe
from balancer.config.units import Address
from balancer.discovery.resolver import Resolver
from balancer.discovery.servers import NameServers, ServerList
from balancer.edge.backend_tls import BackendTls
from balancer.eventloop.loop import Loop
from balancer.options import Options, Pool
from balancer.pool.backend import Backend
from balancer.pool.board import (
    B_BYTES_OUT,
    B_CONNECT_FAILURES,
    B_EARLY_ENDS,
    B_SESSIONS_TOTAL,
    BACKENDS,
    W_PORT,
    Board,
)
from balancer.pool.health import HealthState, PassiveHealth, first_due, ramp
from balancer.pool.serving import state_of, workers_of
from balancer.pool.targets import Target, addresses_of, targets_of
from balancer.pool.verdicts import VerdictWriter
from balancer.prefork.child import Child
from balancer.relay.context import NO_TLS

ITSELF = "itself"
LONGEST_WAIT_FOR_NAMES = 10.0  # seconds; a reload waits for 12
MOST_BEGUN = 32  # checks a turn of the loop; each is 0.1 ms and more


def run(
    child: Child,
    options: Options,
    listening: Sequence[Address],
    board: Board,
    tls: Mapping[str, BackendTls],
) -> int:
    """The role: probe until told to stop. Returns the exit code.

    It is ready, and its generation with it, when each name has been answered or has failed or connect-timeout has passed.
    """
    process, own = options.process, OwnListeners(listening)
    servers = ServerList(process.resolver)
    prober = Prober(child, options.pools, board, process.resolver_refresh, own, tls=tls, servers=servers)
    child.on_drain = lambda deadline: prober.leave_when_done()
    child.on_tick = prober.tick
    prober.start(child.ready)
    return child.run()


def begin_tls(tls: BackendTls, host: str, fd: int) -> ProbeStream:
    """TLS to a backend, for a check. It resumes nothing, so that each check sees the certificate."""
    from balancer.relay.tls.stream import TlsStream  # `ssl` where TLS is configured only

    return TlsStream(fd, tls.context, lambda _: None, tls.name_for(host), is_server=False)


class Prober:
    """Checks the backends of all pools and publishes their verdicts."""

    def __init__(
        self,
        child: Child,
        pools: Sequence[Pool],
        board: Board,
        resolver_refresh: float,
        own: OwnListeners,
        resolver: Resolver | None = None,
        probe: StartProbe = Probe,
        tls: Mapping[str, BackendTls] = NO_TLS.pools,
        servers: Callable[[], NameServers] | None = None,
        ask: Ask | None = None,
    ) -> None:
        self._child, self._board = child, board
        self._loop = child.loop
        self._writer = VerdictWriter(board, child.row)
        self._own, self._servers = own, servers or ServerList(None)
        self._probe, self._tls = probe, tls
        self._random = random.Random().random
        self._pools = [monitor(pool) for pool in pools]
        self._backends = [one for pool in self._pools for one in pool.backends]
        self._turn = self._begun = 0  # a turn of the loop, and the checks that were begun in it
        self._bytes_out: list[int] = []  # totals of this tick, once they are asked for
        self._unanswered: set[str] = set()  # names without an address that a start waits for
        self._announcer = Announcer(child, board, self._writer, self._pools, self._unanswered)
        self._agents = AgentPolls(
            self._loop, board, self._writer, self._backends, probe, self._random, self._announcer.write_agent,
            self._announcer.tell_agent,
        )  # fmt: skip
        self._names = BackendNames(
            self, self._announcer, child, board, self._writer, self._backends, resolver_refresh,
            resolver or Resolver(), own, self._unanswered,
        )  # fmt: skip
        self._sets = BackendSets(
            self, self._announcer, self._loop, board, self._writer, self._backends, resolver_refresh, self._servers,
            ask or asking(self._loop, self._servers), self._unanswered,
        )  # fmt: skip

    def start(self, on_settled: Callable[[], object]) -> None:
        """Acquire the lease, continue with the last verdicts, begin to check. `on_settled` is called once when each name
        has an address or has failed, or connect-timeout has passed."""
        self._take_over()
        self._agents.start()
        patience = max(pool.pool.connect_timeout for pool in self._pools)
        self._sets.look_up(self._loop.now)
        self._names.start(min(patience, LONGEST_WAIT_FOR_NAMES), on_settled)
        self._announcer.judge_all(self._loop.now)

    def tick(self, now: float) -> None:
        """Four times a second: what workers, operators and time have changed."""
        if self._child.draining:
            self.leave_when_done()
        if not self._may_write():
            return
        self._sets.look_up(now)
        self._names.look_up(now)
        self._names.settle(now)
        self._names.look_at_failures(now)
        totals = self._board.every_total(BACKENDS, B_CONNECT_FAILURES)
        early = self._board.every_total(BACKENDS, B_EARLY_ENDS)
        self._bytes_out = []
        for pool in self._pools:
            pool.counted = None
        for (
            one
        ) in self._backends:  # first: each step is a new version, and what is up is counted again with one
            if one.ramp_from:
                self._ramp(one, now)
        for one in self._backends:
            if one.is_empty():
                continue  # what fails now had begun at the tenant before
            total = totals[one.backend.index]
            if total > one.failures:
                self._on_session_failure(one, now)
            one.failures = total
            if one.early.is_out:
                self._release_when_due(one, now)
            if early[one.backend.index] > one.early.seen:
                self._on_early_ends(one, early[one.backend.index], now)
            if isinstance(one.health, PassiveHealth):
                self._look_at_unchecked(one, one.health, now)
        self._announcer.judge_all(now)

    def leave_when_done(self) -> None:
        """End, unless workers that drain may have sessions that only this prober would have closed."""
        is_needed = self._writer.holds() and bool(workers_of(self._board))
        if not is_needed or not any(pool.pool.on_down == "close" for pool in self._pools):
            self._loop.stop()

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
        self._writer.acquire(pool.pool.index for pool in self._pools)
        for pool in self._pools:
            self._writer.write_limits(pool.pool)
        self._agents.clear_unasked()
        self._sets.take_over()
        totals = self._board.every_total(BACKENDS, B_CONNECT_FAILURES)
        early = self._board.every_total(BACKENDS, B_EARLY_ENDS)
        for place, one in enumerate(self._backends):
            one.was_up, one.since = self._writer.restore(one.backend, now)
            one.early.level, one.early.until = self._writer.penalty(one.backend.index)
            one.early.seen = early[one.backend.index]
            one.health.up, one.health.since = one.was_up or one.early.is_out, one.since
            one.health.streak = 0
            if isinstance(one.health, PassiveHealth):
                one.health.go_on(self._writer.ejections(one.backend.index), now)
            one.ramp_from = one.since if self._writer.ramp(one.backend.index) else 0.0
            is_named = one.backend.address.family == "name"
            one.addresses = addresses_of(self._board, one.backend) if is_named else NO_ADDRESS
            one.port = self._board.word(one.backend.index, W_PORT)
            one.failures = totals[one.backend.index]
            one.schedule.due = first_due(now, place, len(self._backends), one.schedule.interval)
            self.judge_own(one, now)
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
        if self._turn != self._loop.turns:
            self._turn, self._begun = self._loop.turns, 0
        if self._begun >= MOST_BEGUN:
            one.timer = self._loop.call_at(self._loop.now, partial(self._begin, one))  # in the next turn
            return
        self._begun += 1
        one.schedule.begun(self._loop.now)
        is_idle = one.name in self._unanswered or one.is_empty()  # no failure
        if not self._writer.holds() or self._writer.is_in_maintenance(one.backend.index) or is_idle:
            self._rest(one)
        elif one.lacks_address():
            self._ended(one, "unresolved", 0.0)
        elif self.judge_own(one, self._loop.now):
            self._ended(one, ITSELF, 0.0)
        else:
            self._ask(one)

    def judge_own(self, one: MonitoredBackend, now: float) -> bool:
        """Whether this balancer listens on every address of the backend, which takes it down at once: each session would
        come back as the next one until no descriptor is left."""
        address, hosts, was_itself = one.backend.address, one.addresses.hosts, one.is_itself
        if one.backend.set is not None:
            host = one.addresses.host
            one.is_itself = bool(host) and self._own.has(numeric(host, one.port or address.port))
        elif one.name:
            one.is_itself = bool(hosts) and not self._own.others(address, hosts)
        else:
            one.is_itself = self._own.has(address)
        if one.is_itself and not was_itself:
            one.health.take_down(now)
            one.reason, one.was_up = ITSELF, True  # said also of one that is down already
            self._writer.note_outcome(one.backend.index, ITSELF)  # no panic leads there
            self._announcer.publish(one, now)
        return one.is_itself

    def _look_at_unchecked(self, one: MonitoredBackend, health: PassiveHealth, now: float) -> None:
        """Without checks: whether it is this balancer, as often as a check would come, and whether its pause is over."""
        if now >= one.schedule.due:
            one.schedule.due = now + one.schedule.interval
            self.judge_own(one, now)
        if not one.is_itself and health.has_recovered(now):
            self._writer.note_outcome(one.backend.index, "none")
            self._announcer.publish(one, now)
        self._writer.note_ejections(one.backend.index, health.downs)

    def _ask(self, one: MonitoredBackend) -> None:
        """Begin a check, of one address or of all that its name has."""
        probe: RunningProbe
        loop, timeout = self._loop, one.pool.timeout
        targets = check_targets(one.pool.pool.check, targets_of(self._board, one.backend))
        start = partial(self._start_probe, one)
        if len(targets) == 1:
            probe = start(loop, targets[0], timeout, partial(self._ended, one))
        else:
            probe = AddressRace(loop, targets, timeout, partial(self._ended, one), start)
        one.probe = None if probe.is_over else probe

    def _start_probe(
        self, one: MonitoredBackend, loop: Loop, target: Target, timeout: float, done: Done
    ) -> RunningProbe:
        pool = one.pool.pool
        dialogue = dialogue_of(pool.check, host_of(target))
        tls = self._tls.get(pool.name)
        if tls is None:
            return self._probe(loop, target, timeout, done, header_of(pool), dialogue)
        secure = partial(begin_tls, tls, one.tls_host)
        return self._probe(loop, target, timeout, done, header_of(pool), dialogue, secure=secure)

    def _ended(
        self, one: MonitoredBackend, outcome: str, seconds: float, came: str = "", by: Target | None = None
    ) -> None:
        """A check is over. `came`: what the service said instead. `by`: the address that answered, where there are
        several."""
        one.probe = None
        now, index, health = self._loop.now, one.backend.index, one.health
        if outcome and self._writer.holds():
            if by is not None:
                self._names.use(one, str(by[1][0]))
            elif one.name and outcome != "ok":  # it may have moved, or there is an address by now
                self._names.hasten(one.name, now)
            if one.backend.set is not None and outcome != "ok" and one.was_up:
                self._sets.hasten(one)  # of one that stays down, nothing is new
            if isinstance(health, HealthState):
                changed = health.passed(now) if outcome == "ok" else health.failed(now)
                self._writer.note_check(index, outcome, seconds, health.streak)
                if one.early.is_out:
                    self._writer.note_outcome(index, "early-end")  # a check does not clear it
                elif outcome != "ok":
                    one.reason, one.came = outcome, came
                if changed or (outcome == "ok" and self._writer.is_unknown(index)):
                    self._announcer.publish(one, now)
        self._rest(one)

    def hasten(self, one: MonitoredBackend) -> None:
        """Check it at once, or SOONEST after the last check."""
        one.schedule.hasten(self._loop.now)
        self._arm(one)

    def check_soon(self, one: MonitoredBackend) -> None:
        """As hasten, also without checks: one of several addresses does not answer."""
        if isinstance(one.health, HealthState):
            self.hasten(one)
        else:
            self._ask(one)

    def _rest(self, one: MonitoredBackend) -> None:
        settled = not isinstance(one.health, HealthState) or one.health.is_settled()
        one.schedule.ended(settled, self._random())
        self._arm(one)

    def _on_session_failure(self, one: MonitoredBackend, now: float) -> None:
        one.reason, one.came = "session-failed", ""
        if one.name:
            self._names.hasten(one.name, now)
        if isinstance(one.health, PassiveHealth) and not self._may_leave(one):
            return
        if one.health.failed(now):
            one.pool.counted = None
            if one.backend.set is not None:
                self._sets.hasten(one)
            self._announcer.publish(one, now)
        self.hasten(one)

    def _may_leave(self, one: MonitoredBackend) -> bool:
        """Without checks: whether one more backend may be taken out. A tenth of a pool, and never the last: failed
        connects are made again elsewhere, and no check would bring a pool back."""
        pool = one.pool
        if pool.counted is None:
            out = sum(not each.health.up for each in pool.backends)
            pool.counted = out, sum(not each.is_empty() for each in pool.backends)
        out, count = pool.counted
        return self._is_another_up(one) and out - (not one.health.up) < max(1, count // 10)

    # -- slow start

    def _ramp(self, one: MonitoredBackend, now: float) -> None:
        permille = ramp(one.ramp_from, one.pool.pool.slow_start, now)
        self._writer.write_ramp(one.backend.index, permille)
        if not permille:
            one.ramp_from = 0.0

    # -- early ends

    def _on_early_ends(self, one: MonitoredBackend, total: int, now: float) -> None:
        """It has ended sessions before its first byte."""
        early = one.early
        if not early.are_too_many(total, self._sessions(one), now) or not one.is_up() or self._is_needed(one):
            return
        one.reason, failures = "early-end", f"{early.count}/{early.limit}"
        wait = early.punish(now)
        self._writer.note_penalty(one.backend.index, early.level, early.until)
        self._writer.note_outcome(one.backend.index, "early-end")
        self._announcer.publish(one, now, failures, wait)

    def _release_when_due(self, one: MonitoredBackend, now: float) -> None:
        """End a penalty when its time is over, when no other backend is left, and when an operator looks after it."""
        index = one.backend.index
        if now < one.early.until and not self._is_needed(one) and not self._writer.is_in_maintenance(index):
            return
        one.early.release(self._sessions(one), now)
        self._writer.note_penalty(index, one.early.level, 0.0)
        self._writer.note_outcome(index, "ok" if isinstance(one.health, HealthState) else "none")
        self._announcer.publish(one, now)

    def _is_needed(self, one: MonitoredBackend) -> bool:
        """Whether no other backend of its pool is up, or none has ever said a word to a client."""
        if not self._is_another_up(one):
            return True
        said = self._bytes_out = self._bytes_out or self._board.every_total(BACKENDS, B_BYTES_OUT)
        return not any(said[each.index] for each in one.pool.pool.backends)

    def _is_another_up(self, one: MonitoredBackend) -> bool:
        self._announcer.refresh(one.pool)
        return one.pool.serving.up > (state_of(self._board, one.backend) == "up")

    def _sessions(self, one: MonitoredBackend) -> int:
        return self._total(one.backend, B_SESSIONS_TOTAL)

    def _total(self, backend: Backend, column: int) -> int:
        return self._board.total(BACKENDS.at(backend.index) + column)

    # -- names

    def note_late(self, name: str) -> None:
        """A start does not wait longer for a set of this name."""
        self._sets.note_failed(name)

    def moved_in(self, one: MonitoredBackend) -> None:
        """Another backend has a slot, or none: it is neither up nor down by what was known of the one before."""
        now, fresh = self._loop.now, monitored(one.backend, one.pool)
        if one.probe is not None:
            one.probe.abandon()
        # The check of the one before will not end, so its schedule would never be due again.
        one.probe, one.health, one.early, one.schedule = None, fresh.health, fresh.early, fresh.schedule
        one.health.since = one.since = now
        one.was_up, one.reason, one.came, one.ramp_from, one.is_itself = True, "", "", 0.0, False
        one.addresses = addresses_of(self._board, one.backend)
        one.port = self._board.word(one.backend.index, W_PORT)
        one.early.seen = self._total(one.backend, B_EARLY_ENDS)
        one.failures = self._total(one.backend, B_CONNECT_FAILURES)
        self._agents.forget(one)
        self.judge_own(one, now)
        self.hasten(one)
