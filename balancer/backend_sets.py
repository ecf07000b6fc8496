"""The sets of backends that name servers know, and that operators add, in the prober: when the servers are asked, and
what an answer or a request changes.

RULES
- An answer holds for its smallest TTL, but no less than LEAST and no more than `resolver-refresh`: Docker's server says
  600 seconds of containers that come and go, Consul's says 0.
- The last set stays while there is no answer, or an error, for ever: the health checks decide about the dead. A failed
  lookup is made again after LEAST, each time later, up to `resolver-refresh`.
- All slots of a change are written at once. Sessions under way keep the backend they have.
- A complaint is logged when it changes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from zlib import crc32

from balancer.announcer import Announcer
from balancer.checks.monitored import MonitoredBackend
from balancer.config.units import counted, format_duration
from balancer.discovery.answers import (
    ERRORS,
    Lookup,
    Member,
    NameReply,
    Query,
    SetAnswer,
    candidates,
    look_up,
)
from balancer.discovery.resolver import usable
from balancer.discovery.servers import NameServers
from balancer.discovery.slots import Slot, place
from balancer.eventloop.loop import Loop
from balancer.pool.backend import SPARE, BackendSet
from balancer.pool.board import (
    NAME_ANSWERED,
    NAME_FAILED,
    TENANT_WORDS,
    W_ADDRESS,
    W_ADDRESSES,
    W_DNS_AT_MS,
    W_DNS_ERROR,
    W_DNS_FAILURES,
    W_DNS_LEFT_OUT,
    W_DNS_NAME,
    W_DNS_QUERIES,
    W_DNS_SERVER,
    W_DNS_TTL_MS,
    W_IN_USE,
    W_NAME,
    W_SRV_WEIGHT,
    W_TENANT,
    W_TENANT_KEY,
    Board,
)
from balancer.pool.spares import added_to
from balancer.pool.targets import (
    addresses_of,
    left_over,
    pack_addresses,
    port_of,
    text_at,
    unpack_address,
)
from balancer.pool.verdicts import VerdictWriter, fresh_words

LEAST = 1.0  # seconds between two lookups of a set

Ask = Callable[[Query, Callable[[NameReply], object], Callable[[], object]], object]


def asking(loop: Loop, servers: Callable[[], NameServers]) -> Ask:
    """Queries to these name servers. Imports dnspython with the first one: after the fork, and only where a set asks."""

    def ask(query: Query, done: Callable[[NameReply], object], asked: Callable[[], object]) -> None:
        from balancer.discovery.dns_client import DnsQuery

        DnsQuery(loop, servers(), query, done, asked)

    return ask


def dialable(answer: SetAnswer, families: Collection[int]) -> SetAnswer:
    """The answer without addresses that are no machine's, or of an IP version that is not wanted; each as the board holds
    it. An error when nothing is left."""
    found: dict[tuple[str, int], Member] = {}
    for member in answer.members:
        host = unpack_address(*pack_addresses([member.host]))
        if usable([host], families):
            found.setdefault((host, member.port), member._replace(host=host))
    if answer.members and not found:
        return SetAnswer(server=answer.server, error="no address to dial")
    return replace(answer, members=tuple(found.values()))


class SetMonitor(Protocol):
    """What the sets need of the prober."""

    def moved_in(self, one: MonitoredBackend) -> None:
        """Another backend has the slot, or none: what was known of the one before is forgotten."""


@dataclass(slots=True)
class MonitoredSet:
    """One set and its slots. `due` is monotonic seconds, infinite while a lookup is under way, and for spare slots."""

    wanted: BackendSet
    backends: list[MonitoredBackend]
    slots: list[Slot] = field(default_factory=list)
    due: float = 0.0
    failures: int = 0  # in a row
    name: str = ""  # that has answered last, with its domain
    complaint: str = ""

    @property
    def first(self) -> int:
        """The block whose words tell of the last answer."""
        return self.backends[0].backend.index

    def labels(self) -> dict[str, object]:
        return {**self.backends[0].pool.labels(), "set": self.wanted}


class BackendSets:
    """All sets. `ask` sends one query; `unanswered` are the names that a start waits for, shared with other names."""

    def __init__(
        self,
        monitor: SetMonitor,
        announcer: Announcer,
        loop: Loop,
        board: Board,
        writer: VerdictWriter,
        backends: Sequence[MonitoredBackend],
        refresh: float,
        servers: Callable[[], NameServers],
        ask: Ask,
        unanswered: set[str],
    ) -> None:
        self._monitor, self._announcer = monitor, announcer
        self._loop, self._board, self._writer = loop, board, writer
        self._refresh, self._servers, self._ask = max(refresh, LEAST), servers, ask
        self._unanswered = unanswered
        found: dict[tuple[str, str], MonitoredSet] = {}
        for one in backends:
            if one.backend.set is not None:
                name = (one.backend.pool, one.backend.name.rpartition("-")[0])
                due = float("inf") if one.backend.is_spare else 0.0
                found.setdefault(name, MonitoredSet(one.backend.set, [], due=due)).backends.append(one)
        self._sets = list(found.values())
        self._set_of = {one.backend.index: each for each in self._sets for one in each.backends}

    def take_over(self) -> None:
        """Go on with the slots as the last prober left them."""
        for each in self._sets:
            each.slots = [
                Slot(self._member_of(one), key=self._board.word(one.backend.index, W_TENANT_KEY))
                for one in each.backends
            ]
            if each.due < float("inf") and not any(slot.member for slot in each.slots):
                self._unanswered.add(each.wanted.host)
            each.name = self._name_of(each)
            for one in each.backends:
                tenant = self._board.word(one.backend.index, W_TENANT)
                if one.pool.pool.mode == "framed" and tenant & 1:  # from before it was
                    self._board.write_verdict(one.backend.index, [(W_TENANT, tenant + 1)])

    def _name_of(self, each: MonitoredSet) -> str:
        """The name that has answered the last prober."""
        known = {self._board.word(one.backend.index, W_DNS_NAME) for one in each.backends} - {0}
        names = candidates(each.wanted.host, self._servers()) if known else []
        return next((name for name in names if crc32(name.encode()) in known), "")

    def _member_of(self, one: MonitoredBackend) -> Member | None:
        host = addresses_of(self._board, one.backend).host
        if not host:
            return None
        word = self._board.word
        weight, index = word(one.backend.index, W_SRV_WEIGHT), one.backend.index
        is_backup = bool(word(index, TENANT_WORDS[2]))
        return Member(host, port_of(self._board, one.backend), max(0, weight - 1), is_backup)

    def look_up(self, now: float) -> None:
        """Begin the lookups that are due, and fill the spare slots as the console wants them."""
        for each in self._sets:
            if each.wanted.kind == SPARE:
                self._take_added(each)
            elif each.due <= now:
                each.due = float("inf")
                self._advance(each, look_up(each.wanted, self._servers(), each.name), None)

    def hasten(self, one: MonitoredBackend) -> None:
        """A backend of a set does not answer: there may be another one by now. A server that fails is not asked more
        often for that."""
        each = self._set_of[one.backend.index]
        if each.due != float("inf") and not each.failures:
            each.due = min(each.due, self._loop.now + LEAST)

    def _advance(self, each: MonitoredSet, lookup: Lookup, reply: NameReply | None) -> None:
        try:
            query = next(lookup) if reply is None else lookup.send(reply)
        except StopIteration as end:
            self._answered(each, end.value)
        else:
            self._ask(query, lambda found: self._advance(each, lookup, found), lambda: self._count(each))

    def _count(self, each: MonitoredSet, column: int = W_DNS_QUERIES) -> None:
        if self._writer.holds():
            self._board.note(each.first, column, self._board.word(each.first, column) + 1)

    # -- answers

    def _answered(self, each: MonitoredSet, answer: SetAnswer) -> None:
        now, answer = self._loop.now, dialable(answer, each.backends[0].families)
        each.failures = each.failures + 1 if answer.error else 0
        if answer.error:
            wait = min(self._refresh, LEAST * 2.0 ** min(each.failures - 1, 16))
        else:
            wait = min(max(answer.ttl, LEAST), self._refresh)
        each.due = now + wait
        self._unanswered.discard(each.wanted.host)
        if not self._writer.holds():
            return
        if answer.error:
            self._count(each, W_DNS_FAILURES)
            error = answer.error if answer.error in ERRORS else ERRORS[-1]
            self._board.note(each.first, W_DNS_ERROR, ERRORS.index(error))
            self.note_failed(each.wanted.host)
            held = sum(slot.member is not None for slot in each.slots)
            then = f"keeps {counted(held, 'backend')}" if held else f"asked again in {format_duration(wait)}"
            self._complain(each, error=answer.error, then=then)
            return
        each.name = answer.name
        self._note_answer(each, answer, now)
        self._place(each, answer)

    def _note_answer(self, each: MonitoredSet, answer: SetAnswer, now: float) -> None:
        note, first = self._board.note, each.first
        note(first, W_DNS_ERROR, 0)
        for one in each.backends:
            note(one.backend.index, W_DNS_NAME, crc32(answer.name.encode()))
        note(first, W_DNS_AT_MS, round(now * 1000))
        note(first, W_DNS_TTL_MS, round(answer.ttl * 1000))
        for place_, word in enumerate(pack_addresses([answer.server.partition("%")[0] or "::"])):
            note(first, W_DNS_SERVER + place_, word)

    def _place(self, each: MonitoredSet, answer: SetAnswer) -> None:
        before = [slot.member for slot in each.slots]
        indexes = [one.backend.index for one in each.backends]
        changes, left_out = place(
            each.slots,
            answer.members,
            each.wanted.obsolete,
            lambda number: left_over(self._board, indexes[number]),
        )
        self._board.note(each.first, W_DNS_LEFT_OUT, left_out)
        if changes:
            self._change(each, before, changes)
            self._tell(each, before, ttl=format_duration(answer.ttl), server=answer.server)
        if left_out:
            self._complain(each, left_out=left_out, slots=each.wanted.slots, then="give it more slots")
        elif 2 * len(answer.members) > each.wanted.slots:
            then = "give it more slots before they are used up"
            self._complain(each, slots=f"more than half of {each.wanted.slots} are in use", then=then)
        elif each.complaint:
            each.complaint = ""

    def _take_added(self, each: MonitoredSet) -> None:
        """Spare slots: the console says which backend has which."""
        before = [slot.member for slot in each.slots]
        wanted = [added_to(self._board, one.backend.index) for one in each.backends]
        members = [added and Member(*added) for added in wanted]
        changes = {number: now for number, now in enumerate(members) if now != before[number]}
        if changes:
            for number, now in changes.items():
                slot = each.slots[number]
                slot.member, slot.key = now, now.tenant_key if now else slot.key
            self._change(each, before, changes)
            self._tell(each, before)

    def _change(
        self, each: MonitoredSet, before: Sequence[Member | None], changes: Mapping[int, Member | None]
    ) -> None:
        """Publish other backends in these slots, all at once."""
        words = [
            (each.backends[number].backend.index, self._words(each, number, before[number], member))
            for number, member in changes.items()
        ]
        self._board.write_verdicts(words)
        for number, member in changes.items():
            former = before[number]
            if member is None or former is None or member.key != former.key:
                self._monitor.moved_in(each.backends[number])

    def _words(
        self, each: MonitoredSet, number: int, former: Member | None, member: Member | None
    ) -> list[tuple[int, int]]:
        """What is written of a slot that changes; a verdict is about one backend, and starts anew with another."""
        one = each.backends[number]
        if member is None:
            return [(W_ADDRESSES, 0)]
        tenant = dict(
            zip(
                TENANT_WORDS,
                (member.port, member.weight and member.weight + 1, int(member.is_backup)),
                strict=True,
            )
        )
        if former is not None and former.key == member.key:
            return list(tenant.items())
        words = fresh_words(one.backend) | tenant
        words |= {W_NAME: NAME_ANSWERED, W_ADDRESSES: 1, W_IN_USE: 0}
        words |= dict(enumerate(pack_addresses([member.host]), W_ADDRESS))
        words[W_TENANT_KEY] = key = member.tenant_key
        if self._board.word(one.backend.index, W_TENANT_KEY) == key:
            return list(words.items())  # it has come back, and may have sessions from before
        # Requests are short, and framed mode counts them in one gauge: its tenants are all even.
        step = 2 if one.pool.pool.mode == "framed" else 1
        words[W_TENANT] = self._board.word(one.backend.index, W_TENANT) + step
        return list(words.items())

    def note_failed(self, host: str) -> None:
        """Sessions wait no longer for a set of this name that has no backend."""
        for each in self._sets:
            if each.wanted.host == host and not any(slot.member for slot in each.slots):
                self._writer.write_name_failed(each.first)
                for one in each.backends:
                    if self._board.word(one.backend.index, W_NAME) != NAME_FAILED:
                        self._writer.write_name_failed(one.backend.index)

    # -- the log

    def _tell(self, each: MonitoredSet, before: Sequence[Member | None], **about: object) -> None:
        old, new = (
            {member.key for member in members if member}
            for members in (before, [s.member for s in each.slots])
        )
        fields: dict[str, object] = {"backends": len(new)}
        for word, keys in (("added", new - old), ("removed", old - new)):
            if keys:
                shown = sorted(keys)[:4]
                more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
                fields[word] = " ".join(text_at(*key) for key in shown) + more
        self._announcer.tell("info", "resolve", **each.labels(), **fields, **about)

    def _complain(self, each: MonitoredSet, **fields: object) -> None:
        """Once, until it is another complaint or all is well again."""
        complaint = " ".join(f"{key}={value}" for key, value in fields.items() if key != "then")
        if complaint != each.complaint:
            each.complaint = complaint
            self._announcer.tell("warning", "resolve", **each.labels(), **fields)
