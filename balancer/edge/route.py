"""A route: which pool clients get that come from a network, or ask for a name.

RULES: pure; one line of the configuration as a record, and back. The records stand in their order in balancer/options.py;
relay/routes.py asks them.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from balancer.config.ini import NAME
from balancer.edge.access import parse_network
from balancer.edge.hello import SERVER_NAME

ROUTES = "from NETWORK -> POOL, sni NAME -> POOL, or -> POOL"
REJECT = "reject"  # where a route leads that refuses its clients; no pool has this name


@dataclass(frozen=True, slots=True)
class Route:
    """Clients from `network` (None: all) that ask for `name` ("": any, "*.example.com": any below) go to the pool of that
    name, or nowhere (REJECT); a listener's first match counts."""

    pool: str
    network: IPv4Network | IPv6Network | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.condition} -> {self.pool}".lstrip()

    @property
    def condition(self) -> str:
        """What a client has to match, as a user writes it; "" for all."""
        conditions = [f"sni {self.name}"] if self.name else []
        conditions += [f"from {self.network}"] if self.network is not None else []
        return " and ".join(conditions)


def parse_pool_name(text: str) -> str:
    """The name of a pool, or nothing."""
    if text and not NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name of a pool: write that of a section [pool NAME]")
    return text


def parse_route(text: str) -> Route:
    """A route from "from 10.0.0.0/8 -> inside", "sni *.example.com and from 10.0.0.0/8 -> web", "-> web"."""
    condition, arrow, pool = text.rpartition("->")
    if not arrow:
        raise ValueError(f"{text!r} is no route: write {ROUTES}")
    pool = parse_pool_name(pool.strip())
    if not pool:
        raise ValueError(f"{text!r} names no pool: write {ROUTES}")
    found: dict[str, str] = {}
    for part in re.split(r"\band\b", condition) if condition.strip() else ():
        words = part.split()
        if not words or words[0] not in ("from", "sni"):
            word = words[0] if words else "and"
            raise ValueError(f"{text!r} has {word!r} where a condition should be: write {ROUTES}")
        if len(words) != 2:
            what = "network" if words[0] == "from" else "name"
            raise ValueError(f"{text!r} does not name one {what}: write {ROUTES}, a line for each {what}")
        if words[0] in found:
            raise ValueError(f"{text!r} says {words[0]} twice: write {ROUTES}")
        found[words[0]] = words[1]
    network = parse_network(found["from"]) if "from" in found else None
    return Route(pool, network, parse_server_name(found["sni"]) if "sni" in found else "")


def parse_server_name(text: str) -> str:
    """A host name, or all names below one: "*.example.com"."""
    name = text.lower().removesuffix(".")
    if not SERVER_NAME.fullmatch(name.removeprefix("*.").encode()):
        raise ValueError(f"{text!r} is no host name: write a.example.com, or *.example.com for all below it")
    return name
