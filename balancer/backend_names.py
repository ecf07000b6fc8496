"""The names of backends, in the prober: when they are looked up, and what an answer changes.

RULES: one lookup serves all backends of a name. What is known of a name stays until there is a new answer. Decides
nothing about health: the prober is asked for a check where an answer, or a failed session, calls for one.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol

from balancer.announcer import Announcer
from balancer.checks.monitored import MonitoredBackend
from balancer.checks.own_listeners import OwnListeners
from balancer.config.units import format_duration
from balancer.discovery.lookups import LookupSchedule
from balancer.discovery.resolver import Resolver, merge, usable
from balancer.pool.board import B_ADDRESS_FAILURES, BACKENDS, Board
from balancer.pool.verdicts import VerdictWriter
from balancer.prefork.child import Child


class Monitor(Protocol):
    """What the names need of the prober."""

    def judge_own(self, one: MonitoredBackend, now: float) -> bool:
        """Whether the backend is this balancer itself; takes it down then."""

    def hasten(self, one: MonitoredBackend) -> None:
        """Check the backend at once, or as soon as that is wise."""

    def check_soon(self, one: MonitoredBackend) -> None:
        """As hasten, also where a pool has no checks: only to find out which address answers."""

    def note_late(self, name: str) -> None:
        """The name has not been answered within the time that a start waits for it."""


class BackendNames:
    """The names of all backends. `backends` are those of the prober, with a name or without; `unanswered` gets the
    names without an address that are waited for."""

    def __init__(
        self,
        monitor: Monitor,
        announcer: Announcer,
        child: Child,
        board: Board,
        writer: VerdictWriter,
        backends: Sequence[MonitoredBackend],
        refresh: float,
        resolver: Resolver,
        own: OwnListeners,
        unanswered: set[str],
    ) -> None:
        self._monitor, self._announcer = monitor, announcer
        self._loop, self._log = child.loop, child.log
        self._board, self._writer, self._own = board, writer, own
        self._resolver = resolver
        self._by_name: dict[str, list[MonitoredBackend]] = {}
        for one in backends:
            if one.name:
                self._by_name.setdefault(one.name, []).append(one)
        self._lookups = LookupSchedule(self._by_name, refresh)
        self._unanswered = unanswered
        self._until = 0.0  # when they are not waited for any longer
        self._on_settled: Callable[[], object] | None = None

    def start(self, patience: float, on_settled: Callable[[], object]) -> None:
        """Look all up. `on_settled` is called once when each name has an address or has failed, or `patience` seconds
        have passed."""
        self._on_settled = on_settled
        self._loop.watch_level(self._resolver.wake_fd, self._collect)
        now = self._loop.now
        self._unanswered.update(
            name for name, backends in self._by_name.items() if any(one.lacks_address() for one in backends)
        )
        self._until = now + patience
        self.look_up(now)
        self.settle(now)

    def hasten(self, name: str, now: float) -> None:
        """A backend of this name has no address, or none that answers."""
        self._lookups.hasten(name, now)

    def look_up(self, now: float) -> None:
        """Begin the lookups that are due."""
        for name in self._lookups.take_due(now):
            self._resolver.ask(name)

    def _collect(self, mask: int) -> None:
        """Lookups have ended: publish new addresses, keep the last good ones where there is none."""
        now = self._loop.now
        for name, answers, error in self._resolver.collect():
            self._unanswered.discard(name)
            backends = self._by_name[name]
            learned = [one for one in backends if self._learn(one, answers)]
            wait = self._lookups.ended(name, bool(learned), now)
            self._note_unresolved(backends)
            if not learned and self._writer.holds():
                self._tell_failure(name, error or f"no address to dial among {', '.join(answers)}", wait)
        self.settle(now)

    def _learn(self, one: MonitoredBackend, answers: Sequence[str]) -> bool:
        """Publish the addresses of a backend, if they are others; False when the answer has none to dial."""
        hosts, known = usable(answers, one.families), one.addresses
        if not hosts or not self._writer.holds():
            return bool(hosts)
        others = self._own.others(one.backend.address, hosts)
        one.addresses = merge(known, others or hosts)
        if one.addresses is not known:
            if not others:  # down before a worker knows where to dial
                self._writer.write_verdict(one.backend.index, False, self._loop.now)
            self._writer.write_addresses(one.backend.index, one.addresses)
            self._monitor.judge_own(one, self._loop.now)
        if one.addresses.host != known.host:
            self._tell_address(one, known.host)
            self._monitor.hasten(one)
        return True

    def _note_unresolved(self, backends: Sequence[MonitoredBackend]) -> None:
        """Sessions wait no longer for those that have no address."""
        for one in backends:
            if one.lacks_address() and self._writer.holds():
                self._writer.write_name_failed(one.backend.index)

    def use(self, one: MonitoredBackend, host: str) -> None:
        """An address has answered a check: new sessions try it first from now on."""
        known = one.addresses
        if host == known.host or host not in known.hosts:
            return
        one.addresses = known._replace(in_use=known.hosts.index(host))
        self._writer.write_in_use(one.backend.index, one.addresses.in_use)
        self._tell_address(one, known.host)

    def _tell_address(self, one: MonitoredBackend, old: str) -> None:
        count = len(one.addresses.hosts)
        several = {"addresses": count} if count > 1 else {}
        self._announcer.tell(
            "info", "resolve", **one.labels(), old=old or "-", address=one.addresses.host, **several
        )

    def _tell_failure(self, name: str, error: str, wait: float) -> None:
        """Logged when the first of several lookups fails. Addresses that are known stay."""
        kept = next((one.addresses.host for one in self._by_name[name] if one.addresses.hosts), "")
        then = f"keeps {kept}" if kept else f"asked again in {format_duration(wait)}"
        if self._lookups.failures[name] == 1:
            self._announcer.tell("warning", "resolve", name=name, error=error, then=then)
        else:
            self._log.debug("resolve", name=name, error=error, then=then)

    def settle(self, now: float) -> None:
        """Say once that nothing is left to wait for. Sessions wait for a name until then, and no longer."""
        if self._on_settled is None or (self._unanswered and now < self._until):
            return
        for name in self._unanswered:
            self._note_unresolved(self._by_name.get(name, ()))
            self._monitor.note_late(name)
        self._unanswered.clear()
        on_settled, self._on_settled = self._on_settled, None
        on_settled()

    def look_at_failures(self, now: float) -> None:
        """Sessions have failed at one of several addresses: find out which of them answers."""
        if not self._by_name:
            return
        totals = self._board.every_total(BACKENDS, B_ADDRESS_FAILURES)
        for one in chain.from_iterable(self._by_name.values()):
            total = totals[one.backend.index]
            if total > one.address_failures and one.probe is None and len(one.addresses.hosts) > 1:
                self._monitor.check_soon(one)
            one.address_failures = total
