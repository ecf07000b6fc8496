"""What is still waited for, of a status: for `balancerctl wait`, and `drain`, `maint` and `ready` with --wait.

RULES: pure; a status in, a sentence out, empty once it is met.

    up       each of the backends takes new sessions              ready   a client can be served
    down     the checks, sessions or agents speak against each    idle    no session is open, and none waits
    drained  none takes new sessions, and no session is left

The sessions of a master before an upgrade are known to it alone: while it lives, some may be open, at any backend.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from balancer.config.units import counted, parse_address
from balancer.console.table import identity, of_former
from balancer.pool.backend import is_called

Status = Mapping[str, Any]
OUT = ("drain", "maint", "weight-0")  # states that only an operator or the configuration ends


class NeverMet(Exception):
    """It would be waited for ever; the text says why."""


def ready(status: Status) -> str:
    return "" if status["serving"] else f"no client can be served: {status['reason']}"


def idle(status: Status) -> str:
    totals = status["totals"]
    open_now, queued = int(totals["sessions"]), int(totals["queued"])
    return f"{counted(max(open_now, queued), 'session')} open" if open_now or queued else of_former(status)


def up(backends: Iterable[Status]) -> str:
    left = [identity(one) for one in backends if one["state"] != "up"]
    return f"not up yet: {', '.join(left)}" if left else ""


def down(backends: Iterable[Status]) -> str:
    left = [f"{identity(one)} is {one['state']}" for one in backends if one["state"] != "down"]
    return f"not down yet: {', '.join(left)}" if left else ""


def empty(backends: Iterable[Status]) -> str:
    left = sum(one["sessions"] for one in backends)
    return f"{counted(left, 'session')} left" if left else ""


def drained(backends: Iterable[Status]) -> str:
    found = list(backends)
    takes = [identity(one) for one in found if one["state"] == "up"]
    return f"new sessions still go to {', '.join(takes)}" if takes else empty(found)


OF_BALANCER: dict[str, Callable[[Status], str]] = {"ready": ready, "idle": idle}
OF_BACKENDS: dict[str, Callable[[Iterable[Status]], str]] = {"up": up, "down": down, "drained": drained}


def after(act: str, names: set[str], status: Status) -> str:
    """What an act on these backends still waits for. Raises NeverMet when it has been undone meanwhile."""
    found = [one for one in status["backends"] if identity(one) in names]
    if act != "ready":
        if back := [identity(one) for one in found if one["state"] == "up"]:
            raise NeverMet(f"takes new sessions again: {', '.join(back)}")
        return empty(found) or of_former(status)
    if gone := names.difference(map(identity, found)):
        raise NeverMet(f"no longer configured: {', '.join(sorted(gone))}")
    if out := [f"{identity(one)} is {one['state']}" for one in found if one["state"] in OUT]:
        raise NeverMet(f"it will not be up by itself: {', '.join(out)}")
    return up(found)


def condition(words: tuple[str, ...], known: set[str], status: Status) -> str:
    """What `wait WORDS` still waits for: the names of backends or patterns of them, then the condition. `known` keeps the
    names that a backend had at this or an earlier look. Raises NeverMet for a name that none had."""
    *names, wanted = words
    if wanted in OF_BALANCER:
        return OF_BALANCER[wanted](status)
    found: dict[str, Status] = {}
    for name in names:
        matching = called(name, status["backends"])
        if matching:
            known.add(name)
        elif name not in known:
            raise NeverMet(f"no backend is called {name!r}")
        elif wanted != "drained":
            raise NeverMet(f"no longer there: {name}")
        found |= {identity(one): one for one in matching}
    left = OF_BACKENDS[wanted](found.values())
    return left or (of_former(status) if wanted == "drained" else "")


def called(name: str, backends: Iterable[Status]) -> list[Status]:
    """The backends that a name means, with or without the pool; a pattern that is no name means all that match."""
    named = [(spellings(one), one) for one in backends]
    exact = [one for names, one in named if name in names]
    return exact or [one for names, one in named if is_called(names, name)]


def spellings(backend: Status) -> list[str]:
    """As Backend.spellings."""
    name = str(backend["name"])
    names = [name]
    if name == backend["address"] and name.startswith("unix:"):
        names.append(f"unix:{parse_address(name).path}")
    return [*names, *(f"{backend['pool']}/{one}" for one in names)]
