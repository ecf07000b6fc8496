"""What is asked of name servers for a set of backends, and what the answers make of it. Pure.

RULES: no socket, no clock, and no library: replies come in as records. A lookup is a generator of queries that is sent
their replies, and returns the set or why there is none.

- A name with fewer than `ndots` dots is looked for in the search domains first, one with a dot at its end nowhere else.
  What fails of one domain (SERVFAIL, REFUSED, silence, a refused connection) does not end the search in the others: a
  forwarder may be silent about one of them only. Of the name that has answered before it does: another domain may have
  a namesake, and the last set stays.
- The time that an answer holds is the smallest TTL in it, those of its aliases included.
- The lowest priority of a service serves, the others are its backups. Weights are divided by what they share, since only
  their ratio counts. Beside others, one of 0 is given next to nothing (RFC 2782).
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from balancer.discovery.servers import NameServers
from balancer.pool.backend import HEAVIEST, BackendSet
from balancer.pool.targets import tenant_key

MOST_TARGETS = 1024  # of a service
# Of a lookup, as the board numbers them; the last stands for all others.
ERRORS = (
    "", "timeout", "SERVFAIL", "REFUSED", "NXDOMAIN", "NODATA", "FORMERR", "NOTIMP", "no name", "no address to dial",
    "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "error",
)  # fmt: skip
NO_SIX = (
    "NODATA",
    "NXDOMAIN",
    "NOTIMP",
    "FORMERR",
)  # some servers say so of AAAA where there is an A (RFC 4074)
ABSENT = ("no name", "NXDOMAIN", "NODATA")  # no such records; other errors say that a server has failed


class Query(NamedTuple):
    """`kind`: "A", "AAAA" or "SRV"; `name` is absolute, without the dot at its end."""

    name: str
    kind: str


class ServiceRecord(NamedTuple):
    """One SRV record."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class NameReply:
    """`error`: "" or why there are no records: NXDOMAIN, NODATA, SERVFAIL, REFUSED, timeout ...; `extra`: addresses by
    name that came along. `ttl` in seconds, of the answer and its aliases."""

    error: str = ""
    addresses: tuple[str, ...] = ()
    services: tuple[ServiceRecord, ...] = ()
    ttl: float = 0.0
    server: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Member(NamedTuple):
    """A backend of a set. `weight` 0 is the configured one."""

    host: str
    port: int
    weight: int = 0
    is_backup: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def tenant_key(self) -> int:
        """How the board knows it again."""
        return tenant_key(self.host, self.port)


@dataclass(frozen=True, slots=True)
class SetAnswer:
    """The whole set, or an error. `ttl` in seconds; `name`: the one that has answered."""

    members: tuple[Member, ...] = ()
    ttl: float = 0.0
    server: str = ""
    error: str = ""
    name: str = ""


def candidates(name: str, servers: NameServers) -> list[str]:
    """The absolute names to ask for, in turn."""
    if name.endswith("."):
        return [name.rstrip(".")]
    completed = [f"{name}.{domain}" for domain in servers.search]
    return [name, *completed] if name.count(".") >= servers.ndots else [*completed, name]


Lookup = Generator[Query, NameReply, SetAnswer]


def look_up(wanted: BackendSet, servers: NameServers, known: str = "") -> Lookup:
    """Ask for a set: the first of its possible names that has records, or the worst error of them all. `known`: the name
    that has answered last."""
    worst = SetAnswer(error="no name")
    for name in candidates(wanted.host, servers):
        found = yield from (_service(name, wanted) if wanted.kind == "srv" else _hosts(name, wanted))
        if not found.error:
            return replace(found, name=name)
        if _severity(found.error) >= _severity(worst.error):
            worst = found
        if name == known and found.error not in ABSENT:
            break
    return worst


def _severity(error: str) -> int:
    """The worst error of several names is told: that one has no records is told where all are like it."""
    return ABSENT.index(error) if error in ABSENT else len(ABSENT)


def _kinds(family: str) -> tuple[str, ...]:
    return {"4": ("A",), "6": ("AAAA",), "prefer-6": ("AAAA", "A")}.get(family, ("A", "AAAA"))


def _addresses(name: str, family: str) -> Generator[Query, NameReply, NameReply]:
    """The addresses of a name by one IP version, or of both for `both`: a host of both would count twice else."""
    replies: list[NameReply] = []
    for kind in (kinds := _kinds(family)):
        reply = yield Query(name, kind)
        if not reply.error and family != "both":
            return reply
        if reply.error not in ("", *(NO_SIX if kind == "AAAA" and len(kinds) > 1 else NO_SIX[:1])):
            return reply
        replies.append(reply)
    good = [reply for reply in replies if not reply.error]
    if not good:
        return replies[0]
    every = tuple(address for reply in good for address in reply.addresses)
    return NameReply("", every, ttl=min(reply.ttl for reply in good), server=good[0].server)


def _hosts(name: str, wanted: BackendSet) -> Lookup:
    reply = yield from _addresses(name, wanted.family)
    members = tuple(Member(host, wanted.port) for host in dict.fromkeys(reply.addresses))
    return SetAnswer(members, reply.ttl, reply.server, reply.error)


def _service(name: str, wanted: BackendSet) -> Lookup:
    reply = yield Query(name, "SRV")
    services = [one for one in reply.services if one.target not in ("", ".") and one.port][:MOST_TARGETS]
    if reply.error or not services:
        return SetAnswer(server=reply.server, error=reply.error or "NODATA")
    known: dict[str, tuple[str, ...]] = {}
    ttl = reply.ttl
    for target in dict.fromkeys(one.target for one in services):
        known[target] = _of_family(reply.extra.get(target, ()), wanted.family)
        if not known[target]:
            hosts = yield from _addresses(target, wanted.family)
            if hosts.error and hosts.error not in ABSENT:
                return SetAnswer(server=hosts.server, error=hosts.error)  # a part of a set is none
            known[target] = hosts.addresses
            ttl = min(ttl, hosts.ttl) if hosts.addresses else ttl
    members = _members(services, known)
    return SetAnswer(members, ttl, reply.server, "" if members else "NODATA")


def _of_family(addresses: Sequence[str], family: str) -> tuple[str, ...]:
    """What came along, by the same rules as what is asked for."""
    four = tuple(one for one in addresses if ":" not in one)
    six = tuple(one for one in addresses if ":" in one)
    return {"4": four, "6": six, "both": four + six, "prefer-6": six or four}.get(family, four or six)


def _members(services: Sequence[ServiceRecord], known: Mapping[str, tuple[str, ...]]) -> tuple[Member, ...]:
    lowest = min(one.priority for one in services)
    shared = math.gcd(*(one.weight for one in services)) or 1
    heaviest = max(one.weight for one in services) // shared
    has_least = heaviest > 0 and any(not one.weight for one in services)
    scale = HEAVIEST / heaviest if has_least or heaviest > HEAVIEST else 1.0
    found: dict[tuple[str, int], Member] = {}
    for one in sorted(services, key=lambda one: one.priority):  # servers shuffle them
        weight = max(1, round(one.weight // shared * scale))
        for host in known[one.target]:
            found.setdefault((host, one.port), Member(host, one.port, weight, one.priority > lowest))
    return tuple(found.values())
